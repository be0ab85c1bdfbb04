"""Pictures made larger by a super-resolution network, in tiles that leave no seam. Knows nothing of faces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .memory import is_out_of_memory
from .pretrained import load_descriptor
from .types import MagiCaptureError

Progress = Callable[[int, int], object]  # called after each part with how many are done, of how many
MIN_TILE = 64


def load_upscaler(path: str | Path, device: str = "cpu") -> Any:
    """A file of Real-ESRGAN or a relative -> spandrel descriptor. Raises MagiCaptureError when it is not one."""
    upscaler = load_descriptor(path, device)
    check_upscaler(upscaler)
    return upscaler


def check_upscaler(upscaler: Any) -> None:
    if upscaler.purpose == "FaceSR":
        raise MagiCaptureError(
            f"upscale model: {upscaler.architecture.name} restores faces and does not upscale; load it as a face "
            "restorer, and take a Real-ESRGAN model here"
        )
    if upscaler.input_channels != 3 or upscaler.output_channels != 3:
        raise MagiCaptureError("upscale model: does not work on colour pictures; take a Real-ESRGAN model")


def upscale(
    images: Tensor,
    upscaler: Any,
    *,
    tile: int = 512,
    overlap: int = 32,
    device: torch.device | None = None,
    on_tile: Progress | None = None,
) -> Tensor:
    """images [B,3,H,W] 0..1 -> [B,3,H*scale,W*scale] 0..1 by a spandrel descriptor, ComfyUI's UPSCALE_MODEL too.

    tile, overlap: in pixels of the input. A network that looks at most overlap/4 pixels around gives exactly what it
    gives without tiles; one that looks further differs by what lies beyond. A tile that does not fit into memory is
    halved, down to 64 pixels; then MagiCaptureError. device: where the network is, when its weights do not tell.
    """
    check_upscaler(upscaler)
    place = upscaler.device if device is None else device
    tile = min(tile, max(images.shape[-2:]))
    while True:
        try:
            return torch.cat([_upscale_tiled(image, upscaler, tile, overlap, place, on_tile) for image in images])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            too_large = tile
        tile = too_large // 2  # outside the handler: the exception holds on to the memory of the failed try
        if tile < MIN_TILE:
            raise MagiCaptureError(
                f"upscale model: out of memory even with tiles of {too_large} pixels; close other programs, or take a "
                "smaller model"
            )


@torch.no_grad()
def _upscale_tiled(
    image: Tensor, upscaler: Any, tile: int, overlap: int, device: torch.device, on_tile: Progress | None
) -> Tensor:
    """image [3,H,W] -> [1,3,H*scale,W*scale]: the average of the tiles, weighted by their distance to the seams."""
    _, height, width = image.shape
    scale = upscaler.scale
    total = image.new_zeros(1, 3, height * scale, width * scale)
    weights = image.new_zeros(1, 1, height * scale, width * scale)
    tops, lefts = tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)
    corners = [(top, left) for top in tops for left in lefts]
    for done, (top, left) in enumerate(corners, 1):
        part = image[:, top : top + tile, left : left + tile]
        larger = upscaler(part[None].to(device, torch.float32)).to(image)
        down = tile_weights(top, part.shape[1], height, overlap, scale).to(image)
        across = tile_weights(left, part.shape[2], width, overlap, scale).to(image)
        rows = slice(top * scale, top * scale + len(down))
        columns = slice(left * scale, left * scale + len(across))
        total[..., rows, columns] += larger * down[:, None] * across
        weights[..., rows, columns] += down[:, None] * across
        if on_tile:
            on_tile(done, len(corners))
    return (total / weights).clamp(0, 1)


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles begin that cover `length` pixels, neighbours sharing at least `overlap`."""
    last = max(length - tile, 0)
    return [*range(0, last, tile - overlap), last]


def tile_weights(start: int, size: int, length: int, overlap: int, scale: int) -> Tensor:
    """[size * scale]: 1 inside, down to 0 at each end that has a neighbour.

    The outer quarter of the overlap counts nothing, as the network saw no picture beyond it; between lies a ramp, and
    the ramps of two neighbours add up to 1.
    """
    margin = overlap / 4
    position = (torch.arange(size * scale) + 0.5) / scale
    weights = torch.ones(size * scale)
    if start > 0:
        weights = weights.minimum((position - margin) / (overlap - 2 * margin))
    if start + size < length:
        weights = weights.minimum((size - position - margin) / (overlap - 2 * margin))
    return weights.clamp(0, 1)
