"""RestoreIdentity: the core's own faces, others' patches on the way back alone, what stays, Cancel."""

from functools import partial
from unittest.mock import patch

import comfy.model_management
import torch
from check_identity import load_fp32
from check_restore import part, refused, samples
from crafted import random_artifact, random_identity

SIZE, STEPS = 64, 4
PROMPT = "a photo of {person}"
BLOCKS = (*(("input", number) for number in (1, 2, 4, 5, 7, 8)), ("middle", 0))


def walk(pack, **changes):
    return part(pack, "magicapture_core.diir.restorer").Walk(num_steps=STEPS, **changes)


def drawing(pack, loaded, **changes):
    model, clip, vae = loaded
    given = {"model": model, "clip": clip, "vae": vae, "prompt": PROMPT, "negative": "blurry", "size": SIZE}
    given |= {"artifact": None, "identity": None, "walk": walk(pack)}
    return part(pack, "nodes.redrawing").open_drawing(**given | changes)


def face(pack):
    """A framed one [1,3,512,512]."""
    return torch.nn.functional.interpolate(samples(pack)[:1].movedim(-1, 1), (512, 512), mode="bicubic").clamp(0, 1)


def node(pack, loaded, images, **changes):
    """As ComfyUI hands lists over -> pictures, the report's lines. In small frames: a CPU takes minutes for large."""
    model, clip, vae = loaded
    single = {"model": model, "clip": clip, "vae": vae, "mode": "restore", "strength": 0.0, "steps": STEPS, "cfg": 3.0}
    single |= {"prompt": PROMPT, "negative": "", **changes}
    lists = {name: value if isinstance(value, list) else [value] for name, value in single.items()}
    restore_identity = part(pack, "nodes.restore_identity").RestoreIdentity.PREPARE_CLASS_CLONE(None)
    redrawing = part(pack, "nodes.redrawing")
    with patch.object(redrawing, "open_drawing", partial(redrawing.open_drawing, size=SIZE)):
        result = restore_identity.execute(images, **lists)
    return result.args[0], result.args[1].split("\n")


def replaced(model):
    """A replacement of every cross-attention, as IP-Adapters make it, and a log of when it ran."""
    model, log = model.clone(), []

    def replace(query, _keys, _values, _extra):
        log.append(len(query))
        return torch.zeros_like(query)

    for block in BLOCKS:
        model.set_model_attn2_replace(replace, *block)
    return model, log


def check_a_lora_that_was_there_before_is_refused(pack, loaded):
    """The way to noise would know the person."""
    from check_sampling import attached

    artifact = random_artifact(pack)
    on = attached(pack, loaded, artifact)
    with refused("model, clip: MODEL and CLIP had the LoRA of random before"):
        drawing(pack, [*on[:2], loaded[2]], artifact=artifact)


def check_a_face_is_the_cores(pack, checkpoint):
    """In fp32: a LoRA, an identity, and both; and each of the three is another face."""
    loaded = load_fp32(checkpoint)
    core = part(pack, "magicapture_core.diir.restorer")
    framed, found = face(pack), []
    for artifact, identity in (
        (random_artifact(pack), None),
        (None, random_identity(pack)),
        (random_artifact(pack), random_identity(pack)),
    ):
        ours = drawing(pack, loaded, artifact=artifact, identity=identity).restorer()(framed)
        with torch.inference_mode(False), torch.no_grad():
            backbone = part(pack, "nodes.weights").plain_backbone(*loaded)
            backbone.unet.register_to_config(sample_size=SIZE // backbone.vae_factor)
            prompt = part(pack, "magicapture_core.diir.pictures").fill_personal(PROMPT, artifact, identity)
            people = [identity] if identity else []
            with core.redrawing(backbone, artifact, prompt, people, "blurry", walk(pack)) as restorer:
                theirs = restorer(framed.clone())
        assert float((ours - theirs).abs().max()) < 1e-3
        assert float((ours - framed).abs().max()) > 1e-2
        found.append(ours)
    assert float((found[0] - found[1]).abs().max()) > 1e-2
    assert float((found[0] - found[2]).abs().max()) > 1e-2


def check_what_others_patch_acts_on_the_way_back_alone(pack, loaded):
    patched, log = replaced(loaded[0])
    walked, plain = (drawing(pack, on) for on in ([patched, *loaded[1:]], loaded))
    latents = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(0))
    at = torch.tensor(1.0)
    forth = [sampled(one, one.plain[0], latents, at) for one in (walked, plain)]
    assert not log
    assert torch.equal(*forth)
    back = [sampled(one, one.model, latents, at) for one in (walked, plain)]
    assert log
    assert not torch.equal(*back)
    framed = face(pack)
    assert not torch.equal(walked.restorer()(framed), plain.restorer()(framed))
    assert patched.model_options["transformer_options"]["patches_replace"]["attn2"]


def sampled(walked, model, latents, sigma):
    """One prediction."""
    prompt = walked.plain[1]
    return walked.sampled(model, prompt, prompt, 1.0, walked.sigmas(), lambda predict: predict(latents, sigma))


def check_pixels_outside_of_the_faces_keep_every_bit(pack, loaded):
    """Two pictures of two sizes, a mask for the second's left; and a picture without a face."""
    images = samples(pack)
    wide = torch.cat([images[1:], images[1:].flip(2)], 2)
    grey = torch.full((1, 64, 64, 3), 0.5)
    finished, report = node(pack, loaded, [images[:1], wide, grey], identity=random_identity(pack))
    assert [picture.shape for picture in finished] == [images[:1].shape, wide.shape, grey.shape]
    assert "1 face restored" in report[0]
    assert "2 faces restored" in report[1]
    assert "no face found" in report[2]
    for picture, before in zip(finished[:2], (images[:1], wide), strict=True):
        same = (picture == before).all(-1)
        assert not same.all()
        assert same[:, 0].all()
        assert same[:, -1].all()
    assert torch.equal(finished[2], grey)
    mask = torch.zeros(1, *wide.shape[1:3])
    mask[..., : wide.shape[2] // 2] = 1
    [finished], report = node(pack, loaded, [wide], identity=random_identity(pack), mask=mask)
    assert torch.equal(finished[:, :, wide.shape[2] // 2 :], wide[:, :, wide.shape[2] // 2 :])
    assert not torch.equal(finished, wide)


def check_cancel_stops_between_two_steps(pack, loaded):
    steps = []

    def step():
        steps.append(1)
        if len(steps) == 2:
            comfy.model_management.interrupt_current_processing()

    try:
        drawing(pack, loaded, identity=random_identity(pack), on_step=step).restorer()(face(pack))
    except comfy.model_management.InterruptProcessingException:
        assert len(steps) == 2
    else:
        raise AssertionError("it went on")


def check_landmarks_are_the_faces_own_and_in_a_swap_the_references(pack):
    sockets = part(pack, "nodes.restore_identity")
    detector = part(pack, "nodes.portraits").face_detector()
    framed, control_net = face(pack), object()
    seen = {}
    for reference in (None, [samples(pack)[1:]]):
        control = sockets.make_control(detector, control_net, "openpose", 0.5, reference)
        found, seen[reference is None], strength = control(framed)
        assert found is control_net
        assert strength == 0.5
    assert all(picture.shape == (1, 512, 512, 3) and picture.any() for picture in seen.values())
    assert not torch.equal(seen[True], seen[False])
    assert sockets.make_control(detector, None, "openpose", 0.5, None) is None


def check_what_cannot_be_is_told(pack, loaded):
    images = samples(pack)[:1]
    with refused("face_recognition: connect Load Face Recognition too"):
        node(pack, loaded, [images], reference=[images])
    with refused("prompt: a model without a MagiCapture LoRA"):
        node(pack, loaded, [images], prompt="{subject}")
