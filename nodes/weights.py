"""MODEL, CLIP and VAE -> plain weights: what the user sees is what is trained on.

All clones of a model share one module, so its state dict may hold somebody else's LoRA. Here every weight is the clean
one with exactly the patches of the given patcher baked in, fp32 on the CPU, fresh copies that autograd may use.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..magicapture_core.types import MagiCaptureError

PREDICTION_TYPES = {"EPS": "epsilon", "V_PREDICTION": "v_prediction"}  # ComfyUI's names -> diffusers'


def plain_weights(patcher: Any, prefix: str = "") -> dict[str, Tensor]:
    """The patcher's weights below `prefix`, under names without it. Call inside inference_mode(False)."""
    import comfy.lora

    weights = {}
    for key, ((weight, convert), *patches) in patcher.get_key_patches(prefix).items():
        weight = _dense(key, convert(weight, inplace=False))
        weights[key.removeprefix(prefix)] = comfy.lora.calculate_weight(patches, weight, key) if patches else weight
    return weights


def _dense(key: str, weight: Any) -> Tensor:
    """fp16, bf16, fp8, ComfyUI's quantised or an inference tensor -> a fresh fp32 copy on the CPU."""
    if type(weight).__name__ == "QuantizedTensor":
        weight = weight.dequantize()
    if not isinstance(weight, Tensor) or type(weight) not in (Tensor, torch.nn.Parameter):
        raise MagiCaptureError(
            f"the model's weight {key} is a {type(weight).__name__}: training needs plain weights, take an SD1.5 "
            "checkpoint in safetensors form, fp32, fp16, bf16 or fp8"
        )
    return weight.detach().to("cpu", torch.float32, copy=True)


def check_packages() -> None:
    """Raises MagiCaptureError where install.py was not run, or failed."""
    missing = [name for name in ("diffusers", "peft") if find_spec(name) is None]
    if missing:
        command = subprocess.list2cmdline([sys.executable, str(Path(__file__).absolute().parents[1] / "install.py")])
        raise MagiCaptureError(f"{' and '.join(missing)} missing; run: {command} and restart ComfyUI")


def plain_backbone(model: Any, clip: Any, vae: Any) -> Any:
    """The core's Backbone out of the three sockets, on the CPU.

    Raises MagiCaptureError for anything but SD1.5, and where diffusers or peft is missing.
    """
    check_packages()
    from comfy.model_sampling import V_PREDICTION

    from ..magicapture_core.backbone import from_comfy_state
    from ..magicapture_core.ldm import PROMPT_DIM

    text_encoder = getattr(clip.cond_stage_model, "clip_l", None)
    if text_encoder is None or not hasattr(clip.tokenizer, "clip_l"):
        raise MagiCaptureError("CLIP is not that of an SD1.5 model: load an SD1.5 checkpoint")
    predicts: str = model.model.model_type.name
    if isinstance(model.get_model_object("model_sampling"), V_PREDICTION):  # ModelSamplingDiscrete can say so too
        predicts = "V_PREDICTION"
    width = model.model.model_config.unet_config.get("context_dim")
    if width != PROMPT_DIM:  # before a copy in fp32 is made of what may be fifty gigabytes
        raise MagiCaptureError(
            f"MODEL is not SD1.5 (its prompts are {width} wide, not {PROMPT_DIM}): load an SD1.5 checkpoint"
        )
    return from_comfy_state(
        unet=plain_weights(model, "diffusion_model."),
        text_encoder=plain_weights(clip.patcher, "clip_l.transformer."),
        vae=plain_weights(vae.patcher),
        tokenizer=plain_tokenizer(clip),
        prediction_type=PREDICTION_TYPES.get(predicts, predicts),
    )


def plain_tokenizer(clip: Any) -> Any:
    """transformers' tokenizer of the CLIP with its true length of 77; ComfyUI's own copy says 8192."""
    inner = clip.tokenizer.clip_l
    tokenizer = copy.copy(inner.tokenizer)
    tokenizer.model_max_length = inner.max_length
    return tokenizer
