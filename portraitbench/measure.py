"""What is measured on the pictures of one run: whose face, whose style, how near the truth, and what words still do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from magicapture_core.faces import FaceDetector, choose_face, load_face_detector
from magicapture_core.heatmaps import AttentionRecord
from magicapture_core.restore import FFHQ_POINTS, face_mask, similarity_transform
from magicapture_core.types import Face

from .labels import ATTRIBUTES, STYLE_WORDS, style_words
from .nets import load_net
from .parameters import AnyIdentity, Style
from .portrait import Subject
from .views import face_crops, head_crops, hide_face, place_window


@dataclass(frozen=True, kw_only=True, eq=False)
class Judges:
    """Everything that judges; none of it had a part in any training that it judges."""

    recogniser: Any
    style: Any
    face: Any
    detector: FaceDetector

    @classmethod
    def load(cls) -> Judges:
        names = {"recogniser": "judging_recogniser", "style": "style_judge", "face": "face_judge"}
        return cls(**{place: load_net(name) for place, name in names.items()}, detector=load_face_detector())


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What the judges see in N pictures.

    seen: [N] bool, a face was found. embeddings: [N,D] of unit length, zero without a face. style: [N,S] of unit
    length. words: for each picture every style attribute's word. attributes: [N,6] bool. traits: [N,26], NaN without a
    face. landmarks: of the found faces, None without.
    """

    seen: Tensor
    embeddings: Tensor
    style: Tensor
    words: list[dict[str, str]]
    attributes: Tensor
    traits: Tensor
    landmarks: list[Tensor | None]


@torch.no_grad()
def read(judges: Judges, images: Tensor) -> Reading:
    """images [N,3,64,64] in 0..1."""
    landmarks = [find_landmarks(judges.detector, image) for image in images]
    windows = torch.stack(
        [hide_face(place_window(image, 0, 1)[0], points) for image, points in zip(images, landmarks, strict=True)]
    )
    seen = torch.tensor([points is not None for points in landmarks])
    reading = Reading(
        seen=seen,
        embeddings=torch.zeros(len(images), judges.recogniser.head.out_features),
        style=F.normalize(judges.style.features(windows), dim=1),
        words=read_words(judges.style, windows),
        attributes=torch.zeros(len(images), len(ATTRIBUTES), dtype=torch.bool),
        traits=torch.full((len(images), judges.face.traits.out_features), torch.nan),
        landmarks=landmarks,
    )
    if found := [points for points in landmarks if points is not None]:
        faces, points = images[seen], torch.stack(found)
        attributes, traits = judges.face(head_crops(faces, points))
        reading.embeddings[seen] = judges.recogniser(face_crops(faces, points))
        reading.attributes[seen], reading.traits[seen] = attributes > 0, traits
    return reading


def read_words(judge: Any, windows: Tensor) -> list[dict[str, str]]:
    """windows [N,4,64,64] as `hide_face` gives them -> every style attribute's word, for each."""
    scores = judge(windows)
    return [
        {name: words[int(scores[name][row].argmax())] for name, words in STYLE_WORDS.items()}
        for row in range(len(windows))
    ]


def find_landmarks(detector: FaceDetector, image: Tensor) -> Tensor | None:
    faces: Sequence[Face] = detector.detect(image)
    return faces[choose_face(faces, image.shape[1], image.shape[2])].landmarks if faces else None


def likeness(made: Reading, photos: Reading, who: AnyIdentity, truth: Reading) -> dict[str, float]:
    """csim, detection: as of the functions.

    trait_error: mean distance of the identity parameters that the face judge reads to the true ones, 0..1, over the
    faces found. truth_distance: energy distance between these pictures and the true composed ones, in what the judges
    see.
    """
    shows = torch.from_numpy(who.shows())
    target = torch.from_numpy(who.vector()).float()
    distance = (made.traits[made.seen] - target)[:, shows].abs().mean() if made.seen.any() else torch.tensor(torch.nan)
    return {
        "csim": csim(made, photos),
        "detection": detection(made),
        "trait_error": float(distance),
        "truth_distance": energy_distance(joint(made), joint(truth)),
    }


def csim(made: Reading, photos: Reading) -> float:
    """Mean cosine to the photos' faces, a picture without a face counting 0."""
    return float((made.embeddings @ photos.embeddings[photos.seen].T).mean())


def detection(made: Reading) -> float:
    """Share of the pictures that show a face."""
    return float(made.seen.float().mean())


def trait_error(made: Reading, who: AnyIdentity) -> float:
    """Mean distance of the identity parameters that the face judge reads to the true ones, 0..1, over the faces found;
    NaN without any."""
    shows = torch.from_numpy(who.shows())
    target = torch.from_numpy(who.vector()).float()
    return float((made.traits[made.seen] - target)[:, shows].abs().mean())


def joint(reading: Reading) -> Tensor:
    return torch.cat([reading.embeddings, reading.style], 1)


def energy_distance(first: Tensor, second: Tensor) -> float:
    """Szekely and Rizzo's distance of two samples [N,D], [M,D]: 2 E|X-Y| - E|X-X'| - E|Y-Y'|, unbiased."""

    def within(sample: Tensor) -> Tensor:
        return torch.cdist(sample, sample).sum() / (len(sample) * (len(sample) - 1))

    return float(2 * torch.cdist(first, second).mean() - within(first) - within(second))


def style_likeness(made: Reading, photos: Reading, how: Style, who: AnyIdentity) -> dict[str, float]:
    """style: mean cosine of the style features, faces hidden. style_words: share of the words that are right."""
    wanted = style_words(Subject(identity=who, look=how.look), how.setting)
    right = [mean(words[name] == word for name, word in wanted.items()) for words in made.words]
    return {"style": float((made.style @ photos.style.T).mean()), "style_words": mean(right)}


def leakage(record: AttentionRecord, made: Reading, size: int, subject: str, style: str) -> dict[str, float]:
    """Share of the subject's word's attention outside the face and of the style's inside it, where a face was found.

    On the finest maps: a cell of the others is as large as a face.
    """
    masks, finest = torch.stack([_oval(points, size) for points in made.landmarks]), finest_maps(record)
    outside, inside = finest.leakage(subject, masks), finest.leakage(style, 1 - masks)
    return {"subject_leakage": _over(outside, made.seen), "style_leakage": _over(inside, made.seen)}


def finest_maps(record: AttentionRecord) -> AttentionRecord:
    return record.part(grid=record.grids[-1])


def _oval(landmarks: Tensor | None, size: int) -> Tensor:
    if landmarks is None:
        return torch.zeros(1, size, size)
    return (face_mask(similarity_transform(landmarks, FFHQ_POINTS), (size, size)) > 0.5).float()


def _over(values: Tensor, chosen: Tensor) -> float:
    return float(values[chosen].mean()) if chosen.any() else float("nan")


EDITS: dict[str, tuple[str, Callable[[Reading, int], bool]]] = {
    "glasses": (" wearing glasses", lambda reading, row: bool(reading.attributes[row, ATTRIBUTES.index("glasses")])),
    "blue_background": (
        ", in front of a plain blue background",
        lambda reading, row: reading.words[row]["background"] == "blue",
    ),
}


def obeyed(edit: str, reading: Reading) -> float:
    """Share of the pictures, made with the edit's words behind the prompt, in which the judges find what was asked."""
    check = EDITS[edit][1]
    return mean(check(reading, row) for row in range(len(reading.words)))
