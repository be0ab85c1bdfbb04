"""The fourth bench's table, bars and picture grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from magicapture_core.images import load_photo, save_image
from magicapture_core.sheets import contact_sheet

from .bars import Bar
from .group import PEOPLE
from .lines import Line, read_lines
from .report import as_text, write_text
from .small_faces import HEIGHTS, METHODS, OURS, PICTURES, RESULTS, Run, lines_file, table_key
from .table import Row, difference, markdown, means, to_json

METRICS = {
    "csim_before": "CSIM before", "csim": "CSIM after", "accepted": "accepted", "csim_kept": "CSIM of what stays",
    "lowered": "accepted, yet less alike",
}  # fmt: skip
TITLES = {name: method.title for name, method in METHODS.items()}
RAISED = (16, 24, 32, 48)  # heights at which the mean must rise


def table_runs(people: int = PEOPLE) -> list[Run]:
    """Person by person, so that what is there is complete as far as it goes."""
    return [
        Run(method=method, height=height, person=person)
        for person in range(people)
        for height in HEIGHTS
        for method in METHODS
    ]


def table_lines(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Those that belong to the table; a person stands there where the first bench's has a pair."""
    told = ("strength", "guidance", "split")
    default = Run(method=OURS, height=HEIGHTS[0], person=0)
    return [
        {**line, "pair": line["person"]} for line in lines if all(line[name] == getattr(default, name) for name in told)
    ]


def of_height(lines: Iterable[Line], height: int) -> list[Line]:
    return [line for line in lines if line["height"] == height]


def ahead(lines: Sequence[Line]) -> list[Row]:
    """Ours minus each other method, person by person."""
    others = [(method, metric) for method in METHODS if method != OURS for metric in ("csim", "csim_kept")]
    found = (difference(lines, metric, method, OURS) for method, metric in others)
    return [row for row in found if row is not None]


def write_report() -> list[Path]:
    """Writes results/small-faces.md and .json; and small-faces.jpg, where this machine made the pictures."""
    key = table_key()
    lines = table_lines(read_lines(lines_file(key)))
    parts, data = [f"# Small faces, key {key}", "Mean and 95 % interval by bootstrap over people."], {}
    for height in HEIGHTS:
        sized = of_height(lines, height)
        rows, differences = means(sized, METRICS), ahead(sized)
        data[str(height)] = to_json(key, rows, differences)
        count = len({line["person"] for line in sized})
        parts += [f"## Faces of {height} pixels, {count} people", markdown(rows, METRICS, TITLES)]
    text = "\n\n".join(parts) + "\n"
    return [write_text("small-faces.md", text), write_text("small-faces.json", as_text(data)), *write_grid(lines)]


def write_grid(lines: Sequence[Line]) -> list[Path]:
    """A row for each height of the first person: before and after, photo by photo, of every method."""
    cells, labels = [], []
    for height in HEIGHTS:
        sized = {line["method"]: Run.of(line) for line in of_height(lines, height) if line["person"] == 0}
        for method in METHODS:
            if method not in sized or not sized[method].file(PICTURES).exists():
                return []
            cells.append(load_photo(sized[method].file(PICTURES)))
            labels.append(f"{height} px, {TITLES[method]}: before, after")
    return [save_image(contact_sheet(cells, len(METHODS), labels), RESULTS / "small-faces.jpg")]


def bars(lines: Sequence[Line]) -> Iterator[Bar]:
    """What restoration must show."""
    for height in RAISED:
        found = [line["figures"] for line in of_height(lines, height) if line["method"] == OURS]
        gain = mean(one["csim_kept"] - one["csim_before"] for one in found) if len(found) >= PEOPLE else None
        yield Bar(name=f"{height} px: what CSIM rises by", figure=gain, least=0.0, exceeds=True)
    ours = [line for line in lines if line["method"] == OURS]
    accepted = [line["figures"] for line in ours if line["figures"]["lowered"] is not None]
    share = 1 - mean(one["lowered"] for one in accepted) if len(ours) >= PEOPLE * len(HEIGHTS) and accepted else None
    yield Bar(name="share of the accepted faces that the judge finds more alike too", figure=share, least=1.0)
