"""The losses of the object mode against numbers worked out by hand on two patches."""

import math

import pytest
import torch

from magicapture_core.object_losses import appearance, object_loss, patch_contrast, self_similarity, structure

KEYS = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
TARGET_KEYS = torch.tensor([[[2.0, 0.0], [3.0, 4.0]]])
CLS, TARGET_CLS = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 6.0]])


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_self_similarity_by_hand():
    """(2, 0) and (3, 4) have the cosine 6 / 10; lengths do not count."""
    torch.testing.assert_close(self_similarity(TARGET_KEYS), torch.tensor([[[1.0, 0.6], [0.6, 1.0]]]))
    torch.testing.assert_close(self_similarity(KEYS), torch.eye(2)[None])


def test_structure_by_hand():
    """The two patches have the cosines 0 and .6, the diagonals being 1: (.6^2 + .6^2) / 4."""
    assert structure(KEYS, TARGET_KEYS).item() == pytest.approx(0.18)


def test_patch_contrast_by_hand():
    """Cosines 1 .6 / 0 .8, divided by a temperature of .5: 2 1.2 / 0 1.6.

    -log softmax on the diagonal: log(1 + e^-.8) = .371101 and log(1 + e^-1.6) = .183901; their mean is .277501.
    """
    assert patch_contrast(KEYS, TARGET_KEYS, 0.5).item() == pytest.approx(0.277501, abs=1e-6)


def test_appearance_by_hand():
    """(1, 2) and (4, 6): (9 + 16) / 2."""
    assert appearance(CLS, TARGET_CLS).item() == 12.5


def test_the_sum_by_hand():
    """.1 * .18 + .2 * contrast + 2 * 12.5; cosines 1 .6 / 0 .8 at .07: log(1 + e^(-.4/.07)), log(1 + e^(-.8/.07))."""
    contrast = (math.log1p(math.exp(-0.4 / 0.07)) + math.log1p(math.exp(-0.8 / 0.07))) / 2
    expected = 0.1 * 0.18 + 0.2 * contrast + 2 * 12.5
    assert object_loss(KEYS, CLS, TARGET_KEYS, TARGET_CLS).item() == pytest.approx(expected)


def test_the_structure_of_moved_and_turned_keys_is_the_same():
    """Only what resembles what counts: a rotation of all keys changes nothing, another order of the patches does."""
    keys, (turn, _) = drawn(2, 5, 8), torch.linalg.qr(drawn(8, 8, seed=1))
    assert structure(keys @ turn * 3, keys).abs().max() < 1e-12
    assert (structure(keys.flip(1), keys) > 0.01).all()


def test_the_contrast_asks_for_the_same_place():
    keys = drawn(2, 5, 8)
    assert (patch_contrast(keys, keys) < patch_contrast(keys, keys.flip(1))).all()
    alike = keys[:, :1].expand(-1, 5, -1)
    assert patch_contrast(alike, alike).tolist() == pytest.approx([math.log(5)] * 2)


def test_a_batch_is_its_samples_alone():
    given = drawn(2, 5, 8), drawn(2, 8, seed=1), drawn(2, 5, 8, seed=2), drawn(2, 8, seed=3)
    alone = [object_loss(*(tensor[i : i + 1] for tensor in given)) for i in range(2)]
    torch.testing.assert_close(object_loss(*given), torch.cat(alone))


def test_the_gradient_is_that_of_finite_differences():
    keys, cls = drawn(2, 3, 4).requires_grad_(), drawn(2, 4, seed=1).requires_grad_()
    targets = drawn(2, 3, 4, seed=2), drawn(2, 4, seed=3)
    assert torch.autograd.gradcheck(lambda keys, cls: object_loss(keys, cls, *targets), (keys, cls))
