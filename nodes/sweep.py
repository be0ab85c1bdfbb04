"""StrengthSweep: the same picture at other strengths, on one labelled sheet."""

from __future__ import annotations

import math
import re
from itertools import product
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.types import MagiCaptureError
from . import patching
from .bounds import within_bounds
from .sampling import sample
from .scene import STRENGTHS, in_words, open_scene, optional_sockets, required_sockets
from .sockets import MAX_STRENGTH, schema, show, single, to_comfy, to_core

NOTHING = "nothing"
MAX_CELLS = 64
SHEET_SIDE = 512  # pixels, of a cell's longer side


class StrengthSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Strength Sweep",
            node_id="MagiCaptureStrengthSweep",
            description="Makes one picture again and again at other strengths, from one seed, and lays the pictures "
            "out on a sheet that says at which. So the strengths of a LoRA are found at a glance.",
            search_aliases=["XY plot", "grid", "LoRA strength", "contact sheet"],
            is_input_list=True,
            inputs=[
                *required_sockets("One for all pictures, so that only the strengths differ."),
                *axis("rows", "strength_style", "0.4, 0.7, 1"),
                *axis("columns", "strength_model", "0.6, 0.8, 1"),
                *optional_sockets(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="sheet", tooltip="All pictures as a table, each with its strengths below it."
                ),
                io.Image.Output(display_name="images", tooltip="The pictures in full size, row by row, one batch."),
                io.String.Output(display_name="report", tooltip="The strengths of each picture, and its likeness."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: list[str], **others: Any) -> list[Any]:
        return patching.fingerprint_if_there(lora_name[0])

    @classmethod
    @within_bounds
    def execute(cls, **lists: Any) -> io.NodeOutput:
        return cls.sweep(**single(lists))

    @classmethod
    def sweep(
        cls, *, vae: Any, seed: int, rows: str, row_values: str, columns: str, column_values: str, **inputs: Any
    ) -> io.NodeOutput:
        cells, width = table(rows, row_values, columns, column_values)
        scene = open_scene(**inputs)
        takes = [scene.take(scene.strengths | cell) for cell in cells]
        for widget, strength in (("rows", rows), ("columns", columns)):
            if strength in takes[0].idle:
                raise MagiCaptureError(
                    f"{widget}: {strength} has no effect with {scene.learned.name}: {takes[0].idle[strength]}"
                )
        images = vae.decode(sample([(take.shot, seed) for take in takes], scene.settings, scene.size))
        scores = scene.judge(images) if scene.judge else []
        labels = [
            ", ".join([*map(in_short, cell.items()), *map(in_words, scores[place : place + 1])])
            for place, cell in enumerate(cells)
        ]
        most_said = max(takes, key=lambda take: len(take.notes))  # a strength of 1 needs no words
        lines = [*scene.report(most_said), f"seed {seed}"]
        report = "\n".join([*lines, *(f"picture {number}: {label}" for number, label in enumerate(labels, 1))])
        sheet = draw_sheet(images, width, labels)
        return io.NodeOutput(to_comfy(sheet), images, report, ui=show(report, sheet, cls))


def axis(name: str, strength: str, values: str) -> list[Any]:
    """Two widgets: what changes along the rows or columns, and to which values."""
    return [
        io.Combo.Input(
            name,
            options=[*STRENGTHS, NOTHING],
            default=strength,
            tooltip=f"Which strength changes from one of the {name} to the next; its own widget then counts for "
            "nothing. At most one of rows and columns may be nothing.",
        ),
        io.String.Input(
            f"{name.removesuffix('s')}_values",
            default=values,
            tooltip=f"The strengths of the {name}, with commas between them. A sheet has {MAX_CELLS} pictures at most.",
        ),
    ]


def table(rows: str, row_values: str, columns: str, column_values: str) -> tuple[list[dict[str, float]], int]:
    """The four widgets -> for each picture, row by row, the strengths that are its own; and how many stand in a row.

    Raises MagiCaptureError naming the widget.
    """
    if rows == columns:
        raise MagiCaptureError(f"rows, columns: both are {rows}; choose two different ones")
    down, across = values("row_values", rows, row_values), values("column_values", columns, column_values)
    if len(down) * len(across) > MAX_CELLS:
        raise MagiCaptureError(
            f"row_values, column_values: {len(down)} times {len(across)} are {len(down) * len(across)} pictures, more "
            f"than {MAX_CELLS}; leave some out"
        )
    return [one | other for one, other in product(down, across)], len(across)


def values(widget: str, strength: str, text: str) -> list[dict[str, float]]:
    """`0.4, 0.7` of strength_style -> [{strength_style: 0.4}, {strength_style: 0.7}]; of nothing, [{}]."""
    if strength == NOTHING:
        return [{}]
    numbers = [number(widget, word) for word in re.split(r"[,;\s]+", text) if word]
    if not numbers:
        raise MagiCaptureError(f"{widget}: it is empty; write strengths such as 0.4, 0.7, 1")
    return [{strength: value} for value in numbers]


def number(widget: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not abs(value) <= MAX_STRENGTH:
        raise MagiCaptureError(
            f"{widget}: {word[:40]!r} is no number from -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}; write strengths such as "
            "0.4, 0.7, 1"
        )
    return value


def in_short(setting: tuple[str, float]) -> str:
    return f"{setting[0].removeprefix('strength_')} {setting[1]:g}"


def draw_sheet(images: Tensor, width: int, labels: list[str]) -> Tensor:
    """IMAGE -> one picture [1,3,H,W] with `width` of them in a row, larger ones made smaller."""
    from ..magicapture_core.images import shrink
    from ..magicapture_core.sheets import contact_sheet

    return contact_sheet(list(shrink(to_core(images), SHEET_SIDE)), width, labels)[None]


NODES = [StrengthSweep]
