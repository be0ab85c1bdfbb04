"""Faces restored at the size that restorers work at, and pictures upscaled around them.

In: a picture, its faces, a face restorer, an upscaler. Out: the picture, changed inside the face masks alone and then
larger. Knows neither where faces come from nor whose picture it is; it can be told how much a face is somebody's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .face_outcomes import MAX_LIKENESS_LOSS, NOT_CHECKED, Outcome, choose, describe, describe_likeness
from .faces import invert, similarity_transform, transform
from .images import resize
from .memory import is_out_of_memory
from .pretrained import load_descriptor
from .types import Face, MagiCaptureError
from .upscale import Progress, upscale

FACE_SIZE = 512
# Where the eyes, the nose tip and the mouth corners lie in the pictures that GFPGAN, RestoreFormer and CodeFormer were
# trained on: FFHQ at 512 pixels, coordinates as published with those three.
FFHQ_POINTS = torch.tensor(
    [
        (192.98138, 239.94708),
        (318.90277, 240.1936),
        (256.63416, 314.01935),
        (201.26117, 371.41043),
        (313.08905, 371.15118),
    ]
)
FFHQ_BOX = torch.tensor([120.0, 150.0, 392.0, 470.0])  # the face oval, hairline to chin, on the same pictures
OVAL_CENTRE, OVAL_RADII = torch.tensor([256.0, 288.0]), torch.tensor([175.0, 220.0])  # and a little more: the mask
FEATHER = 0.25  # how much of the mask's radius the soft edge takes
BROAD = 32.0  # sigma in pixels of 512, a quarter of the eyes' distance: what is broader is colour and light, see below

Restorer = Callable[[Tensor], Tensor]  # [1,3,512,512] 0..1 -> the same


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Puts the person's face back where restoration lost them. likeness: of a face in a picture [3,H,W], -1..1; see
    likeness.py. max_loss: how much it may fall."""

    likeness: Callable[[Tensor, Face], float]
    max_loss: float = MAX_LIKENESS_LOSS

    def watched(self, image: Tensor, faces: Sequence[Face]) -> set[int]:
        """The numbers of the faces that are judged: of several the one most like the reference, before anything is
        restored; the others are strangers', whose likeness says nothing."""
        if len(faces) < 2:
            return {*range(len(faces))}
        return {max(range(len(faces)), key=lambda number: self.likeness(image, faces[number]))}

    def keeps(self, before: float, after: float) -> bool:
        """Whether the restored face stays; not where its likeness is no number."""
        return after >= before - self.max_loss

    @property
    def rule(self) -> str:
        return f"what loses more than {self.max_loss:g} is put back"


class Rise(Guard):
    """Of faces that are all meant to become the person's: each is judged, and stays only where its likeness rose."""

    def watched(self, image: Tensor, faces: Sequence[Face]) -> set[int]:
        return {*range(len(faces))}

    def keeps(self, before: float, after: float) -> bool:
        return after > before

    @property
    def rule(self) -> str:
        return "what is no more alike than before is put back"


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceRestorer:
    """A face restoration network behind one call, [B,3,512,512] 0..1 -> the same. Two calls give the same picture.

    fidelity: 0 = cleanest face, 1 = closest to what was there. Only CodeFormer has such a weight; see `has_fidelity`.
    """

    descriptor: Any  # of spandrel
    fidelity: float = 0.5

    @property
    def architecture(self) -> str:
        return self.descriptor.architecture.name

    @property
    def has_fidelity(self) -> bool:
        return self.architecture == "CodeFormer"

    def with_fidelity(self, fidelity: float) -> FaceRestorer:
        return dataclasses.replace(self, fidelity=fidelity)

    @torch.no_grad()
    def __call__(self, faces: Tensor) -> Tensor:
        images = faces.to(self.descriptor.device, torch.float32)  # none of these networks is safe in half precision
        try:
            return self._restore(images).clamp(0, 1).to(faces)
        except (RuntimeError, MemoryError) as error:  # one face of a fixed size: there is no smaller part to try
            if not is_out_of_memory(error):
                raise
            raise MagiCaptureError(
                f"face restorer: out of memory with one face of {FACE_SIZE} pixels; close other programs, or take the "
                "face restorer out"
            ) from error

    def _restore(self, images: Tensor) -> Tensor:
        """spandrel maps to -1..1 and back for RestoreFormer but not for the other two, and lets GFPGAN draw noise."""
        model, pixel_values = self.descriptor.model, images * 2 - 1
        if self.architecture == "GFPGAN":
            return model(pixel_values, return_rgb=False, randomize_noise=False)[0] / 2 + 0.5
        if self.has_fidelity:
            return model(pixel_values, weight=self.fidelity)[0] / 2 + 0.5
        return self.descriptor(images)


def load_restorer(path: str | Path, device: str = "cpu") -> FaceRestorer:
    """A file of GFPGAN, RestoreFormer or, where its package is installed, CodeFormer.

    Raises MagiCaptureError for anything else.
    """
    descriptor = load_descriptor(path, device)
    if descriptor.purpose != "FaceSR":
        raise MagiCaptureError(
            f"{Path(path).name}: {descriptor.architecture.name} is no face restorer; take a GFPGAN or RestoreFormer "
            "file here, and load this one as an upscale model"
        )
    return FaceRestorer(descriptor=descriptor)


def match_colour(restorer: Restorer) -> Restorer:
    """The same restorer, its faces in the colours and the light of those that they replace; restorers shift the skin.

    Of the difference that it makes, all that is broader than a Gaussian of BROAD is taken away, under the face mask:
    d - G(m d) / G(m). Against a restorer that knows the truth of a blurred portrait and shifts its colours, the error
    inside the face (of 255) falls from 9.2 to 0.3 where it adds a colour, 15.1 to 3.0 where it multiplies by one, 12.0
    to 2.4 with a gamma of 1.2, 1.9 to 0.2 where left and right go apart; where it shifts nothing it costs 0.1. Means
    alone leave 0.4, 3.9, 3.1 and 1.9. Means and spreads are better with a gamma, 1.6, and cost 1.8 where nothing was
    shifted: the spread of a blurred face is not that of a sharp one.
    """
    mask = face_mask(torch.eye(2, 3), (FACE_SIZE, FACE_SIZE))
    weight = _broad(mask)

    def matched(faces: Tensor) -> Tensor:
        difference = restorer(faces) - faces
        return faces + difference - _broad(mask * difference) / weight

    return matched


def _broad(images: Tensor) -> Tensor:
    """images [...,512,512] under a Gaussian, up to a factor."""
    steps = torch.arange(FACE_SIZE, dtype=torch.float32)
    kernel = torch.exp(-0.5 * ((steps - steps[:, None]) / BROAD) ** 2)
    return kernel @ images @ kernel


def restore_and_upscale(
    image: Tensor,
    faces: Sequence[Face],
    restorer: Restorer | None = None,
    upscaler: Any = None,
    *,
    factor: float = 2.0,
    region: Tensor | None = None,
    face_index: int = -1,
    guard: Guard | None = None,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> tuple[Tensor, list[Outcome]]:
    """image [3,H,W] 0..1 -> [3,round(H*factor),round(W*factor)] with its faces restored, and what became of each face;
    without a restorer of none.

    faces: in the pixels of `image`. upscaler: spandrel descriptor, brought to `factor` whatever its own scale; without
    one, bicubic. region [1,H,W]: white where faces may change. face_index: see `choose`. guard: see `restore_faces`.
    device: the upscaler's, see `upscale`. progress: called with (done, of how many), for the tiles and then for the
    faces.

    The picture grows first. A restorer makes 512 pixels of any face: pasted into the small picture, most of them would
    be averaged away and then have to be made up again by the upscaler.
    """
    height, width = image.shape[-2:]
    size = (max(round(height * factor), 1), max(round(width * factor), 1))
    larger = upscale(image[None], upscaler, device=device, on_tile=progress) if upscaler is not None else image[None]
    larger = resize(larger, size)[0]
    if restorer is None:
        return larger, []
    stretch = torch.tensor([size[1] / width, size[0] / height])
    fates = choose(faces, region, face_index)
    grown = [_stretch(face, stretch) for face, fate in zip(faces, fates, strict=True) if fate == "restored"]
    region = None if region is None else resize(region[None], size)[0]
    restored, outcomes = restore_faces(larger, grown, restorer, region, guard, progress)
    following = iter(outcomes)
    return restored, [next(following) if fate == "restored" else Outcome(fate=fate) for fate in fates]


def restore_faces(
    image: Tensor,
    faces: Sequence[Face],
    restorer: Restorer,
    region: Tensor | None = None,
    guard: Guard | None = None,
    progress: Progress | None = None,
) -> tuple[Tensor, list[Outcome]]:
    """image [3,H,W] 0..1 -> the same with each face restored, and what became of each. Pixels outside the face masks
    keep every bit, and so does a face that is put back.

    guard: compares those that it watches before and after by the landmarks that the face has: a second search would
    frame the two differently, and would take for a lost person what is a shifted frame. Where ovals overlap, it judges
    in the picture that the faces before have left.

    What is pasted is the difference that the restorer made, not its picture: I + m * W'(R(W(I)) - W(I)), with W the
    alignment, W' back, R the restorer, m the mask. Resampling there and back blurs a small face and takes a face of
    more than 512 pixels down to 512; this blur is in both terms and cancels, so an untouched face stays untouched and
    a large one keeps its pores. The price is noise of the original finer than 512 pixels, which stays too. Against a
    restorer that knows the truth, on a photo with noise and JPEG: error 1.7 with the difference and 1.8 with the plain
    paste at 110 pixels, 2.8 and 3.8 at 22, but .7 and .4 at 220 (of 255, inside the face).
    """
    watched = guard.watched(image, faces) if guard else ()
    outcomes = []
    for number, face in enumerate(faces):
        aligned, matrix = align_face(image, face)
        restored = _paste(image, restorer(aligned) - aligned, matrix, region)
        outcomes.append(_compare(image, restored, face, guard if number in watched else None))
        image = image if outcomes[-1].fate == "put back" else restored
        if progress:
            progress(number + 1, len(faces))
    return image, outcomes


def _compare(image: Tensor, restored: Tensor, face: Face, guard: Guard | None) -> Outcome:
    if guard is None:
        return Outcome(fate="restored")
    before, after = guard.likeness(image, face), guard.likeness(restored, face)
    return Outcome(fate="restored" if guard.keeps(before, after) else "put back", before=before, after=after)


def report(
    restorer: FaceRestorer | None,
    upscaler: Any,
    guard: Guard | None,
    pictures: Sequence[tuple[Sequence[Face], Sequence[Outcome]]],
) -> list[str]:
    """Which models worked, what they did to the faces of each picture, and whether people are still themselves."""
    lines = [_describe_models(restorer, upscaler)]
    for number, (faces, outcomes) in enumerate(pictures, 1):
        done = describe(faces, outcomes) if restorer else "faces left alone, there is no face restorer"
        lines.append(f"picture {number}: {done}")
    if restorer is None:
        return lines
    every = [outcome for _, outcomes in pictures for outcome in outcomes]
    return [*lines, describe_likeness(every, guard.rule) if guard else NOT_CHECKED]


def _describe_models(restorer: FaceRestorer | None, upscaler: Any) -> str:
    faces = "none" if restorer is None else restorer.architecture
    if restorer is not None and not restorer.has_fidelity:
        faces += " (fidelity has no effect on it)"
    larger = "bicubic" if upscaler is None else f"{upscaler.architecture.name} x{upscaler.scale}"
    return f"face restorer: {faces}; upscaler: {larger}"


def align_face(image: Tensor, face: Face, size: int = FACE_SIZE) -> tuple[Tensor, Tensor]:
    """image [3,H,W] 0..1 -> ([1,3,size,size] 0..1 framed as in FFHQ, [2,3] from the picture's pixels to its pixels).

    By the five landmarks, by the box where there are none. Beyond the picture its border pixels are repeated.
    """
    if face.landmarks is None:
        matrix = similarity_transform(_corners(face.box), _corners(FFHQ_BOX))
    else:
        matrix = similarity_transform(face.landmarks, FFHQ_POINTS)
    matrix = matrix * (size / FACE_SIZE)
    return resample(image[None], invert(matrix), (size, size)).clamp(0, 1), matrix


def _paste(image: Tensor, difference: Tensor, matrix: Tensor, region: Tensor | None) -> Tensor:
    """image [3,H,W] with difference [1,3,512,512] added within the oval that `matrix` frames; a new picture."""
    height, width = image.shape[-2:]
    left, top, right, bottom = _oval_bounds(matrix)
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    pasted = image.clone()
    if left >= right or top >= bottom:
        return pasted
    window = pasted[:, top:bottom, left:right]
    from_window = torch.cat([matrix[:, :2], transform(torch.tensor([[float(left), float(top)]]), matrix).T], 1)
    mask = face_mask(from_window, (bottom - top, right - left))
    if region is not None:
        mask = mask * region[:, top:bottom, left:right]
    change = mask * resample(difference, from_window, (bottom - top, right - left))[0]
    window.copy_(torch.where(mask > 0, (window + change).clamp(0, 1), window))
    return pasted


def face_mask(matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """matrix [2,3] from these pixels to the FFHQ frame -> [1,H,W]: 1 in the face, 0 outside the oval, soft between.

    Worked out for every pixel rather than resampled, so it is as smooth on a face of 20 pixels as on one of 2000, and
    a face that the picture cuts off has no edge along the cut.
    """
    radius = ((transform(_pixel_centres(*size), matrix) - OVAL_CENTRE) / OVAL_RADII).norm(dim=-1)
    mask = ((1 - radius) / FEATHER).clamp(0, 1)
    return (mask * mask * (3 - 2 * mask))[None]


def _oval_bounds(matrix: Tensor) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the mask's oval in the picture, in whole pixels, which may lie outside of it."""
    back = invert(matrix)
    centre = transform(OVAL_CENTRE[None], back)[0]
    reach = (back[:, :2] * OVAL_RADII).norm(dim=1)
    left, top = (centre - reach).floor().int().tolist()
    right, bottom = (centre + reach).ceil().int().tolist()
    return left, top, right, bottom


def resample(images: Tensor, matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """images [B,C,H,W], matrix [2,3] from the pixels of the result to theirs -> [B,C,*size]. Bicubic, antialiased.

    Where the result is smaller, each of its pixels is the mean of as many samples as fall on it, whatever the rotation.
    Coordinates count from the corner of the picture: the first pixel's centre is (.5, .5).
    """
    height, width = images.shape[-2:]
    samples = max(math.ceil(float(matrix[:, :2].det().abs().sqrt()) - 1e-3), 1)
    points = transform(_pixel_centres(size[0] * samples, size[1] * samples) / samples, matrix)
    grid = points / torch.tensor([width, height]) * 2 - 1
    grid = grid.to(images).expand(len(images), -1, -1, -1)
    sampled = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return F.avg_pool2d(sampled, samples)


def _pixel_centres(height: int, width: int) -> Tensor:
    """[height,width,2], x y."""
    x, y = torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy")
    return torch.stack([x, y], -1)


def _corners(box: Tensor) -> Tensor:
    """box [4] -> its corners [4,2]."""
    return box[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2)


def _stretch(face: Face, factors: Tensor) -> Face:
    """The face in a picture that has grown by factors [2], across and down."""
    landmarks = None if face.landmarks is None else face.landmarks * factors
    return dataclasses.replace(face, box=face.box * factors.repeat(2), landmarks=landmarks)
