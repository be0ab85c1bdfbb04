"""What an object is asked to look like, and how far one UNet pass is from it: the object mode's place of Eq. 7.

In: a frozen DINO, photos with masks, predicted latents. Out: features of the photos, and losses that carry gradient
back to the latents. Of the predicted latents only the window around the object is decoded, small enough for DINO.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .dino import Dino, DinoFeatures
from .faces import warp
from .identity import MARGIN, shrink_to
from .object_losses import object_loss
from .types import Photos, Portraits, side_of

ROOM = 0.1  # of the object's longer side, shown around it on each side


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectTarget:
    """What one item is asked for: in the square `box` [4] of its picture the shape of a subject photo, by DINO's keys
    [1,N,D], and the look of the style photo there, by its CLS token [1,D]."""

    dino: Dino
    box: Tensor
    keys: Tensor
    cls: Tensor

    def loss(self, vae: Any, latents: Tensor) -> Tensor:
        """latents [C,h,w], scaled -> [], 0.1 L_ssim + 0.2 L_contra + 2 L_style, with gradient to the latents."""
        vae_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        rows, columns = box_window(self.box, (latents.shape[-2], latents.shape[-1]), vae_factor)
        corner = self.box.new_tensor([columns.start, rows.start] * 2) * vae_factor
        window, scale = shrink_to(latents[None, :, rows, columns], self.dino.input_size // vae_factor)
        pixels = vae.decode(window.to(vae.dtype) / vae.config.scaling_factor).sample
        box = (self.box - corner) * scale.repeat(2)
        found = self.dino(cut(pixels.float() / 2 + 0.5, box, self.dino.input_size))
        keys, cls = (target.to(latents.device, non_blocking=True) for target in (self.keys, self.cls))
        return object_loss(found.keys, found.cls, keys, cls)[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class ObjectLooks:
    """The features of all photos' objects, by concept. The leading 2 is the mirror.

    keys: [2,M,N,D] of each subject's M photos. cls: [2,M,D] and boxes: [2,M,4], where it is, of each style's.
    """

    dino: Dino
    keys: Mapping[str, Tensor]
    cls: Mapping[str, Tensor]
    boxes: Mapping[str, Tensor]

    @classmethod
    def of(cls, dino: Dino, photos: Photos, device: torch.device) -> ObjectLooks:
        """Moves DINO to the device, where the training will need it too."""
        dino.to(device)
        subjects = {name: portraits for name, portraits in photos.items() if side_of(name) == "subject"}
        styles = {name: portraits for name, portraits in photos.items() if side_of(name) == "style"}
        return cls(
            dino=dino,
            keys={
                name: _of_all(portraits, lambda *pair: features(dino, *pair).keys)
                for name, portraits in subjects.items()
            },
            cls={
                name: _of_all(portraits, lambda *pair: features(dino, *pair).cls) for name, portraits in styles.items()
            },
            boxes={
                name: _of_all(portraits, lambda _, mask: square_box(mask)[None]) for name, portraits in styles.items()
            },
        )

    def target(self, subject: str, style: str, mirrored: int, photo: int, choose: Callable[[int], int]) -> ObjectTarget:
        """For a composed item of that photo of the style: the shape of a subject photo that `choose` picks from so
        many."""
        keys = self.keys[subject][mirrored]
        return ObjectTarget(
            dino=self.dino,
            box=self.boxes[style][mirrored, photo],
            keys=keys[choose(len(keys))][None],
            cls=self.cls[style][mirrored, photo][None],
        )


def _of_all(portraits: Portraits, find: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """find(image [3,S,S], mask [1,S,S]) -> [1,...], of every photo as it is and mirrored: [2,M,...]."""
    pairs = list(zip(portraits.images.float().cpu(), portraits.masks.float().cpu(), strict=True))
    plain = torch.cat([find(image, mask) for image, mask in pairs])
    mirrored = torch.cat([find(image.flip(-1), mask.flip(-1)) for image, mask in pairs])
    return torch.stack([plain, mirrored])


@torch.no_grad()
def features(dino: Dino, image: Tensor, mask: Tensor) -> DinoFeatures:
    """What DINO sees in the square around the object of image [3,S,S] 0..1 and mask [1,S,S]; one row, on the CPU."""
    device = dino.cls_token.device
    found = dino(cut(image[None].to(device), square_box(mask), dino.input_size))
    return DinoFeatures(keys=found.keys.cpu(), cls=found.cls.cpu())


def square_box(mask: Tensor) -> Tensor:
    """mask [1,S,S] -> the square box [4] around its white and some room, moved into the picture; all of it if black."""
    side_of_all = mask.shape[-1]
    rows, columns = ((mask[0] > 0.5).any(dim).nonzero().flatten() for dim in (1, 0))
    if not len(rows):
        return torch.tensor([0.0, 0.0, side_of_all, side_of_all])
    low = torch.stack([columns.min(), rows.min()]).float()
    high = torch.stack([columns.max(), rows.max()]).float() + 1
    side = min(float((high - low).max()) * (1 + 2 * ROOM), float(side_of_all))
    corner = ((low + high - side) / 2).clamp(0, side_of_all - side)
    return torch.cat([corner, corner + side])


def cut(images: Tensor, box: Tensor, size: int) -> Tensor:
    """images [B,C,H,W], box [4] in their pixels -> [B,C,size,size], all that lies in the box. Differentiable."""
    scale = size / (box[2:] - box[:2])
    matrix = torch.cat([scale.diag(), (-box[:2] * scale)[:, None]], 1)
    return warp(images, matrix[None], size, shrink=max(int(1 / float(scale.max())), 1))


def box_window(box: Tensor, grid: tuple[int, int], vae_factor: int) -> tuple[slice, slice]:
    """Rows and columns of a latent grid (h, w) that hold the box and MARGIN cells more."""
    left, top = (int(edge) - MARGIN for edge in (box[:2] / vae_factor).floor())
    right, bottom = (int(edge) + MARGIN for edge in (box[2:] / vae_factor).ceil())
    return slice(max(top, 0), min(bottom, grid[0])), slice(max(left, 0), min(right, grid[1]))
