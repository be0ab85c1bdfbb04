"""What it costs to watch: sampling in ComfyUI with Record Attention on the MODEL, and without.

    TREE/.venv/bin/python -m benchmarks.viewer TREE CHECKPOINT --pixels 512 --steps 4 --pairs 30

Run by the Python that runs the ComfyUI in TREE, from this folder. CHECKPOINT: any of SD1.5. Both sides are one MODEL in
one process and take turns, the first of each not counted; they have to give the same latents, bit for bit.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .turns import ratio, take_turns

PACK = Path(__file__).parents[1]
PROMPT, WORDS = "a photo of a red dog in a garden", "dog, red, garden"
BAR = 1.10


def main() -> None:
    arguments = parser().parse_args()
    model, clip = load(arguments.tree, arguments.checkpoint, arguments.device)
    watched, record = recording().record_attention(model, clip, PROMPT, WORDS, 32)
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    noise = torch.randn(1, 4, *[arguments.pixels // 8] * 2, generator=torch.Generator().manual_seed(0))

    def sample(patcher: Any) -> tuple[float, Tensor]:
        start = clock(arguments.device)
        options = (arguments.steps, 7.0, "euler", "normal", conditioning, conditioning, torch.zeros_like(noise))
        latents = import_module("comfy.sample").sample(patcher, noise, *options, disable_pbar=True, seed=0)
        return clock(arguments.device) - start, latents

    take_turns(lambda: sample(watched), lambda: sample(model), 1)
    first, second = take_turns(lambda: sample(watched), lambda: sample(model), arguments.pairs)
    assert all(torch.equal(seen, plain) for (_, seen), (_, plain) in zip(first, second, strict=True))
    assert len(record.buckets) == min(arguments.steps, 8)
    watched_seconds, plain_seconds = ([seconds for seconds, _ in side] for side in (first, second))
    found = ratio(watched_seconds, plain_seconds)
    version, words = import_module("comfyui_version").__version__, len(WORDS.split(","))
    print(f"ComfyUI {version}, torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads")
    print(f"{arguments.pixels} px, {arguments.steps} steps, cfg 7, {words} words, {arguments.pairs} pairs")
    for name, side in (("watched", watched_seconds), ("plain", plain_seconds)):
        print(f"{name}: {statistics.median(side):.3f} s ({min(side):.3f}-{max(side):.3f})")
    verdict = "met" if found.high <= BAR else "MISSED"
    print(f"ratio {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], bar {BAR:.2f}: {verdict}")


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks.viewer", description=__doc__, formatter_class=formatter)
    parser.add_argument("tree", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return parser


def clock(device: str) -> float:
    """Seconds: on one CPU thread those that the process had the processor, else those of the wall."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def load(tree: Path, checkpoint: Path, device: str) -> tuple[Any, Any]:
    """MODEL and CLIP, by the ComfyUI in `tree`."""
    sys.path.insert(0, str(tree.resolve()))
    sys.argv = ["main.py", "--use-pytorch-cross-attention", *(["--cpu"] if device == "cpu" else [])]
    import_module("comfy.options").enable_args_parsing()
    model, clip, *_ = import_module("comfy.sd").load_checkpoint_guess_config(str(checkpoint), output_vae=False)
    return model, clip


def recording() -> Any:
    """The pack's recorder, imported as ComfyUI imports it: under a name of its own, for ComfyUI has a `nodes` too."""
    spec = importlib.util.spec_from_file_location("pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec
    sys.modules["pack"] = importlib.util.module_from_spec(spec)
    return import_module("pack.nodes.recording")


if __name__ == "__main__":
    main()
