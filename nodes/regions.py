"""FaceRegions: where the people of a group stand, as a mask for each."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.types import MagiCaptureError
from .bounds import within_bounds
from .portraits import face_detector
from .sockets import masks_to_comfy, schema, show, text_input, to_comfy, to_core

LAYOUTS = ("columns", "grid", "boxes", "faces")
NUM_OUTPUTS = 5  # regions with an output of their own; the batch has all
MAX_SIDE = 8192


class FaceRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        side: dict[str, Any] = {"default": 512, "min": 64, "max": MAX_SIDE, "step": 8}
        each = [
            io.Mask.Output(
                display_name=f"region {number}", tooltip=f"Person {number}, white; black where there are fewer regions."
            )
            for number in range(1, NUM_OUTPUTS + 1)
        ]
        return schema(
            "Face Regions",
            node_id="MagiCaptureFaceRegions",
            description="Says where the people of a group picture stand: a mask for each, from a few numbers or from "
            "the faces of a picture. They go from left to right, and from top to bottom.",
            search_aliases=["regions", "regional prompt", "group", "MagicID", "layout"],
            inputs=[
                io.Combo.Input(
                    "layout",
                    options=list(LAYOUTS),
                    tooltip="columns: side by side. grid: rows of columns. boxes: as written in boxes. faces: around "
                    "the faces of guide, heads with shoulders and what is below.",
                ),
                io.Int.Input("columns", default=2, min=1, max=8, tooltip="People side by side, in columns and grid."),
                io.Int.Input("rows", default=2, min=1, max=8, tooltip="Rows of the grid."),
                text_input(
                    "boxes",
                    "0, 0.1, 0.5, 1\n0.5, 0.1, 1, 1",
                    "A person a line: left, top, right, bottom as shares of the picture, 0 to 1.",
                ),
                io.Int.Input("width", **side, tooltip="Of the picture to be made, in pixels."),
                io.Int.Input("height", **side, tooltip="Of the picture to be made, in pixels."),
                io.Float.Input(
                    "margin",
                    default=0.0,
                    min=0.0,
                    max=0.45,
                    step=0.01,
                    tooltip="What each column or cell loses on every side, as a share of its own; there only the "
                    "prompt of the whole picture counts.",
                ),
                io.Int.Input(
                    "feather", default=0, min=0, max=256, tooltip="Width in pixels over which the edges grow soft."
                ),
                io.Image.Input(
                    "guide",
                    optional=True,
                    tooltip="A picture whose faces say where people stand; with other layouts it is only shown behind "
                    "them. The first of a batch counts.",
                ),
            ],
            outputs=[
                *each,
                io.Mask.Output(display_name="regions", tooltip="All of them as a batch."),
                io.Image.Output(display_name="preview", tooltip="The regions in colours, with their numbers."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    @within_bounds
    def execute(
        cls,
        layout: str,
        columns: int,
        rows: int,
        boxes: str,
        width: int,
        height: int,
        margin: float,
        feather: int,
        guide: Tensor | None = None,
    ) -> io.NodeOutput:
        from ..magicapture_core.group.layout import around_faces, grid, preview, read_boxes
        from ..magicapture_core.group.layout import boxes as paint_boxes
        from ..magicapture_core.images import resize
        from ..magicapture_core.painting import soften

        size, picture = (height, width), None if guide is None else to_core(guide)[:1]
        if layout == "faces":
            if picture is None:
                raise MagiCaptureError("guide: layout faces looks for them in a picture; connect one")
            masks = around_faces(face_detector().detect(picture[0]), (picture.shape[2], picture.shape[3]), size)
        elif layout == "boxes":
            masks = paint_boxes(read_boxes(boxes), size)
        else:
            masks = grid(1 if layout == "columns" else rows, columns, size, margin)
        masks = torch.stack([soften(mask, feather) for mask in masks])
        shown = preview([*masks], None if picture is None else resize(picture, size)[0])[None]
        padded = torch.cat([masks, torch.zeros(NUM_OUTPUTS, 1, *size)])
        each = [masks_to_comfy(mask) for mask in padded[:NUM_OUTPUTS, None]]
        report = f"{len(masks)} {'region' if len(masks) == 1 else 'regions'} of {width} x {height} pixels"
        return io.NodeOutput(*each, masks_to_comfy(masks), to_comfy(shown), ui=show(report, shown, cls))


NODES = [FaceRegions]
