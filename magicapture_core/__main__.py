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

from . import commands, generate_command, options, restore_command, train_command
from .diir import command as diir_command
from .evaluate import command as evaluate_command
from .fleet import command as fleet_command
from .group import command as group_command
from .memory import is_out_of_memory
from .sefi import command as sefi_command
from .terminal import Command
from .types import Dismissed, MagiCaptureError, Side

CANCELLED, BAD_INPUT = 130, 2
OUT_OF_MEMORY = "out of memory: close what else uses it, ask for fewer or smaller pictures, or give --device cpu"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    try:
        result = arguments.run(arguments)
    except (MagiCaptureError, OSError) as error:
        print(f"magicapture {arguments.command}: {error}", file=sys.stderr)
        return BAD_INPUT
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"magicapture {arguments.command}: {OUT_OF_MEMORY}", file=sys.stderr)
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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m magicapture_core", description="Portraits of a person in a style, learned from a few photos."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Command, text: str) -> argparse.ArgumentParser:
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
    masks.add_argument(
        "--resolution", type=options.positive, default=512, help="side of the squares in pixels (%(default)s)"
    )

    train_command.add_arguments(command("train", train_command.train, "photos to a LoRA"))
    sefi_command.add_arguments(
        command("sefi", sefi_command.sefi, "one photo to an identity, a word for prompts (SeFi-IDE)")
    )

    generate = command("generate", generate_command.generate, "pictures from a LoRA, from identities, or from both")
    options.add_prompt(generate)
    options.add_count(generate)

    group_command.add_arguments(
        command("group", group_command.group, "several people in one picture, each in their region")
    )

    attention = command("attention", generate_command.attention, "where each word looks while a picture is made")
    options.add_prompt(attention)
    attention.add_argument("--words", help="words of the prompt, separated by commas; the learned words by default")

    restore_command.add_arguments(
        command("restore", restore_command.restore, "restore the faces of a picture and enlarge it")
    )
    diir_command.add_arguments(
        command(
            "restore-identity",
            diir_command.restore_identity,
            "redraw the faces of a picture as a person's, by DDIM inversion; what is around them keeps every bit",
        )
    )

    evaluate_command.add_arguments(
        command("evaluate", evaluate_command.evaluate, "generated pictures measured: likeness, style, prompt, beauty")
    )
    fleet_command.add_arguments(
        command("fleet", fleet_command.fleet, "many trainings, on many machines: people x styles x settings (Ray)")
    )

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


if __name__ == "__main__":
    sys.exit(main())
