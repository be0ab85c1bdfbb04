"""DreamBooth's prior preservation: the untouched model's own pictures of the class are items of the training."""

import pytest
import torch

from magicapture_core import artifact as artifacts
from magicapture_core import recipe
from magicapture_core.backbone import tiny
from magicapture_core.class_images import class_images
from magicapture_core.dataset import encode, step_items, with_classes
from magicapture_core.images import load_photo
from magicapture_core.kept import Kept, result_key
from magicapture_core.objective import Terms
from magicapture_core.prompts import templates
from magicapture_core.sampler import generate
from magicapture_core.trainer import open_run
from tests.small import portraits, small_config

PHOTOS = {"subject": portraits(2), "style": portraits(2, seed=1)}
TWO = {"num_steps": 3, "class_images": 2}


class Stopped(Exception):
    pass


def never(_step: int, _num_steps: int) -> None:
    raise AssertionError("a picture is made again")


@pytest.fixture(scope="module")
def backbone():
    return tiny()


@pytest.fixture(scope="module")
def made(backbone, tmp_path_factory):
    return class_images(backbone, small_config(tuning=TWO), tmp_path_factory.mktemp("class"), lambda *_: None)


def test_they_are_what_the_untouched_model_shows(backbone, made, tmp_path):
    assert class_images(backbone, small_config(), tmp_path, lambda *_: None) == {}
    assert [*made] == ["person"]
    for index, image in enumerate(made["person"].images):
        prompt = templates()["class"][index]
        plain = generate(backbone, None, prompt, seed=index, guidance=7.5, size=(64, 64))[0]
        assert (image - plain).abs().max() <= 0.5 / 255 + 1e-6  # as a file keeps it
    assert made["person"].masks.all()


def test_an_object_has_pictures_of_its_own_kind(backbone, tmp_path):
    dog = small_config(
        kind="object", subject={"placeholder_token": "<rex>", "initializer_token": "cat"}, tuning={"class_images": 1}
    )
    assert [*class_images(backbone, dog, tmp_path, lambda *_: None)] == ["cat"]


def test_only_missing_ones_are_made_and_a_stop_keeps_the_finished(backbone, tmp_path):
    config = small_config(tuning=TWO)

    def stop_at_the_second(step, num_steps):
        if step > num_steps / 2:
            raise Stopped

    with pytest.raises(Stopped):
        class_images(backbone, config, tmp_path, stop_at_the_second)
    [first] = tmp_path.iterdir()
    before = first.read_bytes()
    again = class_images(backbone, config, tmp_path, lambda *_: None)
    assert first.read_bytes() == before
    assert torch.equal(again["person"].images[0], load_photo(first))
    class_images(backbone, config, tmp_path, never)


def test_every_step_of_phase_two_holds_one_that_counts_as_a_whole(backbone, made):
    config = small_config(tuning=TWO, accumulate=2)
    dataset = with_classes(encode(backbone, PHOTOS, config), backbone, made, config)
    assert [item.task for item in step_items(config, "inversion", 0)] == ["source", "reference"] * 2
    items = step_items(config, "tuning", 0)
    assert [item.task for item in items] == ["source", "reference", "composed", "class"] * 2
    batch = dataset.draw(config, items)
    assert all((batch.prompts[at] in templates()["class"], batch.loss_masks[at].all()) == (True, True) for at in (3, 7))
    side = dataset.classes["person"]
    distance = (batch.latents[3] / dataset.scaling_factor - side.mean) / side.std
    assert distance.abs().mean((2, 3, 4)).min() < 1  # of |N(0,1)| .798: one of the pictures, either way round


@pytest.mark.parametrize("adapters", ["joint", "split"])
def test_it_moves_the_lora_and_no_word(backbone, made, adapters):
    """Of split adapters all parts: each of them could make everybody the subject."""
    config = small_config(tuning=TWO, lora={"adapters": adapters})
    dataset = with_classes(encode(backbone, PHOTOS, config), backbone, made, config)
    batch = dataset.draw(config, step_items(config, "tuning", 0)[3:])
    weights = Terms(1.0, 1.0, 1.0, 0.0)
    with open_run(backbone, dataset, config) as run:
        run.begin("tuning", {}, midway=False)
        with run.objective.terms(batch, weights) as terms:
            terms.weighed(weights).sum().backward()
        subject, style, *lora = run.trainable()
        ups = [up.grad for up in lora[1::2] if up.grad is not None]
    assert not terms.attention.any()
    assert not any(row.grad is not None and row.grad.any() for row in (subject, style))
    assert len(ups) == len(lora) // 2
    assert all(up.abs().sum(0).all() for up in ups)


def test_a_stopped_run_goes_on_bit_for_bit_and_tidies_up(tmp_path):
    config = small_config(tuning=TWO)

    def run(folder, on_step=lambda step: None):
        return recipe.personalize(
            tiny(),
            PHOTOS,
            config,
            name="ann",
            folder=folder,
            save=lambda made: list(artifacts.save(made, folder)),
            on_step=on_step,
        )

    def stop(step):
        if step.step == 4:
            raise Stopped

    whole = run(tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", stop)
    kept = Kept(tmp_path / "stopped", result_key(tiny(), PHOTOS, config))
    pictures = kept.classes(tiny(), config)
    before = {file.name: file.read_bytes() for file in pictures.iterdir()}
    assert len(before) == 2
    resumed = run(tmp_path / "stopped")
    assert resumed.told.history == whole.told.history
    assert {file.name: file.read_bytes() for file in pictures.iterdir()} == before


def test_their_folder_is_that_of_all_that_decides_them(tmp_path):
    kept, other = Kept(tmp_path, "a" * 32), tiny()
    other.unet.conv_in.bias.data[0] += 1
    same = [small_config(), small_config(tuning={"class_images": 9, "lora_learning_rate": 3e-4})]
    rest = [small_config(seed=1), small_config(resolution=128)]
    rest += [small_config(kind="object", subject={"placeholder_token": "<rex>", "initializer_token": "cat"})]
    assert len({kept.classes(tiny(), config) for config in same}) == 1
    assert len({kept.classes(tiny(), config) for config in [same[0], *rest]} | {kept.classes(other, same[0])}) == 5
