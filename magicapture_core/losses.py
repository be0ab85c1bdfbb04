"""The terms of Eq. 10, per sample: tensors in, tensors out, a loss never sees a model. The caller reduces over B.

Equation numbers are those of MagiCapture, arXiv 2309.06895. Last comes the attention loss of SeFi-IDE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

AttentionLoss = Callable[[Tensor, Tensor], Tensor]  # of one token's maps and its region, see `attention_refocusing`
MIN_MAX_EPSILON = 1e-6  # a constant map scales to zero instead of NaN


def masked_reconstruction(noise_pred: Tensor, target: Tensor, latent_masks: Tensor) -> Tensor:
    """Mean squared error over the masked area of each sample: sum(m (eps - pred)^2) / (C sum(m)), Eq. 4, 5 and 6.

    noise_pred, target: [B,C,h,w]. latent_masks: [B,1,h,w], 1 = counts. Returns [B]; an empty mask gives 0.
    """
    squared = (noise_pred.float() - target.float()).square() * latent_masks
    area = latent_masks.sum((1, 2, 3)) * noise_pred.shape[1]
    return squared.sum((1, 2, 3)) / area.clamp(min=1)


def identity(pred_embeds: Tensor, target_embeds: Tensor) -> Tensor:
    """1 - cos of embeddings of unit length, Eq. 7. pred_embeds, target_embeds: [B,D]. Returns [B], 0..2."""
    return 1 - (pred_embeds.float() * target_embeds.float()).sum(1)


def scale_to_unit(maps: Tensor) -> Tensor:
    """Min-max scaling of each map [..., h, w] to 0..1, the S of Eq. 8. The two constants carry no gradient."""
    low = maps.detach().amin((-2, -1), keepdim=True)
    high = maps.detach().amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low + MIN_MAX_EPSILON)


def attention_refocusing(
    attention_probs: Tensor,
    masks: Tensor,
    reduce: Literal["square_then_mean", "mean_then_square"] = "square_then_mean",
) -> Tensor:
    """The token's attention goes to zero outside its region, nothing is asked inside: Eq. 8.

    attention_probs: [B,L,heads,h,w] of one token. masks: [B,1,h,w], its region. Returns [B]: the mean over maps and
    pixels of (S(A) (1 - M))^2. `mean_then_square` averages the maps first, as the authors' code does.
    """
    outside = scale_to_unit(attention_probs.float()) * (1 - masks[:, :, None])
    if reduce == "mean_then_square":
        outside = outside.mean((1, 2), keepdim=True)
    return outside.square().mean((1, 2, 3, 4))


def reference_attention(target_probs: Tensor, reference_probs: Tensor) -> Tensor:
    """Every token of the learned prompt looks where that of the plain one does: ||A_t - A_r||^2 of SeFi-IDE.

    target_probs, reference_probs: [B,...,heads,N,T], over N pixels and T tokens, of the same queries; with layers in
    between where they are of one size. The reference carries no gradient. Returns [B]: the sum over pixels and tokens,
    the mean over heads and layers. As a mean over pixels and tokens too it would be some 1e-6 of the reconstruction at
    the paper's weight of 0.003, and do nothing (reconstruction: the paper does not tell its reduction).
    """
    squared = (target_probs.float() - reference_probs.detach().float()).square()
    return squared.sum((-2, -1)).flatten(1).mean(1)
