"""What others ask of a learned word's attention, to train in the place of attention refocusing.

Each takes attention_probs [B,L,heads,h,w] of one word and masks [B,1,h,w], its region, and returns [B]. All read the
same layers as attention refocusing does. The variant of MagiCapture's own code, mean then square, is an option of the
core.
"""

from __future__ import annotations

from torch import Tensor

SMALLEST = 1e-12  # of a mean map's maximum: an absent word's map is zero, and has to stay a number


def break_a_scene(attention_probs: Tensor, masks: Tensor) -> Tensor:
    """The mean map is the mask itself, bright inside and dark outside: mean_ij (A / max A - M)^2 of A, the mean map.

    Break-A-Scene, arXiv 2305.16311, weight 0.01 there. The maximum carries gradient.
    """
    mean_map = attention_probs.float().mean((1, 2))[:, None]
    scaled = mean_map / mean_map.amax((-2, -1), keepdim=True).clamp(min=SMALLEST)
    return (scaled - masks).square().mean((1, 2, 3))


def fastcomposer(attention_probs: Tensor, masks: Tensor) -> Tensor:
    """More attention inside than outside, in every map: its mean over the background minus that over the object, -1..1.

    FastComposer, arXiv 2305.10431, weight 1e-3 there and the middle five blocks' maps. An empty area's mean is 0.
    """
    inside = masks[:, :, None]
    return (_mean_over(1 - inside, attention_probs.float()) - _mean_over(inside, attention_probs.float())).mean((1, 2))


def _mean_over(areas: Tensor, maps: Tensor) -> Tensor:
    """areas [B,1,1,h,w] of 0 and 1, maps [B,L,heads,h,w] -> [B,L,heads]."""
    return (maps * areas).sum((-2, -1)) / areas.sum((-2, -1)).clamp(min=1)
