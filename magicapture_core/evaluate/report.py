"""What an evaluation leaves: its table, its figures as JSON, and a sheet of the worst pictures by each metric."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import ImageOps
from torch import Tensor

from ..files import write_atomic
from ..images import from_pil, load_photo, save_image, to_pil
from ..marks import Mark, read_mark
from ..sheets import contact_sheet
from .metrics import METRICS, worst

NUM_WORST = 4
CELL = 256  # pixels of a picture on the sheet
NAME_LENGTH = 36  # characters that fit below it
ON_SHEET = [metric for metric in METRICS if metric != "csim_strict"]


def write_report(report: Mapping[str, Any], pictures: Path, folder: Path) -> list[Path]:
    """report: metrics, notes and rows as the command makes them. Returns the files: table, figures, and the sheet, if
    there is anything to show."""
    figures = json.dumps(report, indent=1, allow_nan=False) + "\n"
    table = "\n".join([to_markdown(report["metrics"]), "", *(f"- {note}" for note in report["notes"])]) + "\n"
    texts = {folder / "evaluation.md": table, folder / "evaluation.json": figures}
    files = [write_atomic(path, lambda beside, text=text: _write(beside, text)) for path, text in texts.items()]
    shown = {metric: rows for metric in ON_SHEET if (rows := worst(report["pictures"], metric, NUM_WORST))}
    if not shown:
        return files
    marks: list[Mark | None] = [read_mark(pictures / row["file"]) for rows in shown.values() for row in rows]
    mark = next(filter(None, marks), None)
    return [*files, save_image(draw_worst(shown, pictures), folder / "worst.png", mark)]


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def to_markdown(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """A metric a line: mean, its 95 % interval, of how many pictures; or why it was left out."""
    lines = ["| metric | mean | 95 % interval | pictures |", "| --- | --- | --- | --- |"]
    for metric, found in metrics.items():
        cells = (found["left_out"], "", "0") if "left_out" in found else _cells(found)
        lines.append(f"| {METRICS[metric].title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(found: Mapping[str, Any]) -> tuple[str, str, str]:
    ends = "one picture" if found["low"] is None else f"{found['low']:.3f} to {found['high']:.3f}"
    return f"{found['mean']:.3f}", ends, str(found["pictures"])


def draw_worst(shown: Mapping[str, Sequence[Mapping[str, Any]]], pictures: Path) -> Tensor:
    """By metric the rows of its worst pictures -> [3,H,W]: a metric a row, each with its score and file name."""
    cells, labels = [], []
    for metric, rows in shown.items():
        cells += [_cell(load_photo(pictures / row["file"])) for row in rows]
        cells += [torch.ones(3, CELL, CELL)] * (NUM_WORST - len(rows))
        labels += [f"{_score(metric, row)}\n{_short(row['file'])}" for row in rows]
        labels += [""] * (NUM_WORST - len(rows))
    return contact_sheet(cells, NUM_WORST, labels)


def _cell(image: Tensor) -> Tensor:
    return from_pil(ImageOps.pad(to_pil(image), (CELL, CELL), color="white"))


def _score(metric: str, row: Mapping[str, Any]) -> str:
    return "no face" if metric == "detection" else f"{METRICS[metric].title} {row[metric]:.3f}"


def _short(name: str) -> str:
    """Its end, where the numbers are."""
    return name if len(name) <= NAME_LENGTH else f"...{name[-NAME_LENGTH:]}"
