"""The terminal's `sefi`: a photo in, an identity out, Ctrl-C between two steps."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import options
from ..artifact import check_name
from ..terminal import Result, find_crew, read_backbone
from ..train_command import LOOKS, TINY_NOTE, attended, read_toml, told
from ..types import MagiCaptureError, PhotoNote, Portraits
from .config import PRESETS, SefiConfig, parse_sefi_config

if TYPE_CHECKING:
    from ..faces import FaceDetector


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--photo", type=Path, required=True, action="append", metavar="FILE", help="again for further photos of them"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--name", required=True, help="letters, digits, - and _")
    options.add_model(parser)
    parser.add_argument("--config", type=Path, metavar="TOML", help="settings; they go before the model's preset")
    parser.add_argument("--steps", type=options.positive, metavar="N", help="optimizer steps")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument(
        "--class-word",
        metavar="WORD",
        help="what it is, in one word: person by default, such as woman; for a dog or a chair give a --config "
        "whose template names no face",
    )
    parser.add_argument(
        "--recogniser", type=Path, metavar="FILE", help="a face recognition network, which tells the most alike step"
    )
    options.add_looks(parser)


def sefi(arguments: Namespace) -> Result:
    from ..recognisers import load_recogniser
    from ..watch import Watch
    from . import recipe
    from .config import fill_word
    from .identity import load, save
    from .prompts import EDITS

    check_name(arguments.name)
    config = read_config(arguments)
    crew = find_crew(arguments.device)
    detector = find_detector(is_needed=arguments.recogniser is not None)
    portraits, notes = read_photos(arguments.photo, config.resolution, detector)
    backbone = read_backbone(arguments.checkpoint)
    recogniser = load_recogniser(arguments.recogniser) if arguments.recogniser else None
    folder = arguments.output / "magicapture" / arguments.name
    with attended(config.num_steps, arguments.resume, crew) as bar:
        for note in notes:
            bar.say(str(note))
        result = recipe.personalize(
            backbone,
            portraits,
            config,
            name=arguments.name,
            folder=folder,
            save=lambda made: list(save(made, arguments.output)),
            recogniser=recogniser,
            device=crew.device,
            resume=arguments.resume,
            on_estimate=bar.estimated,
            on_step=bar.stepped,
            watch=Watch(
                every=arguments.look_every or max(1, config.num_steps // LOOKS),
                patience=arguments.patience,
                detector=detector if recogniser else None,
                on_sampling=bar.sampling,
            ),
            say=bar.say,
            crew=crew,
        )
    identity, embedding = result.files
    said: Result = {"identity": str(identity), "embedding": str(embedding)}
    said |= {"prompt": fill_word(EDITS["glasses"], load(identity).placeholder)}
    said |= {"photos": [str(note) for note in notes]}
    said |= told(result, folder) | {"model": backbone.architecture}
    if arguments.checkpoint is None:
        said["note"] = TINY_NOTE
    return said


def read_config(arguments: Namespace) -> SefiConfig:
    """The model's preset, then the TOML file, then the flags."""
    file = read_toml(arguments.config) if arguments.config else {}
    flags: dict[str, Any] = {
        "num_steps": arguments.steps,
        "seed": arguments.seed,
        "initializer_token": arguments.class_word,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    return parse_sefi_config({**PRESETS["tiny" if arguments.checkpoint is None else "standard"], **file, **given})


def find_detector(is_needed: bool) -> FaceDetector | None:
    """None without face networks, where nothing needs them: the middle of a photo does as well, which its note says.

    Raises MagiCaptureError for what is missing and needed, and for what is damaged.
    """
    from ..faces import load_face_detector
    from ..models import FACE_NETS, find_model, models_folder

    try:
        find_model(f"faces/{FACE_NETS[0]}.npz", [models_folder()])
    except MagiCaptureError:
        if is_needed:
            raise
        return None
    return load_face_detector()


def read_photos(files: list[Path], resolution: int, detector: FaceDetector | None) -> tuple[Portraits, list[PhotoNote]]:
    """The photos, framed, with what became of each."""
    from ..images import join_notes, load_photos
    from .photos import frame_photos

    readable, notes = load_photos(files)
    if not readable:
        raise MagiCaptureError(f"--photo: {'; '.join(f'{note.file_name}: {note.text}' for note in notes)}")
    portraits, framed = frame_photos(readable, resolution, detector)
    return portraits, join_notes(notes, framed)
