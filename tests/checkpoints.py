"""Random-weight Stable Diffusion 1.5 checkpoints, LDM keys: read by ComfyUI and by the core as the real thing.

`full` has the exact keys, shapes and parameter count of SD1.5: 1130 tensors, 2.13 GB in fp16. `small` has the same
four levels with 320 channels on each and one block per level: 70 M in the UNet instead of 860 M, attention at the same
grids. CLIP-L and the VAE are true-size in both, since ComfyUI takes their sizes as given. The pictures are noise, but
finite and not flat. The shapes follow from the published architecture.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

Size = Literal["small", "full"]
Shapes = dict[str, tuple[int, ...]]

CONTEXT_DIM = 768
MODEL_CHANNELS = 320
ATTENTION_LEVELS = 3  # of four; the lowest has none
UNET_LEVELS: dict[Size, tuple[int, ...]] = {"small": (1, 1, 1, 1), "full": (1, 2, 4, 4)}
UNET_BLOCKS: dict[Size, int] = {"small": 1, "full": 2}
VAE_WIDTHS = (128, 256, 512, 512)


def conv(name: str, c_in: int, c_out: int, kernel: int = 3) -> Shapes:
    return {f"{name}.weight": (c_out, c_in, kernel, kernel), f"{name}.bias": (c_out,)}


def linear(name: str, c_in: int, c_out: int, bias: bool = True) -> Shapes:
    weight: Shapes = {f"{name}.weight": (c_out, c_in)}
    return weight | ({f"{name}.bias": (c_out,)} if bias else {})


def norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def unet_resblock(name: str, c_in: int, c_out: int) -> Shapes:
    shapes = norm(f"{name}.in_layers.0", c_in) | conv(f"{name}.in_layers.2", c_in, c_out)
    shapes |= linear(f"{name}.emb_layers.1", 4 * MODEL_CHANNELS, c_out)
    shapes |= norm(f"{name}.out_layers.0", c_out) | conv(f"{name}.out_layers.3", c_out, c_out)
    return shapes | (conv(f"{name}.skip_connection", c_in, c_out, 1) if c_in != c_out else {})


def unet_transformer(name: str, channels: int) -> Shapes:
    shapes = norm(f"{name}.norm", channels)
    shapes |= conv(f"{name}.proj_in", channels, channels, 1) | conv(f"{name}.proj_out", channels, channels, 1)
    block = f"{name}.transformer_blocks.0"
    for attention, key_dim in (("attn1", channels), ("attn2", CONTEXT_DIM)):
        shapes |= linear(f"{block}.{attention}.to_q", channels, channels, bias=False)
        shapes |= linear(f"{block}.{attention}.to_k", key_dim, channels, bias=False)
        shapes |= linear(f"{block}.{attention}.to_v", key_dim, channels, bias=False)
        shapes |= linear(f"{block}.{attention}.to_out.0", channels, channels)
    shapes |= linear(f"{block}.ff.net.0.proj", channels, 8 * channels)
    shapes |= linear(f"{block}.ff.net.2", 4 * channels, channels)
    for index in (1, 2, 3):
        shapes |= norm(f"{block}.norm{index}", channels)
    return shapes


def unet_down(size: Size) -> tuple[Shapes, list[int]]:
    """The input blocks, and the channels of every skip connection they leave."""
    levels, base = UNET_LEVELS[size], MODEL_CHANNELS
    shapes, skips, channels = conv("input_blocks.0.0", 4, base), [base], base
    for level, mult in enumerate(levels):
        for _ in range(UNET_BLOCKS[size]):
            block = f"input_blocks.{len(skips)}"
            shapes |= unet_resblock(f"{block}.0", channels, mult * base)
            channels = mult * base
            if level < ATTENTION_LEVELS:
                shapes |= unet_transformer(f"{block}.1", channels)
            skips.append(channels)
        if level < len(levels) - 1:
            shapes |= conv(f"input_blocks.{len(skips)}.0.op", channels, channels)
            skips.append(channels)
    return shapes, skips


def unet_up(size: Size, skips: list[int]) -> Shapes:
    shapes, channels, index = Shapes(), skips[-1], 0
    for level, mult in reversed(list(enumerate(UNET_LEVELS[size]))):
        for step in range(UNET_BLOCKS[size] + 1):
            block = f"output_blocks.{index}"
            shapes |= unet_resblock(f"{block}.0", channels + skips.pop(), mult * MODEL_CHANNELS)
            channels = mult * MODEL_CHANNELS
            if level < ATTENTION_LEVELS:
                shapes |= unet_transformer(f"{block}.1", channels)
            if level and step == UNET_BLOCKS[size]:
                shapes |= conv(f"{block}.{2 if level < ATTENTION_LEVELS else 1}.conv", channels, channels)
            index += 1
    return shapes


def unet_shapes(size: Size) -> Shapes:
    """Keys below `model.diffusion_model.`"""
    base = MODEL_CHANNELS
    shapes = linear("time_embed.0", base, 4 * base) | linear("time_embed.2", 4 * base, 4 * base)
    down, skips = unet_down(size)
    channels = skips[-1]
    middle = unet_resblock("middle_block.0", channels, channels) | unet_transformer("middle_block.1", channels)
    middle |= unet_resblock("middle_block.2", channels, channels)
    return shapes | down | middle | unet_up(size, skips) | norm("out.0", base) | conv("out.2", base, 4)


def clip_l_shapes() -> Shapes:
    """Keys below `cond_stage_model.transformer.` (CLIP ViT-L/14 text encoder)."""
    width = CONTEXT_DIM
    shapes: Shapes = {
        "text_model.embeddings.token_embedding.weight": (49408, width),
        "text_model.embeddings.position_embedding.weight": (77, width),
    }
    for index in range(12):
        layer = f"text_model.encoder.layers.{index}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{layer}.self_attn.{projection}", width, width)
        shapes |= norm(f"{layer}.layer_norm1", width) | norm(f"{layer}.layer_norm2", width)
        shapes |= linear(f"{layer}.mlp.fc1", width, 4 * width) | linear(f"{layer}.mlp.fc2", 4 * width, width)
    return shapes | norm("text_model.final_layer_norm", width)


def vae_resblock(name: str, c_in: int, c_out: int) -> Shapes:
    shapes = norm(f"{name}.norm1", c_in) | conv(f"{name}.conv1", c_in, c_out)
    shapes |= norm(f"{name}.norm2", c_out) | conv(f"{name}.conv2", c_out, c_out)
    return shapes | (conv(f"{name}.nin_shortcut", c_in, c_out, 1) if c_in != c_out else {})


def vae_middle(name: str, channels: int) -> Shapes:
    shapes = vae_resblock(f"{name}.block_1", channels, channels) | vae_resblock(f"{name}.block_2", channels, channels)
    shapes |= norm(f"{name}.attn_1.norm", channels)
    for projection in ("q", "k", "v", "proj_out"):
        shapes |= conv(f"{name}.attn_1.{projection}", channels, channels, 1)
    return shapes


def vae_shapes() -> Shapes:
    """Keys below `first_stage_model.` (AutoencoderKL, factor 8)."""
    first, last = VAE_WIDTHS[0], VAE_WIDTHS[-1]
    shapes, channels = conv("encoder.conv_in", 3, first), first
    for level, width in enumerate(VAE_WIDTHS):
        for block in range(2):
            shapes |= vae_resblock(f"encoder.down.{level}.block.{block}", channels, width)
            channels = width
        if level < len(VAE_WIDTHS) - 1:
            shapes |= conv(f"encoder.down.{level}.downsample.conv", channels, channels)
    shapes |= vae_middle("encoder.mid", last) | norm("encoder.norm_out", last) | conv("encoder.conv_out", last, 8)
    shapes |= conv("quant_conv", 8, 8, 1) | conv("post_quant_conv", 4, 4, 1)
    shapes |= conv("decoder.conv_in", 4, last) | vae_middle("decoder.mid", last)
    for level, width in reversed(list(enumerate(VAE_WIDTHS))):
        for block in range(3):
            shapes |= vae_resblock(f"decoder.up.{level}.block.{block}", channels, width)
            channels = width
        if level:
            shapes |= conv(f"decoder.up.{level}.upsample.conv", channels, channels)
    return shapes | norm("decoder.norm_out", first) | conv("decoder.conv_out", first, 3)


def checkpoint_shapes(size: Size) -> Shapes:
    parts = {
        "model.diffusion_model": unet_shapes(size),
        "cond_stage_model.transformer": clip_l_shapes(),
        "first_stage_model": vae_shapes(),
    }
    return {f"{prefix}.{key}": shape for prefix, part in parts.items() for key, shape in part.items()}


def random_tensor(key: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Weights that keep activations finite: unit gain for matrices, identity for norms, zero for biases."""
    if len(shape) == 1:
        return torch.ones(shape) if key.endswith(".weight") else torch.zeros(shape)
    std = 0.02 if "embedding" in key else 1.0 / math.sqrt(math.prod(shape[1:]))
    return torch.randn(shape, generator=generator) * std


def make_checkpoint(path: Path, size: Size, dtype: torch.dtype = torch.float16, seed: int = 0) -> Path:
    """Writes the checkpoint to `path`; the same size and seed give the same weights."""
    generator = torch.Generator().manual_seed(seed)
    shapes = checkpoint_shapes(size)
    state_dict = {key: random_tensor(key, shape, generator).to(dtype) for key, shape in shapes.items()}
    save_file(state_dict, path, metadata={"format": "pt"})
    return path
