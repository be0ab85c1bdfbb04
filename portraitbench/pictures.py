"""Rendered pictures by the thousand, kept on disk so that no stage of pretraining paints the same picture twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from magicapture_core.files import write_atomic

from . import world
from .world import Picture, Split

CACHE = Path(__file__).parent / "cache"
SHARD = 500  # pictures a file
MOST_SUBJECTS = 3


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of one split and size: images [N,H,W,3] uint8, face masks [N,H,W] bool, N captions.

    landmarks [N,3,5,2]: of up to three subjects from left to right, NaN where there is none.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    captions: NDArray[np.str_]
    landmarks: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: slice | NDArray[np.integer]) -> Pictures:
        return Pictures(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def tensor(self) -> Tensor:
        """[N,3,H,W] in 0..1."""
        return to_tensor(self.images)


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """[N,H,W,3] -> [N,3,H,W] in 0..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """[N,3,H,W] in 0..1 -> [N,H,W,3]."""
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def load_pictures(split: Split, height: int, width: int, count: int, workers: int = 2) -> Pictures:
    """The first `count` examples of the world."""
    return painted(f"{split}-{height}x{width}", count, partial(paint_example, split, height, width), workers)


def paint_example(split: Split, height: int, width: int, index: int) -> Picture:
    return world.example(split, index, height, width)


def painted(name: str, count: int, paint: Callable[[int], Picture], workers: int = 2) -> Pictures:
    """Pictures 0..count-1 of a named set; whole shards are painted, by several processes, where the disk lacks them."""
    folder = CACHE / f"world-{world.WORLD_VERSION}" / name
    paths = [folder / f"{number:04d}.npz" for number in range(-(-count // SHARD))]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    if missing:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            shards = pool.map(paint_shard, [(folder, number, paint) for number in missing])
            for _ in tqdm(shards, f"painting {name}", len(missing)):
                pass
    return join([_read(path) for path in paths])[:count]


def paint_shard(job: tuple[Path, int, Callable[[int], Picture]]) -> None:
    folder, number, paint = job
    pictures = [paint(number * SHARD + index) for index in range(SHARD)]
    shard = to_arrays(pictures)
    write_atomic(
        folder / f"{number:04d}.npz",
        lambda file: np.savez(file, **{f.name: getattr(shard, f.name) for f in fields(shard)}),
    )


def to_arrays(pictures: Sequence[Picture]) -> Pictures:
    """Pictures of one size, stacked."""
    landmarks = np.full((len(pictures), MOST_SUBJECTS, 5, 2), np.nan, np.float32)
    for row, picture in zip(landmarks, pictures, strict=True):
        for place, face in enumerate(picture.faces):
            row[place] = face.landmarks
    return Pictures(
        images=np.stack([picture.image for picture in pictures]),
        masks=np.stack([picture.mask for picture in pictures]),
        captions=np.array([picture.caption for picture in pictures]),
        landmarks=landmarks,
    )


def _read(path: Path) -> Pictures:
    with np.load(path, allow_pickle=False) as shard:
        return Pictures(**{field.name: shard[field.name] for field in fields(Pictures)})


def join(parts: Sequence[Pictures]) -> Pictures:
    return Pictures(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Pictures)))
