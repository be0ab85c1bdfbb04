"""Trained files without a training, for the checks."""

from importlib import import_module

import torch


def layer_names():
    """kohya's names of the cross-attention layers of the small checkpoint."""
    blocks = [f"down_blocks_{i}_attentions_0" for i in range(3)] + ["mid_block_attentions_0"]
    blocks += [f"up_blocks_{i}_attentions_{j}" for i in (1, 2, 3) for j in range(2)]
    return [f"lora_unet_{block}_transformer_blocks_0_attn2" for block in blocks]


def random_artifact(pack, seed=0, text=True):
    """A LoRA on every cross-attention layer and one text layer, with words; strong enough to be seen."""
    artifact, types = (import_module(f"{pack.__name__}.magicapture_core.{name}") for name in ("artifact", "types"))
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return (torch.randn(shape, generator=generator) * 0.1).half()

    lora = {}
    sizes = {f"{name}_to_q": (320, 320) for name in layer_names()}
    sizes |= {f"{name}_to_v": (768, 320) for name in layer_names()}
    if text:
        sizes["lora_te_text_model_encoder_layers_0_self_attn_q_proj"] = (768, 768)
    for name, (wide_in, wide_out) in sizes.items():
        lora[f"{name}.lora_down.weight"], lora[f"{name}.lora_up.weight"] = random(4, wide_in), random(wide_out, 4)
        lora[f"{name}.alpha"] = torch.tensor(2.0).half()
    tokens = tuple(
        types.Token(name=name, placeholder=f"<{name}>", initializer="", vectors=random(n, 768).float())
        for name, n in (("subject", 1), ("style", 2))
    )
    return artifact.Artifact(name="random", architecture="stable-diffusion-v1", tokens=tokens, lora=lora)


def random_identity(pack, seed=0, num_stages=5, **changes):
    """Its words as far from one another as words are."""
    stages = torch.randn(num_stages, 2, 768, generator=torch.Generator().manual_seed(seed)) * 0.1
    values = {"name": "me", "placeholder": "<person>", "initializer": "person", "template": "a photo of {person}"}
    values |= {"architecture": "stable-diffusion-v1", "stages": stages, **changes}
    return import_module(f"{pack.__name__}.magicapture_core.sefi.identity").SefiIdentity(**values)
