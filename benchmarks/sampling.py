"""What a node costs while ComfyUI samples: two ways to sample in one process take turns.

Both come from one MODEL of the ComfyUI in TREE, and the first turn of each is not counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .turns import ratio, take_turns

PACK = Path(__file__).parents[1]


class Side(NamedTuple):
    """model: ComfyUI's patcher. positive, negative: its conditionings."""

    name: str
    model: Any
    positive: Any
    negative: Any


def read_arguments(name: str, about: str | None) -> argparse.Namespace:
    """TREE, CHECKPOINT and how to sample; ComfyUI is on the path afterwards."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(f"benchmarks.{name}", description=about, formatter_class=formatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.tree.resolve()))
    sys.argv = ["main.py", "--use-pytorch-cross-attention", *(["--cpu"] if arguments.device == "cpu" else [])]
    import_module("comfy.options").enable_args_parsing()
    return arguments


def load(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """MODEL and CLIP."""
    checkpoint = str(arguments.checkpoint)
    model, clip, *_ = import_module("comfy.sd").load_checkpoint_guess_config(checkpoint, output_vae=False)
    return model, clip


def pack_module(name: str) -> Any:
    """A module of the pack, as ComfyUI imports it: under a name of its own, for ComfyUI has a `nodes` too."""
    if "pack" not in sys.modules:
        place = PACK / "__init__.py"
        spec = importlib.util.spec_from_file_location("pack", place, submodule_search_locations=[str(PACK)])
        assert spec
        sys.modules["pack"] = importlib.util.module_from_spec(spec)
    return import_module(f"pack.{name}")


def encode(clip: Any, text: str) -> Any:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def compare(
    arguments: argparse.Namespace, first: Side, second: Side, what: str, bar: float
) -> list[tuple[Tensor, Tensor]]:
    """Prints the ratio of the seconds against the bar; gives the latents of each pair."""
    noise = torch.randn(1, 4, *[arguments.pixels // 8] * 2, generator=torch.Generator().manual_seed(0))

    def sample(side: Side) -> tuple[float, Tensor]:
        start = clock(arguments.device)
        options = (arguments.steps, 7.0, "euler", "normal", side.positive, side.negative, torch.zeros_like(noise))
        latents = import_module("comfy.sample").sample(side.model, noise, *options, disable_pbar=True, seed=0)
        return clock(arguments.device) - start, latents

    take_turns(lambda: sample(first), lambda: sample(second), 1)
    taken = take_turns(lambda: sample(first), lambda: sample(second), arguments.pairs)
    seconds = [[spent for spent, _ in turns] for turns in taken]
    found = ratio(seconds[0], seconds[1])
    version = import_module("comfyui_version").__version__
    print(f"ComfyUI {version}, torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads")
    print(f"{arguments.pixels} px, {arguments.steps} steps, cfg 7, {what}, {arguments.pairs} pairs")
    for side, spent in zip((first, second), seconds, strict=True):
        print(f"{side.name}: {statistics.median(spent):.3f} s ({min(spent):.3f}-{max(spent):.3f})")
    verdict = "met" if found.high <= bar else "MISSED"
    print(f"ratio {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], bar {bar:.2f}: {verdict}")
    return [(ours, theirs) for (_, ours), (_, theirs) in zip(*taken, strict=True)]


def clock(device: str) -> float:
    """Seconds: on one CPU thread those that the process had the processor, else those of the wall."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()
