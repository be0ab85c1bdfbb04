"""The jobs file: people x styles x settings x seeds. In: TOML. Out: jobs, each with a key of all that decides it.

Knows nothing of Ray nor of where results go.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from glob import glob
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ..artifact import check_name
from ..config import PRESETS, Settings, TrainConfig, parse, parse_config
from ..images import list_photos
from ..kept import KEY_FORMAT
from ..train_command import LOOKS, merge, read_toml
from ..types import MagiCaptureError

KEY_LENGTH = 12  # of a key, in the name of a folder


class Pictures(Settings):
    """The pictures that each job makes with what it has trained."""

    images: int = Field(default=4, ge=0, description="How many; 0 makes none. The paper makes 100.")
    batch: int = Field(
        default=1, ge=1, description="How many at a time: faster on graphics cards, hungrier for memory."
    )
    prompt: str = Field(default="", description="The training's own composed prompt by default.")
    negative_prompt: str = ""
    num_steps: int = Field(default=30, ge=1, description="Sampling steps. The paper takes 50.")
    guidance: float = Field(default=7.0, description="How closely to follow the prompt. The paper takes 7.5.")
    seed: int = Field(default=0, ge=0, description="Of the first picture; picture i has this and i more.")


class Evaluate(Settings):
    """What each job's pictures are measured by, as `evaluate` does: any of these networks of the user's."""

    recogniser: str = Field(default="", description="For CSIM; another one than that of the training.")
    clip: str = Field(default="", description="For style with the faces hidden, CLIP-T and aesthetic.")
    aesthetic: str = Field(default="", description="LAION's predictor.")
    prompt: str = Field(default="", description="For CLIP-T: what the pictures should show, in plain words.")


class JobsFile(Settings):
    """What the TOML holds. Paths are relative to its folder; all machines have to see them."""

    subjects: tuple[str, ...] | str = Field(description="Patterns of folders, each with the photos of one person.")
    styles: tuple[str, ...] | str = Field(description="The same for styles.")
    subject_masks: str = Field(default="", description="Holds a folder of masks for each person, of the same name.")
    style_masks: str = Field(default="", description="The same for styles.")
    results: str = Field(default="results", description="A folder, or any address that fsspec knows, such as s3://...")
    checkpoint: str = Field(default="", description="SD1.5; the embedded tiny model by default.")
    recogniser: str = Field(default="", description="A face recognition network, for the identity loss.")
    preset: Literal["quick", "standard", "paper"] | None = None
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    looks: int = Field(default=LOOKS, ge=0, description="Sample pictures of a training, so many times; 0: at its end.")
    configs: dict[str, dict[str, Any]] = Field(
        default={"magicapture": {}}, min_length=1, description="Settings to compare, by name, as `train --config` has."
    )
    pictures: Pictures = Pictures()
    evaluate: Evaluate | None = None
    cpus: float = Field(default=1, gt=0, description="Processor cores of a job.")
    gpus: float | None = Field(
        default=None, ge=0, description="Graphics cards of a job, or a part of one; one where there are any by default."
    )
    retries: int = Field(default=3, ge=0, description="How often a job goes on after its worker was lost.")


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Of each stage and all before it, so that other pictures or judges do not train again."""

    training: str
    pictures: str
    all: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training, its pictures, and what is measured of them. Masks, checkpoint, recogniser, judges: None where not
    given."""

    subject: Path
    style: Path
    subject_masks: Path | None
    style_masks: Path | None
    checkpoint: Path | None
    recogniser: Path | None
    method: str
    config: TrainConfig
    looks: int
    pictures: Pictures
    judges: Mapping[str, Path | str | None]
    keys: Keys

    @property
    def lora_name(self) -> str:
        return f"{self.subject.name}_{self.style.name}"

    @property
    def name(self) -> str:
        return f"{self.method}/{self.lora_name}_s{self.config.seed}"

    @property
    def folder(self) -> str:
        """In the results. What other settings of the training gave lies beside it, and nothing is mixed."""
        return f"{self.name}-{self.keys.training[:KEY_LENGTH]}"

    @property
    def images(self) -> str:
        """Folder of the pictures, in the job's."""
        return f"images-{self.keys.pictures[:KEY_LENGTH]}"

    @property
    def evaluation(self) -> str:
        return f"evaluation-{self.keys.all[:KEY_LENGTH]}"


def read_jobs(path: Path) -> tuple[JobsFile, list[Job]]:
    """Raises MagiCaptureError in one line for what is no jobs file, or where photos, masks or models are not there."""
    try:
        return _read(path)
    except MagiCaptureError as error:
        raise MagiCaptureError(f"{path.name}: {error}") from error


def _read(path: Path) -> tuple[JobsFile, list[Job]]:
    digest.cache_clear()
    values = read_toml(path)
    file, base = parse(JobsFile, values), path.absolute().parent
    if file.preset and not file.checkpoint:
        raise MagiCaptureError("preset: the embedded tiny model has its own; leave it out, or give a checkpoint")
    subjects, styles = folders("subjects", file.subjects, base), folders("styles", file.styles, base)
    checkpoint, recogniser = (given(base, name, getattr(file, name)) for name in ("checkpoint", "recogniser"))
    preset = PRESETS["tiny" if checkpoint is None else file.preset or "standard"]
    configs = {
        (check_name(method), seed): _config(method, merge(merge(preset, changes), {"seed": seed}))
        for (method, changes), seed in product(file.configs.items(), file.seeds)
    }
    judges = read_judges(file.evaluate, base)
    jobs = []
    for ((method, _), config), subject, style in product(configs.items(), subjects, styles):
        check_name(f"{subject.name}_{style.name}")
        inputs = {
            "subject": subject,
            "style": style,
            "subject_masks": masks_of(subject, base, "subject_masks", file.subject_masks),
            "style_masks": masks_of(style, base, "style_masks", file.style_masks),
            "checkpoint": checkpoint,
            "recogniser": recogniser,
        }
        keys = keys_of(config, file, inputs, judges)
        named: dict[str, Any] = {"method": method, "config": config, "looks": file.looks, "pictures": file.pictures}
        jobs.append(Job(**inputs, **named, judges=judges, keys=keys))
    name, count = Counter(job.name for job in jobs).most_common(1)[0]
    if count > 1:
        raise MagiCaptureError(f"{count} jobs would be called {name}: rename a folder, or leave a seed out")
    return file, jobs


def read_judges(asked: Evaluate | None, base: Path) -> dict[str, Path | str | None]:
    """By option of `evaluate`; empty where nothing is to be measured."""
    if asked is None:
        return {}
    networks = {
        name: given(base, f"evaluate.{name}", getattr(asked, name)) for name in ("recogniser", "clip", "aesthetic")
    }
    return {**networks, "prompt": asked.prompt or None}


def _config(method: str, values: dict[str, Any]) -> TrainConfig:
    try:
        return parse_config(values)
    except MagiCaptureError as error:
        raise MagiCaptureError(f"configs.{method}: {error}") from error


def folders(what: str, patterns: tuple[str, ...] | str, base: Path) -> list[Path]:
    """Those that the patterns name, in the order of their names for each pattern.

    Raises MagiCaptureError for a pattern without one, and for a folder without photos.
    """
    found: list[Path] = []
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        matched = [Path(path) for path in sorted(glob(str(base / pattern))) if Path(path).is_dir()]
        if not matched:
            raise MagiCaptureError(f"{what}: {base / pattern} is no folder; name folders of photos, such as people/*")
        found += [folder for folder in matched if folder not in found]
    for folder in found:
        list_photos(folder)
    return found


def masks_of(folder: Path, base: Path, name: str, masks: str) -> Path | None:
    return given(base, name, f"{masks}/{folder.name}") if masks else None


def given(base: Path, name: str, value: str) -> Path | None:
    """An optional path of the file. Raises MagiCaptureError where it is named and not there."""
    if not value:
        return None
    if not (base / value).exists():
        raise MagiCaptureError(f"{name}: {base / value} is not there")
    return base / value


def keys_of(
    config: TrainConfig, file: JobsFile, inputs: Mapping[str, Path | None], judges: Mapping[str, Path | str | None]
) -> Keys:
    """Hashes of settings and of the bytes of all that is read; of no path, so that folders may move."""
    read = {name: digest(path) for name, path in inputs.items() if path}
    names = [path.name for path in inputs.values() if path and path.is_dir()]
    training = hashed(KEY_FORMAT, config.model_dump(mode="json"), file.looks, read, names)
    pictures = hashed(training, file.pictures.model_dump(mode="json"))
    judged_by = {name: digest(judge) if isinstance(judge, Path) else judge for name, judge in judges.items()}
    return Keys(training=training, pictures=pictures, all=hashed(pictures, judged_by))


def hashed(*values: object) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


@cache
def digest(path: Path) -> str:
    """Of a file's bytes, or of the names and bytes of a folder's files; once for each path of a jobs file."""
    whole = hashlib.blake2b(digest_size=16)
    if path.is_file():
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                whole.update(block)
        return whole.hexdigest()
    for inner in sorted(entry for entry in path.rglob("*") if entry.is_file() and not entry.name.startswith(".")):
        whole.update(f"{inner.relative_to(path).as_posix()} {digest(inner)} ".encode())
    return whole.hexdigest()
