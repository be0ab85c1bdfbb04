"""Prior preservation as in DreamBooth (arXiv 2208.12242): what the model shows of the class, it is to show afterwards.

In: an untouched backbone. Out: its own pictures of each class, as files, so that a run that goes on has the very same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    folder: of `Kept.classes`, that of the very same model, nouns, seed and size. on_step(step, num_steps) is called
    while they are made, counting over all of them; what it raises leaves the finished ones behind.
    """
    files = {
        noun: [folder / f"{number}-{index:04d}.png" for index in range(config.tuning.class_images)]
        for number, noun in enumerate(class_nouns(config))
    }
    missing = [(noun, index) for noun in files for index, file in enumerate(files[noun]) if not file.is_file()]
    for done, (noun, index) in enumerate(missing):

        def count(step: int, num_steps: int, done: int = done) -> None:
            on_step(done * num_steps + step, len(missing) * num_steps)

        save_image(_make(backbone, noun, config, index, count), files[noun][index], "generated")
    return {noun: _read(made) for noun, made in files.items() if made}


def class_nouns(config: TrainConfig) -> list[str]:
    """What the subjects are, each once."""
    return list(dict.fromkeys(config.noun(name) for name in config.concepts if side_of(name) == "subject"))


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


def _read(files: Sequence[Path]) -> Portraits:
    images = torch.stack([load_photo(file) for file in files])
    return Portraits(images=images, masks=torch.ones(1, 1, 1, 1).expand_as(images[:, :1]))
