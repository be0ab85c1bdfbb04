"""`python -m portraitbench COMMAND`: the bench's door on the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path

SAMPLES = Path(__file__).parent.parent / "magicapture_core" / "tiny" / "samples"


def main() -> None:
    parser = argparse.ArgumentParser(prog="portraitbench", description="A small world of portraits with known truth.")
    commands = parser.add_subparsers(dest="command", required=True)
    samples = commands.add_parser("samples", help="draw the pack's eight sample pictures")
    samples.add_argument("folder", type=Path, nargs="?", default=SAMPLES)
    args = parser.parse_args()
    if args.command == "samples":
        from .samples import draw_samples

        for path in draw_samples(args.folder):
            print(path)


if __name__ == "__main__":
    main()
