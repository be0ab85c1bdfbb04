"""The table and the picture grid of all finished runs, as files to commit."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from magicapture_core.files import write_atomic
from magicapture_core.images import load_photo, save_image
from magicapture_core.sheets import contact_sheet

from . import world
from .lines import read_lines
from .methods import METHODS
from .pictures import to_arrays
from .runs import RESULTS, Run, lines_file, photos, strip, table_key, true_pictures
from .table import (
    MAIN_METHODS,
    MAIN_METRICS,
    QUESTIONS,
    SKIN_TONES,
    Row,
    csim_by_skin,
    differences,
    means,
    to_json,
    to_markdown,
)
from .tune import table_lines

GRID_PAIRS = 6
ENLARGE = 2


def write_report() -> list[Path]:
    """Writes results/table.md and table.json; and grid.png, where this machine made the pictures. Returns the files."""
    key = table_key()
    lines = table_lines(read_lines(lines_file(key)))
    rows, ahead, skins = means(lines), differences(lines), csim_by_skin(lines)
    pairs = len({line["pair"] for line in lines})
    text = "\n\n".join(
        (
            f"# {pairs} pairs of one person and one style, key {key}",
            "Mean and 95 % interval by bootstrap over pairs.",
            *both_tables(rows, ahead, MAIN_METRICS, MAIN_METHODS),
            "CSIM by skin tone, the pairs in three parts:",
            to_markdown(skins, [f"csim_{tone}" for tone in SKIN_TONES], MAIN_METHODS),
            *small_tables(rows, ahead),
        )
    )
    data = as_text(to_json(key, rows + skins, ahead))
    return [write_text("table.md", text + "\n"), write_text("table.json", data), *write_grid(lines)]


def both_tables(
    rows: Sequence[Row], ahead: Sequence[Row], metrics: Sequence[str], methods: Collection[str]
) -> Iterator[str]:
    """The means, and how far MagiCapture is ahead."""
    yield to_markdown(rows, metrics, methods)
    yield "MagiCapture minus the others, pair by pair:"
    yield to_markdown(ahead, metrics, methods)


def small_tables(rows: Sequence[Row], ahead: Sequence[Row]) -> Iterator[str]:
    """Those of the questions of which something was measured."""
    measured = {row.method for row in rows}
    for question in QUESTIONS:
        if not measured.isdisjoint(question.own):
            yield f"## {question.title}"
            yield from both_tables(rows, ahead, question.metrics, (*question.beside, *question.own))


def as_text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1) + "\n"


def write_text(name: str, text: str) -> Path:
    return write_atomic(RESULTS / name, lambda file: file.write_text(text, encoding="utf-8"))


def write_grid(lines: Sequence[Mapping[str, Any]]) -> list[Path]:
    """A row for each of the first pairs: person, style, what every method of the main table made, the truth."""
    runs = {(line["method"], line["pair"]): Run.of(line) for line in lines if line["seed"] == 0}
    pairs = range(GRID_PAIRS)
    methods = [name for name in MAIN_METHODS if all((name, pair) in runs for pair in pairs)]
    if not methods or not all(runs[name, pair].picture.exists() for name in methods for pair in pairs):
        return []
    cells, labels = [], ["person", "style", *(METHODS[name].title for name in methods), "truth"]
    for pair in pairs:
        run = runs[methods[0], pair]
        cells += [drawn(photos(run, side).trained) for side in ("subject", "style")]
        cells += [load_photo(runs[name, pair].picture) for name in methods]
        cells += [drawn(true_pictures(run).unseen)]
    enlarged = [cell.repeat_interleave(ENLARGE, 1).repeat_interleave(ENLARGE, 2) for cell in cells]
    return [save_image(contact_sheet(enlarged, len(labels), labels * len(pairs)), RESULTS / "grid.png")]


def drawn(pictures: Sequence[world.Picture]) -> Tensor:
    return strip(to_arrays(pictures).tensor())
