"""Photos -> square portraits with face masks, and what became of each photo.

In: photos of any size. Out: squares at the training resolution in which the face takes 25-60 % of the height, with
masks (white = face) and faces. One photo never stops the others. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from pydantic import Field
from torch import Tensor

from .config import Settings
from .faces import FaceDetector, choose_face
from .framing import LEAST_SHARE, MOST_SHARE, Square, frame
from .images import from_pil, load_font, resize, to_pil
from .parsing import FaceParser, load_face_parser
from .types import Face, MagiCaptureError, PhotoNote, Portraits, Side

# The landmarks of FaceMesh around the face, from the top of the forehead clockwise.
FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
SUPERSAMPLE = 4
GROW_STEP = 6  # pixels; a large disk is a small one many times over
ASPECT_TOLERANCE = 0.02
OVERLAP = 0.1  # share of a face's box that a given mask must cover to mean this face
TINT, BOX_COLOUR, POINT_COLOUR = torch.tensor([1.0, 0.25, 0.1]), (60, 220, 90), (255, 230, 0)


class MaskOptions(Settings):
    """How the face is chosen, framed and masked."""

    shape: Literal["oval", "parsed", "own"] = Field(
        default="oval",
        description="oval follows the outline of the face. parsed follows skin and features; it needs facexlib and "
        "parsing_bisenet.pth in models/facedetection. own takes your masks and looks for no face: for pets and things.",
    )
    face_index: int = Field(
        default=-1,
        ge=-1,
        le=99,
        description="Which face, counted from 0 from the left; -1 takes the largest and most central.",
    )
    grow: int = Field(default=0, ge=-128, le=128, description="Pixels by which the mask grows; below 0 it shrinks.")
    feather: int = Field(
        default=0, ge=0, le=128, description="Width of the mask's soft edge in pixels; 0 is a sharp edge."
    )
    face_share: float = Field(
        default=0.4,
        ge=LEAST_SHARE,
        le=MOST_SHARE,
        description="Share of the square's height that a face gets where it is too small in the photo as it is.",
    )
    min_face_size: int = Field(
        default=64,
        ge=8,
        le=1024,
        description="A photo is left out when its face has fewer pixels and would be enlarged.",
    )

    @property
    def what(self) -> str:
        """What the masks hold."""
        return "subject" if self.shape == "own" else "face"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """A face in a photo, the mask there [1,H,W] if one was given, and how it was found, in words."""

    face: Face
    mask: Tensor | None = None
    text: str


def prepare_portraits(
    photos: Sequence[tuple[str, Tensor]],
    resolution: int,
    detector: FaceDetector | None,
    options: MaskOptions,
    masks: Sequence[Tensor | None] | None = None,
    parser: FaceParser | None = None,
) -> tuple[Portraits | None, list[PhotoNote]]:
    """Named photos [3,H,W] -> squares of `resolution` with masks and faces, None if no photo can be used; and a note
    on every photo.

    masks: the user's own, [1,H,W] each, in place of painted ones; a black one counts as none. Without a detector they
    say where the faces are. parser: for shape `parsed`, loaded when it is not given.
    """
    if options.shape == "parsed" and parser is None:
        parser = load_face_parser()
    squares: list[tuple[Tensor, Tensor, Face]] = []
    notes: list[PhotoNote] = []
    for index, (name, image) in enumerate(photos):
        given = masks[index] if masks is not None else None
        try:
            found = _find(image, given, detector, options)
            image, mask, face, text = _frame(image, found, resolution, detector, options, parser)
        except MagiCaptureError as reason:
            notes.append(PhotoNote(file_name=name, used=False, text=str(reason)))
            continue
        squares.append((image, mask, replace(face, source_index=index, file_name=name)))
        notes.append(PhotoNote(file_name=name, used=True, text=f"{found.text}, {text}"))
    if not squares:
        return None, notes
    images, face_masks, faces = zip(*squares, strict=True)
    return Portraits(images=torch.stack(images), masks=torch.stack(face_masks), faces=list(faces)), notes


def require_portraits(portraits: Portraits | None, notes: Sequence[PhotoNote], side: Side | str) -> Portraits:
    """The portraits. Raises MagiCaptureError with the reasons when there are none."""
    if portraits is None:
        reasons = "; ".join(f"{note.file_name}: {note.text}" for note in notes if not note.used)
        raise MagiCaptureError(f"{side}: no photo can be used ({reasons or 'none given'})")
    return portraits


# --- one photo -------------------------------------------------------------------------------------------------------


def _find(image: Tensor, mask: Tensor | None, detector: FaceDetector | None, options: MaskOptions) -> _Found:
    """The face of a photo [3,H,W]: the one that `mask` covers, else the one the options ask for; of shape `own`, what
    the mask covers."""
    mask = None if mask is None else _fit_mask(mask, image)
    if options.shape == "own":
        if mask is None:
            raise MagiCaptureError("no mask for it, which shape own takes as it is")
        return _Found(face=Face(box=_bounds(mask)), mask=mask, text="your mask")
    faces = detector.detect(image) if detector else []
    wanted = None if options.face_index < 0 else options.face_index
    if mask is not None and wanted is None:
        return _find_under(mask, faces)
    if not faces:
        raise MagiCaptureError("no face found" if detector else "no mask for it, and no face networks to find its face")
    chosen = choose_face(faces, image.shape[1], image.shape[2], wanted)
    reason = "the largest and most central" if wanted is None else "as face_index says"
    text = _count(faces, chosen, reason)
    return _Found(face=faces[chosen], mask=mask, text=text if mask is None else f"{text}, with your mask")


def _find_under(mask: Tensor, faces: Sequence[Face]) -> _Found:
    covered = [_covered_share(mask, face) for face in faces]
    if covered and max(covered) >= OVERLAP:
        chosen = covered.index(max(covered))
        return _Found(face=faces[chosen], mask=mask, text=f"{_count(faces, chosen, 'under your mask')}, with your mask")
    return _Found(face=Face(box=_bounds(mask)), mask=mask, text="your mask, which also says where the face is")


def _count(faces: Sequence[Face], chosen: int, reason: str) -> str:
    if len(faces) == 1:
        return "one face"
    return f"{len(faces)} faces, took number {chosen} from the left (counted from 0), {reason}"


def _fit_mask(mask: Tensor, image: Tensor) -> Tensor | None:
    """A given mask [1,h,w] at the size of its photo [3,H,W]; None when it is black."""
    if not (mask > 0.5).any():
        return None
    (height, width), (mask_height, mask_width) = image.shape[1:], mask.shape[1:]
    if abs(mask_width * height / (mask_height * width) - 1) > ASPECT_TOLERANCE:
        raise MagiCaptureError(f"its mask has {mask_width} x {mask_height} pixels, the photo {width} x {height}")
    return resize(mask[None].float().cpu(), (height, width))[0]


def _covered_share(mask: Tensor, face: Face) -> float:
    """How much of the face's box a mask [1,H,W] covers, 0..1."""
    left, top, right, bottom = (max(int(edge), 0) for edge in face.box.round())
    inside = mask[:, top:bottom, left:right]
    return float(inside.mean()) if inside.numel() else 0.0


def _bounds(mask: Tensor) -> Tensor:
    """mask [1,H,W] -> the box [4] around its white."""
    rows, columns = (mask[0] > 0.5).any(1).nonzero(), (mask[0] > 0.5).any(0).nonzero()
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def _frame(
    image: Tensor,
    found: _Found,
    resolution: int,
    detector: FaceDetector | None,
    options: MaskOptions,
    parser: FaceParser | None,
) -> tuple[Tensor, Tensor, Face, str]:
    """-> the square image, its mask, the face in it, and what was done, in words."""
    image = image.float().cpu()
    most = 1.0 if options.shape == "own" else MOST_SHARE
    square = frame(found.face.box, image.shape[1], image.shape[2], options.face_share, most)
    face_size = float(found.face.box[3] - found.face.box[1])
    if square.side < resolution and face_size < options.min_face_size:
        raise MagiCaptureError(
            f"its {options.what} is too small, {face_size:.0f} pixels; the least is min_face_size, "
            f"{options.min_face_size}"
        )
    pixels, face = square.cut(image, resolution), square.face(found.face, resolution)
    if found.mask is not None:
        mask = square.cut(found.mask, resolution, padding="constant")
    elif parser is not None:
        mask = parser(pixels, face.box)
    else:
        assert detector is not None  # without one, the face came from a mask
        mask = _oval(square.points(detector.mesh(image, found.face), resolution), resolution)
    mask = soften(grow_mask(mask, options.grow), options.feather)
    if not (mask > 0.5).any():
        raise MagiCaptureError(f"its mask is empty in the square around the {options.what} (grow is {options.grow})")
    return pixels, mask, face, _describe(square, face, mask, resolution, options.what)


def _describe(square: Square, face: Face, mask: Tensor, resolution: int, what: str) -> str:
    """What was done to a photo, in words."""
    across, above = square.padding
    cut = "kept the photo's middle" if square.is_whole_side else f"cut out around the {what}"
    parts = [f"{cut}, {square.side} pixels"]
    if across or above:
        parts.append(f"{max(across, above)} of them its edge repeated, since the {what} fills the photo")
    if resolution / square.side >= 1.05:
        parts.append(f"enlarged {resolution / square.side:.1f} times")
    height = float(face.box[3] - face.box[1]) / resolution
    return ", ".join([*parts, f"{what} {height:.0%} of the height, mask {float(mask.mean()):.0%} of the square"])


# --- masks -----------------------------------------------------------------------------------------------------------


def _oval(landmarks: Tensor, size: int) -> Tensor:
    """FaceMesh's landmarks [468,2] -> [1,size,size], 1 inside the outline of the face, with smooth edges."""
    large = Image.new("L", (size * SUPERSAMPLE, size * SUPERSAMPLE))
    outline = [(float(x), float(y)) for x, y in landmarks[list(FACE_OVAL)] * SUPERSAMPLE - 0.5]
    ImageDraw.Draw(large).polygon(outline, fill=255)
    return from_pil(large.reduce(SUPERSAMPLE))[:1]


def grow_mask(mask: Tensor, radius: int) -> Tensor:
    """mask [1,H,W] -> every pixel takes the largest value within `radius` pixels, or the smallest where that is < 0."""
    if radius < 0:
        return 1 - grow_mask(1 - mask, -radius)
    while radius > 0:
        step = min(radius, GROW_STEP)
        mask = _dilate(mask, step)
        radius -= step
    return mask


def _dilate(mask: Tensor, radius: int) -> Tensor:
    """mask [1,H,W] -> the largest value in a disk, row by row of the disk."""
    height, width = mask.shape[1:]
    padded = F.pad(mask, (radius,) * 4)
    rows = []
    for offset in range(-radius, radius + 1):
        half = int((radius**2 - offset**2) ** 0.5)
        strip = padded[:, radius + offset : radius + offset + height, radius - half : radius + half + width]
        rows.append(F.max_pool2d(strip, (1, 2 * half + 1), stride=1))
    return torch.stack(rows).amax(0)


def soften(mask: Tensor, width: int) -> Tensor:
    """mask [1,H,W] -> with an edge that falls over about `width` pixels: a Gaussian of sigma width / 4."""
    if not width:
        return mask
    steps = torch.arange(-width, width + 1.0)
    kernel = torch.exp(-0.5 * (steps / (width / 4)) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(mask[None], (width,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[0]


def overlay(portraits: Portraits) -> Tensor:
    """The portraits [N,3,S,S] with their masks tinted, boxes, landmarks, and the share that each mask covers."""
    tint = TINT[:, None, None]
    tinted = portraits.images * (1 - 0.45 * portraits.masks) + tint * (0.45 * portraits.masks)
    drawn = []
    for place, image in enumerate(tinted):
        face = portraits.faces[place] if portraits.faces else None
        drawn.append(_annotate(image, face, float(portraits.masks[place].mean())))
    return torch.stack(drawn)


def _annotate(image: Tensor, face: Face | None, share: float) -> Tensor:
    picture = to_pil(image)
    draw, line = ImageDraw.Draw(picture), max(1, picture.width // 256)
    if face is not None:
        draw.rectangle(face.box.tolist(), outline=BOX_COLOUR, width=line)
        points = [] if face.landmarks is None else face.landmarks.tolist()
        for x, y in points:
            draw.ellipse((x - 2 * line, y - 2 * line, x + 2 * line, y + 2 * line), fill=POINT_COLOUR)
    height = max(10, picture.width // 24)
    draw.text(
        (height // 2, height // 3), f"{share:.0%}", "white", load_font(height), stroke_width=line, stroke_fill="black"
    )
    return from_pil(picture)
