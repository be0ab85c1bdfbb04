"""One training step, side by side with others in one run: `python -m benchmarks.step [ROW ...]`.

Workload W0: the SD1.5 UNet (859.5 M, random weights), batch 1, latents and text embeddings precomputed, mean squared
error on eps, LoRA of rank 4 on q, k, v, out of all attention (128 modules, 797,184 numbers), AdamW 1e-4, clip 1.0.
The two sides of a row load the same weights and take turns, each in a process of its own; the ratio of each pair is
what counts, since machines drift. The first step of each side is not counted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from magicapture_core.types import MagiCaptureError

from .checkpoint import SD15, write_checkpoint
from .machine import describe
from .process import Ended, Hello, Stable
from .rows import GRAMMAR, KINDS, PLANS, Row, parse_row
from .table import HEADER, Side, line, not_run
from .turns import take_turns
from .workload import NUM_PARAMETERS, OURS, Conditions

TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}  # of the largest number of a prediction
W0_ON_BOTH_SIDES = ("diffusers", "kohya")


def main() -> int:
    arguments = parser().parse_args()
    try:
        check_device(arguments.device)
        rows = chosen(arguments)
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), SD15)
            trees = {"kohya": arguments.kohya, "comfyui": arguments.comfyui}
            conditions = Conditions(
                checkpoint=folder,
                device=arguments.device,
                threads=arguments.threads,
                trees={name: str(tree.resolve()) for name, tree in trees.items() if tree},
            )
            text = ""
            for part in report(rows, conditions, arguments.limit_tflops):
                print(part, flush=True)
                text += part + "\n"
                if arguments.output:  # after each row: a run that is cut short leaves what it has
                    arguments.output.parent.mkdir(parents=True, exist_ok=True)
                    arguments.output.write_text(text)
    except MagiCaptureError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks.step", description=__doc__, formatter_class=formatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{GRAMMAR}; names: {', '.join(KINDS)}")
    parser.add_argument("--kohya", type=Path, metavar="DIR", help="a checkout of kohya-ss/sd-scripts")
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="a ComfyUI")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit-tflops", type=float, help="what the card can do in bf16, for the share of it")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the same text, as Markdown")
    return parser


def check_device(device: str) -> None:
    """Raises MagiCaptureError for a device that is not there, or that nothing here knows how to time."""
    cards = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    known = ["cpu", *(["cuda", *cards] if cards else [])]
    if device not in known:
        raise MagiCaptureError(f"--device {device}: on this machine take {' or '.join(known)}")


def chosen(arguments: argparse.Namespace) -> list[Row]:
    """The rows that were asked for, or else the plan of the device, less the peers of which no tree was given.

    Raises MagiCaptureError for a row that is none, and for a peer without its tree.
    """
    missing = {name for name in ("kohya", "comfyui") if not getattr(arguments, name)}
    if not arguments.rows:
        plan = PLANS[arguments.device.partition(":")[0]]
        return [parse_row(text) for text in plan if text.partition(":")[0] not in missing]
    for text in arguments.rows:
        if (name := text.partition(":")[0]) in missing:
            raise MagiCaptureError(f"{text}: where is it? Give --{name} DIR")
    return [parse_row(text) for text in arguments.rows]


def report(rows: list[Row], conditions: Conditions, limit_tflops: float | None) -> Iterator[str]:
    """The whole text, part by part as it comes to be known. A row whose peer cannot be run says why instead."""
    clock = "CPU seconds" if (conditions.device, conditions.threads) == ("cpu", 1) else "seconds"
    yield "# One training step\n"
    yield "\n".join(f"- {name}: {fact}" for name, fact in describe(conditions).items())
    yield (
        f"\nSeconds are {clock} a step: median (lowest-highest); ratio: first / second, the median of the pairs' own "
        f"or, where the row says so, that of the means.\n\n{HEADER}"
    )
    about: dict[str, None] = {}
    with Stable(conditions) as stable:
        for row in rows:
            first, second = stable.get(*row.workloads)
            try:
                check_alike(row, first.hello, second.hello)
                turns = take_turns(first.step, second.step, row.pairs)
            except Ended as error:
                if error.method in OURS:
                    raise
                print(error, file=sys.stderr)
                yield not_run(row, error.reason)
                continue
            sides = (Side(turns=turns[0], flops=first.hello.flops), Side(turns=turns[1], flops=second.hello.flops))
            yield line(row, *sides, limit_tflops)
            about |= {f"- {side.hello.about}; torch {side.hello.torch}": None for side in (first, second)}
    yield "\nWho took part:\n\n" + "\n".join(about)


def check_alike(row: Row, first: Hello, second: Hello) -> None:
    """Raises MagiCaptureError unless both UNets predict the same, and both sides of W0 learn as many numbers."""
    largest = max(map(abs, second.prediction))
    apart = max(abs(a - b) for a, b in zip(first.prediction, second.prediction, strict=True)) / largest
    if apart > TOLERANCE[row.plain.dtype]:
        raise MagiCaptureError(f"{row.title}: the two UNets are not the same, their predictions differ by {apart:.1%}")
    counts = {first.num_parameters, second.num_parameters}
    if row.workloads[1].method in W0_ON_BOTH_SIDES and counts != {NUM_PARAMETERS}:
        raise MagiCaptureError(f"{row.title}: {counts} numbers learn, not the {NUM_PARAMETERS} of W0 on both sides")


if __name__ == "__main__":
    sys.exit(main())
