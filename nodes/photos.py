"""LoadPhotos: a folder of photos, as a list of pictures in their own sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..magicapture_core.types import MagiCaptureError, PhotoNote
from .folders import inside
from .sockets import masks_to_comfy, schema, show, to_comfy

SAMPLES = {  # widget value -> prefix of the pack's pictures
    "sample: person": "person",
    "sample: style": "style",
    "sample: object": "object",
    "sample: object style": "object-style",
}
MASKS = "masks"  # the folder of masks in a folder of photos


class LoadPhotos(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load Photos",
            node_id="MagiCaptureLoadPhotos",
            description="Loads every photo of a folder: turned upright as the camera meant it, as RGB, in its own "
            "size. A file that cannot be read is named in the report, and the rest is loaded.",
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=[*SAMPLES, *folder_paths.get_input_subfolders()],
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
                io.String.Output(display_name="report", tooltip="What became of each file."),
                io.Mask.Output(
                    display_name="masks",
                    is_output_list=True,
                    tooltip="The mask of each photo from the folder `masks` inside the folder, of the same name before "
                    "the ending, white = face or object; black where there is none. Connect to Face Mask.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str) -> list[tuple[str, int, int]]:
        """A photo or mask that was added, removed or edited makes the node run again."""
        files = photo_files(folder)
        status = [(path.name, path.stat()) for path in (*files, *mask_files(files).values())]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in status]

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        from ..magicapture_core.images import join_notes, load_masks, load_photos

        files = photo_files(folder)
        readable, changes = load_photos(files)
        photos, found, faults = load_masks(readable, mask_files(files))
        sizes = [
            PhotoNote(file_name=name, used=True, text=f"{image.shape[2]} x {image.shape[1]} pixels")
            for name, image in photos
        ]
        report = "\n".join(map(str, join_notes(sizes, changes, faults)))
        if not photos:
            raise MagiCaptureError(f"folder {folder!r}: no photo can be read\n{report}")
        images = [to_comfy(image[None]) for _, image in photos]
        masks = [
            masks_to_comfy((torch.zeros_like(image[:1]) if mask is None else mask)[None])
            for (_, image), mask in zip(photos, found, strict=True)
        ]
        return io.NodeOutput(images, [name for name, _ in photos], report, masks, ui=show(report))


def photo_files(folder: str) -> list[Path]:
    """The picture files of the chosen folder, in the order of their names."""
    from ..magicapture_core import images

    if folder not in SAMPLES:
        return images.list_photos(inside(Path(folder_paths.get_input_directory()), folder))
    samples = Path(images.__file__).parent / "tiny" / "samples"
    return [path for path in images.list_photos(samples) if path.name.startswith(f"{SAMPLES[folder]}_")]


def mask_files(photos: Sequence[Path]) -> dict[str, Path]:
    """Name of a photo -> its mask in the folder `masks` beside the photos, where there is one."""
    from ..magicapture_core.images import match_masks

    folder = photos[0].parent / MASKS
    return match_masks(photos, folder) if folder.is_dir() and any(folder.iterdir()) else {}


NODES = [LoadPhotos]
