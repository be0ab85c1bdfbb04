"""What an identity costs: sampling in ComfyUI with Apply SeFi Identity on MODEL and CLIP, and with a plain word.

    TREE/.venv/bin/python -m benchmarks.identity TREE CHECKPOINT --pixels 512 --steps 4 --pairs 30

Run by the Python that runs the ComfyUI in TREE, from this folder. CHECKPOINT: any of SD1.5. The identity is of random
numbers; it has the same cost as a trained one. Encoding the prompt, once and not at each sampling, stands apart.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from .sampling import Side, clock, compare, encode, load, pack_module, read_arguments
from .turns import take_turns

PROMPT = "a photo of {} holding a basketball"
NUM_STAGES, ENCODINGS = 5, 5
BAR = 1.05


def main() -> None:
    arguments = read_arguments("identity", __doc__)
    model, clip = load(arguments)
    patched, patched_clip = pack_module("nodes.staging").apply_identity(random_identity(), model, clip)
    texts = {"applied": (patched_clip, PROMPT.format("<person>")), "plain": (clip, PROMPT.format("a person"))}
    first, second = (
        Side(name, patcher, encode(*texts[name]), encode(clip, ""))
        for name, patcher in (("applied", patched), ("plain", model))
    )
    for ours, plain in compare(arguments, first, second, f"{NUM_STAGES} stages", BAR):
        assert not torch.equal(ours, plain)

    def encoding(name: str) -> float:
        start = clock(arguments.device)
        encode(*texts[name])
        return clock(arguments.device) - start

    taken = take_turns(lambda: encoding("applied"), lambda: encoding("plain"), ENCODINGS)
    print("encoding the prompt: {:.3f} s applied, {:.3f} s plain".format(*map(statistics.median, taken)))


def random_identity() -> Any:
    return pack_module("magicapture_core.sefi.identity").SefiIdentity(
        name="random",
        architecture="stable-diffusion-v1",
        placeholder="<person>",
        initializer="person",
        stages=torch.randn(NUM_STAGES, 2, 768, generator=torch.Generator().manual_seed(0)) * 0.1,
        template="a photo of {person}",
    )


if __name__ == "__main__":
    main()
