"""A narrow Stable Diffusion 1.5 out of diffusers' classes, and its names in single-file checkpoints.

The names are written down here a second time, in the other direction, so that the core's conversion has an oracle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from magicapture_core.vocabulary import FOLDER

State = dict[str, Tensor]

TOKENIZER_FOLDER = FOLDER
VOCABULARY = 1161  # of that tokenizer
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
BLOCKS = {"down": "DownEncoder", "up": "UpDecoder"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def narrow_unet(
    channels: Sequence[int] = (32, 32, 64, 64), layers: int = 2, attends: Sequence[bool] = (True, True, True, False)
):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=64,
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            down_block_types=tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
            up_block_types=tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
            cross_attention_dim=768,
            attention_head_dim=8,
        ).eval()


def narrow_vae() -> AutoencoderKL:
    shape: dict[str, Any] = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 2, "sample_size": 512}
    blocks: dict[str, Any] = {f"{way}_block_types": (f"{kind}Block2D",) * 4 for way, kind in BLOCKS.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return AutoencoderKL(**shape, **blocks).eval()


def narrow_clip(**changes: Any) -> CLIPTextModel:
    shape = {"vocab_size": VOCABULARY, "hidden_size": 768, "intermediate_size": 96, "num_hidden_layers": 2}
    ends = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1, "pad_token_id": VOCABULARY - 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return CLIPTextModel(CLIPTextConfig(**{**shape, **ends, "num_attention_heads": 12, **changes})).eval()


def unet_to_ldm(unet: UNet2DConditionModel) -> State:
    layers, state = unet.config["layers_per_block"], unet.state_dict()
    attends = {key.split(".")[1] for key in state if key.startswith("up_blocks.") and ".attentions." in key}
    return {_unet_name(key, layers, attends): value for key, value in state.items()}


def controlnet_to_ldm(net: Any, prefix: str = "control_model.") -> State:
    """As the original files have them: `control_v11p_sd15_openpose.pth` with this prefix, others without one."""
    layers = net.config["layers_per_block"]
    return {prefix + _controlnet_name(key, layers): value for key, value in net.state_dict().items()}


def _controlnet_name(key: str, layers: int) -> str:
    module, _, leaf = key.rpartition(".")
    part, _, index = module.rpartition(".")
    if part == "controlnet_down_blocks":
        return f"zero_convs.{index}.0.{leaf}"
    if part == "controlnet_cond_embedding.blocks":
        return f"input_hint_block.{2 * int(index) + 2}.{leaf}"
    ends = {"controlnet_mid_block": "middle_block_out.0", "controlnet_cond_embedding.conv_in": "input_hint_block.0"}
    ends |= {"controlnet_cond_embedding.conv_out": "input_hint_block.14"}
    return f"{ends[module]}.{leaf}" if module in ends else _unet_name(key, layers, set())


def _unet_name(key: str, layers: int, attends: set[str]) -> str:
    module, _, leaf = key.rpartition(".")
    if module in UNET_ENDS:
        return f"{UNET_ENDS[module]}.{leaf}"
    if key.startswith("mid_block."):
        _, kind, index, *rest = key.split(".")
        slot = 1 if kind == "attentions" else 2 * int(index)
        return f"middle_block.{slot}.{_inner(kind, rest)}"
    side, block, kind, index, *rest = key.split(".")
    group = int(block) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{group + layers + 1}.0.op.{leaf}"
    if kind == "upsamplers":
        return f"output_blocks.{group + layers}.{2 if block in attends else 1}.conv.{leaf}"
    slot = 1 if kind == "attentions" else 0
    if side == "down_blocks":
        return f"input_blocks.{group + int(index) + 1}.{slot}.{_inner(kind, rest)}"
    return f"output_blocks.{group + int(index)}.{slot}.{_inner(kind, rest)}"


def _inner(kind: str, rest: list[str]) -> str:
    return ".".join(rest if kind == "attentions" else [RESNET[rest[0]], *rest[1:]])


def vae_to_ldm(vae: AutoencoderKL) -> State:
    levels = len(vae.config["block_out_channels"])
    state = {}
    for key, value in vae.state_dict().items():
        name = _vae_name(key, levels)
        is_projection = ".attn_1." in name and value.ndim == 2
        state[name] = value[:, :, None, None] if is_projection else value
    return state


def _vae_name(key: str, levels: int) -> str:
    parts = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut").split(".")
    if parts[1] == "mid_block" and parts[2] == "resnets":
        return ".".join([parts[0], "mid", f"block_{int(parts[3]) + 1}", *parts[4:]])
    if parts[1] == "mid_block":
        return ".".join([parts[0], "mid", "attn_1", VAE_ATTENTION[".".join(parts[4:-1])], parts[-1]])
    if parts[1] in ("down_blocks", "up_blocks"):
        level = int(parts[2]) if parts[1] == "down_blocks" else levels - 1 - int(parts[2])
        side = parts[1].removesuffix("_blocks")
        if parts[3] == "resnets":
            return ".".join([parts[0], side, str(level), "block", *parts[4:]])
        return ".".join([parts[0], side, str(level), f"{side}sample", *parts[5:]])
    return ".".join(parts)


def clip_to_ldm(text_encoder: CLIPTextModel) -> State:
    """With the level that all checkpoints have and transformers no more."""
    return {"text_model." + key.removeprefix("text_model."): v for key, v in text_encoder.state_dict().items()}


def save_checkpoint(path: Path, unet: Mapping, text_encoder: Mapping, vae: Mapping, dtype: torch.dtype) -> Path:
    parts = {"model.diffusion_model": unet, "cond_stage_model.transformer": text_encoder, "first_stage_model": vae}
    tensors = {f"{prefix}.{k}": v.to(dtype).contiguous() for prefix, part in parts.items() for k, v in part.items()}
    save_file(tensors, path)
    return path
