"""The eight committed sample pictures are what the recipe draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from portraitbench import samples
from portraitbench.samples import Shot, paint_shot, person_shots, style_shots

FOLDER = Path(samples.__file__).parent.parent / "magicapture_core" / "tiny" / "samples"
NAMED = {
    f"{name}_{n}": shot
    for name, shots in (("person", person_shots()), ("style", style_shots()))
    for n, shot in enumerate(shots, 1)
}


@pytest.mark.parametrize("name", ["person_1", "style_3"])
def test_a_committed_sample_is_what_the_recipe_draws(name: str) -> None:
    shot: Shot = NAMED[name]
    committed = np.asarray(Image.open(FOLDER / f"{name}.jpg"), float) / 255
    drawn = paint_shot(shot).transpose(1, 2, 0)
    assert committed.shape == (samples.HEIGHT, samples.WIDTH, 3)
    assert np.abs(committed - drawn).mean() < 0.01


def test_all_eight_are_there_and_small() -> None:
    files = sorted(path.stem for path in FOLDER.glob("*.jpg"))
    assert files == sorted(NAMED)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_500_000


def test_one_person_in_four_photos_and_four_people_in_one_style() -> None:
    people, styles = person_shots(), style_shots()
    assert len({shot.subject.identity for shot in people}) == 1
    assert len({shot.setting.background for shot in people}) == 4
    assert len({shot.subject.identity for shot in styles}) == 4
    assert len({(shot.setting, shot.subject.look) for shot in styles}) == 1
