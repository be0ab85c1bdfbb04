"""CLIP (A. Radford et al., arXiv 2103.00020) out of a folder or a file of the user's.

In: weights under transformers' names, pictures, texts. Out: embeddings. Opens no network connection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbone import load_tokenizer
from ..files import check_sizes, check_weights, read_state_dict
from ..models import find_model, models_folder
from ..types import MagiCaptureError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of its training pictures
WEIGHTS, CONFIG = "model.safetensors", "config.json"
VISION, TEXT = "vision_model.", "text_model."
NUM_HEADS = {768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}  # of vision transformers B, L, H, g and bigG, by width
LARGEST_OF_OPENAI = 1024  # width; the others are OpenCLIP's, which have the plain GELU
MAX_IMAGE = 4096  # pixels of a side
REMEDY = "take openai/clip-vit-large-patch14, its folder or its model.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """model: transformers' CLIPModel, or CLIPVisionModelWithProjection where there is no text half."""

    model: Any
    name: str
    tokenizer_folder: Path | None = None

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        return self.model.visual_projection.out_features

    @property
    def has_text(self) -> bool:
        return hasattr(self.model, "text_model")

    @torch.no_grad()
    def embed_image(self, image: Tensor) -> Tensor:
        """image [3,H,W] in 0..1 -> [D] of unit length, on the CPU."""
        pixels = prepare(image, self.model.vision_model.config.image_size)[None].to(self.model.device)
        return _unit(self.model.visual_projection(self.model.vision_model(pixels).pooler_output))

    @torch.no_grad()
    def embed_text(self, text: str) -> Tensor:
        """-> [D] of unit length, on the CPU. Raises MagiCaptureError for a text that is too long, and where the
        tokenizer is missing or another's."""
        folder = self.tokenizer_folder or find_model("tokenizer/vocab.json", [models_folder()]).parent
        ids, config = load_tokenizer(folder)(text).input_ids, self.model.text_model.config
        if len(ids) > config.max_position_embeddings:
            raise MagiCaptureError(
                f"--prompt: CLIP reads {config.max_position_embeddings} tokens and this has {len(ids)}, {text[:40]!r}; "
                "shorten it"
            )
        if max(ids) != config.vocab_size - 1:
            raise MagiCaptureError(f"{self.name}: knows {config.vocab_size} tokens, not those of {folder}; {REMEDY}")
        ids = torch.tensor([ids], device=self.model.device)
        return _unit(self.model.text_projection(self.model.text_model(ids).pooler_output))


def _unit(embeds: Tensor) -> Tensor:
    """[1,D] -> [D] of unit length, on the CPU."""
    return F.normalize(embeds.float(), dim=1)[0].cpu()


def prepare(image: Tensor, size: int) -> Tensor:
    """image [3,H,W] in 0..1 -> [3,size,size] as CLIP was trained to see it: its middle square, normalised."""
    height, width = image.shape[1:]
    shape = [max(size, size * side // min(height, width)) for side in (height, width)]
    resized = F.interpolate(image[None].float().cpu(), shape, mode="bicubic", antialias=True)[0].clamp(0, 1)
    top, left = ((side - size) // 2 for side in shape)
    middle = resized[:, top : top + size, left : left + size]
    return (middle - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


# --- files -----------------------------------------------------------------------------------------------------------


def load_clip(path: Path) -> Clip:
    """A folder as transformers saves it, or one .safetensors file, with both halves or that of the pictures alone ->
    CLIP on the CPU in fp32.

    Raises MagiCaptureError for what is missing or broken, and for other networks.
    """
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise MagiCaptureError(f"{file}: there is no such file; {REMEDY}")
    if file.suffix.lower() != ".safetensors":
        raise MagiCaptureError(f"{file.name}: of CLIP only .safetensors is read; {REMEDY}")
    weights = {name: value.float() for name, value in read_state_dict(file).items() if "position_ids" not in name}
    if f"{VISION}embeddings.class_embedding" not in weights:
        raise MagiCaptureError(f"{path.name}: no CLIP under transformers' names; {REMEDY}")
    has_text = any(name.startswith(TEXT) for name in weights)
    settings = _read_settings(path) if path.is_dir() else _guess_settings(weights, path.name)
    check_sizes(settings, len(weights), path.name)
    try:
        model = _empty(settings, has_text)
    except Exception as error:  # transformers has a kind of its own for each setting that makes no sense
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MagiCaptureError(f"{path.name}: no CLIP can be made with its settings ({reason}); {REMEDY}") from error
    check_weights(model.state_dict(), weights, path.name, "CLIP")
    model.load_state_dict(weights, assign=True)
    has_tokenizer = (path / "vocab.json").is_file() and (path / "merges.txt").is_file()
    return Clip(
        model=model.eval().requires_grad_(False), name=path.name, tokenizer_folder=path if has_tokenizer else None
    )


def _empty(settings: Mapping[str, Any], has_text: bool) -> Any:
    """The network with its parameters on the meta device; buffers are real."""
    from accelerate import init_empty_weights
    from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

    config: Any = CLIPConfig.from_dict(dict(settings))
    with init_empty_weights():
        return CLIPModel(config) if has_text else CLIPVisionModelWithProjection(config.vision_config)


def _read_settings(folder: Path) -> dict[str, Any]:
    """The folder's config.json, that of both halves, also where it is the vision half's alone."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = settings["model_type"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise MagiCaptureError(f"{folder / CONFIG}: missing or not transformers' ({error}); {REMEDY}") from error
    if kind == "clip_vision_model":
        settings = {"vision_config": settings, "projection_dim": settings.get("projection_dim", 512)}
    elif kind != "clip":
        raise MagiCaptureError(f"{folder / CONFIG}: is of {kind}, not of CLIP; {REMEDY}")
    image_size = _setting(settings, "vision_config", "image_size")
    if isinstance(image_size, int) and image_size > MAX_IMAGE:
        raise MagiCaptureError(f"{folder / CONFIG}: pictures of {image_size} pixels are seen by no CLIP; {REMEDY}")
    return settings


def _setting(settings: Any, *path: str) -> Any:
    for name in path:
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings


def _guess_settings(weights: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """What shapes tell of a file that comes without its config.json; the rest as OpenAI and OpenCLIP have it."""
    try:
        vision = _guess_half(weights, VISION)
        width, patch_size = vision["hidden_size"], weights[f"{VISION}embeddings.patch_embedding.weight"].shape[-1]
        num_patches = len(weights[f"{VISION}embeddings.position_embedding.weight"]) - 1
        vision |= {"patch_size": patch_size, "image_size": round(num_patches**0.5) * patch_size}
        vision["num_attention_heads"] = NUM_HEADS[width]
        shared: dict[str, Any] = {"projection_dim": len(weights["visual_projection.weight"])}
        shared["hidden_act"] = "quick_gelu" if width <= LARGEST_OF_OPENAI else "gelu"
        text = _guess_text(weights) if f"{TEXT}final_layer_norm.weight" in weights else {}
    except (KeyError, ValueError) as error:
        raise MagiCaptureError(f"{name}: its shapes are of no CLIP that is known here ({error}); {REMEDY}") from error
    halves = {"vision_config": vision | shared, "text_config": text | shared}
    return {"projection_dim": shared["projection_dim"], **halves}


def _guess_text(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    text, vocab_size = _guess_half(weights, TEXT), len(weights[f"{TEXT}embeddings.token_embedding.weight"])
    heads = {"num_attention_heads": max(1, text["hidden_size"] // 64)}
    return text | heads | {"vocab_size": vocab_size, "eos_token_id": vocab_size - 1}


def _guess_half(weights: Mapping[str, Tensor], half: str) -> dict[str, Any]:
    prefix = f"{half}encoder.layers."
    layers = {name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)}
    inner, width = weights[f"{prefix}0.mlp.fc1.weight"].shape
    return {"num_hidden_layers": len(layers), "hidden_size": width, "intermediate_size": inner}
