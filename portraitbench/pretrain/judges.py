"""Stage 5, the judges: one reads the style of a subject whose face is hidden, one reads the face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicapture_core import backbone as backbones
from magicapture_core.backbone import TINY_WEIGHTS
from magicapture_core.faces import transform

from .. import world
from ..labels import STYLE_WORDS, UNSEEN, attribute_labels, style_labels
from ..nets import FaceJudge, StyleJudge, save_net
from ..parameters import Identity
from ..pictures import load_pictures, to_tensor
from ..views import head_crops, hide_face, place_window
from ..world import CANVASES, Scene, Split
from . import stage
from .people import rebuild
from .recognisers import jitter

STYLE = stage.Stage(
    name="style_judge", num_steps=2_500, learning_rate=2e-3, average=0.997, learns_from=(TINY_WEIGHTS["vae"],)
)
FACE = replace(STYLE, name="face_judge")
COUNTS = dict(zip(CANVASES, (16_000, 4_000, 4_000, 4_000), strict=True))
BATCH = 64
TRAIT_WEIGHT = 20.0  # of the identity parameters' squared error beside the attributes' cross-entropy


class Subjects:
    """Every subject of one canvas' pictures: where it stands, its landmarks and what is to be read off it."""

    def __init__(self, split: Split, canvas: tuple[int, int], count: int, vae: Any) -> None:
        pictures = load_pictures(split, *canvas, count)
        self.images = (pictures.images, rebuild(pictures, f"{split}-{canvas[0]}x{canvas[1]}", vae))
        self.landmarks = pictures.landmarks
        scenes = [scene_of(split, index, *canvas) for index in range(count)]
        self.places = [(index, place) for index, scene in enumerate(scenes) for place in range(len(scene.subjects))]
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.places)

    def people(self) -> list[int]:
        """The numbers of those subjects that are no cats."""
        return [
            number
            for number, (index, place) in enumerate(self.places)
            if isinstance(self.scenes[index].subjects[place].identity, Identity)
        ]


def scene_of(split: Split, index: int, height: int, width: int) -> Scene:
    """What example `index` shows, without painting it."""
    return world.draw_scene(world.random(split, "example", height, width, index), height, width)


def style_window(subjects: Subjects, number: int, rebuilt: bool, generator: np.random.Generator) -> Tensor:
    """[4,64,64]: the subject's place with its face hidden."""
    index, place = subjects.places[number]
    count = len(subjects.scenes[index].subjects)
    window, matrix = place_window(to_tensor(subjects.images[rebuilt][index][None])[0], place, count)
    landmarks = jitter(subjects.landmarks[index, place][None], generator)[0]
    return hide_face(window, transform(landmarks, matrix))


def style_target(subjects: Subjects, number: int) -> list[int]:
    index, place = subjects.places[number]
    scene = subjects.scenes[index]
    return style_labels(scene.subjects[place], scene.setting)


def style_loss(model: nn.Module, windows: Tensor, targets: Tensor) -> Tensor:
    """windows [B,4,64,64], targets [B,attributes]: the mean cross-entropy of all that shows."""
    scores = model(windows)
    return torch.stack(
        [F.cross_entropy(scores[name], targets[:, column], ignore_index=UNSEEN) for column, name in enumerate(scores)]
    ).mean()


def style_accuracy(scores: dict[str, Tensor], targets: Tensor) -> dict[str, float]:
    """Of each attribute, over the subjects that show it."""
    accuracy = {}
    for column, name in enumerate(STYLE_WORDS):
        shown = targets[:, column] != UNSEEN
        accuracy[name] = float((scores[name].argmax(1) == targets[:, column])[shown].float().mean())
    return accuracy


def head_batch(
    subjects: Subjects, numbers: Sequence[int] | np.ndarray, rebuilt: np.ndarray, generator: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Heads [B,3,64,64], attributes [B,6] and identity parameters [B,26] of people."""
    images, landmarks, attributes, traits = [], [], [], []
    for number, after_vae in zip(numbers, rebuilt, strict=True):
        index, place = subjects.places[number]
        subject = subjects.scenes[index].subjects[place]
        images.append(subjects.images[after_vae][index])
        landmarks.append(subjects.landmarks[index, place])
        attributes.append(attribute_labels(subject))
        traits.append(subject.identity.vector())
    heads = head_crops(to_tensor(np.stack(images)), jitter(np.stack(landmarks), generator))
    return heads, torch.tensor(attributes).float(), torch.from_numpy(np.stack(traits)).float()


def face_loss(model: nn.Module, heads: Tensor, attributes: Tensor, traits: Tensor) -> Tensor:
    scores, read = model(heads)
    return F.binary_cross_entropy_with_logits(scores, attributes) + TRAIT_WEIGHT * F.mse_loss(read, traits)


def pretrain() -> None:
    vae = backbones.tiny().vae
    canvases = [Subjects("pretrain", canvas, count, vae) for canvas, count in COUNTS.items()]
    held_out = Subjects("tuning", (64, 64), 500, vae)
    sizes = np.array([len(canvas) for canvas in canvases])

    def pick(generator: np.random.Generator) -> tuple[Subjects, np.ndarray]:
        return canvases[generator.choice(len(canvases), p=sizes / sizes.sum())], generator.random(BATCH) < 0.5

    def style_batch(generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        subjects, rebuilt = pick(generator)
        numbers = generator.integers(len(subjects), size=BATCH)
        windows = [style_window(subjects, n, bool(r), generator) for n, r in zip(numbers, rebuilt, strict=True)]
        return torch.stack(windows), torch.tensor([style_target(subjects, n) for n in numbers])

    people = [canvas.people() for canvas in canvases]

    def face_batch(generator: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        subjects, rebuilt = pick(generator)
        numbers = generator.choice(people[canvases.index(subjects)], BATCH)
        return head_batch(subjects, numbers, rebuilt.astype(int), generator)

    fixed = np.random.default_rng(0)
    windows = torch.stack([style_window(held_out, number, True, fixed) for number in range(len(held_out))])
    targets = torch.tensor([style_target(held_out, number) for number in range(len(held_out))])
    faces = held_out.people()
    heads = head_batch(held_out, faces, np.ones(len(faces), int), fixed)

    @torch.no_grad()
    def score_style(model: Any) -> dict[str, float]:
        return style_accuracy(model(windows), targets)

    @torch.no_grad()
    def score_face(model: Any) -> dict[str, float]:
        scores, read = model(heads[0])
        attributes = ((scores > 0) == heads[1].bool()).float().mean()
        return {"attributes": float(attributes), "trait_error": float((read - heads[2]).abs().mean())}

    torch.manual_seed(STYLE.seed)
    save_net(STYLE.name, stage.run(STYLE, StyleJudge(), style_batch, style_loss, score_style))
    torch.manual_seed(FACE.seed)
    save_net(FACE.name, stage.run(FACE, FaceJudge(), face_batch, face_loss, score_face))
