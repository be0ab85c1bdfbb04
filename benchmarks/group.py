"""What a group costs: sampling in ComfyUI with N people side by side, and a plain prompt that names one person.

    TREE/.venv/bin/python -m benchmarks.group TREE CHECKPOINT --pixels 512 --steps 4 --pairs 30

Run by the Python that runs the ComfyUI in TREE, from this folder. CHECKPOINT: any of SD1.5. Everybody has a LoRA of
random numbers on all of cross-attention and a text of their own; the plain side has none, as one that is in the weights
costs nothing. Encoding the texts, once and not at each sampling, does not count.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .sampling import Side, compare, encode, load, pack_module, read_arguments

PROMPT, ABOUT = "in a garden", "a photo of {person} with a hat"
PEOPLE = (1, 2, 3)
RANK, BAR_PER_PERSON = 4, 0.15


def main() -> None:
    arguments = read_arguments("group", __doc__)
    model, clip = load(arguments)
    plain = Side("plain", model, encode(clip, f"a photo of a person with a hat, {PROMPT}"), encode(clip, ""))
    loras = [random_artifact(model, seed) for seed in range(max(PEOPLE))]
    for count in PEOPLE:
        together = pack_module("nodes.grouping").apply_group(people(loras[:count]), model, clip, PROMPT, "")
        group = Side("group", *together)
        compare(arguments, group, plain, f"people: {count}", 1 + BAR_PER_PERSON * count)


def people(loras: list[Any]) -> list[Any]:
    """Side by side, all of the picture between them."""
    masks = pack_module("magicapture_core.group.layout").grid(1, len(loras), (64, 64))
    person = pack_module("magicapture_core.group.people").Person
    return [person(made=made, mask=mask, prompt=ABOUT) for made, mask in zip(loras, masks, strict=True)]


def random_artifact(model: Any, seed: int) -> Any:
    """A LoRA on queries, keys, values and outputs of every cross-attention."""
    weights, lora = model.model.state_dict(), {}
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.01

    for name, path in import_module("comfy.lora").model_lora_keys_unet(model.model, {}).items():
        if "_attentions_" in name and "_attn2_" in name:
            wide_out, wide_in = weights[path].shape
            lora[f"{name}.lora_down.weight"] = random(RANK, wide_in)
            lora[f"{name}.lora_up.weight"] = random(wide_out, RANK)
            lora[f"{name}.alpha"] = torch.tensor(float(RANK))
    subject = pack_module("magicapture_core.types").Token(
        name="subject", placeholder="<subject>", initializer="person", vectors=random(1, 768)
    )
    return pack_module("magicapture_core.artifact").Artifact(
        name=f"random {seed}", architecture="stable-diffusion-v1", tokens=(subject,), lora=lora
    )


if __name__ == "__main__":
    main()
