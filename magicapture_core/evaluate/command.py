"""The terminal's `evaluate`: a folder of pictures and the user's networks in, the paper's metrics out."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import options
from ..terminal import Result, progress
from ..types import MagiCaptureError

FORMAT = 1


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("pictures", type=Path, metavar="PICTURES_DIR", help="the generated pictures")
    parser.add_argument("--subject", type=Path, metavar="DIR", help="photos of the person: CSIM")
    parser.add_argument("--style", type=Path, metavar="DIR", help="pictures of the style: style")
    parser.add_argument(
        "--recogniser",
        type=Path,
        metavar="FILE",
        help="a face recognition network, such as glintr100.onnx, not that of the training: CSIM",
    )
    parser.add_argument(
        "--clip",
        type=Path,
        metavar="FOLDER_OR_FILE",
        help="CLIP under transformers' names, such as openai/clip-vit-large-patch14: style, CLIP-T, aesthetic; a file "
        "of ComfyUI's models/clip_vision does, without CLIP-T where it has no text half",
    )
    parser.add_argument(
        "--aesthetic", type=Path, metavar="FILE", help="LAION's predictor, sac+logos+ava1-l14-linearMSE.pth"
    )
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="what the pictures should show, in plain words: CLIP-T; by default prompts.json in PICTURES_DIR, "
        '{"file name": "prompt"}',
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="evaluation.md, evaluation.json and worst.png"
    )
    options.add_device(parser)


def evaluate(arguments: Namespace) -> Result:
    from ..images import list_photos, load_photo
    from .judges import read_judges
    from .metrics import NETWORKS, summarise
    from .report import write_report

    files = list_photos(arguments.pictures)
    if arguments.output.resolve() == arguments.pictures.resolve():
        raise MagiCaptureError(f"--output: {arguments.output} holds the pictures, and the sheet would be one of them")
    judges, left_out, notes = read_judges(arguments, [file.name for file in files])
    rows: list[dict[str, Any]] = []
    with progress(len(files), "pictures") as bar:
        for file in files:
            try:
                image = load_photo(file)
            except MagiCaptureError as error:
                notes.append(f"left out: {error}")
            else:
                rows.append({"file": file.name, **judges.scores(file.name, image)})
            bar.update()
    if not rows:
        raise MagiCaptureError(f"{arguments.pictures}: no picture can be read; {notes[-1]}")
    report = {
        "format": FORMAT,
        "metrics": summarise(rows, left_out),
        "notes": [*notes, *notes_on(rows)],
        "models": {option: path.name for option in NETWORKS if (path := getattr(arguments, option))},
        "pictures": rows,
    }
    written = write_report(report, arguments.pictures, arguments.output)
    return {"files": [str(file) for file in written], "metrics": report["metrics"], "notes": report["notes"]}


def notes_on(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader of the table should know of the pictures."""
    none, several = sum(row["faces"] == 0 for row in rows), sum(row["faces"] > 1 for row in rows)
    said = {
        f"{none} of {len(rows)} show no face: CSIM leaves them out, style sees them as they are": none,
        f"{several} of {len(rows)} show several faces: CSIM takes the largest and most central": several,
    }
    return [note for note, count in said.items() if count]
