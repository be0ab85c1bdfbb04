"""What several of the terminal's commands ask for, each in the same words."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from .prompts import COMPOSED_PROMPT

LANDMARK_STYLES = ("openpose", "mediapipe")


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


def share(text: str) -> float:
    """A number above 0, at most 1."""
    number = float(text)
    if not 0 < number <= 1:
        raise ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return number


def add_model(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="an SD1.5 checkpoint (.safetensors) or diffusers folder"
    )
    add_device(parser)


def add_device(parser: ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; the fastest there is by default")


def add_looks(parser: ArgumentParser) -> None:
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


def add_comparison(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--recogniser", type=Path, metavar="FILE", help="a face recognition network, such as w600k_r50.onnx"
    )
    parser.add_argument("--reference", type=Path, metavar="PHOTO_OR_DIR", help="photos of the person, to compare with")


def add_control(parser: ArgumentParser, mode: str, what: str, use: str) -> None:
    parser.add_argument(
        f"--{mode}-control",
        type=Path,
        metavar="FILE",
        help=f"{what} for SD1.5, .safetensors, .pth or a diffusers folder: {use}",
    )


def add_landmark_control(parser: ArgumentParser, use: str) -> None:
    add_control(parser, "landmark", "a face ControlNet", use)
    parser.add_argument(
        "--landmark-style",
        choices=LANDMARK_STYLES,
        default="openpose",
        help="how that one's faces are drawn (%(default)s)",
    )


def add_prompt(parser: ArgumentParser) -> None:
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
    add_sampling(parser, f'by default the training\'s own, such as "{COMPOSED_PROMPT}"')


def add_sampling(parser: ArgumentParser, prompt: str) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    add_model(parser)
    parser.add_argument("--prompt", help=prompt)
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--num-steps", type=positive, default=30, help="sampling steps (%(default)s)")
    parser.add_argument("--guidance", type=float, default=7.0, help="how closely to follow the prompt (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)


def add_count(parser: ArgumentParser) -> None:
    parser.add_argument("--count", type=positive, default=4, help="how many pictures (%(default)s)")
