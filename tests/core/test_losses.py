"""The losses against numbers worked out by hand on 2 x 2 pictures."""

import pytest
import torch

from magicapture_core.losses import (
    attention_refocusing,
    identity,
    masked_reconstruction,
    reference_attention,
    scale_to_unit,
)


def test_masked_reconstruction_by_hand():
    """Errors 1, 2, 3, 4 in both of two channels; the mask keeps 1 and 4: (1 + 16) * 2 / (2 * 2) = 8.5."""
    noise_pred = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(1, 2, 2, 2)
    masks = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[None, None]
    assert masked_reconstruction(noise_pred, torch.zeros(1, 2, 2, 2), masks).tolist() == [8.5]


def test_nothing_outside_the_mask_counts():
    generator = torch.Generator().manual_seed(0)
    noise_pred, target = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)
    masks = torch.zeros(2, 1, 8, 8)
    masks[..., 2:6, 2:6] = 1
    before = masked_reconstruction(noise_pred, target, masks)
    changed = torch.where(masks.bool(), target, target + 100)
    assert torch.equal(masked_reconstruction(noise_pred, changed, masks), before)
    changed[..., 3, 3] += 1
    assert not torch.equal(masked_reconstruction(noise_pred, changed, masks), before)


def test_a_batch_of_unequal_masks_is_its_samples_alone():
    generator = torch.Generator().manual_seed(0)
    noise_pred, target = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, :, :2], masks[1, :, :7] = 1, 1
    alone = [masked_reconstruction(noise_pred[i : i + 1], target[i : i + 1], masks[i : i + 1]) for i in range(2)]
    assert torch.equal(masked_reconstruction(noise_pred, target, masks), torch.cat(alone))


def test_an_empty_mask_is_zero_not_nan():
    assert masked_reconstruction(torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2), torch.zeros(1, 1, 2, 2)).item() == 0


@pytest.mark.parametrize(("reduce", "expected"), [("square_then_mean", 0.15625), ("mean_then_square", 0.140625)])
def test_attention_refocusing_by_hand(reduce, expected):
    """Two heads over 2 x 2, region = the upper row.

    Head 1: 4 0 / 2 0 scales to 1 0 / .5 0; outside (lower row): .5 0. Head 2: 0 8 / 8 0 -> 0 1 / 1 0; outside: 1 0.
    Square then mean: (.25 + 1) / 8 = .15625. Mean then square: ((.5 + 1) / 2)^2 / 4 = .140625.
    """
    probs = torch.tensor([[[4.0, 0.0], [2.0, 0.0]], [[0.0, 8.0], [8.0, 0.0]]])[None, None]
    masks = torch.tensor([[1.0, 1.0], [0.0, 0.0]])[None, None]
    assert attention_refocusing(probs, masks, reduce).item() == pytest.approx(expected, abs=1e-5)


def test_inside_the_region_nothing_is_asked():
    masks = torch.zeros(1, 1, 4, 4)
    masks[..., :2] = 1
    inside = torch.rand(1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * masks[:, :, None]
    assert attention_refocusing(inside, masks).item() == 0


def test_squaring_each_map_is_never_weaker_than_squaring_their_mean():
    probs = torch.rand(3, 5, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(3, 1, 4, 4)
    assert (attention_refocusing(probs, masks) >= attention_refocusing(probs, masks, "mean_then_square")).all()


def test_a_constant_map_scales_to_zero():
    assert scale_to_unit(torch.full((1, 4, 4), 0.3)).abs().max() == 0


def test_min_and_max_carry_no_gradient():
    """S(A) = (A - min) / (max - min) with constants: the gradient of its sum is 1 / (max - min) everywhere."""
    maps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]], requires_grad=True)
    scale_to_unit(maps).sum().backward()
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad, torch.full_like(maps, 0.25))


def test_identity_by_hand():
    """The same direction, a right angle, opposite directions."""
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])
    pred_embeds = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.6, -0.8]])
    assert identity(pred_embeds, target).tolist() == pytest.approx([0, 1, 2])


def test_reference_attention_by_hand():
    """Two heads of 2 pixels x 2 tokens: 4 x 0.1^2 in the first and 2 x 0.3^2 in the second, so 0.11 on average."""
    reference = torch.tensor([[[0.5, 0.5], [0.2, 0.8]], [[1.0, 0.0], [0.4, 0.6]]])[None]
    moved = torch.tensor([[[0.1, -0.1], [-0.1, 0.1]], [[-0.3, 0.3], [0.0, 0.0]]])[None]
    target = (reference + moved).requires_grad_()
    reference.requires_grad_()
    loss = reference_attention(target, reference)
    torch.testing.assert_close(loss, torch.tensor([0.11]))
    loss.sum().backward()
    assert reference.grad is None
    torch.testing.assert_close(target.grad, moved)  # 2 x the difference, halved by the mean over two heads
    layers = torch.stack([target, reference], 1)  # a second layer without any difference
    torch.testing.assert_close(reference_attention(layers, torch.stack([reference] * 2, 1)), torch.tensor([0.055]))


def test_the_sum_is_not_the_mean_which_would_do_nothing():
    """At 32 x 32 pixels and 77 tokens they are 78 848 apart: at the paper's weight of 0.003 some 1e-6 would be left."""
    generator = torch.Generator().manual_seed(0)
    target, reference = (torch.randn(1, 1, 1024, 77, generator=generator).softmax(-1) for _ in range(2))
    mean = (target - reference).square().mean()
    torch.testing.assert_close(reference_attention(target, reference)[0], mean * 1024 * 77)
    assert 0.003 * mean < 1e-5
