"""RestoreIdentity: the core's own faces, others' patches on the way back alone, what stays and what is kept, Cancel."""

from functools import partial
from unittest.mock import patch

import comfy.model_management
import torch
from check_identity import load_fp32
from check_restore import load_recogniser, part, refused, samples
from check_sampling import control_net
from crafted import random_artifact, random_identity
from extent import newest_alone

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
    """As ComfyUI hands lists over -> pictures, the report's lines on them. In small frames: a CPU takes minutes for
    large ones."""
    model, clip, vae = loaded
    single = {"model": model, "clip": clip, "vae": vae, "mode": "restore", "strength": 0.0, "steps": STEPS, "cfg": 3.0}
    single |= {"prompt": PROMPT, "negative": "", **changes}
    lists = {name: value if isinstance(value, list) else [value] for name, value in single.items()}
    restore_identity = part(pack, "nodes.restore_identity").RestoreIdentity.PREPARE_CLASS_CLONE(None)
    redrawing = part(pack, "nodes.redrawing")
    with patch.object(redrawing, "open_drawing", partial(redrawing.open_drawing, size=SIZE)):
        result = restore_identity.execute(images, **lists)
    return result.args[0], result.args[1].split("\n")[1:]


def patched_by_others(model, kind):
    """A patch of the cross-attention, of one of the three kinds that other packs make, and a log of when it ran."""
    model, log = model.clone(), []

    def changed(first, *_):
        log.append(len(first))
        return torch.zeros_like(first)

    if kind == "attn2_replace":  # IP-Adapters
        for block in BLOCKS:
            model.set_model_attn2_replace(changed, *block)
    elif kind == "attn2_patch":
        model.set_model_attn2_patch(lambda query, keys, values, _extra: (changed(query), keys, values))
    else:
        model.set_model_attn2_output_patch(changed)
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
    plain = drawing(pack, loaded, prompt="a photo of a person")
    latents = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(0))
    at, framed = torch.tensor(1.0), face(pack)
    for kind in ("attn2_replace", "attn2_patch", "attn2_output_patch"):
        patched, log = patched_by_others(loaded[0], kind)
        walked = drawing(pack, [patched, *loaded[1:]])
        forth = [sampled(one, one.plain[0], latents, at) for one in (walked, plain)]
        assert not log
        assert torch.equal(*forth)
        back = [sampled(one, one.model, latents, at) for one in (walked, plain)]
        assert log
        assert not torch.equal(*back)
        assert not torch.equal(walked.restorer()(framed), plain.restorer()(framed))
        drawing(pack, [patched, *loaded[1:]])  # what MODEL had it has still


def sampled(walked, model, latents, sigma):
    """One prediction."""
    prompt = walked.plain[1]
    return walked.sampled(model, prompt, prompt, 1.0, walked.sigmas(), lambda predict: predict(latents, sigma))


@newest_alone
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


def check_a_batch_stays_one_and_the_bar_is_full_at_its_end(pack, loaded):
    """Of three faces one is chosen in each picture."""
    module, bars = part(pack, "nodes.restore_identity"), []

    class Kept(module.Bar):
        def __init__(self):
            super().__init__()
            bars.append(self)

    images = samples(pack)
    pairs = torch.cat([images, images.flip(0)], 2)
    with patch.object(module, "Bar", Kept):
        [finished], report = node(pack, loaded, [pairs], identity=random_identity(pack), face_index=1)
    assert finished.shape == pairs.shape
    half = pairs.shape[2] // 2
    assert torch.equal(finished[:, :, : half // 2], pairs[:, :, : half // 2])
    assert all(not torch.equal(now[:, half:], before[:, half:]) for now, before in zip(finished, pairs, strict=True))
    assert [line.count("1 face restored") for line in report[:2]] == [1, 1]
    assert bars[0].done == bars[0].total == 2 * 2 * 2  # pictures, ways, half of the four steps


@newest_alone
def check_a_face_stays_only_where_the_likeness_rose(pack, loaded):
    """To the picture itself it falls; to what would be drawn it rises, and that stays, bit for bit."""
    images, who = samples(pack)[:1], {"identity": random_identity(pack), "face_recognition": load_recogniser(pack)}
    [kept], report = node(pack, loaded, [images], reference=[images], **who)
    assert torch.equal(kept, images)
    assert "put back as it was" in report[0]
    [drawn], _ = node(pack, loaded, [images], identity=who["identity"])
    [risen], report = node(pack, loaded, [images], reference=[drawn], **who)
    assert torch.equal(risen, drawn)
    assert not torch.equal(risen, images)
    assert "1 face restored" in report[0]


def check_a_control_net_acts_on_the_way_back_and_sees_another_face_in_a_swap(pack, loaded):
    images, other = samples(pack)[:1], samples(pack)[1:]
    who = {"identity": random_identity(pack), "strength": 0.5}
    net = {"control_net": control_net(loaded[0])}
    [plain], _ = node(pack, loaded, [images], **who)
    [idle], _ = node(pack, loaded, [images], **who, **net, control_strength=0.0)
    [shown], _ = node(pack, loaded, [images], **who, **net, control_strength=1.0)
    [swapped], report = node(pack, loaded, [images], **who, **net, control_strength=1.0, mode="swap", reference=[other])
    assert torch.equal(idle, plain)
    assert not torch.equal(shown, plain)
    assert not torch.equal(swapped, shown)
    assert report[1].startswith("likeness: not checked")


def check_landmarks_are_the_faces_own_and_in_a_swap_the_references(pack):
    sockets = part(pack, "nodes.restore_identity")
    detector = part(pack, "nodes.portraits").face_detector()
    framed, net = face(pack), object()
    seen = {}
    for reference in (None, [samples(pack)[1:]]):
        control = sockets.make_control(detector, net, "openpose", 0.5, reference)
        found, seen[reference is None], strength = control(framed)
        assert found is net
        assert strength == 0.5
    assert all(picture.shape == (1, 512, 512, 3) and picture.any() for picture in seen.values())
    assert not torch.equal(seen[True], seen[False])
    assert sockets.make_control(detector, None, "openpose", 0.5, None) is None


def check_what_cannot_be_is_told(pack, loaded):
    images, someone = samples(pack)[:1], random_identity(pack)
    with refused("artifact, identity: nobody says who {person} is"):
        node(pack, loaded, [images])
    with refused("identity: it is a list of 2"):
        node(pack, loaded, [images], identity=[someone, someone])
    with refused("face_recognition: connect Load Face Recognition too"):  # without a ControlNet it would do nothing
        node(pack, loaded, [images], identity=someone, mode="swap", reference=[images])
    with refused("control_net: it is not for SD1.5 (its prompts are 2048 wide"):
        node(pack, loaded, [images], identity=someone, control_net=control_net(loaded[0], 2048))
    with refused("reference: no face is found in it"):
        more = {"control_net": control_net(loaded[0]), "mode": "swap", "reference": [images * 0]}
        node(pack, loaded, [images], identity=someone, **more)
    with refused("face_recognition: connect Load Face Recognition too"):
        node(pack, loaded, [images], reference=[images])
    with refused("prompt: a model without a MagiCapture LoRA"):
        node(pack, loaded, [images], prompt="{subject}")
