"""LoadPhotos: a folder of photos, as a list of pictures in their own sizes, with the masks that lie beside them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

import folder_paths
import torch
from comfy_api.latest import io

from ..magicapture_core.types import MagiCaptureError, PhotoNote
from .folders import digest, inside
from .sockets import masks_to_comfy, schema, show, to_comfy

SAMPLES = {  # widget value -> the pack's pictures
    "sample: person": "person_*",
    "sample: style": "style_*",
    "sample: object": "object_*",
    "sample: object style": "object-style_*",
    "sample: one photo": "person_1.*",
}
MASKS = "masks"  # the folder of masks in a folder of photos
BLACK = torch.zeros(1, 1, 64, 64)  # no mask, of the size that Load Image gives for none


class LoadPhotos(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load Photos",
            node_id="MagiCaptureLoadPhotos",
            description="Loads every photo of a folder: turned upright as the camera meant it, as RGB, in its own "
            "size. A file that cannot be read is named in the report, and the rest is loaded. Take photos of people "
            "who have agreed to it.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=[*SAMPLES, *photo_folders()],
                    tooltip="A folder inside ComfyUI's input folder (put 4-6 photos into a new one, then press R), or "
                    "the pack's sample pictures.",
                )
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip="The photos, one by one, each in its own size. Connect to Face Mask.",
                ),
                io.String.Output(
                    display_name="file names",
                    is_output_list=True,
                    tooltip="The name of each photo, for the reports of later nodes.",
                ),
                io.String.Output(display_name="report", tooltip="What became of each file, and which have a mask."),
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="The mask of each photo from the folder `masks` inside the folder, of the same name before "
                    "the ending, white = face or object; black where there is none. Connect to Face Mask.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str) -> str:
        """A photo or mask that was added, removed or edited makes the node run again."""
        status = [(path.name, path.stat()) for path in (*photo_files(folder), *(mask_files(folder) or []))]
        return digest([(name, stat.st_size, stat.st_mtime_ns) for name, stat in status])

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        from ..magicapture_core.images import join_notes, load_masks, load_photos

        files, mask_pictures = photo_files(folder), mask_files(folder)
        matched = match(files, mask_pictures or [])
        readable, changes = load_photos(files)
        photos, found, faults = load_masks(readable, matched)
        sizes = [
            PhotoNote(file_name=name, used=True, text=f"{image.shape[2]} x {image.shape[1]} pixels")
            for name, image in photos
        ]
        masked = [
            PhotoNote(file_name=name, used=True, text="with a mask" if name in matched else "no mask")
            for name, _ in photos
            if mask_pictures is not None
        ]
        strays = [
            PhotoNote(file_name=f"{MASKS}/{mask.name}", used=False, text="no photo has this name before the ending")
            for mask in mask_pictures or []
            if mask not in matched.values()
        ]
        notes = [str(note) for note in join_notes(sizes, changes, masked, faults, strays)]
        if not photos:
            raise MagiCaptureError(f"folder {folder!r}: no photo can be read: {'; '.join(notes)}")
        report = "\n".join(notes)
        images = [to_comfy(image[None]) for _, image in photos]
        masks = [masks_to_comfy(BLACK if mask is None else mask[None]) for mask in found]
        return io.NodeOutput(images, [name for name, _ in photos], report, masks, ui=show(report))


def photo_folders() -> list[str]:
    """The folders inside ComfyUI's input folder, but for those of masks."""
    return [name for name in folder_paths.get_input_subfolders() if PurePosixPath(name).name != MASKS]


def photo_files(folder: str) -> list[Path]:
    """The picture files of the chosen folder, in the order of their names."""
    from ..magicapture_core.images import list_photos

    return [path for path in list_photos(place(folder)) if belongs(path, folder)]


def mask_files(folder: str) -> list[Path] | None:
    """The picture files of its folder `masks`, maybe none; None where it has no such folder."""
    from ..magicapture_core.images import list_photos

    found: list[Path] = []
    with suppress(MagiCaptureError):  # no picture in it, only what a file manager leaves behind
        found = [path for path in list_photos(place(folder) / MASKS) if belongs(path, folder)]
    has_masks = folder not in SAMPLES and (place(folder) / MASKS).is_dir()
    return found if found or has_masks else None


def place(folder: str) -> Path:
    """Where the pictures of a choice lie."""
    from ..magicapture_core import images

    if folder in SAMPLES:
        return Path(images.__file__).parent / "tiny" / "samples"
    return inside(Path(folder_paths.get_input_directory()), folder)


def belongs(path: Path, folder: str) -> bool:
    """Whether a picture is one of the choice's: all samples lie in one folder."""
    return folder not in SAMPLES or path.match(SAMPLES[folder])


def match(photos: Sequence[Path], masks: Sequence[Path]) -> dict[str, Path]:
    """Name of a photo -> its mask, where there is one. Raises MagiCaptureError where it is another photo's too."""
    from ..magicapture_core.images import match_masks

    stems = {mask.stem for mask in masks}
    return match_masks([photo for photo in photos if photo.stem in stems], masks[0].parent) if masks else {}


NODES = [LoadPhotos]
