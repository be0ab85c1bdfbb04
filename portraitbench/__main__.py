"""`python -m portraitbench COMMAND`: the bench's door on the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from magicapture_core.types import MagiCaptureError

from .methods import METHODS

if TYPE_CHECKING:
    from .bars import Bar

STAGES = ("vae", "text", "unet", "recognisers", "judges")
WORKERS_HELP = "processes of one thread each"
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


def run_tune(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .report import write_text
    from .runs import run_all
    from .tune import grid, scores, to_text

    runs = grid(args.pairs)
    found = scores(tqdm(run_all(runs, args.workers), "tuning", len(runs)))
    path = write_text("tuning.json", to_text(found))
    print(path.read_text(encoding="utf-8"), path, sep="")


def run_runs(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .runs import run_all
    from .tune import table_runs

    runs = table_runs(args.methods, args.pairs, args.seeds)
    for _ in tqdm(run_all(runs, args.workers), "runs", len(runs)):
        pass


def run_report(args: argparse.Namespace) -> None:
    from .report import write_report

    files = write_report()
    print(files[0].read_text(encoding="utf-8"), *files, sep="\n")


def run_bars(args: argparse.Namespace) -> None:
    from .bars import bars
    from .lines import read_lines
    from .runs import lines_file, results_key, table_key
    from .tune import table_lines

    key = table_key()
    print_bars(list(bars(table_lines(read_lines(lines_file(key))))), key, results_key())


def print_bars(found: Sequence[Bar], key: str, today: str) -> None:
    print(*found, sep="\n")
    if key != today:
        print(f"measured before the last change of the sources (key {key}): `run` measures again")
    sys.exit(0 if all(bar.holds for bar in found) else 1)


def run_demo(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .demo import run

    made = run(args.output, lambda total, text: tqdm(total=total, desc=text))
    print(*(f"{name}: {value}" for name, value in made.items()), sep="\n")


def run_one_photo_prompts(args: argparse.Namespace) -> None:
    from .one_photo import obeyed_untouched
    from .report import as_text, write_text

    path = write_text("one-photo-prompts.json", as_text(obeyed_untouched()))
    print(path.read_text(encoding="utf-8"), path, sep="")


def run_one_photo_tune(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .one_photo import run_all
    from .one_photo_report import tuning_runs, tuning_scores
    from .report import as_text, write_text

    runs = tuning_runs(args.people)
    found = tuning_scores(tqdm(run_all(runs, args.workers), "tuning", len(runs)))
    path = write_text("one-photo-tuning.json", as_text(found))
    print(path.read_text(encoding="utf-8"), path, sep="")


def run_one_photo_run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .one_photo import run_all
    from .one_photo_report import table_runs

    runs = table_runs(args.people, args.swept)
    for _ in tqdm(run_all(runs, args.workers), "runs", len(runs)):
        pass


def run_one_photo_report(args: argparse.Namespace) -> None:
    from .one_photo_report import write_report

    files = write_report()
    print(files[0].read_text(encoding="utf-8"), *files, sep="\n")


def run_one_photo_bars(args: argparse.Namespace) -> None:
    from .lines import read_lines
    from .one_photo import lines_file, results_key, table_key
    from .one_photo_report import bars, table_lines

    key = table_key()
    print_bars(list(bars(table_lines(read_lines(lines_file(key))))), key, results_key())


def run_group_tune(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .group import run_all
    from .group_report import tuning_runs, tuning_scores
    from .report import as_text, write_text

    runs = tuning_runs(args.groups)
    found = tuning_scores(tqdm(run_all(runs, args.workers), "tuning", len(runs)))
    path = write_text("group-tuning.json", as_text(found))
    print(path.read_text(encoding="utf-8"), path, sep="")


def run_group_run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .group import run_all
    from .group_report import table_runs

    runs = table_runs(args.groups)
    for _ in tqdm(run_all(runs, args.workers), "runs", len(runs)):
        pass


def run_group_report(args: argparse.Namespace) -> None:
    from .group_report import write_report

    files = write_report()
    print(files[0].read_text(encoding="utf-8"), *files, sep="\n")


def run_group_bars(args: argparse.Namespace) -> None:
    from .group import lines_file, results_key, table_key
    from .group_report import bars, table_lines
    from .lines import read_lines

    key = table_key()
    print_bars(list(bars(table_lines(read_lines(lines_file(key))))), key, results_key())


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="portraitbench", description="A small world of portraits with known truth.")
    commands = parser.add_subparsers(required=True)
    world = commands.add_parser("world", help="draw a contact sheet of the world, or measure how fast it draws")
    world.add_argument("picture", type=Path, nargs="?", help="file to write, such as world.png")
    world.add_argument("--timing", action="store_true", help="print pictures per second for each canvas")
    world.set_defaults(run=run_world)
    samples = commands.add_parser("samples", help="draw the pack's sample pictures")
    samples.add_argument("folder", type=Path, nargs="?", default=SAMPLES)
    samples.set_defaults(run=run_samples)
    pretrain = commands.add_parser("pretrain", help="train all models; goes on where it stopped")
    pretrain.add_argument("stages", nargs="*", metavar="STAGE", help=f"{', '.join(STAGES)}; all by default")
    pretrain.set_defaults(run=run_pretrain)
    check = commands.add_parser("check", help="measure the gates that the trained models must pass; exit 1 below one")
    check.set_defaults(run=run_check)
    demo = commands.add_parser("demo", help="train on one person and one style never seen before, and show everything")
    demo.add_argument("--output", type=Path, default=Path("demo-output"))
    demo.set_defaults(run=run_demo)
    tune = commands.add_parser("tune", help="choose rates and weights on people and styles that no table holds")
    tune.add_argument("--pairs", type=int, default=4, help="identities, each with a style of its own")
    tune.add_argument("--workers", type=int, default=1, help=WORKERS_HELP)
    tune.set_defaults(run=run_tune)
    runs = commands.add_parser("run", help="train and measure methods on pairs; finished runs are kept")
    runs.add_argument("--pairs", type=int, default=16, help="identities, each with a style of its own")
    runs.add_argument("--seeds", type=int, default=1, help="runs of each method on each pair")
    runs.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="all by default")
    runs.add_argument("--workers", type=int, default=1, help=WORKERS_HELP)
    runs.set_defaults(run=run_runs)
    report = commands.add_parser("report", help="write the table of all finished runs to results/, and print it")
    report.set_defaults(run=run_report)
    bars = commands.add_parser("bars", help="what MagiCapture must show; exit 1 where it does not")
    bars.set_defaults(run=run_bars)
    add_one_photo(commands.add_parser("one-photo", help="the second bench: SeFi-IDE, an identity out of one photo"))
    add_group(commands.add_parser("group", help="the third bench: several people, each in their place"))
    return parser


def add_one_photo(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True)
    prompts = commands.add_parser("prompts", help="which edits the untouched model obeys at all")
    prompts.set_defaults(run=run_one_photo_prompts)
    tune = commands.add_parser("tune", help="choose learning rates on people that no table holds")
    tune.add_argument("--people", type=int, default=3)
    tune.add_argument("--workers", type=int, default=1, help=WORKERS_HELP)
    tune.set_defaults(run=run_one_photo_tune)
    runs = commands.add_parser("run", help="train and measure the methods on people; finished runs are kept")
    runs.add_argument("--people", type=int, default=10, help="of the main table")
    runs.add_argument("--swept", type=int, default=4, help="people of the sweeps")
    runs.add_argument("--workers", type=int, default=1, help=WORKERS_HELP)
    runs.set_defaults(run=run_one_photo_run)
    report = commands.add_parser("report", help="write the table of all finished runs to results/, and print it")
    report.set_defaults(run=run_one_photo_report)
    bars = commands.add_parser("bars", help="what SeFi-IDE must show; exit 1 where it does not")
    bars.set_defaults(run=run_one_photo_bars)


def add_group(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True)
    tune = commands.add_parser("tune", help="how each person is told, on people that no table holds")
    tune.add_argument("--groups", type=int, default=3, help="of each size")
    tune.add_argument("--workers", type=int, default=1, help=WORKERS_HELP)
    tune.set_defaults(run=run_group_tune)
    runs = commands.add_parser("run", help="learn the people and measure the methods; finished runs are kept")
    runs.add_argument("--groups", type=int, default=12, help="of each size")
    runs.add_argument("--workers", type=int, default=1, help=WORKERS_HELP)
    runs.set_defaults(run=run_group_run)
    report = commands.add_parser("report", help="write the table of all finished runs to results/, and print it")
    report.set_defaults(run=run_group_report)
    bars = commands.add_parser("bars", help="what groups must show; exit 1 where they do not")
    bars.set_defaults(run=run_group_bars)


def main() -> None:
    args = make_parser().parse_args()
    try:
        args.run(args)
    except MagiCaptureError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
