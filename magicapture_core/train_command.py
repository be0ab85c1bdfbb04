"""The terminal's `train`: settings and photos in, one call into the recipe, Ctrl-C between two steps."""

from __future__ import annotations

import signal
import sys
import tomllib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from . import artifact as artifacts
from . import options
from .config import PRESETS, TrainConfig, parse_config
from .terminal import Result, find_crew, progress, read_backbone, read_portraits
from .types import MagiCaptureError, PhotoNote, Photos, Side, concept_name, side_of

if TYPE_CHECKING:
    from . import kept
    from .backbone import Backbone
    from .collages import Controls
    from .crew import Crew
    from .dataset import Mode
    from .dino import Dino
    from .estimate import Estimate
    from .identity import Recogniser
    from .run import TrainStep

PRESET_NAMES = ("quick", "standard", "paper")
LOOKS = 5  # at a training, evenly spread
TINY_NOTE = "trained on the embedded tiny model, for a first look; give --checkpoint for your SD1.5 model"


class Cancelled(Exception):
    """The user stopped; the message says how to go on."""


def add_arguments(parser: ArgumentParser) -> None:
    for side in ("subject", "style"):
        parser.add_argument(
            f"--{side}",
            type=Path,
            required=True,
            action="append",
            metavar="DIR",
            help=f"folder of {side} photos; again for each further {side}, whose word is then <{side}_2> and so on",
        )
        parser.add_argument(
            f"--{side}-masks",
            type=Path,
            action="append",
            metavar="DIR",
            help=f"masks of the same file stems, white = face or object; once for each --{side}",
        )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--name", required=True, help="letters, digits, - and _")
    options.add_model(parser)
    parser.add_argument(
        "--preset", choices=PRESET_NAMES, help="standard by default; the embedded tiny model has its own"
    )
    parser.add_argument("--config", type=Path, metavar="TOML", help="settings; they go before the preset")
    parser.add_argument("--inversion-steps", type=int, metavar="N", help="optimizer steps of phase 1")
    parser.add_argument("--tuning-steps", type=int, metavar="N", help="optimizer steps of phase 2")
    parser.add_argument("--clone-steps", type=int, metavar="N", help="optimizer steps of phase 3, none by default")
    options.add_control(parser, "skeleton", "an OpenPose ControlNet", "phase 3 takes turns with it")
    options.add_landmark_control(parser, "phase 3 takes turns with it")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument(
        "--recogniser", type=Path, metavar="FILE", help="a face recognition network, such as w600k_r50.onnx"
    )
    parser.add_argument(
        "--taesd",
        type=Path,
        metavar="FILE",
        help="taesd_decoder.safetensors: the identity loss decodes with it, faster; needs --recogniser",
    )
    parser.add_argument(
        "--object",
        metavar="WORD",
        help="the subject is a pet or a thing: what it is, such as dog or teapot; needs masks for all photos",
    )
    parser.add_argument(
        "--object-features", type=Path, metavar="FILE", help="DINO's weights, such as dino_deitsmall16_pretrain.pth"
    )
    options.add_looks(parser)


def train(arguments: Namespace) -> Result:
    from . import recipe
    from .dataset import check_kind
    from .faces import load_face_detector
    from .taesd import load_taesd
    from .watch import Watch

    artifacts.check_name(arguments.name)
    config = read_config(arguments)
    crew = find_crew(arguments.device)
    photos, photo_notes = read_photos(arguments, config)
    config = with_words_for(photos, config)
    backbone = read_backbone(arguments.checkpoint)
    backbone.taesd = load_taesd(arguments.taesd) if arguments.taesd else None
    folder = arguments.output / "magicapture" / arguments.name
    recogniser, notes = read_recogniser(arguments, photos, config)
    check_kind(config, recogniser)
    controls = read_controls(arguments, backbone, photos, config)
    with attended(config.num_steps, arguments.resume, crew) as bar:
        watch = Watch(
            every=arguments.look_every or max(1, config.num_steps // LOOKS),
            patience=arguments.patience,
            detector=load_face_detector() if arguments.recogniser else None,
            on_sampling=bar.sampling,
        )
        result = recipe.personalize(
            backbone,
            photos,
            config,
            name=arguments.name,
            folder=folder,
            save=lambda made: list(artifacts.save(made, arguments.output)),
            recogniser=recogniser,
            controls=controls,
            device=crew.device,
            resume=arguments.resume,
            on_estimate=bar.estimated,
            on_step=bar.stepped,
            watch=watch,
            say=bar.say,
            crew=crew,
        )
    said: Result = {"lora": str(result.files[0]), "embeddings": [str(file) for file in result.files[1:]]}
    said |= {"photos": [str(note) for note in [*photo_notes, *notes]]}
    said |= told(result, folder) | {"model": backbone.architecture}
    if arguments.checkpoint is None:
        said["note"] = TINY_NOTE
    return said


def told(result: kept.Result, folder: Path) -> Result:
    """What a finished training of any kind says of itself."""
    from .kept import Kept
    from .watch import describe

    work, preview = Kept(folder, result.key), result.files[0].with_suffix(artifacts.PREVIEW)
    said: Result = {"steps": len(result.told.history), "resumed_from_step": result.resumed_from}
    said |= {"loss": result.told.history[-1][-1]}
    said |= {"samples": str(work.samples), "looks": str(work.looks)}
    said |= {"preview": str(preview) if preview.is_file() else ""}
    said |= {"kept": f"{folder} holds pictures of the person; the command forget deletes it"}
    if result.told.looks:
        said |= {"likeness": describe(result.told.looks), "best": [str(file) for file in result.best_files]}
    return said


def read_config(arguments: Namespace) -> TrainConfig:
    """The preset, then the TOML file, then the flags."""
    if arguments.taesd and (arguments.checkpoint is None or arguments.recogniser is None):
        raise MagiCaptureError("--taesd: the identity loss of an SD1.5 model needs it; give --checkpoint, --recogniser")
    if arguments.preset and arguments.checkpoint is None:
        raise MagiCaptureError("--preset: the embedded tiny model has its own; leave it out, or give --checkpoint")
    values = PRESETS["tiny" if arguments.checkpoint is None else arguments.preset or "standard"]
    if arguments.config is not None:
        values = merge(values, read_toml(arguments.config))
    flags: dict[str, Any] = {}
    for phase in ("inversion", "tuning"):
        steps = getattr(arguments, f"{phase}_steps")
        if steps is not None:
            flags[phase] = {"num_steps": steps}
    for name in ("clone_steps", "seed"):
        if getattr(arguments, name) is not None:
            flags[name] = getattr(arguments, name)
    if arguments.taesd is not None:
        flags["loss"] = {"identity_decoder": "taesd"}
    if arguments.object is not None:
        first = {"subject": TrainConfig().subject.model_dump()}
        flags |= {"kind": "object", "subject": {"initializer_token": arguments.object}}
        values = merge(first, values)
    return parse_config(merge(values, flags))


def read_toml(path: Path) -> dict[str, Any]:
    """Raises MagiCaptureError for what is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise MagiCaptureError(f"{path}: {error}; it has to be TOML in UTF-8") from error


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, the second before the first."""
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def read_photos(arguments: Namespace, config: TrainConfig) -> tuple[Photos, list[PhotoNote]]:
    """The folders of every person and style, framed, with what became of each photo."""
    photos, notes = {}, []
    for side in get_args(Side):
        folders, masks = getattr(arguments, side), getattr(arguments, f"{side}_masks") or []
        if masks and len(masks) != len(folders):
            raise MagiCaptureError(f"--{side}-masks: give it once for each --{side}, in the same order, or not at all")
        for number, folder in enumerate(folders, 1):
            masks_folder = masks[number - 1] if masks else None
            name = concept_name(side, number)
            photos[name], said = read_portraits(folder, masks_folder, config.resolution, side, config.kind)
            notes += said if number == 1 else [replace(note, file_name=f"{name}/{note.file_name}") for note in said]
    return photos, notes


def with_words_for(photos: Photos, config: TrainConfig) -> TrainConfig:
    """The settings with a word for every person and style that has photos."""
    for name in [name for name in photos if name not in config.concepts]:
        config = config.with_another(side_of(name))
    return config


def read_recogniser(
    arguments: Namespace, photos: Photos, config: TrainConfig
) -> tuple[Recogniser | Dino | None, list[str]]:
    """The network for the identity loss, or for that of an object, and notes on the photos that it cannot use."""
    from .dataset import check_kind
    from .dino import load_dino
    from .likeness import check_targets
    from .recognisers import load_recogniser

    if arguments.recogniser and arguments.object_features:
        raise MagiCaptureError("--recogniser is for a person, --object-features for an object: leave one of them out")
    if arguments.object_features:
        return load_dino(arguments.object_features), []
    if not arguments.recogniser:
        return None, []
    recogniser = load_recogniser(arguments.recogniser)
    check_kind(config, recogniser)
    return recogniser, check_targets(photos)


def read_controls(arguments: Namespace, backbone: Backbone, photos: Photos, config: TrainConfig) -> Controls:
    """What the collages are conditioned on; nothing where nothing is given."""
    given: dict[Mode, Path | None] = {"skeleton": arguments.skeleton_control, "landmark": arguments.landmark_control}
    files: dict[Mode, Path] = {mode: file for mode, file in given.items() if file is not None}
    if not files:
        return {}
    from .collage_controls import controls_of, load_controlnet
    from .faces import load_face_detector

    if config.kind == "object" or not config.clone_steps:
        flags = ", ".join(f"--{mode}-control" for mode in files)
        raise MagiCaptureError(f"{flags}: for collages of people; set --clone-steps, or leave it out")
    nets: dict[Mode, Any] = {mode: load_controlnet(file, backbone.unet) for mode, file in files.items()}
    return controls_of(nets, arguments.landmark_style, photos, load_face_detector())


class Attendant:
    """A training's bar on standard error, and where Ctrl-C stops it."""

    def __init__(self, bar: Any, stopped: Callable[[], bool], resume: bool) -> None:
        self._bar, self._stopped, self._resume = bar, stopped, resume

    def say(self, text: str) -> None:
        if not self._bar.disable:
            self._bar.write(text, file=sys.stderr)

    def estimated(self, estimate: Estimate) -> None:
        self.say(f"estimate: {estimate}")

    def stepped(self, step: TrainStep[Any]) -> None:
        """Raises Cancelled."""
        if self._resume and not self._bar.n:
            self.say(f"goes on at step {step.step}" if step.step > 1 else "no state to go on from")
        self._bar.update(step.step - self._bar.n)
        attention = f"{step.attention_share:.1%}"
        self._bar.set_postfix(phase=step.phase, loss=f"{step.losses.total:.4f}", attention=attention)
        self._stop_if_asked()

    def sampling(self, step: int, num_steps: int) -> None:
        """Raises Cancelled."""
        self._bar.set_postfix_str(f"sample pictures, step {step} of {num_steps}")
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._stopped():
            raise Cancelled("Every step that was done is kept; the same command with --resume goes on from there")


@contextmanager
def attended(num_steps: int, resume: bool, crew: Crew) -> Iterator[Attendant]:
    """resume: whether the user asked for it, and is to hear what came of it. Of a crew the first process alone is
    heard."""
    with progress(num_steps, "training", is_shown=crew.is_first) as bar, stoppable() as stopped:
        yield Attendant(bar, stopped, resume)


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Ctrl-C inside the block is remembered until it is asked for, so that no step is torn; a second one interrupts.

    So is SIGTERM, by which launchers and clusters ask a process to end.
    """
    asked: list[int] = []

    def remember(*_: Any) -> None:
        asked.append(1)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        restore()
