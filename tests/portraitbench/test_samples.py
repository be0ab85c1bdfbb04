"""The committed sample pictures and masks are what the recipe draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from portraitbench import samples
from portraitbench.samples import (
    SMALL,
    Shot,
    object_shots,
    object_style_shots,
    paint_mask,
    paint_shot,
    person_shots,
    style_shots,
)

FOLDER = Path(samples.__file__).parent.parent / "magicapture_core" / "tiny" / "samples"
NAMED = {
    f"{name}_{n}": shot
    for name, shots in (("person", person_shots()), ("style", style_shots()))
    for n, shot in enumerate(shots, 1)
}
CATS = {
    f"{name}_{n}": shot
    for name, shots in (("object", object_shots()), ("object-style", object_style_shots()))
    for n, shot in enumerate(shots, 1)
}


@pytest.mark.parametrize("name", ["person_1", "style_3"])
def test_a_committed_sample_is_what_the_recipe_draws(name: str) -> None:
    shot: Shot = NAMED[name]
    committed = np.asarray(Image.open(FOLDER / f"{name}.jpg"), float) / 255
    drawn = paint_shot(shot).transpose(1, 2, 0)
    assert committed.shape == (samples.HEIGHT, samples.WIDTH, 3)
    assert np.abs(committed - drawn).mean() < 0.01


@pytest.mark.parametrize("name", ["object_2", "object-style_4"])
def test_a_committed_cat_and_its_mask_are_what_the_recipe_draws(name: str) -> None:
    """The mask is all of the cat: it touches the lower edge, and leaves the upper corners."""
    committed = np.asarray(Image.open(FOLDER / f"{name}.jpg"), float) / 255
    assert np.abs(committed - paint_shot(CATS[name], SMALL).transpose(1, 2, 0)).mean() < 0.02
    mask = np.asarray(Image.open(FOLDER / "masks" / f"{name}.png").convert("L"), float) / 255
    assert mask.shape == committed.shape[:2]
    assert ((mask > 0.5) == (paint_mask(CATS[name], SMALL) > 0.5)).all()
    assert mask[-1].any()
    assert not mask[0].any()
    assert 0.15 < mask.mean() < 0.4


def test_all_are_there_and_small() -> None:
    files = sorted(path.stem for path in FOLDER.glob("*.jpg"))
    assert files == sorted([*NAMED, *CATS])
    assert sorted(path.stem for path in (FOLDER / "masks").iterdir()) == sorted(CATS)
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.*")) < 500_000


def test_one_person_in_four_photos_and_four_people_in_one_style() -> None:
    people, styles = person_shots(), style_shots()
    assert len({shot.subject.identity for shot in people}) == 1
    assert len({shot.setting.background for shot in people}) == 4
    assert len({shot.subject.identity for shot in styles}) == 4
    assert len({(shot.setting, shot.subject.look) for shot in styles}) == 1
    assert len({shot.subject.identity for shot in object_shots()}) == 1
    assert len({shot.subject.identity for shot in object_style_shots()}) == 4
