"""LoadPhotos: a folder of photos, as a list of pictures in their own sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..magicapture_core.types import MagiCaptureError, PhotoNote
from .folders import inside
from .sockets import schema, show, to_comfy

SAMPLES = {"sample: person": "person", "sample: style": "style"}  # widget value -> prefix of the pack's pictures


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
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str) -> list[tuple[str, int, int]]:
        """A photo that was added, removed or edited makes the node run again."""
        status = [(path.name, path.stat()) for path in photo_files(folder)]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in status]

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        images, names, notes = load_photos(photo_files(folder))
        report = "\n".join(map(str, notes))
        if not images:
            raise MagiCaptureError(f"folder {folder!r}: no photo could be loaded\n{report}".strip())
        return io.NodeOutput([to_comfy(image[None]) for image in images], names, report, ui=show(report))


def photo_files(folder: str) -> list[Path]:
    """The picture files of the chosen folder, in the order of their names."""
    from ..magicapture_core import images

    if folder not in SAMPLES:
        return images.list_photos(inside(Path(folder_paths.get_input_directory()), folder))
    samples = Path(images.__file__).parent / "tiny" / "samples"
    return [path for path in images.list_photos(samples) if path.name.startswith(f"{SAMPLES[folder]}_")]


def load_photos(paths: Sequence[Path]) -> tuple[list[Any], list[str], list[PhotoNote]]:
    """Files -> pictures [3,H,W], the names of those that could be read, and a note on every file."""
    from ..magicapture_core.images import load_photo

    images, names, notes = [], [], []
    for path in paths:
        try:
            image = load_photo(path)
        except MagiCaptureError as error:
            notes.append(PhotoNote(file_name=path.name, used=False, text=str(error)))
            continue
        images.append(image)
        names.append(path.name)
        notes.append(PhotoNote(file_name=path.name, used=True, text=f"{image.shape[2]} x {image.shape[1]}"))
    return images, names, notes


NODES = [LoadPhotos]
