"""The terminal's `restore`: a picture in, its faces restored, the picture enlarged."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from pathlib import Path
from typing import Any

from . import options
from .face_outcomes import MAX_LIKENESS_LOSS
from .terminal import Result, pick_device, read_likeness


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("input", type=Path, metavar="IN")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help="a .png or .jpg file")
    parser.add_argument("--restorer", type=Path, metavar="FILE", help="a face restoration model, such as GFPGAN")
    parser.add_argument("--upscaler", type=Path, metavar="FILE", help="an upscale model, such as Real-ESRGAN")
    parser.add_argument("--scale", type=options.at_least_one, default=2.0, help="how many times larger (%(default)s)")
    parser.add_argument("--fidelity", type=float, help="CodeFormer: 0 is free, 1 is close to the input")
    parser.add_argument(
        "--face-index",
        type=int,
        default=-1,
        metavar="N",
        help="this face alone, counted from 0 from the left; otherwise all, and of several the one most like the "
        "reference is compared with it",
    )
    parser.add_argument(
        "--match-colour",
        action=BooleanOptionalAction,
        default=True,
        help="a restored face takes the colours of the face that it replaces (on)",
    )
    options.add_comparison(parser)
    options.add_device(parser)
    parser.add_argument(
        "--max-likeness-loss",
        type=float,
        default=MAX_LIKENESS_LOSS,
        metavar="X",
        help="a restored face that is less like the reference by more than this is put back (%(default)s)",
    )


def restore(arguments: Namespace) -> Result:
    from dataclasses import asdict

    from .face_outcomes import mean_likeness
    from .faces import load_face_detector
    from .images import load_photo, save_image
    from .marks import check_suffix, mark_after
    from .restore import load_restorer, match_colour, report, restore_and_upscale
    from .upscale import load_upscaler

    if arguments.restorer or arguments.upscaler:
        check_suffix(arguments.output.name)
    image = load_photo(arguments.input)
    device = pick_device(arguments.device)
    restorer = load_restorer(arguments.restorer, device) if arguments.restorer else None
    upscaler = load_upscaler(arguments.upscaler, device) if arguments.upscaler else None
    if restorer and arguments.fidelity is not None:
        restorer = restorer.with_fidelity(arguments.fidelity)
    guard = _guard(arguments)
    faces = load_face_detector().detect(image) if restorer else []
    paint = match_colour(restorer) if restorer and arguments.match_colour else restorer
    how = {"factor": arguments.scale, "face_index": arguments.face_index, "guard": guard}
    restored, outcomes = restore_and_upscale(image, faces, paint, upscaler, **how)
    is_retouched = upscaler is not None or any(outcome.fate == "restored" for outcome in outcomes)
    save_image(restored, arguments.output, mark_after(arguments.input, is_retouched))
    before, after = mean_likeness(outcomes) or (None, None)
    return {
        "output": str(arguments.output),
        "size": list(restored.shape[:0:-1]),
        "faces": [asdict(outcome) for outcome in outcomes],
        "likeness_before": before,
        "likeness_after": after,
        "report": report(restorer, upscaler, guard, [(faces, outcomes)]),
    }


def _guard(arguments: Namespace) -> Any:
    """What puts a face back that lost the person, where a recogniser and photos are given."""
    from .restore import Guard

    likeness = read_likeness(arguments)
    return Guard(likeness=likeness, max_loss=arguments.max_likeness_loss) if likeness else None
