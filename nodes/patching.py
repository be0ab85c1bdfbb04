"""An artifact on MODEL and CLIP: its LoRA attached once and only once, its words known to the CLIP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
import torch

from ..magicapture_core.types import SD1, MagiCaptureError
from .folders import digest, embeddings_folders
from .prompting import LearnedTokenizer

if TYPE_CHECKING:
    from ..magicapture_core.artifact import Artifact

NEWEST = "newest"


def choices() -> list[str]:
    """What a file widget offers: the newest of ours, or any file of the loras folders."""
    return [NEWEST, *(name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors"))]


def find(lora_name: str) -> Path:
    """The chosen file; `newest` is the last one that this pack has written."""
    if lora_name != NEWEST:
        return Path(folder_paths.get_full_path_or_raise("loras", lora_name))
    newest = next(filter(is_ours, _by_age()), None)
    if newest is None:
        raise MagiCaptureError(
            "there is no MagiCapture LoRA in the loras folder yet: train one with the workflow MagiCapture 1 - Train "
            "LoRA, or copy a file there"
        )
    return newest


def is_ours(path: Path) -> bool:
    """Whether a file of the loras folder says that this pack wrote it; a damaged one, whoever wrote it, does not."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return "magicapture.format" in (file.metadata() or {})
    except SafetensorError:
        return False


def fingerprint(lora_name: str) -> list[Any]:
    """Changes when the chosen file does, or when a newer one appears."""
    path = find(lora_name)
    return [digest(str(path), path.stat().st_mtime_ns)]


def load(lora_name: str) -> Artifact:
    """The chosen file as an artifact for SD1.5."""
    from ..magicapture_core import artifact

    return check_architecture(artifact.load(find(lora_name), embeddings_folders()))


def check_architecture(artifact: Artifact) -> Artifact:
    if artifact.architecture != SD1:
        raise MagiCaptureError(
            f"{artifact.name} was trained for {artifact.architecture}, not for SD1.5: train it on an SD1.5 checkpoint"
        )
    return artifact


def attach(artifact: Artifact, model: Any, clip: Any, strength_model: float, strength_clip: float) -> tuple:
    """-> clones of MODEL and CLIP with the LoRA on them and its words known, and whether MODEL had it already.

    A part that is attached, whichever node did it, is left as it is. Raises MagiCaptureError when MODEL is not SD1.5.
    """
    import comfy.lora
    import comfy.sd

    unet = {key: weight for key, weight in artifact.lora.items() if key.startswith("lora_unet_")}
    text = {key: weight for key, weight in artifact.lora.items() if key.startswith("lora_te_")}
    on_model = is_attached(unet, model, comfy.lora.model_lora_keys_unet(model.model, {}))
    on_clip = is_attached(text, clip.patcher, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}))
    wanted = ({} if on_model else unet) | ({} if on_clip else text)
    model, clip = comfy.sd.load_lora_for_models(model, clip, wanted, strength_model, strength_clip)
    words = {token.placeholder: token.vectors for token in artifact.tokens}
    clip.tokenizer = LearnedTokenizer(clip.tokenizer, words)
    return model, clip, on_model


def is_attached(lora: dict[str, torch.Tensor], patcher: Any, key_map: dict[str, Any]) -> bool:
    """Whether these very weights are among the patcher's. Raises MagiCaptureError when it has none of the layers."""
    import comfy.lora

    wanted = comfy.lora.load_lora(lora, key_map, log_missing=False)
    if not wanted:
        if lora:
            raise MagiCaptureError("model, clip: none of the LoRA's layers is in them; connect those of SD1.5")
        return False
    key, adapter = next(iter(wanted.items()))
    return any(_same(adapter, patch[1]) for patch in patcher.patches.get(key, ()))


def _same(ours: Any, theirs: Any) -> bool:
    pairs = zip(ours.weights[:2], getattr(theirs, "weights", (None, None))[:2], strict=True)
    return all(
        isinstance(b, torch.Tensor) and a.shape == b.shape and torch.equal(a.cpu(), b.cpu().to(a.dtype))
        for a, b in pairs
    )


def _by_age() -> Iterator[Path]:
    """LoRA files, the youngest first."""
    paths = [Path(folder_paths.get_full_path_or_raise("loras", name)) for name in choices()[1:]]
    yield from sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
