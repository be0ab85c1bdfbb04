"""Photos -> square portraits with face masks, and what became of each photo.

In: photos of any size. Out: squares at the training resolution in which the face takes 25-60 % of the height, with
masks (white = face) and faces. One photo never stops the others. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from .config import Settings
from .faces import FaceDetector, choose_face
from .framing import LEAST_SHARE, MOST_SHARE, Square, frame
from .images import resize
from .painting import grow_mask, paint_oval, soften
from .parsing import CLASSES, EARS, FACE, FaceParser, class_names, load_face_parser
from .photo_quality import ENLARGED, face_warnings, find_same, fingerprint
from .types import Face, MagiCaptureError, PhotoNote, Portraits, Side

ASPECT_TOLERANCE = 0.02
OVERLAP = 0.1  # share of a face's box that a given mask must cover to mean this face
SHAPES = {"oval": (), "parsed": FACE, "skin": tuple(name for name in FACE if name not in EARS)}  # parser's classes
COMBINED = {"replace": "with your mask", "add": "your mask added", "subtract": "your mask taken away"}


class MaskOptions(Settings):
    """How the face is chosen, framed and masked."""

    shape: Literal["oval", "parsed", "own", "skin", "custom"] = Field(
        default="oval",
        description="oval follows the outline of the face. parsed follows skin, features and ears; skin leaves the "
        "ears out; custom takes what classes names: these need facexlib and parsing_bisenet.pth in "
        "models/facedetection. own takes your masks and looks for no face: for pets and things.",
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
    hair: bool = Field(
        default=False,
        description="Adds the hair to the painted mask, of any shape but own; it needs what shape parsed needs.",
    )
    classes: str = Field(
        default=", ".join(FACE),
        description="What shape custom takes, with commas between, in CelebAMask-HQ's names: "
        f"{', '.join(CLASSES[1:])}; or background.",
    )
    all_faces: bool = Field(
        default=False,
        description="Masks every face in the square, not only the chosen one around which it is cut: for style photos "
        "of several people, so that nobody's face is learned as style.",
    )
    combine: Literal["replace", "add", "subtract"] = Field(
        default="replace",
        description="What connected masks do: replace the painted one, are added to it, or are taken away from it.",
    )

    @property
    def parts(self) -> tuple[int, ...]:
        """Numbers of the parser's classes that the mask takes; none where no parser is needed.

        Raises MagiCaptureError for a name in `classes` that is none.
        """
        if self.shape == "own":
            return ()
        names = class_names(self.classes) if self.shape == "custom" else SHAPES[self.shape]
        return tuple(sorted({CLASSES.index(name) for name in (*names, *(["hair"] if self.hair else []))}))

    @property
    def what(self) -> str:
        """What the masks hold."""
        return "subject" if self.shape == "own" else "face"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """In a photo: the face to cut around, those to paint masks of, the mask [1,H,W] if one was given, and in words how
    they were found."""

    face: Face
    painted: Sequence[Face] = ()
    mask: Tensor | None = None
    text: str


@dataclass(frozen=True, kw_only=True, eq=False)
class _Framed:
    """A square image [3,S,S], mask and parts [1,S,S] as in `Portraits`, the face in it, what was done, and warnings."""

    image: Tensor
    mask: Tensor
    parts: Tensor
    face: Face
    text: str
    warnings: list[str]


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

    masks: the user's own, [1,H,W] each, in place of painted ones or combined with them; a black one counts as none.
    Without a detector they say where the faces are. parser: for skin and hair, loaded when it is not given.
    """
    if options.parts and parser is None:
        parser = load_face_parser()
    squares: list[_Framed] = []
    notes: list[PhotoNote] = []
    seen: dict[str, Tensor] = {}
    for index, (name, image) in enumerate(photos):
        given = masks[index] if masks is not None else None
        try:
            found = _find(image, given, detector, options)
            framed = _frame(image.float().cpu(), found, resolution, detector, options, parser)
        except MagiCaptureError as reason:
            notes.append(PhotoNote(file_name=name, used=False, text=str(reason)))
            continue
        squares.append(replace(framed, face=replace(framed.face, source_index=index, file_name=name)))
        own = fingerprint(image.float().cpu())
        same = find_same(seen, own)
        warnings = [*framed.warnings, *([] if same is None else [f"the same picture as {same}"])]
        notes.append(
            PhotoNote(file_name=name, used=True, text=f"{found.text}, {framed.text}", warnings=tuple(warnings))
        )
        seen[name] = own
    if not squares:
        return None, notes
    portraits = Portraits(
        images=torch.stack([square.image for square in squares]),
        masks=torch.stack([square.mask for square in squares]),
        faces=[square.face for square in squares],
        parts=torch.stack([square.parts for square in squares]) if options.parts else None,
    )
    return portraits, notes


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
    replaces = mask is not None and options.combine == "replace"
    under = _find_under(mask, faces) if mask is not None and wanted is None else None
    if mask is not None and replaces and wanted is None and under is None:
        return _Found(face=Face(box=_bounds(mask)), mask=mask, text="your mask, which also says where the face is")
    if not faces:
        raise MagiCaptureError("no face found" if detector else "no mask for it, and no face networks to find its face")
    if under is not None:
        chosen, reason = under, "under your mask"
    else:
        chosen = choose_face(faces, image.shape[1], image.shape[2], wanted)
        reason = "the largest and most central" if wanted is None else "as face_index says"
    painted = [] if replaces else faces if options.all_faces else [faces[chosen]]
    text = [_count(faces, chosen, reason)]
    text += [] if mask is None else [COMBINED[options.combine]]
    text += ["all masked"] if len(painted) > 1 else []
    return _Found(face=faces[chosen], painted=painted, mask=mask, text=", ".join(text))


def _find_under(mask: Tensor, faces: Sequence[Face]) -> int | None:
    """The face that a mask [1,H,W] covers most of; None where it covers too little of each to mean one."""
    covered = [_covered_share(mask, face) for face in faces]
    most = max(covered, default=0.0)
    return covered.index(most) if most >= OVERLAP else None


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
) -> _Framed:
    most = 1.0 if options.shape == "own" else MOST_SHARE
    square = frame(found.face.box, image.shape[1], image.shape[2], options.face_share, most)
    face_size = float(found.face.box[3] - found.face.box[1])
    if square.side < resolution and face_size < options.min_face_size:
        raise MagiCaptureError(
            f"its {options.what} is too small, {face_size:.0f} pixels; the least is min_face_size, "
            f"{options.min_face_size}"
        )
    pixels, face = square.cut(image, resolution), square.face(found.face, resolution)
    mask, parts = torch.zeros(1, resolution, resolution), torch.zeros(1, resolution, resolution, dtype=torch.uint8)
    for one in found.painted:
        painted, its_parts = _paint(image, one, pixels, square, detector, options, parser)
        mask, parts = torch.maximum(mask, painted), torch.maximum(parts, its_parts)
    nothing = torch.zeros_like(mask)
    given = nothing if found.mask is None else square.cut(found.mask, resolution, padding="constant")
    added, taken = (nothing, given) if options.combine == "subtract" and found.painted else (given, nothing)
    mask = soften(grow_mask(torch.maximum(mask, added), options.grow), options.feather)
    mask = mask * (1 - taken)  # last, so that nothing grows over what was taken away
    if not (mask > 0.5).any():
        raise MagiCaptureError(
            f"its mask is empty in the square around the {options.what} (grow is {options.grow}, shape is "
            f"{options.shape}, combine is {options.combine})"
        )
    return _Framed(
        image=pixels,
        mask=mask,
        parts=parts,
        face=face,
        text=_describe(square, face, mask, resolution, options.what),
        warnings=[
            *(["your mask lies outside the square"] if found.mask is not None and not given.any() else []),
            *(["small"] if resolution >= ENLARGED * square.side else []),
            *([] if options.shape == "own" else face_warnings(image, found.face)),
        ],
    )


def _paint(
    image: Tensor,
    face: Face,
    pixels: Tensor,
    square: Square,
    detector: FaceDetector | None,
    options: MaskOptions,
    parser: FaceParser | None,
) -> tuple[Tensor, Tensor]:
    """The mask [1,S,S] of one face of a photo in the square cut out of it, and which part each pixel is in for."""
    size = pixels.shape[-1]
    mask, parts = torch.zeros(1, size, size), torch.zeros(1, size, size, dtype=torch.uint8)
    if options.shape == "oval":
        assert detector is not None  # a face to paint comes from there
        mask = paint_oval(square.points(detector.mesh(image, face), size), size)
    box = square.face(face, size).box
    if options.parts and bool((box[2:] > 0).all() and (box[:2] < size).all()):
        assert parser is not None
        wanted = torch.tensor([number in options.parts for number in range(len(CLASSES))])[:, None, None]
        shares = parser(pixels, box) * wanted
        parts = (shares.argmax(0, keepdim=True) * (shares.amax(0, keepdim=True) > 0.5)).byte()
        mask = torch.maximum(mask, shares.sum(0, keepdim=True).clamp(max=1))
    return mask, parts


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
