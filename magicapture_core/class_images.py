"""Prior preservation as in DreamBooth (arXiv 2208.12242): what the model shows of the class, it is to show afterwards.

In: an untouched backbone. Out: its own pictures of each class, as files, so that a run that goes on has the very same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .config import TrainConfig
from .images import load_photo, save_image
from .prompts import templates
from .sampler import generate
from .types import Portraits, side_of

if TYPE_CHECKING:
    from .backbone import Backbone

GUIDANCE = 7.5  # DreamBooth's, in diffusers' example


def class_images(
    backbone: Backbone, config: TrainConfig, folder: Path, on_step: Callable[[int, int], None]
) -> dict[str, Portraits]:
    """Noun -> `tuning.class_images` pictures of it, of which all counts. Only those that the folder lacks are made.

    on_step(step, num_steps) is called while they are; what it raises leaves the finished ones behind.
    """
    if not config.tuning.class_images:
        return {}
    nouns = dict.fromkeys(config.noun(name) for name in config.concepts if side_of(name) == "subject")
    found: dict[str, Portraits] = {}
    for number, noun in enumerate(nouns):
        files = [folder / f"{number}-{index:04d}.png" for index in range(config.tuning.class_images)]
        for index, file in enumerate(files):
            if not file.is_file():
                save_image(_make(backbone, noun, config, index, on_step), file)
        images = torch.stack([load_photo(file) for file in files])
        found[noun] = Portraits(images=images, masks=torch.ones_like(images[:, :1]))
    return found


def _make(
    backbone: Backbone, noun: str, config: TrainConfig, index: int, on_step: Callable[[int, int], None]
) -> Tensor:
    texts, side = templates(noun)["class"], config.resolution
    return generate(
        backbone,
        None,
        texts[index % len(texts)],
        seed=config.seed + index,
        guidance=GUIDANCE,
        size=(side, side),
        on_step=on_step,
    )[0]
