"""What the shared file says besides its weights: learned words, settings, and the fields that other tools read.

Python values <-> strings of a safetensors header. Whatever a file says is data from a stranger: it is checked here,
never executed, opened or trusted with a size. No path, host, date, photo or hash is written.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import __version__
from .config import PLACEHOLDER_PATTERN
from .types import CONCEPT_PATTERN, SD1, TINY, MagiCaptureError, Token

FORMAT = 1
IDENTITY = "sefi-identity"  # the kind that an identity's file says it is; a LoRA says none
MAX_VECTORS = 75  # a prompt has no more positions
NATIVE = {SD1: (768, 512), TINY: (128, 64)}  # channels of a learned word, side of a picture
LICENCE = "CreativeML Open RAIL-M"  # of SD1.5: what is trained on it falls under the same terms


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    """The `magicapture.*` fields. rank_split: concept -> its share of the rank; empty while all concepts share it."""

    tokens: tuple[Token, ...]
    config: dict[str, Any]
    templates: dict[str, list[str]]
    rank_split: dict[str, int]


def write_content(content: Content) -> dict[str, str]:
    tokens = [
        {
            "name": token.name,
            "placeholder": token.placeholder,
            "initializer": token.initializer,
            "n": len(token.vectors),
            "fp32": encode_vectors(token.vectors),
        }
        for token in content.tokens
    ]
    return {
        **write_format(),
        "magicapture.tokens": json.dumps(tokens),
        "magicapture.config": json.dumps(content.config),
        "magicapture.templates": json.dumps(content.templates),
        "magicapture.rank_split": json.dumps(content.rank_split),
    }


def read_content(metadata: Mapping[str, str]) -> Content | None:
    """None where the fields are gone. Raises MagiCaptureError for a newer format and for fields that make no sense."""
    if "magicapture.tokens" not in metadata:
        return None
    check_format(metadata)
    templates = read_json(metadata, "magicapture.templates", dict)
    rank_split = read_json(metadata, "magicapture.rank_split", dict)
    if not all(
        isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in templates.values()
    ):
        raise MagiCaptureError("magicapture.templates is damaged: not lists of text")
    if not all(type(share) is int for share in rank_split.values()):
        raise MagiCaptureError("magicapture.rank_split is damaged: not whole numbers")
    tokens = tuple(_read_token(entry) for entry in read_json(metadata, "magicapture.tokens", list))
    return Content(
        tokens=check_tokens(tokens),
        config=read_json(metadata, "magicapture.config", dict),
        templates=templates,
        rank_split=rank_split,
    )


def write_format() -> dict[str, str]:
    """What every file of ours says, whatever it holds."""
    return {"magicapture.format": str(FORMAT), "magicapture.library_version": __version__}


def read_kind(metadata: Mapping[str, str]) -> str | None:
    """What a file of ours holds: `sefi-identity`, or a LoRA where that is empty. None for a file of others."""
    return metadata.get("magicapture.kind", "") if "magicapture.format" in metadata else None


def check_format(metadata: Mapping[str, str]) -> None:
    """Raises MagiCaptureError for a newer format."""
    number = metadata.get("magicapture.format", "")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", number):
        raise MagiCaptureError(f"magicapture.format is {number[:20]!r}, which is no number: the file is damaged")
    if int(number) > FORMAT:
        raise MagiCaptureError(f"written in format {number}, this MagiCapture reads up to {FORMAT}: update the pack")


def read_json(metadata: Mapping[str, str], field: str, kind: type) -> Any:
    """The value of a field, an empty one where there is none. Raises MagiCaptureError for one of another kind."""
    try:
        value = json.loads(metadata.get(field, json.dumps(kind())))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise MagiCaptureError(f"{field} is damaged: not the JSON it should be")
    return value


def _read_token(entry: Any) -> Token:
    kinds = {"name": str, "placeholder": str, "initializer": str, "n": int, "fp32": str}
    if not isinstance(entry, dict) or not all(type(entry.get(field)) is kind for field, kind in kinds.items()):
        raise MagiCaptureError(f"magicapture.tokens is damaged: an entry lacks one of {', '.join(kinds)}")
    return Token(
        name=entry["name"],
        placeholder=entry["placeholder"],
        initializer=entry["initializer"],
        vectors=decode_vectors(entry["fp32"], entry["n"]),
    )


def check_tokens(tokens: Sequence[Token]) -> tuple[Token, ...]:
    """The same tokens. Raises MagiCaptureError unless they are different words of known concepts, finite, one width."""
    for token in tokens:
        if not re.fullmatch(CONCEPT_PATTERN, token.name):
            raise MagiCaptureError(f"a learned word is for {token.name[:40]!r}, not for subject or style")
        if not re.fullmatch(PLACEHOLDER_PATTERN, token.placeholder):
            raise MagiCaptureError(f"a learned word is written {token.placeholder[:60]!r}, not like <subject>")
        check_vectors(token.vectors)
    for field in ("name", "placeholder"):
        values = [getattr(token, field) for token in tokens]
        if len(set(values)) < len(values):
            raise MagiCaptureError(f"two learned words have the same {field}: {', '.join(values)}")
    if len({token.vectors.shape[1] for token in tokens}) > 1:
        raise MagiCaptureError("the learned words have vectors of different width: they are of different models")
    return tuple(tokens)


def check_vectors(vectors: Tensor) -> None:
    if vectors.ndim != 2 or not 1 <= len(vectors) <= MAX_VECTORS or not vectors.shape[1]:
        raise MagiCaptureError(f"a learned word has the shape {tuple(vectors.shape)}, not 1 to {MAX_VECTORS} vectors")
    if not vectors.isfinite().all():
        raise MagiCaptureError("a learned word holds numbers that are not finite: its training went wrong")


def encode_vectors(vectors: Tensor) -> str:
    """[n,C] -> base64 of little-endian fp32, row by row."""
    return base64.b64encode(vectors.detach().cpu().contiguous().numpy().astype("<f4").tobytes()).decode("ascii")


def decode_vectors(text: str, count: int) -> Tensor:
    """The inverse: [count,C], C following from the length."""
    import numpy

    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise MagiCaptureError("a learned word is damaged: not base64") from None
    if not 1 <= count <= MAX_VECTORS or not data or len(data) % (4 * count):
        raise MagiCaptureError(f"a learned word is damaged: {len(data)} bytes are not {count} vectors")
    return torch.from_numpy(numpy.frombuffer(data, "<f4").astype(numpy.float32)).view(count, -1)


# -- fields of other tools ---------------------------------------------------------------------------------------------


def modelspec(architecture: str, adapter: str, title: str, config: Mapping[str, Any]) -> dict[str, str]:
    """The Stability AI model specification, as kohya's scripts write it. adapter: lora, textual-inversion or ours."""
    side = config.get("resolution", NATIVE.get(architecture, (0, 512))[1])
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture if architecture == TINY else f"{architecture}/{adapter}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "epsilon",
        "modelspec.license": LICENCE if architecture != TINY else "Apache-2.0",
    }


def network_fields(architecture: str, name: str, ranks: set[int], alphas: set[float]) -> dict[str, str]:
    """The `ss_*` fields by which A1111, Forge and LoRA managers sort and label a file."""
    return {
        "ss_v2": "False",
        "ss_base_model_version": "sd_v1" if architecture != TINY else TINY,
        "ss_sd_model_name": "Stable Diffusion 1.5" if architecture != TINY else TINY,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(alphas.pop()) if len(alphas) == 1 else "Dynamic",
        "ss_output_name": name,
    }


def word_fields(words: Sequence[str], sentence: str) -> dict[str, str]:
    """What to write in a prompt: for ComfyUI-Custom-Scripts (all three), ComfyUI-Lora-Manager and A1111 (the tags)."""
    return {
        "modelspec.trigger_phrase": sentence,
        "modelspec.usage_hint": f"With the embedding files, write in the prompt: {', '.join(words)}",
        "ss_tag_frequency": json.dumps({"magicapture": dict.fromkeys(words, 1)}),  # the learned words; no caption
    }


def training_fields(config: Mapping[str, Any]) -> dict[str, str]:
    """What kohya's scripts say of a training, out of our settings; less where a file tells less of them."""
    steps = [_setting(config, phase, "num_steps") for phase in ("inversion", "tuning")]
    clone, side = _setting(config, "clone_steps"), _setting(config, "resolution")  # older files lack the first
    found = {
        "ss_max_train_steps": sum(steps) + (clone if type(clone) is int else 0)
        if all(type(number) is int for number in steps)
        else None,
        "ss_learning_rate": _setting(config, "tuning", "lora_learning_rate"),
        "ss_optimizer": _setting(config, "optimizer"),
        "ss_seed": _setting(config, "seed"),
        "ss_resolution": f"({side}, {side})" if type(side) is int else None,
    }
    return {field: str(value) for field, value in found.items() if isinstance(value, int | float | str)}


def _setting(config: Any, *path: str) -> Any:
    """None where a stranger's settings do not hold it, or hold a number that is none of ours."""
    for name in path:
        config = config.get(name) if isinstance(config, Mapping) else None
    return config if not isinstance(config, int) or abs(config) < 1 << 63 else None


def read_architecture(metadata: Mapping[str, str], tokens: Sequence[Token]) -> str:
    """What the LoRA is for: as the file says, else by the width of its words. Raises MagiCaptureError if not so."""
    width = tokens[0].vectors.shape[1] if tokens else 0
    by_width = next((name for name, (channels, _) in NATIVE.items() if channels == width), "")
    said = metadata.get("modelspec.architecture", by_width).removesuffix("/lora")
    if not said or tokens:
        check_width(said, width)
    return said


def check_width(architecture: str, width: int) -> None:
    """Raises MagiCaptureError where words of so many channels are not that model's, or there is no model at all."""
    wanted = NATIVE.get(architecture, (width, 0))[0]
    if not architecture or width != wanted:
        raise MagiCaptureError(
            f"the learned words have {width} channels, which does not fit {architecture[:40] or 'any model'}"
        )
