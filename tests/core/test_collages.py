"""Clone face tuning: collages are what their masks say, drawn by counted randomness, in a phase of their own."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from safetensors.torch import save_file

from magicapture_core import kept, recipe
from magicapture_core.backbone import tiny
from magicapture_core.collage_controls import controls_of as controls_for
from magicapture_core.collage_controls import load_controlnet
from magicapture_core.collages import Controls, Piece, box_of, compose, draw_item, modes, put, slots, told
from magicapture_core.config import parse_config
from magicapture_core.dataset import Control, ItemKey, Mode, encode, step_items
from magicapture_core.demo import read_samples
from magicapture_core.kept import result_key
from magicapture_core.objective import Terms
from magicapture_core.trainer import open_run, train
from magicapture_core.types import MagiCaptureError
from tests.ldm import controlnet_to_ldm, narrow_unet
from tests.small import portraits, same, small_config

PHOTOS = {"subject": portraits(3), "style": portraits(4, seed=1)}
CLONE = {"clone_steps": 3}
TWO = {"more_subjects": [{"placeholder_token": "<subject_2>", "initializer_token": "person"}]}


@pytest.fixture(scope="module")
def backbone():
    return tiny()


@pytest.fixture(scope="module")
def dataset(backbone):
    return encode(backbone, PHOTOS, small_config(**CLONE))


@pytest.fixture(scope="module")
def of_two(backbone):
    return encode(backbone, {**PHOTOS, "subject_2": portraits(2, seed=2)}, small_config(**CLONE, **TWO))


def collage(number):
    return ItemKey(phase="clone", step=number, group=0, task="source")


def states(backbone, dataset, config, resume=None):
    return [step.state() for step in train(backbone, dataset, config, resume)]


def controls_of(backbone, seed=0) -> dict[Mode, Control]:
    """A ControlNet that does something, for skeletons and for landmarks."""
    made: dict[Mode, Control] = {}
    for mode in ("skeleton", "landmark"):
        net = filled(ControlNetModel.from_unet(backbone.unet, conditioning_embedding_out_channels=(16, 32, 96)), seed)
        pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(len(mode)))
        made[mode] = Control(net=net.requires_grad_(False), pictures={"subject": pictures})
    return made


def filled(net, seed):
    """Its weights drawn: a new one adds nothing."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return net.eval()


def a_piece(slot, scale=0.5, at=(0.5, 0.5)):
    """White photo of 64 px, a red face in its left half."""
    image, mask = torch.ones(3, 64, 64), torch.zeros(1, 64, 64)
    mask[:, 16:48, 8:40] = 1
    image[1:, 16:48, 8:40] = 0
    return Piece(image=image, mask=mask, slot=slot, scale=scale, at=at)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("in_columns", [True, False])
def test_slots_cover_the_square_and_do_not_touch(count, in_columns):
    seen = torch.zeros(64, 64)
    for left, top, right, bottom in slots(count, in_columns, 64):
        seen[top:bottom, left:right] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("slot", [(0, 0, 64, 64), (21, 0, 43, 64), (0, 32, 64, 64)])
@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("at", [(0.0, 0.0), (1.0, 1.0), (0.3, 0.8)])
def test_a_face_is_where_its_mask_says_and_inside_its_slot(slot, scale, at):
    """Red, where the mask is whole; white, the rest of the photo, or the black canvas where it is nothing."""
    made, mask = put(torch.zeros(3, 64, 64), a_piece(slot, scale, at))
    is_red = (made[0] > 0.99) & (made[1] < 0.01)
    assert is_red.any()
    assert torch.equal(is_red, mask[0] > 0.99)
    left, top, right, bottom = slot
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[top:bottom, left:right] = False
    assert not made[:, outside].any()
    assert not mask[:, outside].any()
    x1, y1, x2, y2 = box_of(mask)
    assert abs((x2 - x1) - (y2 - y1)) <= 2  # the whole of the square face


def test_faces_take_a_quarter_to_all_of_the_frame():
    """A face of 32 of 64 px: 16 px at the least, 64 at the most; in a column of 21 px no more than that."""
    sides = {}
    for scale in (0.0, 1.0):
        for slot in ((0, 0, 64, 64), (0, 0, 21, 64)):
            x1, _, x2, _ = box_of(put(torch.zeros(3, 64, 64), a_piece(slot, scale))[1])
            sides[scale, slot[2]] = x2 - x1
    assert sides[0.0, 64] == pytest.approx(16, abs=1)
    assert sides[1.0, 64] == 64
    assert sides[0.0, 21] == pytest.approx(16, abs=1)
    assert 19 <= sides[1.0, 21] <= 21


def test_a_small_face_is_not_blown_up_beyond_twice_its_size():
    piece = a_piece((0, 0, 64, 64), scale=1.0)
    mask = torch.zeros(1, 64, 64)
    mask[:, 28:38, 28:38] = 1
    x1, _, x2, _ = box_of(put(torch.zeros(3, 64, 64), replace(piece, mask=mask))[1])
    assert x2 - x1 == 20


def test_masks_of_a_collage_are_disjoint_and_by_person():
    first, second, third = slots(3, True, 64)
    image, faces = compose(
        torch.zeros(3, 64, 64),
        [("subject", a_piece(first)), ("subject_2", a_piece(second)), ("subject", a_piece(third))],
    )
    assert [*faces] == ["subject", "subject_2"]
    assert not (faces["subject"] * faces["subject_2"]).any()
    either = faces["subject"] + faces["subject_2"]
    assert torch.equal((image[0] > 0.99) & (image[1] < 0.01), either[0] > 0.99)
    assert not faces["subject"][..., second[0] : second[2]].any()


def test_an_item_depends_on_its_address_alone(backbone, dataset):
    config = small_config(**CLONE)
    one, again = (draw_item(backbone.vae, dataset, config, collage(5)) for _ in range(2))
    for name in ("latents", "noise", "timesteps", "loss_masks", "face_masks"):
        assert torch.equal(getattr(one, name), getattr(again, name))
    others = [draw_item(backbone.vae, dataset, config, collage(number)) for number in range(30)]
    assert len({tuple(batch.latents.flatten()[:4].tolist()) for batch in others}) == 30
    assert not torch.equal(
        one.latents, draw_item(backbone.vae, dataset, small_config(**CLONE, seed=1), collage(5)).latents
    )
    kinds = {batch.prompts[0].split()[0] for batch in others}
    assert kinds >= {"A", "Several"}


def test_prompts_name_everybody_in_the_picture_once(backbone, of_two):
    config, seen = small_config(**CLONE, **TWO), set()
    for number in range(40):
        batch = draw_item(backbone.vae, of_two, config, collage(number))
        [prompt], [words] = batch.prompts, batch.words
        here = [batch.face_masks, batch.other_masks]
        assert prompt.count(words[0]) == 1
        assert prompt.count(words[2]) == int(bool(here[1].any()))
        assert words[1] not in prompt
        assert "{" not in prompt
        assert not (here[0] * here[1]).any()
        seen.add((words[0], bool(here[1].any())))
    assert len(seen) == 4


def test_the_loss_sees_slots_only_and_attention_what_is_outside(backbone, dataset):
    """Nothing the model says outside the faces changes the reconstruction; attention inside them costs nothing."""
    config = small_config(**CLONE)
    with open_run(backbone, dataset, config) as run:
        run.begin("clone", {}, midway=False)
        batch = run.draw([collage(1)])
        predicted = []

        def remember(_unet, _args, output):
            output.sample.retain_grad()
            predicted.append(output.sample)

        with backbone.unet.register_forward_hook(remember), run.objective.terms(batch, Terms(1, 0, 0, 0)) as terms:
            terms.reconstruction.sum().backward()
        gradient = predicted[0].grad.abs().sum(1, keepdim=True)
        assert torch.equal(gradient > 0, batch.loss_masks > 0)
        assert not batch.loss_masks.all()
        columns = run.objective.token_columns(batch)
        assert columns.any(-1).tolist() == [[True, False]]
        regions = torch.cat([batch.face_masks, 1 - batch.face_masks], 1)
        inside = batch.face_masks[:, None].expand(-1, 2, -1, -1, -1)  # [B,K,heads,h,w]
        assert run.objective._attention({"layer": inside}, columns, regions) == pytest.approx(0, abs=1e-9)
        assert run.objective._attention({"layer": 1 - inside}, columns, regions) > 0.1


def test_two_people_are_each_held_to_their_own_faces(backbone, of_two):
    """A map on the other's face is as wrong as one on the canvas."""
    config = small_config(**CLONE, **TWO)
    with open_run(backbone, of_two, config) as run:
        run.begin("clone", {}, midway=False)
        batch = next(
            b for b in (run.draw([collage(n)]) for n in range(40)) if b.other_masks.any() and b.face_masks.any()
        )
        columns = run.objective.token_columns(batch)
        regions = torch.cat([batch.face_masks, 1 - batch.face_masks, batch.other_masks], 1)
        own = torch.stack([batch.face_masks, batch.face_masks, batch.other_masks], 1)
        swapped = own.flip(1)
        assert columns.any(-1).tolist() == [[True, False, True]]
        assert run.objective._attention({"layer": own}, columns, regions) == pytest.approx(0, abs=1e-9)
        assert run.objective._attention({"layer": swapped}, columns, regions) > 0


def test_split_adapters_learn_collages_in_the_peoples_half_alone(backbone, of_two):
    config = small_config(**CLONE, **TWO, lora={"adapters": "split"})
    with open_run(backbone, of_two, config) as run:
        run.begin("clone", {}, midway=False)
        parameters = [p for name, p in run._parameters.items() if name.startswith("lora.")]
        for parameter in parameters:
            parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
        item = next(n for n in range(40) if run.draw([collage(n)]).other_masks.any())
        run.backward(run.draw([collage(item)]), "clone", share=1.0)
        for parameter in parameters:
            assert parameter.grad is not None
            people, styles = parameter.grad.chunk(2, 0 if parameter.shape[0] == 8 else 1)
            assert people.abs().sum() > 0
            assert not styles.any()


def test_off_it_is_the_run_and_the_key_that_it_was(backbone, dataset):
    """On, the first phases are those of the run without it, to the last bit."""
    plain, cloned = small_config(), small_config(**CLONE)
    old, new = states(backbone, encode(backbone, PHOTOS, plain), plain), states(backbone, dataset, cloned)
    assert (len(old), len(new)) == (6, 9)
    assert all(same(one, other) for one, other in zip(old, new, strict=False))
    assert not any(torch.equal(new[5][key], new[8][key]) for key in new[5] if key.startswith("parameter.lora."))
    assert result_key(backbone, PHOTOS, plain) != result_key(backbone, PHOTOS, cloned)
    tensors = [t for photos in PHOTOS.values() for t in (photos.images, photos.masks)] + kept.weights(backbone)
    assert result_key(backbone, PHOTOS, plain) == kept.key_of(plain, tensors, None, {"clone_steps"})


@pytest.mark.parametrize("stop_after", [5, 6, 7])
def test_it_goes_on_bit_for_bit_across_the_boundary(backbone, dataset, stop_after):
    config = small_config(**CLONE, lora={"text_encoder": True}, accumulate=2)
    whole = states(backbone, dataset, config)
    assert same(states(backbone, dataset, config, resume=whole[stop_after - 1])[-1], whole[-1])


def test_it_can_be_the_only_phase_with_a_lora(backbone, dataset):
    config = small_config(**CLONE, inversion={"num_steps": 1}, tuning={"num_steps": 0})
    *_, last = train(backbone, dataset, config)
    assert (last.phase, last.step) == ("clone", 4)
    assert all(layer.up.any() for layer in last.run.lora()["unet"].values())


def test_a_step_holds_a_collage_a_group():
    config = parse_config({"accumulate": 3, **CLONE})
    assert step_items(config, "clone", 7) == [
        ItemKey(phase="clone", step=7, group=group, task="source") for group in range(3)
    ]


# -- modes -------------------------------------------------------------------------------------------------------------


def test_modes_take_turns_and_the_hint_lies_on_the_face(backbone, dataset):
    """A hint that is 1 on the face and 0 elsewhere is the mask of the collage."""
    both = {
        mode: replace(control, pictures={"subject": PHOTOS["subject"].masks.expand(-1, 3, -1, -1)})
        for mode, control in controls_of(backbone).items()
    }
    config = small_config(**CLONE)
    given = replace(dataset, controls=both)
    seen = [draw_item(backbone.vae, given, config, collage(number)) for number in range(6)]
    assert [batch.modes for batch in seen] == [["skeleton"], ["landmark"], ["zoom"]] * 2
    for batch in seen[:2]:
        assert batch.hints.shape == (1, 3, 64, 64)
        plain = draw_item(backbone.vae, dataset, config, collage(seen.index(batch)))
        assert torch.equal(plain.latents, batch.latents)  # the photos are drawn alike with and without
        cells = torch.nn.functional.interpolate(batch.hints[:, :1], batch.loss_masks.shape[-2:], mode="area")
        assert torch.equal((cells >= 0.5).float(), batch.loss_masks)
    assert seen[2].hints.shape[1] == 0


def test_a_missing_mode_is_left_out_and_said(backbone, dataset):
    one: Controls = {"landmark": controls_of(backbone)["landmark"]}
    assert modes(one) == ["landmark", "zoom"]
    assert modes({}) == ["zoom"]
    rows = [[1.0, 0.5], [3.0, 0.7], [0.8, 0.4], [2.0, 0.6]]
    assert told(rows, modes(one)) == [
        "clone phase, landmark: 2 steps, reconstruction 1.0000 at first and 0.8000 at last, "
        "attention 0.5000 and 0.4000",
        "clone phase, zoom: 2 steps, reconstruction 3.0000 at first and 2.0000 at last, attention 0.7000 and 0.6000",
        "clone phase: no ControlNet for skeleton",
    ]
    assert len(told(rows[:1], modes(one))) == 2  # a run that patience ended


def test_a_controlnet_conditions_the_pass_and_learns_nothing(backbone, dataset):
    config, both = small_config(**CLONE), controls_of(backbone)
    before = {name: value.clone() for name, value in both["skeleton"].net.state_dict().items()}
    with open_run(backbone, replace(dataset, controls=both), config) as run:
        run.begin("clone", {}, midway=False)
        batch = run.draw([collage(0)])
        losses = []
        for hints in (batch.hints, 1 - batch.hints):
            with run.objective.terms(replace(batch, hints=hints), Terms(1, 1, 0, 0)) as terms:
                terms.reconstruction.sum().backward()
                losses.append(terms.reconstruction.detach().item())
        with run.objective.terms(replace(batch, modes=["zoom"]), Terms(1, 1, 0, 0)) as terms:
            losses.append(terms.reconstruction.detach().item())
        assert len(set(losses)) == 3
        assert any(p.grad is not None and p.grad.any() for p in run.trainable())
    assert all(parameter.grad is None for parameter in both["skeleton"].net.parameters())
    assert same(both["skeleton"].net.state_dict(), before)


@pytest.mark.parametrize("stop_after", [7, 8])
def test_modes_go_on_bit_for_bit(backbone, dataset, stop_after):
    config, given = small_config(**CLONE), replace(dataset, controls=controls_of(backbone))
    whole = states(backbone, given, config)
    assert same(states(backbone, given, config, resume=whole[stop_after - 1])[-1], whole[-1])
    assert not same(states(backbone, dataset, config)[-1], whole[-1])


def test_the_recipe_takes_them_tells_the_modes_and_keys_them(backbone, tmp_path):
    both, said = controls_of(backbone), []
    one = {"landmark": both["landmark"]}

    def run(controls, config):
        options = {"name": "x", "folder": tmp_path / "kept", "save": lambda made: [tmp_path / "x.safetensors"]}
        return recipe.personalize(tiny(), PHOTOS, config, **options, controls=controls, say=said.append)

    first = run(one, small_config(**CLONE))
    assert [line.split(":")[0] for line in said] == ["clone phase, landmark", "clone phase, zoom", "clone phase"]
    assert len(first.told.history) == 9
    other = {"landmark": controls_of(backbone, seed=1)["landmark"]}
    assert len({run(given, small_config(**CLONE)).key for given in (one, other, both, {})}) == 4
    with pytest.raises(MagiCaptureError, match="clone_steps"):
        run(one, small_config())
    short = {"landmark": replace(one["landmark"], pictures={"subject": torch.zeros(2, 3, 64, 64)})}
    with pytest.raises(MagiCaptureError, match="landmark pictures of subject"):
        run(short, small_config(**CLONE))


def test_it_is_read_under_diffusers_names(backbone, tmp_path):
    """From a file, and from a folder as diffusers saves it."""
    net = controls_of(backbone)["landmark"].net
    save_file(net.state_dict(), tmp_path / "control.safetensors")
    net.save_pretrained(tmp_path / "folder")
    for path in (tmp_path / "control.safetensors", tmp_path / "folder"):
        assert same(load_controlnet(path, backbone.unet).state_dict(), net.state_dict())


def test_it_is_read_under_the_names_of_the_original_files(tmp_path):
    """What diffusers' own net says, the net read from each says too: as published, as extracted, in half precision."""
    unet = narrow_unet()
    net = filled(ControlNetModel.from_unet(unet), seed=1)
    generator = torch.Generator().manual_seed(2)
    given = torch.randn(1, 4, 16, 16, generator=generator), 500, torch.randn(1, 77, 768, generator=generator)
    hint = torch.rand(1, 3, 128, 128, generator=generator)
    torch.save(controlnet_to_ldm(net), tmp_path / "control_v11p.pth")
    save_file(controlnet_to_ldm(net), tmp_path / "control_v11p.safetensors")
    save_file(controlnet_to_ldm(net, prefix=""), tmp_path / "extracted.safetensors")
    halves = {key: value.half() for key, value in controlnet_to_ldm(net).items()}
    save_file(halves, tmp_path / "fp16.safetensors")
    with torch.no_grad():
        expected = net(*given, hint, return_dict=False)
        for path in sorted(tmp_path.iterdir()):
            down, middle = load_controlnet(path, unet).eval()(*given, hint, return_dict=False)
            tolerance = 0.05 if path.stem == "fp16" else 0.0
            for one, other in zip((*down, middle), (*expected[0], expected[1]), strict=True):
                assert other.abs().max() > 0.1
                assert (one - other).abs().max() <= tolerance * other.abs().max(), path.name


class Intruder:
    """Would write a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_another_file_is_named_in_one_line_and_none_runs(backbone, tmp_path):
    whole = controlnet_to_ldm(ControlNetModel.from_unet(narrow_unet()))
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    save_file(whole, tmp_path / "sd15.safetensors")
    save_file(whole | {"control_model.task_embedding": torch.ones(6, 8)}, tmp_path / "union.safetensors")
    save_file(whole | {"difference": torch.ones(1)}, tmp_path / "difference.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    torch.save({"net": Intruder(tmp_path / "was here")}, tmp_path / "program.pth")
    (tmp_path / "empty").mkdir()
    said = {
        "lora.safetensors": "not a ControlNet",
        "sd15.safetensors": r"no ControlNet for this model",
        "union.safetensors": "no weight task_embedding",
        "difference.safetensors": "difference to another model",
        "cut.safetensors": "cannot be read",
        "program.pth": "more than tensors",
        "missing.safetensors": "no ControlNet is there",
        "empty": "no ControlNet is there",
    }
    for name, text in said.items():
        with pytest.raises(MagiCaptureError, match=text) as raised:
            load_controlnet(tmp_path / name, narrow_unet() if name.startswith("union") else backbone.unet)
        assert name in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "was here").exists()


def test_faces_that_nobody_has_found_cannot_be_drawn(backbone, detector):
    nets: dict[Mode, object] = {"landmark": controls_of(backbone)["landmark"].net}
    faceless = {**PHOTOS, "subject": replace(PHOTOS["subject"], faces=[])}
    with pytest.raises(MagiCaptureError, match="subject: a ControlNet needs the face of every photo, and 0 of 3"):
        controls_for(nets, "openpose", faceless, detector)


def test_its_pictures_show_the_faces_where_they_are(backbone, detector):
    """Drawn for each net, on the masked face of the pack's own sample, or near it, and nowhere far from it."""
    person = read_samples("person", 64)
    nets: dict[Mode, object] = {mode: control.net for mode, control in controls_of(backbone).items()}
    made = controls_for(nets, "openpose", {"subject": person, "style": person}, detector)
    assert [*made] == ["skeleton", "landmark"]
    for mode, control in made.items():
        assert control.net is nets[mode]
        assert [*control.pictures] == ["subject"]
        pictures = control.pictures["subject"]
        assert pictures.shape == person.images.shape
        for picture, mask in zip(pictures, person.masks, strict=True):
            drawn = picture.amax(0) > 0.3
            near = torch.nn.functional.max_pool2d(mask, 9, 1, 4)[0] > 0.5
            assert drawn.sum() > 15
            assert (drawn & near).sum() > 0.9 * drawn.sum()
    is_white = [(c.pictures["subject"].amin(1) > 0.5).any().item() for c in made.values()]
    assert is_white == [False, True]
