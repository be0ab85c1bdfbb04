"""The third bench's table, bars and picture grid, and the choice of its wording."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from magicapture_core.images import load_photo, save_image
from magicapture_core.sheets import contact_sheet

from .bars import Bar
from .group import (
    CANVAS,
    METHODS,
    OURS,
    PEOPLE,
    PICTURES,
    PROMPT,
    RESULTS,
    STRIP,
    Run,
    Wording,
    lines_file,
    photos,
    table_key,
)
from .lines import Line, read_lines
from .pictures import to_arrays
from .report import as_text, write_text
from .table import Row, difference, markdown, means, to_json
from .world import Split

METRICS = {
    "accuracy": "right of the picture's people", "accuracy_all": "right of all people", "csim": "CSIM to the right one",
    "leakage": "CSIM to the others (less)", "detection": "faces found", "background": "obeys the background",
}  # fmt: skip
ALONE_METRICS = {
    "of_2": "right of two people", "of_3": "right of three people", "accuracy_all": "right of all people",
    "csim": "CSIM", "detection": "faces found",
}  # fmt: skip
TITLES = {name: method.title for name, method in METHODS.items()}
GROUPS = 12  # of each size
LEAST_ACCURATE = {2: 0.95, 3: 0.90}
LEAKAGE_SHARE = 0.5  # of prompt only's, at most
GRID_GROUPS, ENLARGE = 3, 2


def table_runs(groups: int = GROUPS) -> list[Run]:
    """Group by group, so that what is there is complete as far as it goes; then everybody alone."""
    return [
        Run(method=method, count=count, group=group)
        for group in range(groups)
        for count in CANVAS
        for method in METHODS
    ] + alone_runs("test")


def alone_runs(split: Split) -> list[Run]:
    """A picture of one person by regions is the plain sampler's."""
    return [Run(method=OURS, count=1, group=person, split=split) for person in range(PEOPLE)]


def tuning_runs(groups: int) -> list[Run]:
    """Every wording with the methods that have a text for each person, on people that no table holds."""
    return [
        Run(method=method, count=count, group=group, wording=wording, split="tuning")
        for group in range(groups)
        for count in CANVAS
        for method in METHODS
        if method != PROMPT
        for wording in get_args(Wording)
    ]


def tuning_scores(lines: Iterable[Line]) -> dict[str, dict[str, dict[str, float]]]:
    """method and number of people -> wording -> means over the groups."""
    found: dict[str, dict[str, list[Mapping[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        found[f"{line['method']}, {line['count']} people"][line["wording"]].append(line["figures"])
    return {
        name: {
            wording: {metric: round(mean(one[metric] for one in figures), 4) for metric in METRICS}
            for wording, figures in wordings.items()
        }
        for name, wordings in found.items()
    }


def table_lines(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Those that belong to the table; a group stands there where the first bench's has a pair."""
    default = Run(method=OURS, count=2, group=0).wording
    kept = [line for line in lines if line["split"] == "test" and line["wording"] == default]
    return [{**line, "pair": line["group"]} for line in kept]


def of_size(lines: Iterable[Line], count: int) -> list[Line]:
    return [line for line in lines if line["count"] == count]


def ahead(lines: Sequence[Line]) -> list[Row]:
    """Ours minus each other method, group by group."""
    others = [(method, metric) for method in METHODS if method != OURS for metric in METRICS]
    found = (difference(lines, metric, method, OURS) for method, metric in others)
    return [row for row in found if row is not None]


def write_report() -> list[Path]:
    """Writes results/group.md and .json; and group.jpg, where this machine made the pictures. Returns them."""
    key = table_key()
    lines = table_lines(read_lines(lines_file(key)))
    parts, data = [f"# Several people in one picture, key {key}"], {}
    for count in CANVAS:
        sized = of_size(lines, count)
        rows, differences = means(sized, METRICS), ahead(sized)
        data[str(count)] = to_json(key, rows, differences)
        parts += [
            f"## {count} people, {len({line['group'] for line in sized})} groups",
            "Mean and 95 % interval by bootstrap over groups.",
            markdown(rows, METRICS, TITLES),
            f"{TITLES[OURS].capitalize()} minus the others, group by group:",
            markdown(differences, METRICS, TITLES),
        ]
    alone = of_size(lines, 1)
    rows = means(alone, ALONE_METRICS)
    data["1"] = to_json(key, rows, [])
    parts += [
        f"## The same people alone, {len(alone)} people",
        "What a group can reach: how often a picture of one person is likest them, of them and all choices of others.",
        markdown(rows, ALONE_METRICS, {OURS: "the plain sampler"}),
    ]
    text = "\n\n".join(parts) + "\n"
    return [write_text("group.md", text), write_text("group.json", as_text(data)), *write_grid(lines)]


def write_grid(lines: Sequence[Line]) -> list[Path]:
    """For each of the first groups a row: a photo of each of its people, then what every method made."""
    found = {(line["count"], line["group"], line["method"]): Run.of(line) for line in lines}
    places = [(count, group) for count in CANVAS for group in range(GRID_GROUPS)]
    cells, labels = [], []
    for count, group in places:
        drawn = [found.get((count, group, method)) for method in METHODS]
        if not all(run is not None and run.file(PICTURES).exists() for run in drawn):
            return []
        for run in drawn:
            assert run is not None
            if not cells or len(cells) % (len(METHODS) + 1) == 0:
                true = [photos(run.split, member).unseen[:1] for member in run.members]
                cells.append(to_arrays([picture for one in true for picture in one]).tensor().movedim(0, 2).flatten(2))
                labels.append("the people")
            cells.append(load_photo(run.file(PICTURES)))
            labels.append(f"{TITLES[run.method]}, {STRIP} pictures")
    enlarged = [cell.repeat_interleave(ENLARGE, 1).repeat_interleave(ENLARGE, 2) for cell in cells]
    return [save_image(contact_sheet(enlarged, len(METHODS) + 1, labels), RESULTS / "group.jpg")]


def bars(lines: Sequence[Line]) -> Iterator[Bar]:
    """What the regions must show."""
    for count, least in LEAST_ACCURATE.items():
        rows = {(row.method, row.metric): row for row in means(of_size(lines, count), METRICS)}
        ours, leak, before = (rows.get(key) for key in ((OURS, "accuracy"), (OURS, "leakage"), (PROMPT, "leakage")))
        enough = ours is not None and ours.n >= GROUPS
        yield Bar(name=f"{count} people: in their place", figure=ours.mean if ours and enough else None, least=least)
        share = LEAKAGE_SHARE * before.mean - leak.mean if enough and leak and before else None
        yield Bar(
            name=f"{count} people: half of prompt only's leakage, less ours", figure=share, least=0.0, exceeds=True
        )
