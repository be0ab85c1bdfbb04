"""SavePortraits: PNG files that hold their workflow, as Save Image writes them, and say that AI made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from .sockets import schema, to_core

NOT_MARKED = "none"
COMPRESSION = 4  # of zlib, as Save Image has it


class SavePortraits(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Save Portraits",
            node_id="MagiCaptureSavePortraits",
            description="Saves PNG files as Save Image does, workflow included, and writes into each that AI made it: "
            "IPTC's digital source type, which search engines and picture agencies read. Show a person only in what "
            "they have agreed to.",
            search_aliases=["save image", "export image", "AI label", "IPTC", "XMP", "digital source type"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures to save."),
                io.String.Input(
                    "filename_prefix",
                    default="MagiCapture",
                    tooltip="How the names begin, with a folder where wanted, such as portraits/ada. It may hold "
                    "%year%, %month%, %day%, %width% and %height%.",
                ),
                io.Combo.Input(
                    "mark",
                    options=["generated", "retouched", NOT_MARKED],
                    default="generated",
                    tooltip="What the file says of its origin. generated: a model made the picture. retouched: a photo "
                    "that a model has restored or enlarged. none: nothing, as Save Image.",
                ),
                io.String.Input(
                    "scores",
                    optional=True,
                    force_input=True,
                    tooltip="A text to keep in the files, such as the scores of Composed Prompt Sampler.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, images: Tensor, filename_prefix: str, mark: str, scores: str | None = None) -> io.NodeOutput:
        from ..magicapture_core.files import write_atomic
        from ..magicapture_core.images import to_pil

        pictures = [to_pil(image) for image in to_core(images)]
        output = folder_paths.get_output_directory()
        width, height = pictures[0].size
        place, name, counter, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, output, width, height)
        info = _texts(cls.hidden, mark, scores)
        saved = []
        for number, picture in enumerate(pictures):
            file = f"{name.replace('%batch_num%', str(number))}_{counter + number:05}_.png"
            save = picture.save
            write_atomic(
                Path(place) / file, lambda path, save=save: save(path, pnginfo=info, compress_level=COMPRESSION)
            )
            saved.append({"filename": file, "subfolder": subfolder, "type": "output"})
        return io.NodeOutput(ui={"images": saved})


def _texts(hidden: Any, mark: str, scores: str | None) -> Any:
    """What goes into the files beside the pixels. The workflow is left out where ComfyUI runs with
    --disable-metadata; the mark is not, which has a widget of its own."""
    from comfy.cli_args import args
    from PIL.PngImagePlugin import PngInfo

    from ..magicapture_core.marks import SOURCE_TYPES, add_to_png

    info = PngInfo()
    if not args.disable_metadata:
        texts = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
        for key, value in texts.items():
            if value is not None:
                info.add_text(key, json.dumps(value))
        if scores:
            info.add_text("scores", scores)
    return add_to_png(info, mark) if mark in SOURCE_TYPES else info


NODES = [SavePortraits]
