"""One run: a method trained on one identity and one style, and all that is measured of it, as one JSON line.

Lines are kept by a key of everything they depend on, so a table can grow over days and never mixes what does not
belong together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magicapture_core import backbone as backbones
from magicapture_core import recipe
from magicapture_core.backbone import TINY_WEIGHTS, Backbone
from magicapture_core.dataset import encode
from magicapture_core.files import write_atomic
from magicapture_core.heatmaps import AttentionRecord
from magicapture_core.images import save_image
from magicapture_core.sampler import generate
from magicapture_core.trainer import train
from magicapture_core.types import Face, Portraits

from . import world
from .measure import EDITS, Judges, leakage, likeness, obeyed, read, style_likeness
from .methods import COMPOSED, METHODS, Method
from .nets import WEIGHTS, check_world, load_net
from .pictures import CACHE, to_arrays
from .world import Picture, Split

RESULTS = Path(__file__).parent / "results"
CORE = Path(backbones.__file__).parent
PHOTOS, MADE, EDITED, STRIP = 5, 16, 8, 2  # of each side; pictures measured; of each edit; kept to look at
SAMPLING: dict[str, Any] = {"num_steps": 20, "guidance": 4.0}
SIZE = 64
# What a run's figures depend on: the world, the weights, and the stages of the line that train and sample.
SOURCES = (
    *(CORE / f"{name}.py" for name in (
        "attention", "backbone", "config", "dataset", "diffusion", "faces", "heatmaps", "identity", "lora", "losses",
        "objective", "prompts", "restore", "sampler", "tokens", "trainer",
    )),
    *(Path(__file__).with_name(f"{name}.py") for name in ("labels", "measure", "methods", "runs", "views", "world")),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Run:
    """Its address. Identity and style of a pair have the same number."""

    method: str
    pair: int
    seed: int
    split: Split = "test"
    learning_rate_factor: float = 1.0

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
        for path in TINY_WEIGHTS.values():
            check_world(path)
        return cls(backbone=backbones.tiny(), recogniser=load_net("training_recogniser"), judges=Judges.load())


@cache
def the_bench() -> Bench:
    """This process's one."""
    return Bench.load()


@cache
def results_key() -> str:
    """A hash of the sources and weights that figures depend on, as they were when this process first asked."""
    digest = hashlib.sha256(str(world.WORLD_VERSION).encode())
    for path in (*SOURCES, *sorted(WEIGHTS.glob("*.safetensors")), *TINY_WEIGHTS.values()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def measure_run(run: Run) -> dict[str, Any]:
    """Trains, measures, keeps a strip of the pictures. Returns the line: the run's address, the figures."""
    bench, method, figures = the_bench(), METHODS[run.method], {}
    person, look = (photos(run, side) for side in ("subject", "style"))
    truth = world.truth(run.split, run.pair, run.pair, MADE)
    artifact = train_method(bench, run, method, person, truth[:PHOTOS] if method.photos == "truth" else look)
    words = ["<subject>", "<style>"]
    record = AttentionRecord(words)
    options = {**SAMPLING, "seed": 1000 * run.seed, "num_images": MADE}
    made = generate(bench.backbone, artifact, COMPOSED, record=record, **options)
    save_image(strip(made), run.picture)
    seen, of_person, of_style, of_truth = (
        read(bench.judges, images) for images in (made, *(to_arrays(side).tensor() for side in (person, look, truth)))
    )
    who, how = world.identity(run.split, run.pair), world.style(run.split, run.pair)
    figures |= likeness(seen, of_person, who, of_truth)
    figures |= style_likeness(seen, of_style, how, who)
    figures |= leakage(record, seen, SIZE, *words)
    for edit, (text, _) in EDITS.items():
        edited = generate(bench.backbone, artifact, COMPOSED + text, **{**options, "num_images": EDITED})
        figures[edit] = obeyed(edit, read(bench.judges, edited))
    return {**vars(run), "figures": {name: round(value, 5) for name, value in figures.items()}}


def strip(images: Tensor) -> Tensor:
    """The first few of [N,3,H,W] side by side."""
    return torch.cat(list(images[:STRIP]), -1)


def photos(run: Run, side: str) -> list[Picture]:
    draw = world.subject_photos if side == "subject" else world.style_photos
    return draw(run.split, run.pair, PHOTOS, SIZE, SIZE)


def train_method(bench: Bench, run: Run, method: Method, person: Sequence[Picture], look: Sequence[Picture]) -> Any:
    """The artifact after the method's whole training; of the untouched model, after none of it."""
    config = method.config(run.seed, run.learning_rate_factor)
    encoded = encode(bench.backbone, portraits(person), portraits(look), config, bench.recogniser)
    artifact = None
    for step in train(bench.backbone, method.dataset(encoded), config):
        if step.step == step.num_steps or method.photos == "nothing":
            artifact = recipe.to_artifact(step, bench.backbone.architecture, config, run.method)
            break
    return artifact


def portraits(pictures: Sequence[Picture]) -> Portraits:
    """With the masks and landmarks of the world, so that no detector's luck is in the figures."""
    arrays = to_arrays(pictures)
    faces = [
        Face(box=torch.from_numpy(picture.faces[0].box).float(), landmarks=torch.from_numpy(points[0]))
        for picture, points in zip(pictures, arrays.landmarks, strict=True)
    ]
    return Portraits(images=arrays.tensor(), masks=torch.from_numpy(arrays.masks)[:, None].float(), faces=faces)


def lines_file() -> Path:
    return RESULTS / f"runs-{results_key()}.jsonl"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Finished runs."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_atomic(path, lambda file: file.write_text(text, encoding="utf-8"))


def run_all(runs: Sequence[Run], workers: int = 1) -> Iterator[dict[str, Any]]:
    """Each run's line: those that are kept first, then the others as they are measured, in several processes."""
    path = lines_file()
    kept = {address(line): line for line in read_lines(path)}
    missing = [run for run in runs if tuple(vars(run).values()) not in kept]
    yield from (kept[key] for run in runs if (key := tuple(vars(run).values())) in kept)
    with mapper(workers) as spread:
        for line in spread(measure_run, missing):
            kept[address(line)] = line
            write_lines(path, kept.values())
            yield line


@contextmanager
def mapper(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """`map`, here or by several processes of one thread each, which two cores do faster than two threads."""
    if workers == 1:
        yield map
    else:
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            yield pool.map


def address(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in Run.__dataclass_fields__)
