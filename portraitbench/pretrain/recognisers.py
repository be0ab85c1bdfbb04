"""Stage 4, two face recognisers: same people close together, others far apart, on pictures and on VAE rebuilds.

The one inside the identity loss learns from pairs (supervised contrast), the judging one from names (ArcFace).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicapture_core import backbone as backbones
from magicapture_core.backbone import TINY_WEIGHTS
from magicapture_core.small_recognisers import JudgingRecogniser, TrainingRecogniser

from ..nets import save_net
from ..pictures import to_tensor
from ..views import face_crops
from . import stage
from .people import PHOTOS, People, load_people

NUM_PEOPLE = 3_000
PEOPLE, PER_PERSON = 48, 2  # of a batch
TEMPERATURE = 0.1
MARGIN, SCALE = 0.3, 20.0  # ArcFace
JITTER = 0.02  # of the landmarks, as a share of the distance between eyes and mouth
JUDGING = stage.Stage(
    name="judging_recogniser", num_steps=6_000, learning_rate=2e-3, average=0.997, seed=1,
    learns_from=(TINY_WEIGHTS["vae"],),
)  # fmt: skip
TRAINING = replace(
    JUDGING, name="training_recogniser", num_steps=2_500, seed=0, learns_from=tuple(TINY_WEIGHTS.values())
)


def draw(people: People, views: Sequence[str], generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Faces [B,3,48,48] of PEOPLE people, PER_PERSON of each in a row, each by one of the views; and whose they are."""
    chosen = generator.choice(len(people), PEOPLE, replace=False)
    photos = np.concatenate(
        [person * PHOTOS + generator.choice(PHOTOS, PER_PERSON, replace=False) for person in chosen]
    )
    shown = generator.integers(len(views), size=len(photos))
    seen = [people.views[views[int(view)]][photo] for photo, view in zip(photos, shown, strict=True)]
    crops = face_crops(to_tensor(np.stack(seen)), jitter(people.landmarks[photos], generator))
    gain = torch.from_numpy(generator.uniform(0.85, 1.15, (len(photos), 1, 1, 1)).astype(np.float32))
    return crops * gain, torch.from_numpy(np.repeat(chosen, PER_PERSON))


def jitter(landmarks: np.ndarray, generator: np.random.Generator) -> Tensor:
    """landmarks [B,5,2], each moved a little, as a detector's are."""
    reach = np.linalg.norm(landmarks[:, 3:].mean(1) - landmarks[:, :2].mean(1), axis=-1)[:, None, None]
    return torch.from_numpy(
        (landmarks + JITTER * reach * generator.standard_normal(landmarks.shape)).astype(np.float32)
    )


def contrast(embeddings: Tensor) -> Tensor:
    """Supervised contrast of neighbours: of all other faces, the same person's is the likeliest partner."""
    scores = (embeddings @ embeddings.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(embeddings), device=embeddings.device) ^ 1
    return F.cross_entropy(scores, partner)


class NamedFaces(nn.Module):
    """A recogniser with one direction per person to tell them apart by, used in training alone."""

    def __init__(self, recogniser: nn.Module, dimension: int) -> None:
        super().__init__()
        self.recogniser = recogniser
        # Short, for a step of Adam has one length: long ones would hardly turn.
        self.directions = nn.Parameter(0.02 * torch.randn(NUM_PEOPLE, dimension))

    def forward(self, faces: Tensor, names: Tensor) -> Tensor:
        """ArcFace: cross-entropy over scaled cosines, the true one's angle made larger by a margin."""
        cosines = self.recogniser(faces) @ F.normalize(self.directions, dim=1).T
        angles = cosines.gather(1, names[:, None]).clamp(-1 + 1e-6, 1 - 1e-6).acos()
        harder = (angles + MARGIN).clamp(max=math.pi).cos()
        return F.cross_entropy(SCALE * cosines.scatter(1, names[:, None], harder), names)


@torch.no_grad()
def embed(recogniser: nn.Module, images: np.ndarray, landmarks: np.ndarray) -> Tensor:
    """[N,D] of pictures [N,H,W,3] uint8."""
    faces = face_crops(to_tensor(images), torch.from_numpy(landmarks))
    return torch.cat([recogniser(chunk) for chunk in faces.split(100)])


def verification_accuracy(first: Tensor, second: Tensor) -> float:
    """Same or different, [P,PHOTOS,D] each: photo 0 of `first` against all others of `second`, at the best threshold.

    As many pairs of each kind: every person's own photos, and the next person's.
    """
    same = (first[:, :1] * second[:, 1:]).sum(-1).flatten()
    different = (first[:, :1] * second[:, 1:].roll(1, 0)).sum(-1).flatten()
    thresholds = torch.cat([same, different]).sort().values
    true_accepts = 1 - torch.searchsorted(same.sort().values, thresholds) / len(same)
    false_accepts = 1 - torch.searchsorted(different.sort().values, thresholds) / len(different)
    return float((true_accepts + 1 - false_accepts).max() / 2)


def score(recogniser: nn.Module, people: People) -> dict[str, float]:
    """Verification accuracy on each view against pictures, as CSIM and the identity loss compare."""
    seen = {
        name: embed(recogniser, images, people.landmarks).unflatten(0, (-1, PHOTOS))
        for name, images in people.views.items()
    }
    return {name: verification_accuracy(seen["pictures"], embeddings) for name, embeddings in seen.items()}


def pretrain() -> None:
    backbone = backbones.tiny()
    people, held_out = load_people("pretrain", NUM_PEOPLE, backbone), load_people("tuning", 100, backbone)

    torch.manual_seed(TRAINING.seed)
    training = stage.run(
        TRAINING,
        TrainingRecogniser(),
        partial(draw, people, ("pictures", "rebuilt", "predicted")),
        lambda model, faces, names: contrast(model(faces)),
        lambda model: score(model, held_out),
    )
    save_net(TRAINING.name, training)

    torch.manual_seed(JUDGING.seed)
    judging = stage.run(
        JUDGING,
        NamedFaces(JudgingRecogniser(), 96),
        partial(draw, people, ("pictures", "rebuilt")),
        NamedFaces.__call__,
        lambda model: score(model.recogniser, held_out),
    )
    save_net(JUDGING.name, judging.recogniser)
