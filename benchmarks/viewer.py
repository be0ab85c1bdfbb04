"""What it costs to watch: sampling in ComfyUI with Record Attention on the MODEL, and without.

    TREE/.venv/bin/python -m benchmarks.viewer TREE CHECKPOINT --pixels 512 --steps 4 --pairs 30

Run by the Python that runs the ComfyUI in TREE, from this folder. CHECKPOINT: any of SD1.5. Both sides have to give the
same latents, bit for bit.
"""

from __future__ import annotations

import torch

from .sampling import Side, compare, encode, load, pack_module, read_arguments

PROMPT, WORDS = "a photo of a red dog in a garden", "dog, red, garden"
BAR = 1.10


def main() -> None:
    arguments = read_arguments("viewer", __doc__)
    model, clip = load(arguments)
    watched, record = pack_module("nodes.recording").record_attention(model, clip, PROMPT, WORDS, 32)
    prompt = encode(clip, PROMPT)
    sides = Side("watched", watched, prompt, prompt), Side("plain", model, prompt, prompt)
    for seen, plain in compare(arguments, *sides, f"{len(WORDS.split(','))} words", BAR):
        assert torch.equal(seen, plain)
    assert len(record.buckets) == min(arguments.steps, 8)


if __name__ == "__main__":
    main()
