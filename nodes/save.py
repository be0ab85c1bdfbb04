"""SavePortraits: PNG files that hold their workflow, as Save Image writes them, and say that AI made them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.types import MagiCaptureError
from .folders import inside
from .sockets import schema

NOT_MARKED = "none"
COMPRESSION = 4  # of zlib, as Save Image has it
WIDGET = re.compile(r"%([^%.\s][^%.]*)\.([^%.]+)%")  # of a node, by its class or title
NOT_IN_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')


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
                    "%year%, %month%, %day%, %width%, %height%, %date:yyyy-MM-dd% and a widget, %KSampler.seed%.",
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
        from ..magicapture_core.images import to_pil

        pictures = [to_pil(image) for image in images.movedim(-1, 1)]  # the fourth channel too, as Save Image
        output = folder_paths.get_output_directory()
        filename_prefix = fill_prefix(filename_prefix, cls.hidden.prompt or {}, time.localtime())
        inside(Path(output), filename_prefix)
        width, height = pictures[0].size
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, output, width, height)
        info = _texts(cls.hidden, mark, scores)
        saved = []
        for number, picture in enumerate(pictures):
            stem = name.replace("%batch_num%", str(number))
            write = partial(picture.save, pnginfo=info, compress_level=COMPRESSION)
            counter = _save_new(Path(folder), stem, counter, write)
            saved.append({"filename": _numbered(stem, counter), "subfolder": subfolder, "type": "output"})
            counter += 1
        return io.NodeOutput(ui={"images": saved})


def fill_prefix(prefix: str, prompt: Mapping[str, Any], now: time.struct_time) -> str:
    """With %date:yyyy-MM-dd% and %KSampler.seed% filled in: the page does so for the stock nodes alone, by their ids.

    prompt: what ComfyUI runs. Raises MagiCaptureError for a widget that is not in it, or whose value comes by a link.
    """
    numbers = {"yyyy": now.tm_year, "yy": now.tm_year % 100, "M": now.tm_mon, "d": now.tm_mday}
    numbers |= {"h": now.tm_hour, "m": now.tm_min, "s": now.tm_sec}

    def part(found: re.Match[str]) -> str:
        return f"{numbers[found[1] or found[0]]:0{len(found[0])}}"

    def date(found: re.Match[str]) -> str:
        return re.sub(r"yyyy|yy|([Mdhms])\1?", part, found[1])

    def widget(found: re.Match[str]) -> str:
        of_class = [node for node in prompt.values() if node["class_type"] == found[1]]
        titled = [node for node in prompt.values() if node.get("_meta", {}).get("title") == found[1]]
        value = next((node["inputs"].get(found[2]) for node in of_class + titled), None)
        if value is None or isinstance(value, list):
            raise MagiCaptureError(
                f"filename_prefix: {found[0]} is no widget of this workflow; write a node's class or title and "
                "the widget's name, as in %KSampler.seed%, or take it out"
            )
        return NOT_IN_NAMES.sub("_", str(value))

    return WIDGET.sub(widget, re.sub(r"%date:([^%]*)%", date, prefix))


def _numbered(stem: str, counter: int) -> str:
    """A file's name as Save Image has it. Joined as text: of an empty prefix ComfyUI makes the stem `.`, which as a
    path is the folder itself."""
    return f"{stem}_{counter:05}_.png"


def _save_new(folder: Path, stem: str, counter: int, write: Callable[[Path], object]) -> int:
    """Under the first number from `counter` on that is free -> the number.

    ComfyUI counts by the prefix as it was written, so with %batch_num% in it the number it gives may be taken.
    """
    from ..magicapture_core.files import place, written_beside

    with written_beside(folder / _numbered(stem, counter), write) as beside:
        while True:
            with suppress(FileExistsError):
                place(beside, folder / _numbered(stem, counter))
                break
            counter += 1
    return counter


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
