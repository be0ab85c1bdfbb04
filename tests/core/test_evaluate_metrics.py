"""What the metrics stand on: intervals by hand, means and the worst pictures, and faces of which CLIP sees nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from magicapture_core.evaluate.clip import MEAN, Clip
from magicapture_core.evaluate.interval import interval
from magicapture_core.evaluate.judges import embed_style, hide_faces
from magicapture_core.evaluate.metrics import METRICS, summarise, worst
from tests.core.test_evaluate_clip import make_clip


def test_an_interval_is_that_of_the_means_of_what_is_drawn_again():
    """Of 16 tosses of a coin the middle 95 % lie between 4 and 12 heads: 3 or fewer come up in 1.1 %, 4 in 3.8 %."""
    assert interval([0.0, 1.0] * 8) == (0.5, 0.25, 0.75)
    assert interval([0.0, 4.0]) == (2, 0, 4)  # each end a quarter of the draws
    assert interval([0.3]) == (0.3, 0.3, 0.3)


@pytest.mark.parametrize("count", [3, 8, 100, 257])
def test_an_interval_is_the_same_however_many_are_drawn_at_once(count):
    values = np.random.default_rng(1).normal(size=count)
    draws = np.random.default_rng(0).choice(values, (10_000, count)).mean(1)
    assert interval(values.tolist()) == (values.mean(), *np.quantile(draws, (0.025, 0.975)))


def row(name: str, **scores: float) -> dict[str, Any]:
    return dict.fromkeys(METRICS) | {"file": name} | scores


def test_a_summary_counts_what_was_measured_and_one_picture_has_no_interval():
    rows = [row("a", csim=0.0, style=0.5), row("b", csim=4.0), row("c")]
    found = summarise(rows, {"clip_t": "no --clip"})
    assert found["csim"] == {"mean": 2.0, "low": 0.0, "high": 4.0, "pictures": 2}
    assert found["style"] == {"mean": 0.5, "low": None, "high": None, "pictures": 1}
    assert found["clip_t"] == {"left_out": "no --clip"}


def test_the_worst_are_the_lowest_and_of_faces_found_those_without():
    rows = [row("a", csim=0.4, detection=1.0), row("b", detection=0.0), row("c", csim=-0.2, detection=1.0)]
    assert [found["file"] for found in worst(rows, "csim", 4)] == ["c", "a"]
    assert [found["file"] for found in worst(rows, "csim", 1)] == ["c"]
    assert [found["file"] for found in worst(rows, "detection", 4)] == ["b"]


# -- faces hidden ------------------------------------------------------------------------------------------------------


def circle(x: float, y: float, radius: float) -> Tensor:
    angles = torch.arange(468) * (2 * torch.pi / 468)
    return torch.stack([x + radius * angles.cos(), y + radius * angles.sin()], 1)


def test_of_a_hidden_face_nothing_is_left_and_around_it_everything():
    """Two faces in a wide picture, the second beyond the side that is shorter."""
    faces, draw = [circle(20, 20, 9.5), circle(70, 30, 6)], torch.Generator().manual_seed(0)
    image, other = (torch.rand(3, 40, 90, generator=draw) for _ in range(2))
    y, x = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(90) + 0.5, indexing="ij")
    distance = torch.minimum((x - 20).hypot(y - 20) - 9.5, (x - 70).hypot(y - 30) - 6)
    hidden = hide_faces(image, faces)
    assert torch.equal(hidden[:, distance > 1], image[:, distance > 1])
    touched = distance < 0.25  # of a pixel's middle to the edge: most of it may lie outside
    assert torch.equal(hidden[:, touched], torch.tensor(MEAN)[:, None].expand(3, int(touched.sum())))
    inside = (hidden != image).any(0)
    assert torch.equal(hide_faces(torch.where(inside, other, image), faces), hidden)


def test_the_style_of_a_portrait_knows_nothing_of_its_face(detector, astronaut):
    """Another face in the place of hers changes what CLIP sees of the picture and nothing of what it sees past it."""
    clip, [face] = Clip(model=make_clip({"hidden_size": 40}), name="clip"), detector.detect(astronaut)
    mesh = detector.mesh(astronaut, face)
    inside = (hide_faces(torch.full_like(astronaut, 2.0), [mesh]) < 2).any(0)
    swapped = torch.where(inside, astronaut.flip(0), astronaut)
    embed = embed_style(clip, detector, astronaut, [face])
    assert torch.equal(embed, clip.embed_image(hide_faces(swapped, [mesh])))
    assert not torch.equal(clip.embed_image(swapped), clip.embed_image(astronaut))
    assert not torch.equal(embed, clip.embed_image(astronaut))
