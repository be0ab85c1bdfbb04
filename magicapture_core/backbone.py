"""The frozen base model behind one noun: UNet, VAE, text encoder, tokenizer and noise schedule.

In: weights of ComfyUI, a single-file checkpoint, or a diffusers folder; or nothing, for the embedded tiny model. Out: a
`Backbone` of diffusers' and transformers' own classes, fp32 on the CPU. Opens no network connection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import ldm
from .files import check_plain, check_sizes, count_weights
from .models import find_model, models_folder
from .types import SD1, TINY, MagiCaptureError

TINY_FOLDER = Path(__file__).parent / "tiny"
TINY_WEIGHTS = {
    "vae": TINY_FOLDER / "vae" / "diffusion_pytorch_model.safetensors",
    "unet": TINY_FOLDER / "unet" / "diffusion_pytorch_model.safetensors",
    "text_encoder": TINY_FOLDER / "text_encoder" / "model.safetensors",
}
PROMPT_LENGTH = 77
CHECKPOINT_PREFIXES = {
    "unet": "model.diffusion_model.",
    "text_encoder": "cond_stage_model.transformer.",
    "vae": "first_stage_model.",
}


@dataclass(eq=False)
class Backbone:
    """The parts under their usual names; frozen, in eval mode. architecture: SD1 or TINY."""

    vae: Any  # diffusers' AutoencoderKL
    unet: Any  # diffusers' UNet2DConditionModel
    text_encoder: Any  # transformers' CLIPTextModel
    tokenizer: Any  # transformers' CLIPTokenizer
    noise_scheduler: Any  # diffusers' DDPMScheduler
    architecture: str
    taesd: Any = None  # diffusers' AutoencoderTiny, where the identity loss is to decode with it

    def __post_init__(self) -> None:
        for module in self._modules():
            module.eval().requires_grad_(False)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent: 8, tiny 4."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        return self.vae.config.latent_channels

    @property
    def prompt_dim(self) -> int:
        return self.text_encoder.config.hidden_size

    def to(self, device: torch.device | str, dtype: torch.dtype) -> None:
        """Move all modules. What decodes stays in fp32: the VAE is run once a photo, and in fp16 it overflows."""
        for module in self._modules():
            # Not diffusers' own `to`, which warns of modules to keep in fp32 and names none.
            decodes = module in (self.vae, self.taesd)
            nn.Module.to(module, device=device, dtype=torch.float32 if decodes else dtype)
        self.unet.to(memory_format=torch.channels_last)  # the order in which convolutions run fastest

    def _modules(self) -> list[nn.Module]:
        return [module for module in (self.vae, self.unet, self.text_encoder, self.taesd) if module is not None]


# -- the four ways in --------------------------------------------------------------------------------------------------


@torch.inference_mode(False)
def from_comfy_state(
    unet: Mapping[str, Tensor],
    text_encoder: Mapping[str, Tensor],
    vae: Mapping[str, Tensor],
    tokenizer: Any,
    prediction_type: str = "epsilon",
) -> Backbone:
    """Three state dicts under LDM names, without the prefixes of their parts, of any floating-point dtype.

    Plain fp32 tensors on the CPU are taken over, not copied: hand in copies of weights that live on elsewhere.
    prediction_type: what the caller knows about the model. Raises MagiCaptureError for anything but SD1.5.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    ldm.check_prediction_type(prediction_type)
    unet_config, vae_config, clip_weights = ldm.unet_config(unet), ldm.vae_config(vae), ldm.clip_names(text_encoder)
    return Backbone(
        unet=_fill(_empty(UNet2DConditionModel, unet_config), ldm.unet_names(unet, unet_config)),
        vae=_fill(_empty(AutoencoderKL, vae_config), ldm.vae_names(vae, vae_config)),
        text_encoder=_fill_clip(_empty_clip(ldm.text_encoder_config(clip_weights)), clip_weights),
        tokenizer=tokenizer,
        noise_scheduler=noise_scheduler(),
        architecture=SD1,
    )


def from_checkpoint(path: Path | str, tokenizer_folder: Path | None = None) -> Backbone:
    """A single-file SD1.5 checkpoint in safetensors form.

    tokenizer_folder: holds vocab.json and merges.txt; by default the one that `models get tokenizer` made. Raises
    MagiCaptureError for other models and formats, and when there is no tokenizer.
    """
    path = Path(path)
    if not path.is_file():
        raise MagiCaptureError(f"{path}: no such file")
    if path.suffix != ".safetensors":
        raise MagiCaptureError(
            f"{path}: only .safetensors is read, since other formats can hold programs; convert it to safetensors"
        )
    folder = tokenizer_folder or find_model("tokenizer/vocab.json", [models_folder()]).parent
    try:
        parts = _read_parts(path)
        return from_comfy_state(parts["unet"], parts["text_encoder"], parts["vae"], load_tokenizer(folder))
    except MagiCaptureError as error:
        raise MagiCaptureError(f"{path}: {error}") from error
    except Exception as error:  # diffusers' converters have many kinds for layers that are not where they should be
        raise MagiCaptureError(f"{path}: damaged, or no Stable Diffusion 1.5 ({_reason(error)})") from error


@torch.inference_mode(False)
def from_diffusers(folder: Path | str) -> Backbone:
    """A folder as diffusers saves a StableDiffusionPipeline of SD1.5, with safetensors weights.

    Raises MagiCaptureError for other models and for a folder that lacks something.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        unet_config = _read_json(folder / "unet/config.json")
        _check_configs(unet_config, _read_json(folder / "scheduler/scheduler_config.json"))
        for part, config in (("unet", unet_config), ("vae", _read_json(folder / "vae/config.json"))):
            check_sizes(config, count_weights(folder / part), part)
        clip_weights = ldm.clip_names(load_file(folder / "text_encoder/model.safetensors"))
        local = {"local_files_only": True, "use_safetensors": True}
        backbone = Backbone(
            unet=UNet2DConditionModel.from_pretrained(folder / "unet", **local),
            vae=AutoencoderKL.from_pretrained(folder / "vae", **local),
            text_encoder=_fill_clip(_empty_clip(ldm.text_encoder_config(clip_weights)), clip_weights),
            tokenizer=load_tokenizer(folder / "tokenizer"),
            noise_scheduler=noise_scheduler(),
            architecture=SD1,
        )
        backbone.to("cpu", torch.float32)
    except MagiCaptureError as error:
        raise MagiCaptureError(f"{folder}: {error}") from error
    except Exception as error:  # the classes of diffusers and transformers have many kinds for what they cannot take
        raise MagiCaptureError(
            f"{folder}: not a whole diffusers folder with safetensors weights: {_reason(error)}"
        ) from error
    return backbone


@torch.inference_mode(False)
def tiny() -> Backbone:
    """The embedded default: the same classes as SD1.5 at 64 px, trained on PortraitBench's world."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from safetensors.torch import load_file

    configs = {part: _read_json(TINY_FOLDER / part / "config.json") for part in CHECKPOINT_PREFIXES}
    weights = {part: load_file(path) for part, path in TINY_WEIGHTS.items()}
    return Backbone(
        vae=_fill(_empty(AutoencoderKL, configs["vae"]), weights["vae"]),
        unet=_fill(_empty(UNet2DConditionModel, configs["unet"]), weights["unet"]),
        text_encoder=_fill_clip(_empty_clip(configs["text_encoder"]), weights["text_encoder"]),
        tokenizer=load_tokenizer(TINY_FOLDER / "tokenizer"),
        noise_scheduler=noise_scheduler(),
        architecture=TINY,
    )


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# -- parts -------------------------------------------------------------------------------------------------------------


def noise_scheduler() -> Any:
    """SD1.5's schedule: 1000 steps, betas from .00085 to .012 with equal steps of their roots."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="epsilon",
        steps_offset=1,
        clip_sample=False,
    )


def load_tokenizer(folder: Path) -> Any:
    """CLIPTokenizer out of vocab.json and merges.txt, padded with <|endoftext|> to 77 as SD1.5's is."""
    from transformers import CLIPTokenizer

    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if missing:
        raise MagiCaptureError(f"{folder}: no tokenizer here, {missing[0]} is missing")
    return CLIPTokenizer.from_pretrained(
        folder, local_files_only=True, model_max_length=PROMPT_LENGTH, pad_token="<|endoftext|>"
    )


def _read_parts(path: Path) -> dict[str, dict[str, Tensor]]:
    """The three parts of a single file, each weight in fp32 as soon as it is read; and refusals that its keys show."""
    from safetensors import SafetensorError, safe_open

    parts: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
            if "v_pred" in keys:
                ldm.check_prediction_type("v_prediction")
            for part, prefix in CHECKPOINT_PREFIXES.items():
                names = [key for key in keys if key.startswith(prefix)]
                tensors = {name: file.get_tensor(name) for name in names}
                for name, tensor in tensors.items():
                    check_plain(name, tensor)
                parts[part] = {name.removeprefix(prefix): _to_fp32(tensor) for name, tensor in tensors.items()}
    except SafetensorError as error:
        raise MagiCaptureError(f"not a whole safetensors file ({error}); copy it again") from error
    return parts


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _check_configs(unet: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
    is_conditioned = any(unet.get(f"{kind}_embed_type") for kind in ("class", "addition"))
    ldm.check_unet(unet["in_channels"], unet["cross_attention_dim"], is_conditioned)
    ldm.check_prediction_type(scheduler.get("prediction_type", "epsilon"))


# -- modules -----------------------------------------------------------------------------------------------------------


def _empty(module_class: Any, config: Mapping[str, Any]) -> Any:
    """The module with its parameters on the meta device; buffers are real."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        return module_class(**config)


def _empty_clip(config: Mapping[str, Any]) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return _empty(CLIPTextModel, {"config": CLIPTextConfig(**config)})


def _fill(module: Any, weights: Mapping[str, Tensor]) -> Any:
    """Give an empty module its weights without a second copy of them. Raises MagiCaptureError if one does not fit."""
    wanted = {name: value.shape for name, value in module.state_dict().items()}
    given = {name: value.shape for name, value in weights.items()}
    faults = [name for name in wanted | given if wanted.get(name) != given.get(name)]
    if faults:
        name = faults[0]
        shapes = [tuple(shapes[name]) if name in shapes else "nothing" for shapes in (wanted, given)]
        raise MagiCaptureError(
            f"{type(module).__name__}: {name} should be {shapes[0]} and is {shapes[1]} ({len(faults)} such): the "
            "checkpoint is damaged, quantised, or no Stable Diffusion 1.5"
        )
    module.load_state_dict({name: _to_fp32(value) for name, value in weights.items()}, assign=True)
    return module


def _fill_clip(module: Any, weights: Mapping[str, Tensor]) -> Any:
    """weights: names below `text_model.`, a level that transformers has done away with in 5.6."""
    prefix = "text_model." if hasattr(module, "text_model") else ""
    return _fill(module, {prefix + name: value for name, value in weights.items()})


def _to_fp32(value: Tensor) -> Tensor:
    """On the CPU, and such that autograd may save it; integers stay, so that packed weights are still seen as such."""
    value = value.detach()
    if value.is_inference():
        value = value.clone()
    return value.to("cpu", torch.float32 if value.is_floating_point() else value.dtype)
