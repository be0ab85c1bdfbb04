"""Who judges a picture: the user's networks, and the references that they compare with.

In: files and folders, a picture after the other. Out: numbers; no embedding of a face is kept.
"""

from __future__ import annotations

import json
import math
import re
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..faces import FaceDetector, choose_face, load_face_detector
from ..images import load_photos
from ..likeness import find_face, likeness_to
from ..painting import paint_oval
from ..recognisers import load_recogniser
from ..terminal import pick_device, reference_photos
from ..types import Face, MagiCaptureError
from .aesthetic import AestheticPredictor, load_aesthetic
from .clip import MEAN, Clip, load_clip
from .metrics import DIGITS, METRICS, NETWORKS

PROMPTS = "prompts.json"
LEARNED_WORD = re.compile(r"[<{]\w+[>}]")
Scores = dict[str, float | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Judges:
    """What judges; a metric whose judge or reference is missing is None everywhere.

    likeness: of a face to the photos of the person. style: [R,D], of the references with their faces hidden. texts: by
    the picture's file name, [D]; embeddings are of unit length.
    """

    detector: FaceDetector
    likeness: Callable[[Tensor, Face], float] | None = None
    clip: Clip | None = None
    style: Tensor | None = None
    texts: Mapping[str, Tensor] = field(default_factory=dict)
    aesthetic: AestheticPredictor | None = None

    @torch.no_grad()
    def scores(self, name: str, image: Tensor) -> Scores:
        """Every metric of a picture [3,H,W] in 0..1, None where it has none, and how many faces it shows.

        Raises MagiCaptureError, naming the picture and what to mend, for a score that is not finite.
        """
        faces = self.detector.detect(image)
        scores: Scores = dict.fromkeys(METRICS)
        scores["detection"] = float(bool(faces))
        if self.likeness:
            scores["csim"] = self.likeness(image, faces[choose_face(faces, *image.shape[1:])]) if faces else None
            scores["csim_strict"] = scores["csim"] if faces else 0.0
        if self.clip and self.style is not None:
            scores["style"] = float((self.style @ embed_style(self.clip, self.detector, image, faces)).mean())
        if self.clip and (name in self.texts or self.aesthetic):
            embed = self.clip.embed_image(image)
            scores["clip_t"] = float(self.texts[name] @ embed) if name in self.texts else None
            scores["aesthetic"] = float(self.aesthetic(embed[None])) if self.aesthetic else None
        _check_finite(name, scores)
        rounded = {metric: score if score is None else round(score, DIGITS) for metric, score in scores.items()}
        return rounded | {"faces": len(faces)}


def _check_finite(name: str, scores: Scores) -> None:
    faults = [metric for metric, score in scores.items() if score is not None and not math.isfinite(score)]
    if faults:
        title, options, _ = METRICS[faults[0]]
        networks = " or ".join(f"--{option}" for option in options if option in NETWORKS)
        raise MagiCaptureError(f"{name}: its {title} is {scores[faults[0]]}; weights of {networks} are damaged")


def embed_style(clip: Clip, detector: FaceDetector, image: Tensor, faces: Sequence[Face]) -> Tensor:
    """What CLIP sees of a picture [3,H,W] past the faces in it -> [D] of unit length."""
    return clip.embed_image(hide_faces(image, [detector.mesh(image, face) for face in faces]))


def hide_faces(image: Tensor, meshes: Sequence[Tensor]) -> Tensor:
    """image [3,H,W] in 0..1, FaceMesh's landmarks [468,2] of each face -> CLIP's mean colour in place of the faces.

    Of a face nothing is left, nor of pixels that its edge halves.
    """
    height, width = image.shape[1:]
    for landmarks in meshes:
        face = paint_oval(landmarks, max(height, width))[:, :height, :width] > 0
        image = torch.where(face, torch.tensor(MEAN)[:, None, None], image)
    return image


# --- from the command's arguments ------------------------------------------------------------------------------------


def read_judges(arguments: Namespace, names: Sequence[str]) -> tuple[Judges, dict[str, str], list[str]]:
    """The networks and references that are given; the metrics that are left out, and why; and notes on references.

    names: of the pictures. Raises MagiCaptureError for what is given and cannot be used.
    """
    device, notes = pick_device(arguments.device), []
    prompts = read_prompts(arguments.prompt, arguments.pictures / PROMPTS, names) if arguments.clip else {}
    given = {name for name, value in vars(arguments).items() if value} | ({"prompt"} if prompts else set())
    lacking = {metric: [option for option in METRICS[metric].options if option not in given] for metric in METRICS}
    left_out = {metric: f"no --{options[0]}" for metric, options in lacking.items() if options}
    judges: dict[str, Any] = {"detector": load_face_detector()}
    if "csim" not in left_out:
        judges["likeness"] = _read_likeness(arguments, judges["detector"], device, notes)
    if arguments.clip:
        judges["clip"] = clip = load_clip(arguments.clip)
        clip.model.to(device)
        if not clip.has_text:
            left_out.setdefault("clip_t", "no text half")
        if "style" not in left_out:
            judges["style"] = _read_style(arguments.style, judges["detector"], clip, notes)
        if "clip_t" not in left_out:
            texts = {prompt: clip.embed_text(prompt) for prompt in set(prompts.values())}
            judges["texts"] = {name: texts[prompt] for name, prompt in prompts.items()}
        if "aesthetic" not in left_out:
            judges["aesthetic"] = load_aesthetic(arguments.aesthetic, clip.width)
    return Judges(**judges), left_out, notes


def read_prompts(prompt: str | None, file: Path, names: Sequence[str]) -> dict[str, str]:
    """By picture: the prompt, without one what the file says; none where there is no file either.

    Raises MagiCaptureError for a file of another form, and for learned words, which CLIP does not know.
    """
    if prompt:
        prompts = dict.fromkeys(names, prompt)
    elif file.is_file():
        prompts = _read_file(file, names)
    else:
        return {}
    found = next(filter(None, map(LEARNED_WORD.search, prompts.values())), None)
    if found:
        raise MagiCaptureError(
            f"--prompt: CLIP does not know {found[0]}; write in plain words what is to be seen, such as "
            '"a watercolour portrait of a woman"'
        )
    return prompts


def _read_file(file: Path, names: Sequence[str]) -> dict[str, str]:
    try:
        said = json.loads(file.read_text(encoding="utf-8-sig"))
        prompts = {name: said[name] for name in names if name in said}
        if not prompts or not all(isinstance(prompt, str) for prompt in prompts.values()):
            raise ValueError("none of the pictures is named")
    except (ValueError, TypeError) as error:
        raise MagiCaptureError(f'{file}: {error}; it has to be JSON such as {{"file name": "prompt"}}') from error
    return prompts


def _read_likeness(
    arguments: Namespace, detector: FaceDetector, device: str, notes: list[str]
) -> Callable[[Tensor, Face], float]:
    recogniser = load_recogniser(arguments.recogniser).to(device)
    photos = _read_photos(arguments.subject, "subject", notes)
    seen = {name: image for name, image in photos if find_face(detector, image) is not None}
    notes += [f"subject: no face is found in {name}; it is left out" for name, _ in photos if name not in seen]
    if not seen:
        raise MagiCaptureError(f"--subject: {arguments.subject} shows no face; take photos that show it from the front")
    return likeness_to(recogniser, detector, list(seen.values()))


def _read_style(folder: Path, detector: FaceDetector, clip: Clip, notes: list[str]) -> Tensor:
    """[R,D]"""
    embeds = []
    for name, image in _read_photos(folder, "style", notes):
        faces = detector.detect(image)
        notes += [] if faces else [f"style: no face is found in {name}; it is compared as it is"]
        embeds.append(embed_style(clip, detector, image, faces))
    return torch.stack(embeds)


def _read_photos(folder: Path, side: str, notes: list[str]) -> list[tuple[str, Tensor]]:
    """Those that can be read; notes on the others. Raises MagiCaptureError when there is none."""
    photos, said = load_photos(reference_photos(folder))
    unread = [f"{side}: {note.file_name} is left out: {note.text}" for note in said if not note.used]
    if not photos:
        raise MagiCaptureError(f"--{side}: no photo can be read; {unread[0]}")
    notes += unread
    return photos
