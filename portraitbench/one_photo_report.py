"""The second bench's table, sweeps, bars and picture grid, and the choice of its learning rates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from magicapture_core.images import load_photo, save_image
from magicapture_core.sheets import contact_sheet

from .bars import Bar
from .lines import Line, read_lines
from .one_photo import (
    EDITS,
    FAMILIES,
    METHODS,
    OURS,
    PICTURES,
    RESULTS,
    SIZE,
    STAGE_SWEEP,
    UNTOUCHED,
    WEIGHT_SWEEP,
    Run,
    lines_file,
    photos,
    table_key,
)
from .pictures import to_arrays
from .report import as_text, write_text
from .table import Row, difference, markdown, means, to_json

METRICS = {
    "csim": "CSIM", "edited_csim": "CSIM under edits", "editability": "obeys edits",
    **{family: f"obeys {family}" for family in FAMILIES}, "unasked": "found unasked",
    "trait_error": "trait error (less)", "detection": "faces found", "edited_detection": "faces found under edits",
}  # fmt: skip
TITLES = {name: method.title for name, method in METHODS.items()}
PLAIN = ("plain", "plain_keys", "plain_values")
SMALL_METRICS = {name: METRICS[name] for name in ("csim", "edited_csim", "editability", "detection")}
MAIN = [name for name in METHODS if name not in (*PLAIN[1:], *WEIGHT_SWEEP, *STAGE_SWEEP)]
SWEEPS = {
    "Weight of the attention loss": sorted(
        (*WEIGHT_SWEEP, OURS), key=lambda name: METHODS[name].config(0).attention_weight
    ),
    "Number of stages": sorted((*STAGE_SWEEP, OURS), key=lambda name: METHODS[name].config(0).num_stages),
    "As an ordinary word": (*PLAIN, OURS),
}
PEOPLE, SWEPT_PEOPLE = 10, 4  # of the main table and of the sweeps
EDITABILITY_SLACK = 0.05
TUNED = {  # rates and weights of the attention loss that are tried, as multiples of the method's own
    "textual_inversion": ((1, 1.7, 3, 10, 30), (1,)),
    "loss": ((1, 10 / 3), (1 / 150, 1 / 15, 2 / 3, 2)),
    OURS: ((1, 3), (1 / 150, 1 / 15, 2 / 3, 1, 4 / 3, 2)),
}
GRID_PEOPLE, ENLARGE = 3, 2
GRID_METHODS = (UNTOUCHED, "textual_inversion", "inversion_likest", "split", "loss", OURS)


def table_runs(people: int = PEOPLE, swept_people: int = SWEPT_PEOPLE) -> list[Run]:
    """Person by person, so that what is there is complete as far as it goes."""
    swept = [name for name in METHODS if name not in MAIN]
    return [Run(method=name, person=person) for person in range(people) for name in MAIN] + [
        Run(method=name, person=person) for person in range(min(people, swept_people)) for name in swept
    ]


def tuning_runs(people: int) -> list[Run]:
    tried = [(name, *factors) for name, grid in TUNED.items() for factors in product(*grid)]
    return [
        Run(method=name, person=person, split="tuning", learning_rate_factor=rate, attention_factor=weight)
        for person in range(people)
        for name, rate, weight in [(UNTOUCHED, 1.0, 1.0), *tried]
    ]


def tuning_scores(lines: Iterable[Line]) -> dict[str, dict[str, dict[str, float]]]:
    """method -> learning rate and weight -> the figures that the choice is made by, means over people."""
    found: dict[str, dict[str, list[Mapping[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        run = Run.of(line)
        if run.split == "tuning":
            settings = f"rate {run.config.learning_rate:g}, weight {run.config.attention_weight:g}"
            found[run.method][settings].append(line["figures"])
    return {
        method: {
            settings: {metric: round(mean(one[metric] for one in figures), 4) for metric in SMALL_METRICS}
            for settings, figures in tried.items()
        }
        for method, tried in found.items()
    }


def table_lines(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Those that belong to the table; a person stands there where the first bench's has a pair."""
    kept = [line for line in lines if line["split"] == "test" and line["learning_rate_factor"] == 1]
    return [{**line, "pair": line["person"]} for line in kept]


def write_report() -> list[Path]:
    """Writes results/one-photo.md and .json; and one-photo.jpg, where this machine made the pictures. Returns them."""
    key = table_key()
    lines = table_lines(read_lines(lines_file(key)))
    rows, differences, harm = means(lines, (*METRICS, *EDITS)), ahead(lines, OURS), behind(lines)
    main = {name: TITLES[name] for name in MAIN}
    text = "\n\n".join(
        (
            f"# {len({line['person'] for line in lines})} people, one photo of each, key {key}",
            "Mean and 95 % interval by bootstrap over people.",
            markdown(rows, SMALL_METRICS, main),
            "SeFi-IDE minus the others, person by person:",
            markdown(differences, SMALL_METRICS, main),
            "The others minus the untouched model, person by person:",
            markdown(harm, SMALL_METRICS, main),
            "By family, and what else is measured:",
            markdown(rows, {name: title for name, title in METRICS.items() if name not in SMALL_METRICS}, main),
            "Edit by edit, the share of the pictures that obey:",
            markdown(rows, {edit: edit.replace("_", " ") for edit in EDITS}, main),
            *(part for title, methods in SWEEPS.items() for part in sweep(lines, title, methods)),
        )
    )
    swept = {title: [asdict(row) for row in means(together(lines, SWEEPS[title]), SMALL_METRICS)] for title in SWEEPS}
    data = {**to_json(key, rows, differences), "to_untouched": [asdict(row) for row in harm], "sweeps": swept}
    return [write_text("one-photo.md", text + "\n"), write_text("one-photo.json", as_text(data)), *write_grid(lines)]


def ahead(lines: Sequence[Line], of: str) -> list[Row]:
    """The method `of` minus each other one, person by person."""
    found = (difference(lines, metric, method, of) for method in METHODS if method != of for metric in METRICS)
    return [row for row in found if row is not None]


def behind(lines: Sequence[Line]) -> list[Row]:
    """Each method minus the untouched model, person by person."""
    others = [(method, metric) for method in METHODS if method != UNTOUCHED for metric in METRICS]
    found = ((method, difference(lines, metric, UNTOUCHED, of=method)) for method, metric in others)
    return [replace(row, method=method) for method, row in found if row is not None]


def sweep(lines: Sequence[Line], title: str, methods: Sequence[str]) -> Iterator[str]:
    """A small table, where all of it was measured."""
    if shared := together(lines, methods):
        yield f"## {title}, {len({line['person'] for line in shared})} people"
        yield markdown(means(shared, SMALL_METRICS), SMALL_METRICS, {name: TITLES[name] for name in methods})


def together(lines: Sequence[Line], methods: Sequence[str]) -> list[Line]:
    """The lines of these methods on the people of whom all were measured."""
    people = set.intersection(*({line["person"] for line in lines if line["method"] == name} for name in methods))
    return [line for line in lines if line["method"] in methods and line["person"] in people]


def write_grid(lines: Sequence[Line]) -> list[Path]:
    """For each of the first people a row for each method: the photo, then a picture without and with each edit."""
    runs = {(line["person"], line["method"]): Run.of(line) for line in lines}
    rows = [runs.get((person, method)) for person in range(GRID_PEOPLE) for method in GRID_METHODS]
    if not all(run is not None and run.file(PICTURES).exists() for run in rows):
        return []
    cells, labels = [], []
    for run in rows:
        assert run is not None
        strip = load_photo(run.file(PICTURES))
        cells += [to_arrays([photos(run).trained]).tensor()[0], *strip.split(SIZE, -1)]
        labels += [TITLES[run.method], "", *(edit.replace("_", " ") for edit in EDITS)]
    enlarged = [cell.repeat_interleave(ENLARGE, 1).repeat_interleave(ENLARGE, 2) for cell in cells]
    return [save_image(contact_sheet(enlarged, len(EDITS) + 2, labels), RESULTS / "one-photo.jpg")]


def bars(lines: Sequence[Line]) -> Iterator[Bar]:
    """What SeFi-IDE must show."""

    def figure(metric: str, method: str, part: str) -> float | None:
        row = difference(lines, metric, method, OURS)
        return getattr(row, part) if row and row.n >= PEOPLE else None

    for rival in ("textual_inversion", "inversion_likest"):
        name = f"CSIM ahead of {TITLES[rival]}, lower end of 95 %"
        yield Bar(name=name, figure=figure("csim", rival, "lo"), least=0.0, exceeds=True)
    name = "share of edits obeyed, against the untouched model"
    yield Bar(name=name, figure=figure("editability", UNTOUCHED, "mean"), least=-EDITABILITY_SLACK)
