"""`python -m portraitbench COMMAND`: the bench's door on the terminal."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

STAGES = ("vae", "unet", "recognisers", "judges")
SAMPLES = Path(__file__).parent.parent / "magicapture_core" / "tiny" / "samples"


def run_world(args: argparse.Namespace) -> None:
    from .sheet import draw_sheet, print_timing

    if args.picture:
        draw_sheet(args.picture)
        print(args.picture)
    if args.timing:
        print_timing()


def run_samples(args: argparse.Namespace) -> None:
    from .samples import draw_samples

    for path in draw_samples(args.folder):
        print(path)


def run_pretrain(args: argparse.Namespace) -> None:
    for stage in args.stages or STAGES:
        import_module(f"portraitbench.pretrain.{stage}").pretrain()


def run_check(args: argparse.Namespace) -> None:
    from .check import print_gates

    sys.exit(0 if print_gates() else 1)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="portraitbench", description="A small world of portraits with known truth.")
    commands = parser.add_subparsers(required=True)
    world = commands.add_parser("world", help="draw a contact sheet of the world, or measure how fast it draws")
    world.add_argument("picture", type=Path, nargs="?", help="file to write, such as world.png")
    world.add_argument("--timing", action="store_true", help="print pictures per second for each canvas")
    world.set_defaults(run=run_world)
    samples = commands.add_parser("samples", help="draw the pack's eight sample pictures")
    samples.add_argument("folder", type=Path, nargs="?", default=SAMPLES)
    samples.set_defaults(run=run_samples)
    pretrain = commands.add_parser("pretrain", help="train all models; goes on where it stopped")
    pretrain.add_argument("stages", nargs="*", metavar="STAGE", help=f"{', '.join(STAGES)}; all by default")
    pretrain.set_defaults(run=run_pretrain)
    check = commands.add_parser("check", help="measure the gates that the trained models must pass; exit 1 below one")
    check.set_defaults(run=run_check)
    return parser


def main() -> None:
    args = make_parser().parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
