"""The terminal: `python -m magicapture_core COMMAND`.

Progress goes to standard error, the result to standard output: a few lines, or one JSON object with `--json`. Exit code
0; 2 for bad input, with one line that says what and how to mend it, and where some of many jobs failed; 130 when
cancelled, with a state to go on from.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from . import commands, train_command
from .diir import command as diir_command
from .diir.control import STRENGTH as CONTROL_STRENGTH
from .diir.restorer import GUIDANCE, NUM_STEPS, Mode
from .evaluate import command as evaluate_command
from .face_outcomes import MAX_LIKENESS_LOSS
from .fleet import command as fleet_command
from .group import command as group_command
from .group.people import DELAY
from .prompts import COMPOSED_PROMPT
from .sefi import command as sefi_command
from .types import Dismissed, MagiCaptureError, Side

CANCELLED, BAD_INPUT = 130, 2


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    try:
        result = arguments.run(arguments)
    except (MagiCaptureError, OSError) as error:
        print(f"magicapture {arguments.command}: {error}", file=sys.stderr)
        return BAD_INPUT
    except (KeyboardInterrupt, train_command.Cancelled) as stopped:
        print(f"magicapture {arguments.command}: cancelled. {stopped}".rstrip(), file=sys.stderr)
        return CANCELLED
    except Dismissed:
        return 0
    if arguments.json:
        print(json.dumps(result))
    else:
        print("\n".join(_line(key, value) for key, value in result.items()))
    return BAD_INPUT if result.get("failed") else 0


def _line(key: str, value: object, indent: str = "\n  ") -> str:
    words = _words(value, indent)
    return f"{key}:{words}" if words.startswith("\n") else f"{key}: {words}"


def _words(value: object, indent: str = "\n  ") -> str:
    """A line each for the entries of lists and of what holds further lists; short dictionaries on one line."""
    if isinstance(value, list) and value:
        return "".join(indent + _words(entry, indent + "  ") for entry in value)
    if isinstance(value, dict) and value:
        if any(isinstance(entry, list | dict) for entry in value.values()):
            return "".join(indent + _line(key, entry, indent + "  ") for key, entry in value.items())
        return ", ".join(f"{key} {_words(entry)}" for key, entry in value.items())
    return "none" if value in ("", [], {}) else str(value)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def at_least_one(text: str) -> float:
    """A number of at least 1, and not infinite."""
    number = float(text)
    if not 1 <= number < float("inf"):
        raise ValueError
    return number


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m magicapture_core", description="Portraits of a person in a style, learned from a few photos."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: commands.Command, text: str) -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=text, description=text)
        added.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
        added.set_defaults(run=run)
        return added

    demo = command("demo", commands.run_demo, "the whole line on the pack's own pictures and tiny model")
    demo.add_argument("--output", type=Path, default=Path("demo-output"), metavar="DIR")

    masks = command("masks", commands.masks, "find the faces of a folder of photos; write square photos and masks")
    masks.add_argument("photos", type=Path, metavar="DIR")
    masks.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="squares; in it masks/ and overlays/ with a contact sheet",
    )
    masks.add_argument("--resolution", type=positive, default=512, help="side of the squares in pixels (%(default)s)")

    train = command("train", train_command.train, "photos to a LoRA")
    for side in ("subject", "style"):
        train.add_argument(
            f"--{side}",
            type=Path,
            required=True,
            action="append",
            metavar="DIR",
            help=f"folder of {side} photos; again for each further {side}, whose word is then <{side}_2> and so on",
        )
        train.add_argument(
            f"--{side}-masks",
            type=Path,
            action="append",
            metavar="DIR",
            help=f"masks of the same file stems, white = face or object; once for each --{side}",
        )
    train.add_argument("--output", type=Path, required=True, metavar="DIR")
    train.add_argument("--name", required=True, help="letters, digits, - and _")
    _add_model(train)
    train.add_argument(
        "--preset", choices=train_command.PRESET_NAMES, help="standard by default; the embedded tiny model has its own"
    )
    train.add_argument("--config", type=Path, metavar="TOML", help="settings; they go before the preset")
    train.add_argument("--inversion-steps", type=int, metavar="N", help="optimizer steps of phase 1")
    train.add_argument("--tuning-steps", type=int, metavar="N", help="optimizer steps of phase 2")
    train.add_argument("--clone-steps", type=int, metavar="N", help="optimizer steps of phase 3, none by default")
    _add_control(train, "skeleton", "an OpenPose ControlNet", "phase 3 takes turns with it")
    _add_landmark_control(train, "phase 3 takes turns with it")
    train.add_argument("--seed", type=int, metavar="N")
    train.add_argument(
        "--recogniser", type=Path, metavar="FILE", help="a face recognition network, such as w600k_r50.onnx"
    )
    train.add_argument(
        "--taesd",
        type=Path,
        metavar="FILE",
        help="taesd_decoder.safetensors: the identity loss decodes with it, faster; needs --recogniser",
    )
    train.add_argument(
        "--object",
        metavar="WORD",
        help="the subject is a pet or a thing: what it is, such as dog or teapot; needs masks for all photos",
    )
    train.add_argument(
        "--object-features", type=Path, metavar="FILE", help="DINO's weights, such as dino_deitsmall16_pretrain.pth"
    )
    _add_looks(train)

    sefi = command("sefi", sefi_command.sefi, "one photo to an identity, a word for prompts (SeFi-IDE)")
    sefi.add_argument(
        "--photo", type=Path, required=True, action="append", metavar="FILE", help="again for further photos of them"
    )
    sefi.add_argument("--output", type=Path, required=True, metavar="DIR")
    sefi.add_argument("--name", required=True, help="letters, digits, - and _")
    _add_model(sefi)
    sefi.add_argument("--config", type=Path, metavar="TOML", help="settings; they go before the model's preset")
    sefi.add_argument("--steps", type=positive, metavar="N", help="optimizer steps")
    sefi.add_argument("--seed", type=int, metavar="N")
    sefi.add_argument(
        "--class-word",
        metavar="WORD",
        help="what it is, in one word: person by default, such as woman; for a dog or a chair give a --config "
        "whose template names no face",
    )
    sefi.add_argument(
        "--recogniser", type=Path, metavar="FILE", help="a face recognition network, which tells the most alike step"
    )
    _add_looks(sefi)

    generate = command("generate", commands.generate, "pictures from a LoRA, from identities, or from both")
    _add_prompt(generate)
    _add_count(generate)

    group = command("group", group_command.group, "several people in one picture, each in their region")
    group.add_argument(
        "--person",
        type=Path,
        required=True,
        action="append",
        metavar="FILE",
        help="a LoRA or an identity; again for each further person, from left to right",
    )
    group.add_argument(
        "--about",
        action="append",
        metavar="TEXT",
        help="about that person alone, who is {person} in it; once for each --person",
    )
    group.add_argument(
        "--mask",
        type=Path,
        action="append",
        metavar="FILE",
        help="white = where that person stands; once for each --person, all of one size",
    )
    group.add_argument(
        "--boxes",
        metavar="TEXT",
        help='instead of masks, left, top, right and bottom of each region from 0 to 1: "0,0,.5,1; .5,0,1,1". '
        "Without either they stand side by side",
    )
    group.add_argument(
        "--layout",
        default="",
        metavar="TEXT",
        help="how many people there are and where, with nobody named: this prompt alone makes the first steps",
    )
    group.add_argument(
        "--delay",
        type=diir_command.share,
        default=DELAY,
        metavar="X",
        help="of a --layout, its share of the steps (%(default)s)",
    )
    group.add_argument("--size", type=group_command.pixels, metavar="WIDTHxHEIGHT", help="the model's own by default")
    _add_sampling(group, "the whole picture: where they are, the light, the style")
    _add_count(group)

    attention = command("attention", commands.attention, "where each word looks while a picture is made")
    _add_prompt(attention)
    attention.add_argument("--words", help="words of the prompt, separated by commas; the learned words by default")

    restore = command("restore", commands.restore, "restore the faces of a picture and enlarge it")
    restore.add_argument("input", type=Path, metavar="IN")
    restore.add_argument("--output", type=Path, required=True, metavar="OUT", help="a .png or .jpg file")
    restore.add_argument("--restorer", type=Path, metavar="FILE", help="a face restoration model, such as GFPGAN")
    restore.add_argument("--upscaler", type=Path, metavar="FILE", help="an upscale model, such as Real-ESRGAN")
    restore.add_argument("--scale", type=at_least_one, default=2.0, help="how many times larger (%(default)s)")
    restore.add_argument("--fidelity", type=float, help="CodeFormer: 0 is free, 1 is close to the input")
    restore.add_argument(
        "--face-index",
        type=int,
        default=-1,
        metavar="N",
        help="this face alone, counted from 0 from the left; otherwise all, and of several the one most like the "
        "reference is compared with it",
    )
    restore.add_argument(
        "--match-colour",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a restored face takes the colours of the face that it replaces (on)",
    )
    _add_comparison(restore)
    restore.add_argument(
        "--max-likeness-loss",
        type=float,
        default=MAX_LIKENESS_LOSS,
        metavar="X",
        help="a restored face that is less like the reference by more than this is put back (%(default)s)",
    )

    diir = command(
        "restore-identity",
        diir_command.restore_identity,
        "redraw the faces of a picture as a person's, by DDIM inversion; what is around them keeps every bit",
    )
    diir.add_argument("input", type=Path, metavar="IN")
    diir.add_argument("--output", type=Path, required=True, metavar="OUT", help="a .png or .jpg file")
    diir.add_argument("--lora", type=Path, metavar="FILE", help="the person, as what `train` made")
    diir.add_argument("--identity", type=Path, metavar="FILE", help="the person, as what `sefi` made")
    _add_model(diir)
    diir.add_argument(
        "--mode",
        choices=list(get_args(Mode)),
        default="restore",
        help="restore a face that was the person's, or swap another's for it, which goes farther (%(default)s)",
    )
    diir.add_argument(
        "--strength", type=diir_command.share, metavar="X", help="how far, up to 1; by default that of the mode"
    )
    diir.add_argument("--num-steps", type=positive, default=NUM_STEPS, help="of the whole way (%(default)s)")
    diir.add_argument("--guidance", type=float, default=GUIDANCE, help="how closely to follow the prompt (%(default)s)")
    diir.add_argument("--prompt", help="with {person} where they are named; a photo of them by default")
    diir.add_argument("--negative-prompt", default="")
    _add_landmark_control(diir, "acts on the way back")
    diir.add_argument(
        "--landmark-strength", type=float, default=CONTROL_STRENGTH, metavar="X", help="of that one (%(default)s)"
    )
    diir.add_argument("--mask", type=Path, metavar="FILE", help="white where faces may change; everywhere by default")
    diir.add_argument(
        "--face-index",
        type=int,
        default=-1,
        metavar="N",
        help="this face alone, counted from 0 from the left; otherwise all become the person's",
    )
    _add_comparison(diir)

    evaluate_command.add_arguments(
        command("evaluate", evaluate_command.evaluate, "generated pictures measured: likeness, style, prompt, beauty")
    )

    fleet = command("fleet", fleet_command.fleet, "many trainings, on many machines: people x styles x settings (Ray)")
    fleet_command.add_arguments(fleet)

    inspect = command("inspect", commands.inspect, "what the file of a LoRA or of an identity holds")
    inspect.add_argument("file", type=Path)

    strip = command(
        "strip", commands.strip, "a copy of a LoRA file without settings, training, titles and what other tools added"
    )
    strip.add_argument("file", type=Path)
    strip.add_argument("--output", type=Path, required=True, metavar="DIR")

    export = command("export", commands.export, "a LoRA file and what belongs to it, as A1111 and Forge want it")
    export.add_argument("file", type=Path)
    export.add_argument("--a1111", action="store_true", required=True, help="in the folders of A1111 and Forge")
    export.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="gets models/Lora and embeddings; or the WebUI's own",
    )

    unpack = command("unpack", commands.unpack, "write the embeddings that a LoRA file holds as files of their own")
    unpack.add_argument("file", type=Path)
    unpack.add_argument("--output", type=Path, required=True, metavar="DIR")

    extract = command("extract", commands.extract, "one concept of split adapters as a LoRA file of its own")
    extract.add_argument("file", type=Path)
    extract.add_argument("--concept", choices=get_args(Side), required=True, help="style: to share it without the face")
    extract.add_argument("--output", type=Path, required=True, metavar="DIR")
    extract.add_argument("--name", help="of the new file; by default NAME_style_only or NAME_subject_only")

    mix = command("mix", commands.mix, "the person of one LoRA file in the style of another, both of split adapters")
    mix.add_argument("--subject", type=Path, required=True, metavar="FILE")
    mix.add_argument("--style", type=Path, required=True, metavar="FILE")
    mix.add_argument("--output", type=Path, required=True, metavar="DIR")
    mix.add_argument("--name", required=True, help="of the new file")

    forget = command(
        "forget",
        commands.forget,
        "delete what trainings of a name keep: state, sample pictures of the person, results; not what they made. "
        "No training of that name may be running",
    )
    forget.add_argument("name", help="of the training")
    forget.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="that of the training; in ComfyUI its output folder"
    )

    models = command("models", commands.models, "which models can be used, and whether they are there")
    models.add_argument("action", nargs="?", choices=["list", "get"], default="list")
    models.add_argument("what", nargs="?", choices=["faces", "tokenizer"], help="with get: what to fetch")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="an SD1.5 checkpoint (.safetensors) or diffusers folder"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; the fastest there is by default")


def _add_looks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--look-every",
        type=positive,
        metavar="N",
        help="sample pictures, and where the words look on them, every N steps; five times a run by default",
    )
    parser.add_argument(
        "--patience",
        type=positive,
        default=0,
        metavar="N",
        help="stop when N looks in a row are no more like the person; needs --recogniser",
    )
    parser.add_argument("--resume", action="store_true", help="go on from where the same run was stopped")


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recogniser", type=Path, metavar="FILE", help="a face recognition network, such as w600k_r50.onnx"
    )
    parser.add_argument("--reference", type=Path, metavar="PHOTO_OR_DIR", help="photos of the person, to compare with")


def _add_control(parser: argparse.ArgumentParser, mode: str, what: str, use: str) -> None:
    parser.add_argument(
        f"--{mode}-control",
        type=Path,
        metavar="FILE",
        help=f"{what} for SD1.5, .safetensors, .pth or a diffusers folder: {use}",
    )


def _add_landmark_control(parser: argparse.ArgumentParser, use: str) -> None:
    _add_control(parser, "landmark", "a face ControlNet", use)
    parser.add_argument(
        "--landmark-style",
        choices=train_command.LANDMARK_STYLES,
        default="openpose",
        help="how that one's faces are drawn (%(default)s)",
    )


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lora", type=Path, metavar="FILE")
    parser.add_argument(
        "--identity",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="what `sefi` made, {person} in prompts; a second one is {person_2} and so on",
    )
    parser.add_argument("--strength", type=float, default=1.0, help="of the LoRA (%(default)s)")
    _add_sampling(parser, f'by default the training\'s own, such as "{COMPOSED_PROMPT}"')


def _add_sampling(parser: argparse.ArgumentParser, prompt: str) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    _add_model(parser)
    parser.add_argument("--prompt", help=prompt)
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--num-steps", type=positive, default=30, help="sampling steps (%(default)s)")
    parser.add_argument("--guidance", type=float, default=7.0, help="how closely to follow the prompt (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)


def _add_count(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=positive, default=4, help="how many pictures (%(default)s)")


if __name__ == "__main__":
    sys.exit(main())
