"""The rivals' attention losses against numbers worked out by hand on 2 x 2 maps, and where their gradients pull."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from portraitbench.rivals import break_a_scene, fastcomposer

BOTH = pytest.mark.parametrize("loss", [break_a_scene, fastcomposer])
HEADS = torch.tensor([[[4.0, 0.0], [2.0, 0.0]], [[0.0, 8.0], [8.0, 0.0]]])[None, None]  # of one layer


def random_maps(batch: int = 2) -> tuple[Tensor, Tensor]:
    """Maps of three layers and four heads, and regions of unequal size."""
    masks = torch.zeros(batch, 1, 4, 4)
    for index in range(batch):
        masks[index, :, : index + 1] = 1
    return torch.rand(batch, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)), masks


def test_break_a_scene_by_hand():
    """Region = the upper row. Both heads' mean is 2 4 / 5 0, by its maximum .4 .8 / 1 0: errors .6 .2 / 1 0.

    (.36 + .04 + 1) / 4 = .35.
    """
    masks = torch.tensor([[1.0, 1.0], [0.0, 0.0]])[None, None]
    assert break_a_scene(HEADS, masks).tolist() == [pytest.approx(0.35)]


def test_fastcomposer_by_hand():
    """Region = the first pixel. Head 1: 2/3 around it, 4 on it; head 2: 16/3 and 0: (2/3 - 4 + 16/3) / 2 = 1."""
    masks = torch.tensor([[1.0, 0.0], [0.0, 0.0]])[None, None]
    assert fastcomposer(HEADS, masks).tolist() == [pytest.approx(1.0)]


@BOTH
def test_a_batch_is_its_samples_alone(loss):
    maps, masks = random_maps()
    alone = [loss(maps[index : index + 1], masks[index : index + 1]) for index in range(2)]
    torch.testing.assert_close(loss(maps, masks), torch.cat(alone))


@BOTH
def test_a_step_against_the_gradient_moves_attention_into_the_region(loss):
    maps, masks = random_maps()
    maps.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(maps, masks).sum(), maps)
    inside = masks[:, :, None].expand_as(maps) == 1
    assert gradient[inside].sum() < 0 < gradient[~inside].sum()
    stepped = maps.detach() - 0.01 * gradient / gradient.abs().max()
    assert (loss(stepped, masks) < loss(maps, masks)).all()


def test_how_bright_the_mean_map_is_does_not_count():
    """Of the maximum too, which a constant in its place would not give: no gradient along the map itself."""
    maps, masks = random_maps()
    maps.requires_grad_(True)
    torch.testing.assert_close(break_a_scene(3 * maps, masks), break_a_scene(maps, masks))
    (gradient,) = torch.autograd.grad(break_a_scene(maps, masks).sum(), maps)
    assert float((gradient * maps.detach()).sum()) == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max() > 1e-4


@BOTH
@pytest.mark.parametrize("area", [0.0, 1.0])
def test_maps_of_zeros_and_regions_of_all_or_nothing_stay_numbers(loss, area):
    maps = torch.zeros(1, 2, 2, 4, 4, requires_grad=True)
    value = loss(maps, torch.full((1, 1, 4, 4), area))
    (gradient,) = torch.autograd.grad(value.sum(), maps)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
