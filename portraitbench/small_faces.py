"""The fourth bench: small, blurred faces get their person back, by DDIM inversion and by what else there is.

A picture of a test person in another's style, the face of a known height and out of focus as generators leave small
faces; a LoRA of the person, trained as in the first bench. Lines are kept as there, under a key of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from magicapture_core.faces import similarity_transform
from magicapture_core.images import resize, save_image
from magicapture_core.restore import FFHQ_POINTS, face_mask
from magicapture_core.types import Face

from . import runs, world
from .lines import Line, fullest_key, key_of, run_missing, to_json
from .parameters import Nuisance
from .pictures import to_tensor
from .views import face_crops

KIND = "small-faces"
SIZES = (16, 24, 32, 48, 64)  # heights of a face, in pixels
PICTURES = 6  # of each person and size
KEPT = 7  # pixels of height that an unfocused face has left of its detail
CANVAS = 96


@dataclass(frozen=True, kw_only=True)
class Run:
    """Its address."""

    method: str
    person: int
    size: int
    split: world.Split = "test"


class Broken(NamedTuple):
    """image [3,H,W] 0..1 whose one face, with its true place, is out of focus."""

    image: Tensor
    face: Face


def broken(run: Run, number: int) -> Broken:
    """A picture of the run's person in some style, the face `run.size` pixels high."""
    rng = world.random(run.split, "small face", run.person, number)
    how = world.style(run.split, 1000 + number)
    how = replace(how, setting=replace(how.setting, framing="wide"))
    scene = world.compose(world.identity(run.split, run.person), how, Nuisance.draw(rng), CANVAS, CANVAS)
    enlarge = math.ceil(run.size / world.render(scene).faces[0].size)
    painted = world.render(scene, enlarge=enlarge)
    factor = run.size / painted.faces[0].size
    side = round(CANVAS * enlarge * factor)
    image = resize(to_tensor(painted.image[None]), (side, side)).clamp(0, 1)[0]
    scale = side / (CANVAS * enlarge)
    box, points = (torch.from_numpy(part).float() * scale for part in (painted.faces[0].box, painted.faces[0].landmarks))
    return Broken(blur(image, points, run.size), Face(box=box, landmarks=points))


def blur(image: Tensor, landmarks: Tensor, height: int) -> Tensor:
    """image [3,H,W] whose face, of that height, keeps what detail KEPT pixels of height hold."""
    size = (image.shape[1], image.shape[2])
    small = resize(image[None], (round(size[0] * KEPT / height), round(size[1] * KEPT / height)))
    mask = face_mask(similarity_transform(landmarks, FFHQ_POINTS), size)
    return (image + mask * (resize(small, size)[0] - image)).clamp(0, 1)
