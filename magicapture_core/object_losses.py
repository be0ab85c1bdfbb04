"""The loss of a composed prompt for things other than faces, per sample: tensors in, tensors out.

In: DINO's keys [B,N,D] and CLS tokens [B,D] of the predicted picture, of a source and of a reference photo. The caller
reduces over B. MagiCapture's supplement gives 0.1 L_ssim + 0.2 L_contra + 2 L_style in words (it prints lambda_ssim
for all three weights, a typo). The exact forms are our reconstruction, those of DiffuseIT, arXiv 2209.15264: mean
squares, as its code has them, where its paper writes norms. The weights belong to these: a norm over 196 x 196 cosines
or over 384 features is some hundred times its mean square, and would leave nothing of the other terms.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

STRUCTURE_WEIGHT, CONTRAST_WEIGHT, APPEARANCE_WEIGHT = 0.1, 0.2, 2.0
TEMPERATURE = 0.07  # DiffuseIT's


def self_similarity(keys: Tensor) -> Tensor:
    """S_ij = cos(k_i, k_j) of all pairs of patches. keys: [B,N,D]. Returns [B,N,N], -1..1."""
    return _cosines(keys, keys)


def structure(keys: Tensor, target_keys: Tensor) -> Tensor:
    """L_ssim, the mean of (S(k) - S(k'))^2: what resembles what stays so. keys, target_keys: [B,N,D]. Returns [B],
    0..4."""
    return (self_similarity(keys) - self_similarity(target_keys)).square().mean((1, 2))


def patch_contrast(keys: Tensor, target_keys: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """InfoNCE, the mean over i of -log softmax_j(cos(k_i, k'_j) / temperature) at j = i, L_contra.

    Each patch is to resemble the target's at its own place more than those elsewhere. keys, target_keys: [B,N,D].
    Returns [B], above 0; log N where all patches are alike.
    """
    log_probs = (_cosines(keys, target_keys) / temperature).log_softmax(2)
    return -log_probs.diagonal(dim1=1, dim2=2).mean(1)


def appearance(cls: Tensor, target_cls: Tensor) -> Tensor:
    """L_style, the mean of (c - c')^2: the whole looks like the reference. cls, target_cls: [B,D]. Returns [B]."""
    return (cls - target_cls).square().mean(1)


def object_loss(keys: Tensor, cls: Tensor, source_keys: Tensor, reference_cls: Tensor) -> Tensor:
    """0.1 L_ssim + 0.2 L_contra to the source's keys [B,N,D], 2 L_style to the reference's CLS token [B,D]: [B]."""
    shape = STRUCTURE_WEIGHT * structure(keys, source_keys) + CONTRAST_WEIGHT * patch_contrast(keys, source_keys)
    return shape + APPEARANCE_WEIGHT * appearance(cls, reference_cls)


def _cosines(left: Tensor, right: Tensor) -> Tensor:
    """[B,N,D], [B,M,D] -> [B,N,M]"""
    return F.normalize(left, dim=2) @ F.normalize(right, dim=2).transpose(1, 2)
