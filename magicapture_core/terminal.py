"""What several commands of the terminal share: reading models and photos, the device, a bar, likeness to a person."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import Kind
from .types import Face, MagiCaptureError, PhotoNote, Portraits, Side

if TYPE_CHECKING:
    from torch import Tensor

    from .backbone import Backbone
    from .crew import Crew

Result = dict[str, Any]  # what a command prints, ready for JSON
Command = Callable[[Namespace], Result]


def progress(total: int, text: str, is_shown: bool = True) -> Any:
    """A bar on standard error."""
    from tqdm import tqdm

    return tqdm(total=total, desc=text, file=sys.stderr, dynamic_ncols=True, disable=not is_shown)


def read_portraits(
    folder: Path, masks_folder: Path | None, resolution: int, side: Side, kind: Kind = "person"
) -> tuple[Portraits, list[PhotoNote]]:
    """As `frame_folder`, without the photos. Raises MagiCaptureError with the reasons when none can be used."""
    from .masks import require_portraits

    _, portraits, notes = frame_folder(folder, masks_folder, resolution, side, kind)
    return require_portraits(portraits, notes, side), notes


def frame_folder(
    folder: Path, masks_folder: Path | None, resolution: int, side: Side, kind: Kind = "person"
) -> tuple[list[tuple[str, Tensor]], Portraits | None, list[PhotoNote]]:
    """A folder's photos that can be read, (name, image [3,H,W]) each; the portraits, None without one; what became of
    each file. masks_folder: masks of the same stems, white = face.

    Of an object there have to be masks, white = all of it: no network looks for it. In a style photo every face counts.
    """
    from .faces import load_face_detector
    from .images import join_notes, list_photos, load_masks, load_photos, match_masks
    from .masks import MaskOptions, prepare_portraits

    files = list_photos(folder)
    if kind == "object" and masks_folder is None:
        raise MagiCaptureError(f"--{side}-masks: give a folder with a mask for every photo, white = the object")
    readable, notes = load_photos(files)
    photos, given, faults = load_masks(readable, match_masks(files, masks_folder) if masks_folder else {})
    needs_detector = kind == "person" and any(mask is None for mask in given)
    try:
        detector = load_face_detector() if needs_detector else None
    except MagiCaptureError as error:
        raise MagiCaptureError(f"{error}, or give --{side}-masks with a mask for every photo") from error
    options = MaskOptions(shape="own" if kind == "object" else "oval", all_faces=side == "style")
    portraits, framed = prepare_portraits(photos, resolution, detector, options, given)
    return readable, portraits, join_notes(notes, faults, framed)


def read_backbone(checkpoint: Path | None) -> Backbone:
    """A single file, a diffusers folder, or without either the embedded tiny model."""
    from . import backbone

    if checkpoint is None:
        return backbone.tiny()
    return backbone.from_diffusers(checkpoint) if checkpoint.is_dir() else backbone.from_checkpoint(checkpoint)


def pick_device(name: str | None) -> str:
    import torch

    if name:
        try:
            return str(torch.empty(0, device=name).device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise MagiCaptureError(f"--device {name}: {reason}; leave it out for the fastest there is") from error
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def find_crew(device: str | None) -> Crew:
    """Of this process alone, or of those that a launcher has started with it, with the device of this one."""
    import torch

    from .crew import Crew, is_launched, join_crew

    return join_crew(device) if is_launched() else Crew(device=torch.device(pick_device(device)))


def read_model(arguments: Namespace, *, is_exact: bool = False) -> Backbone:
    """The base model, on the device that was asked for; in fp32 where it is to be exact, else as fast as it goes."""
    import torch

    from .fitting import fast_dtype

    backbone, device = read_backbone(arguments.checkpoint), torch.device(pick_device(arguments.device))
    backbone.to(device, torch.float32 if is_exact else fast_dtype(device))
    return backbone


def read_likeness(arguments: Namespace) -> Callable[[Tensor, Face], float] | None:
    """Of faces to the photos, where a recogniser and photos are given. Raises MagiCaptureError for one of the two."""
    from .faces import load_face_detector
    from .images import load_photo
    from .likeness import likeness_to
    from .recognisers import load_recogniser

    if arguments.recogniser is None and arguments.reference is None:
        return None
    if arguments.recogniser is None:
        raise MagiCaptureError("--reference: give --recogniser too, the network that compares the faces")
    if arguments.reference is None:
        raise MagiCaptureError("--recogniser: give --reference too, a photo or a folder of photos of the person")
    recogniser = load_recogniser(arguments.recogniser)
    photos = [load_photo(path) for path in reference_photos(arguments.reference)]
    return likeness_to(recogniser, load_face_detector(), photos)


def reference_photos(reference: Path) -> Sequence[Path]:
    """Of a photo itself, or of a folder all."""
    from .images import list_photos

    return list_photos(reference) if reference.is_dir() else [reference]
