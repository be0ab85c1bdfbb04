"""`python -m portraitbench COMMAND`: the bench's door on the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicapture_core.types import MagiCaptureError

from .lines import RAY
from .methods import METHODS

if TYPE_CHECKING:
    from .bars import Bar

Counts = Mapping[str, tuple[int, str | None]]

STAGES = ("vae", "text", "unet", "recognisers", "judges")
WORKERS_HELP = "processes of one thread each; or ray for a Ray of this machine, or HOST:PORT of a Ray cluster"
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


def run_bench_tune(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .report import as_text, write_text

    bench, report = bench_modules(args)
    runs = report.tuning_runs(*counts(args))
    found = report.tuning_scores(tqdm(bench.run_all(runs, args.workers), "tuning", len(runs)))
    path = write_text(f"{bench.KIND}-tuning.json", as_text(found))
    print(path.read_text(encoding="utf-8"), path, sep="")


def run_bench_run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    bench, report = bench_modules(args)
    runs = report.table_runs(*counts(args))
    for _ in tqdm(bench.run_all(runs, args.workers), "runs", len(runs)):
        pass


def run_bench_report(args: argparse.Namespace) -> None:
    files = bench_modules(args)[1].write_report()
    print(files[0].read_text(encoding="utf-8"), *files, sep="\n")


def run_bench_bars(args: argparse.Namespace) -> None:
    from .lines import read_lines

    bench, report = bench_modules(args)
    key = bench.table_key()
    found = report.bars(report.table_lines(read_lines(bench.lines_file(key))))
    print_bars(list(found), key, bench.results_key())


def bench_modules(args: argparse.Namespace) -> tuple[Any, Any]:
    """What runs a bench, and what reports it."""
    return import_module(f".{args.bench}", __package__), import_module(f".{args.bench}_report", __package__)


def counts(args: argparse.Namespace) -> list[int]:
    """How many of what, as the bench's lists of runs take them."""
    return [getattr(args, name) for name in args.counts]


def workers(text: str) -> int | str:
    """Their number, `ray`, or a cluster's address."""
    if text != RAY and ":" not in text:
        return int(text)
    return text


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
    tune.add_argument("--workers", type=workers, default=1, help=WORKERS_HELP)
    tune.set_defaults(run=run_tune)
    runs = commands.add_parser("run", help="train and measure methods on pairs; finished runs are kept")
    runs.add_argument("--pairs", type=int, default=16, help="identities, each with a style of its own")
    runs.add_argument("--seeds", type=int, default=1, help="runs of each method on each pair")
    runs.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="all by default")
    runs.add_argument("--workers", type=workers, default=1, help=WORKERS_HELP)
    runs.set_defaults(run=run_runs)
    report = commands.add_parser("report", help="write the table of all finished runs to results/, and print it")
    report.set_defaults(run=run_report)
    bars = commands.add_parser("bars", help="what MagiCapture must show; exit 1 where it does not")
    bars.set_defaults(run=run_bars)
    one_photo = add_bench(
        commands.add_parser("one-photo", help="the second bench: SeFi-IDE, an identity out of one photo"),
        "one_photo",
        measured={"people": (10, "of the main table"), "swept": (4, "people of the sweeps")},
        tuned={"people": (3, None)},
    )
    prompts = one_photo.add_parser("prompts", help="which edits the untouched model obeys at all")
    prompts.set_defaults(run=run_one_photo_prompts)
    add_bench(
        commands.add_parser("group", help="the third bench: several people, each in their place"),
        "group",
        measured={"groups": (12, "of each size")},
        tuned={"groups": (3, "of each size")},
    )
    add_bench(
        commands.add_parser("small-faces", help="the fourth bench: faces too small to be anybody's, restored"),
        "small_faces",
        measured={"people": (6, None)},
    )
    return parser


def add_bench(parser: argparse.ArgumentParser, bench: str, measured: Counts, tuned: Counts | None = None) -> Any:
    """measured, tuned: what `run` and `tune` count, with how many by default and words on it; None where nothing is
    tuned. Returns its commands."""
    parser.set_defaults(bench=bench)
    commands = parser.add_subparsers(required=True)
    if tuned:
        tune = commands.add_parser("tune", help="choose settings on people that no table holds")
        add_counts(tune, tuned, run_bench_tune)
    add_counts(commands.add_parser("run", help="measure the methods; finished runs are kept"), measured, run_bench_run)
    report = commands.add_parser("report", help="write the table of all finished runs to results/, and print it")
    report.set_defaults(run=run_bench_report)
    bars = commands.add_parser("bars", help="what it must show; exit 1 where it does not")
    bars.set_defaults(run=run_bench_bars)
    return commands


def add_counts(parser: argparse.ArgumentParser, counted: Counts, run: Callable[[argparse.Namespace], None]) -> None:
    for name, (default, text) in counted.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--workers", type=workers, default=1, help=WORKERS_HELP)
    parser.set_defaults(run=run, counts=list(counted))


def main() -> None:
    args = make_parser().parse_args()
    try:
        args.run(args)
    except MagiCaptureError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
