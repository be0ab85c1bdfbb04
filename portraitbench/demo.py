"""What `make demo` shows: a person and a style that no training has seen, and the truth beside what was learned.

In: a folder. Out: in it the LoRA, its two embeddings, pictures of every stage, and a page that holds them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magicapture_core import artifact as artifacts
from magicapture_core import heatmaps, recipe
from magicapture_core.demo import SAMPLING, Progress, Sheet, compare, compose, enlarge, losses, restored, write_report
from magicapture_core.heatmaps import AttentionRecord
from magicapture_core.kept import Result
from magicapture_core.masks import MaskOptions, prepare_portraits, require_portraits
from magicapture_core.proofs import overlay
from magicapture_core.sheets import contact_sheet
from magicapture_core.types import Photos, Portraits

from . import world
from .measure import Reading, finest_maps, leakage, likeness, read, style_likeness
from .methods import METHODS, OURS
from .pictures import to_arrays
from .runs import SIZE, Bench, Run, photos, true_pictures
from .world import Picture

PAIR = 1001  # beyond the pairs of every table; its style shows the face from near enough
WORDS = ("<subject>", "<style>")
SHOWN = 4  # pictures of the attention sheet
NOTE = (
    "A drawn person and a drawn style that no model has seen before, and the true pictures of that person in that "
    "style. The model is tiny and knows drawn portraits alone; with --checkpoint the same line trains on your SD1.5 "
    "model. CSIM is likeness in the eyes of a recogniser that had no part in the training, Style that of a judge who "
    "does not see the face; both are 1 for equal pictures."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """One method's files and losses, its pictures [N,3,H,W] before and after, and where its words looked in the
    latter."""

    result: Result
    before: Tensor
    after: Tensor
    record: AttentionRecord


def run(output: Path, progress: Progress) -> dict[str, Any]:
    """Trains with and without attention refocusing, draws, measures. Returns what was written."""
    bench = Bench.load()
    pair = Run(method=OURS, pair=PAIR, seed=7)
    person, look = photos(pair, "subject"), photos(pair, "style")
    truth = true_pictures(pair).unseen[: SAMPLING["num_images"]]
    sides = {"subject": frame(bench, person.trained, "subject"), "style": frame(bench, look.trained, "style")}
    trained = {method: train(bench, method, pair.seed, sides, output, progress) for method in (OURS, "without_ar")}
    ours = trained[OURS]

    of_person, of_look, of_truth = (
        read(bench.judges, to_arrays(pictures).tensor()) for pictures in (person.unseen, look.unseen, truth)
    )
    who, how = world.identity(pair.split, PAIR), world.style(pair.split, PAIR)

    def figures(made: Reading) -> str:
        found = likeness(made, of_person, who, of_truth) | style_likeness(made, of_look, how, who)
        return f"CSIM {found['csim']:.2f}, Style {found['style']:.2f}"

    rows = {"before": ours.before, "after": ours.after, "truth": to_arrays(truth).tensor()}
    readings = {"before": read(bench.judges, ours.before), "after": read(bench.judges, ours.after), "truth": of_truth}
    leaks = {
        method: leakage(one.record, read(bench.judges, one.after), SIZE, *WORDS)["subject_leakage"]
        for method, one in trained.items()
    }
    sheets = [
        Sheet(
            name="photos",
            caption="Photos with the face masks that were found. Above the person, below the style.",
            image=contact_sheet(
                [enlarge(image[None])[0] for side in sides.values() for image in overlay(side)], len(person)
            ),
        ),
        losses(ours.result.told.history),
        Sheet(
            name="composed",
            caption="The composed prompt before and after training, same seeds, and the true pictures. "
            + "; ".join(f"{name}: {figures(reading)}" for name, reading in readings.items()),
            image=compare(rows),
        ),
        Sheet(
            name="attention",
            caption="Where the two learned words look, trained with attention refocusing and without. Of the person's "
            f"word {leaks[OURS]:.0%} falls outside the face with it, {leaks['without_ar']:.0%} without.",
            image=compare_attention(trained[OURS], trained["without_ar"]),
        ),
        restored(),
    ]
    return write_report(output, ours.result.files, sheets, NOTE)


def frame(bench: Bench, pictures: Sequence[Picture], side: str) -> Portraits:
    """Through the pack's own eyes: faces found and masked as those of a user's photos."""
    named = [(f"{side} {number}", image) for number, image in enumerate(to_arrays(pictures).tensor(), 1)]
    portraits, notes = prepare_portraits(named, SIZE, bench.judges.detector, MaskOptions())
    return require_portraits(portraits, notes, side)


def train(bench: Bench, method: str, seed: int, photos: Photos, output: Path, progress: Progress) -> Trained:
    config = METHODS[method].config(seed)
    with progress(config.num_steps, f"training, {METHODS[method].title}") as bar:
        result = recipe.personalize(
            bench.backbone,
            photos,
            config,
            name=method,
            folder=output / "magicapture" / method,
            save=lambda made: list(artifacts.save(made, output)),
            recogniser=bench.recogniser,
            on_step=lambda step: bar.update(),
        )
    before, after, record = compose(bench.backbone, artifacts.load(result.files[0]), progress)
    return Trained(result=result, before=before, after=after, record=record)


def compare_attention(refocused: Trained, plain: Trained) -> Tensor:
    """A row for each of the first pictures: the person's word with refocusing and without, then the style's."""
    cells = []
    for word in WORDS:
        for one in (refocused, plain):
            images = enlarge(one.after)
            maps = heatmaps.overlay(images, finest_maps(one.record).heatmap(word, (images.shape[2], images.shape[3])))
            cells.append(maps[:SHOWN])
    labels = [f"{word} {how}" for word in WORDS for how in ("refocused", "plain")]
    return contact_sheet(list(torch.stack(cells, 1).flatten(0, 1)), len(labels), labels * SHOWN)
