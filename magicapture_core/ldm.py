"""Weights under the names of single-file checkpoints (LDM) -> the configurations and names of diffusers.

In: one state dict per part, keys without a prefix. Out: the configuration, inferred from the shapes alone, and the same
tensors under new names. Tells Stable Diffusion 1.5 from its relatives; knows nothing of files and modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .types import MagiCaptureError

State = Mapping[str, Tensor]

PROMPT_DIM = 768  # CLIP ViT-L/14, the text encoder of Stable Diffusion 1.x
LATENT_CHANNELS = 4
MAX_WIDTH = 4096  # SD1.5's largest are 1280, and 3072 inside of CLIP
MAX_DEPTH = 64
CLIP_HEAD_DIM = 64
SCALING_FACTOR = 0.18215  # latents = encoded * this: unit variance over the training set of SD1.x
RELATIVES = {1024: "Stable Diffusion 2", 2048: "SDXL", 1280: "the SDXL refiner"}
REMEDY = "load a Stable Diffusion 1.5 checkpoint"


def check_weights(part: str, state: State) -> None:
    """Raises MagiCaptureError when the state is empty or holds packed or scaled numbers (GGUF, NF4, scaled fp8)."""
    if not state:
        raise MagiCaptureError(f"{part}: no weights in it; {REMEDY} that holds UNet, text encoder and VAE")
    for key, value in state.items():
        packed = not value.is_floating_point()
        if packed or key.endswith(("scaled_fp8", "scale_weight", "weight_scale")):
            raise MagiCaptureError(
                f"{part}: {key} is quantised ({value.dtype}); {REMEDY} in fp32, fp16, bf16 or plain fp8"
            )


def check_unet(in_channels: int, prompt_dim: int, is_conditioned: bool) -> None:
    """Raises MagiCaptureError that names the model when a UNet is of another family than SD1.5.

    is_conditioned: it has a class or size embedding besides the timestep, as SDXL has.
    """
    if prompt_dim != PROMPT_DIM or is_conditioned:
        kind = RELATIVES.get(prompt_dim, f"a model with prompts of {prompt_dim} channels")
        raise MagiCaptureError(f"this UNet is {kind}: only Stable Diffusion 1.5 is trained; {REMEDY}")
    if in_channels != LATENT_CHANNELS:
        kind = {9: "the inpainting", 8: "the picture-editing", 5: "the depth"}.get(in_channels, "another")
        raise MagiCaptureError(
            f"this UNet takes {in_channels} channels: it is {kind} variant of SD1.5; {REMEDY} of the plain kind"
        )


def check_prediction_type(prediction_type: str) -> None:
    """Raises MagiCaptureError for a model that predicts anything but the noise."""
    if prediction_type != "epsilon":
        raise MagiCaptureError(f"this model predicts {prediction_type}, SD1.5 predicts the noise (epsilon); {REMEDY}")


# -- configurations ----------------------------------------------------------------------------------------------------


def unet_config(state: State) -> dict[str, Any]:
    """UNet2DConditionModel's configuration. Raises MagiCaptureError for other families than SD1.5."""
    check_weights("UNet", state)
    if "input_blocks.0.0.weight" not in state:
        raise MagiCaptureError(f"the model has no UNet of Stable Diffusion's kind; {REMEDY}")
    context = [value for key, value in state.items() if key.endswith("attn2.to_k.weight")]
    if not context:
        raise MagiCaptureError(f"this UNet takes no prompts; {REMEDY}")
    check_unet(state["input_blocks.0.0.weight"].shape[1], context[0].shape[1], "label_emb.0.0.weight" in state)

    blocks = _count(state, r"input_blocks\.(\d+)\.")
    ends = [i for i in range(blocks) if f"input_blocks.{i}.0.op.weight" in state]
    layers = (ends[0] if ends else blocks) - 1  # input block 0 is the first convolution
    firsts = [1, *(end + 1 for end in ends)]
    attends = [f"input_blocks.{first}.1.norm.weight" in state for first in firsts]
    return {
        "sample_size": 64,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "block_out_channels": [_width(state, f"input_blocks.{first}.0.out_layers.3.weight") for first in firsts],
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "cross_attention_dim": PROMPT_DIM,
        "attention_head_dim": 8,  # diffusers' name for the number of heads, 8 in all of SD1.x
    }


def vae_config(state: State) -> dict[str, Any]:
    """AutoencoderKL's configuration. Raises MagiCaptureError for other kinds of VAE."""
    check_weights("VAE", state)
    if "encoder.conv_in.weight" not in state or "quant_conv.weight" not in state:
        raise MagiCaptureError("this VAE is not of Stable Diffusion 1.5's kind (AutoencoderKL); load its VAE")
    levels = _count(state, r"encoder\.down\.(\d+)\.")
    latent_channels = state["decoder.conv_in.weight"].shape[1]
    if latent_channels != LATENT_CHANNELS:
        raise MagiCaptureError(f"this VAE has {latent_channels} latent channels, SD1.5 has 4; load its VAE")
    return {
        "sample_size": 512,
        "latent_channels": latent_channels,
        "block_out_channels": [_width(state, f"encoder.down.{i}.block.0.conv1.weight") for i in range(levels)],
        "layers_per_block": _count(state, r"encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": SCALING_FACTOR,
    }


def text_encoder_config(state: State) -> dict[str, Any]:
    """CLIPTextModel's configuration out of names as `clip_names` leaves them."""
    check_weights("text encoder", state)
    if "embeddings.token_embedding.weight" not in state:
        raise MagiCaptureError(f"the text encoder is not CLIP ViT-L/14, that of Stable Diffusion 1.5; {REMEDY}")
    vocabulary, width = state["embeddings.token_embedding.weight"].shape
    if width != PROMPT_DIM:
        raise MagiCaptureError(f"the text encoder has {width} channels, that of SD1.5 has {PROMPT_DIM}; {REMEDY}")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _width(state, "encoder.layers.0.mlp.fc1.weight"),
        "num_hidden_layers": _count(state, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": width // CLIP_HEAD_DIM,
        "max_position_embeddings": _width(state, "embeddings.position_embedding.weight"),
        "hidden_act": "quick_gelu",
        "projection_dim": width,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def _width(state: State, key: str) -> int:
    if key not in state:
        raise MagiCaptureError(f"the weight {key} is missing: the checkpoint is damaged or no Stable Diffusion 1.5")
    return _sane(next(iter(state[key].shape), 0), key)


def _count(keys: Iterable[str], pattern: str) -> int:
    return _sane(len({found[1] for found in map(re.compile(pattern).match, keys) if found}), pattern, MAX_DEPTH)


def _sane(size: int, place: str, largest: int = MAX_WIDTH) -> int:
    """A network of any width and depth would be made, for longer than anyone waits, before its weights are compared."""
    if not 0 < size <= largest:
        raise MagiCaptureError(f"{place} of {size}: the checkpoint is damaged or no Stable Diffusion 1.5")
    return size


# -- names -------------------------------------------------------------------------------------------------------------


def unet_names(state: State, config: Mapping[str, Any]) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    prefixed = {f"model.diffusion_model.{key}": value for key, value in state.items()}
    return _complete("UNet", state, convert_ldm_unet_checkpoint(prefixed, config))


def vae_names(state: State, config: Mapping[str, Any]) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    return _complete("VAE", state, convert_ldm_vae_checkpoint(dict(state), config))


def controlnet_names(state: State, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """config: of the UNet that the ControlNet is for."""
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    renamed = convert_controlnet_checkpoint(dict(state), config)
    return _complete("ControlNet", state, {key: value for key, value in renamed.items() if value is not None})


def clip_names(state: State) -> dict[str, Tensor]:
    """Names below `text_model.`, without what a prompt's hidden states do not need."""
    unused = ("position_ids", "text_projection.weight", "logit_scale")
    return {key.removeprefix("text_model."): value for key, value in state.items() if not key.endswith(unused)}


def _complete(part: str, state: State, renamed: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' converters drop names they do not know; here that is an error."""
    kept = {value.data_ptr() for value in renamed.values()}
    lost = [key for key, value in state.items() if value.data_ptr() not in kept]
    if lost:
        raise MagiCaptureError(f"{part}: SD1.5 has no weight {lost[0]} ({len(lost)} such); {REMEDY}")
    return renamed
