"""One run: a method trained on one identity and one style, and all that is measured of it, as one JSON line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from magicapture_core import recipe
from magicapture_core.artifact import Artifact
from magicapture_core.backbone import TINY_FOLDER, Backbone
from magicapture_core.dataset import encode
from magicapture_core.halves import extract, mix
from magicapture_core.heatmaps import AttentionRecord
from magicapture_core.images import save_image
from magicapture_core.sampler import generate
from magicapture_core.trainer import open_run, train
from magicapture_core.types import Face, Portraits, Side

from . import world
from .lines import Line, fullest_key, key_of, run_missing, to_json
from .measure import EDITS, Judges, csim, detection, leakage, likeness, obeyed, read, style_likeness
from .methods import COMPOSED, METHODS, STYLE_ONLY
from .nets import WEIGHTS, load_net, load_tiny
from .pictures import CACHE, to_arrays
from .world import Picture, Split

RESULTS = Path(__file__).parent / "results"
CORE = TINY_FOLDER.parent
PHOTOS, MADE, EDITED, STRIP = 5, 16, 8, 2  # of each side; pictures measured; of each edit; kept to look at
SAMPLING: dict[str, Any] = {"num_steps": 20, "guidance": 2.5}
SIZE = 64
# What a run's figures depend on: the stages of the core that train and sample, the world, the measures, all weights.
CORE_STAGES = (
    "attention", "backbone", "collages", "config", "crew", "dataset", "diffusion", "face_nets", "faces", "halves",
    "heatmaps", "identity", "kohya", "lora", "losses", "objective", "optimizers", "prompts", "restore", "run",
    "sampler", "small_recognisers", "tflite", "tokens", "trainer", "vocabulary",
)  # fmt: skip
ONLY_TELL = ("__main__", "bars", "check", "demo", "lines", "report", "samples", "sheet", "table", "tune")
OTHER_BENCHES = ("one_photo", "group", "small_faces")  # what their sources begin with, which have keys of their own


def sources() -> list[Path]:
    bench = [
        path
        for path in Path(__file__).parent.glob("*.py")
        if path.stem not in ONLY_TELL and not path.stem.startswith(OTHER_BENCHES)
    ]
    tiny = [path for part in ("vae", "unet", "text_encoder", "tokenizer") for path in (TINY_FOLDER / part).iterdir()]
    core = [CORE / f"{stage}.py" for stage in CORE_STAGES]
    return [*core, *sorted((*bench, *tiny, *WEIGHTS.glob("*.safetensors")))]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Its address. Identity and style of a pair have the same number. The factors multiply the method's own rates and
    the weight of its attention loss."""

    method: str
    pair: int
    seed: int
    split: Split = "test"
    learning_rate_factor: float = 1.0
    attention_factor: float = 1.0

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Run:
        """Of a finished run's line; an older one lacks what did not exist then."""
        return cls(**{name: line[name] for name in cls.__dataclass_fields__ if name in line})

    @property
    def style_pair(self) -> int:
        """Whose style it draws: its own pair's, or of two mixed trainings the second's."""
        return self.pair + 1 if METHODS[self.method].photos == "two pairs" else self.pair

    @property
    def picture(self) -> Path:
        """A strip of what it made, kept on this machine for the picture grid."""
        name = "-".join(map(str, vars(self).values()))
        return CACHE / "runs" / results_key() / f"{name}.png"


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What all runs share, loaded once."""

    backbone: Backbone
    recogniser: Any
    judges: Judges

    @classmethod
    def load(cls) -> Bench:
        """Raises MagiCaptureError when weights are missing or belong to another version of the world."""
        return cls(backbone=load_tiny(), recogniser=load_net("training_recogniser"), judges=Judges.load())


@cache
def the_bench() -> Bench:
    """This process's one."""
    return Bench.load()


@cache
def results_key() -> str:
    """A hash of all that figures depend on, as it was when this process first asked."""
    return key_of(sources())


def measure_run(run: Run) -> dict[str, Any]:
    """Trains, measures against pictures that no training saw, keeps a strip of what was made.

    Returns the line: the run's address and its figures, None where one could not be measured.
    """
    bench, figures = the_bench(), {}
    artifact = make_artifact(bench, run)
    words = ["<subject>", "<style>"]
    record = AttentionRecord(words)
    options = {**SAMPLING, "seed": 1000 * run.seed, "num_images": MADE}
    made = generate(bench.backbone, artifact, COMPOSED, record=record, **options)
    save_image(strip(made), run.picture)
    alone = generate(bench.backbone, style_alone(artifact), STYLE_ONLY, **options)
    owner = replace(run, pair=run.style_pair)  # whose training the style comes from
    references = [photos(run, "subject"), photos(run, "style"), photos(owner, "subject"), true_pictures(run)]
    seen, seen_alone = read(bench.judges, made), read(bench.judges, alone)
    of_person, of_style, of_owner, of_truth = (
        read(bench.judges, to_arrays(pictures.unseen).tensor()) for pictures in references
    )
    who, how = world.identity(run.split, run.pair), world.style(run.split, run.style_pair)
    figures |= likeness(seen, of_person, who, of_truth)
    figures |= style_likeness(seen, of_style, how, who)
    figures |= leakage(record, seen, SIZE, *words)
    figures |= {"owner_csim": csim(seen, of_owner), "style_only_csim": csim(seen_alone, of_owner)}
    figures["style_only_detection"] = detection(seen_alone)
    for edit, (text, _) in EDITS.items():
        edited = generate(bench.backbone, artifact, COMPOSED + text, **{**options, "num_images": EDITED})
        figures[edit] = obeyed(edit, read(bench.judges, edited))
    return {**vars(run), "figures": {name: to_json(value) for name, value in figures.items()}}


def strip(images: Tensor) -> Tensor:
    """The first few of [N,3,H,W] side by side."""
    return torch.cat(list(images[:STRIP]), -1)


class Pair(NamedTuple):
    """Pictures of one kind: those that a method trains on, and others to measure against."""

    trained: list[Picture]
    unseen: list[Picture]


def photos(run: Run, side: Side) -> Pair:
    draw, pair = (world.subject_photos, run.pair) if side == "subject" else (world.style_photos, run.style_pair)
    return apart(draw(run.split, pair, PHOTOS + MADE, SIZE, SIZE))


def true_pictures(run: Run) -> Pair:
    return apart(world.truth(run.split, run.pair, run.style_pair, PHOTOS + MADE))


def apart(pictures: list[Picture]) -> Pair:
    return Pair(pictures[:PHOTOS], pictures[PHOTOS:])


def make_artifact(bench: Bench, run: Run) -> Artifact:
    """What the run is measured by: what it trained; of two trainings, the person of one with the style of the other."""
    if run.style_pair == run.pair:
        return train_method(bench, run)
    of_person, of_style = (
        train_method(bench, replace(run, method="split", pair=pair)) for pair in (run.pair, run.style_pair)
    )
    return mix(of_person, of_style, run.method)


def style_alone(artifact: Artifact) -> Artifact:
    """As its owner would share the style: of split adapters the style's half, of joint ones all there is."""
    return extract(artifact, "style", artifact.name) if artifact.rank_split else artifact


def train_method(bench: Bench, run: Run) -> Artifact:
    """The artifact after the method's whole training; of the untouched model, before any."""
    method = METHODS[run.method]
    config = method.config(run.seed, run.learning_rate_factor, run.attention_factor)
    person = photos(run, "subject").trained
    look = true_pictures(run).trained if method.photos == "truth" else photos(run, "style").trained
    given = {"subject": portraits(person), "style": portraits(look)}
    dataset = method.dataset(encode(bench.backbone, given, config, bench.recogniser))
    if method.photos == "nothing":
        with open_run(bench.backbone, dataset, config) as begun:
            return recipe.to_artifact(begun, run.method)
    with closing(train(bench.backbone, dataset, config, attention_loss=method.attention_loss)) as steps:
        *_, last = (recipe.to_artifact(step.run, run.method) for step in steps if step.step == step.num_steps)
    return last


def portraits(pictures: Sequence[Picture]) -> Portraits:
    """With the masks and landmarks of the world, so that no detector's luck is in the figures."""
    arrays = to_arrays(pictures)
    faces = [
        Face(box=torch.from_numpy(picture.faces[0].box).float(), landmarks=torch.from_numpy(points[0]))
        for picture, points in zip(pictures, arrays.landmarks, strict=True)
    ]
    return Portraits(images=arrays.tensor(), masks=torch.from_numpy(arrays.masks)[:, None].float(), faces=faces)


def lines_file(key: str | None = None) -> Path:
    return RESULTS / f"runs-{key or results_key()}.jsonl"


def table_key() -> str:
    """Today's sources', or where nothing was measured with them yet, the key of the fullest table of before."""
    return fullest_key(RESULTS, "runs", results_key())


def run_all(runs: Sequence[Run], workers: int = 1) -> Iterator[Line]:
    """Each run's line, see `run_missing`. Raises MagiCaptureError at once when weights are missing too."""
    the_bench()
    yield from run_missing(runs, measure_run, lines_file(), Run.of, workers)
