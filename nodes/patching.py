"""An artifact on MODEL and CLIP: its LoRA attached once and only once, its words known to the CLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ..magicapture_core.kohya import TEXT_ENCODER, UNET
from ..magicapture_core.types import SD1, MagiCaptureError
from .folders import embeddings_folders
from .prompting import LearnedTokenizer
from .shelves import Shelf

if TYPE_CHECKING:
    from ..magicapture_core.artifact import Artifact
    from ..magicapture_core.sefi.identity import SefiIdentity

Made = TypeVar("Made", bound="Artifact | SefiIdentity")

LORAS = Shelf(
    "loras",
    "there is no MagiCapture LoRA in the loras folder yet: train one with the workflow MagiCapture 1 - Train LoRA, or "
    "copy a file there",
)

OTHER_LORA = (
    "two people go by Group Person and Group Portrait Sampler; otherwise load one LoRA alone, or train one of the two "
    "with another placeholder token"
)


def fingerprint_if_there(lora_name: str) -> list[Any]:
    """Of a LoRA, for a node that may have an artifact in the file's place, so that the file need not be there."""
    try:
        return LORAS.fingerprint(lora_name)
    except (MagiCaptureError, OSError):
        return []


def load(lora_name: str) -> Artifact:
    """The chosen file as an artifact for SD1.5."""
    from ..magicapture_core import artifact

    return check_architecture(artifact.load(LORAS.find(lora_name), embeddings_folders()))


def check_architecture(made: Made) -> Made:
    """The same. Raises MagiCaptureError for what was trained on another kind of model."""
    if made.architecture != SD1:
        raise MagiCaptureError(
            f"{made.name} was trained for {made.architecture}, not for SD1.5: train it on an SD1.5 checkpoint"
        )
    return made


def attach(artifact: Artifact, model: Any, clip: Any, strength_model: float, strength_clip: float) -> tuple:
    """-> clones of MODEL and CLIP with the LoRA on them and its words known, and which of both had it already.

    A part that is attached, whichever node did it and how strongly, is left as it is. Raises MagiCaptureError when
    MODEL or CLIP is not SD1.5's, or holds one half of the LoRA beside that of another, and when a word of the LoRA is
    another as an identity's, or as that of another LoRA.
    """
    import comfy.lora
    import comfy.sd

    check_sd1(model, clip)
    words = {token.placeholder: token.vectors for token in artifact.tokens}
    identities = getattr(clip.cond_stage_model, "words", {})  # words with stages, by Apply SeFi Identity
    parts = {
        "MODEL": (UNET, model, comfy.lora.model_lora_keys_unet(model.model, {})),
        "CLIP": (TEXT_ENCODER, clip.patcher, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})),
    }
    wanted, attached = {}, []
    for part, (prefix, patcher, key_map) in parts.items():
        lora = {key: weight for key, weight in artifact.lora.items() if key.startswith(f"{prefix}_")}
        if is_attached(lora, patcher, key_map):
            attached.append(part)
        else:
            wanted |= lora
    for word, rows in words.items():
        check_word(clip, word, rows, "give the identity a word of its own" if word in identities else OTHER_LORA)
    model, clip = comfy.sd.load_lora_for_models(model, clip, wanted, strength_model, strength_clip)
    clip.tokenizer = LearnedTokenizer(clip.tokenizer, words)
    return model, clip, attached


def attach_new(artifact: Artifact, model: Any, clip: Any) -> tuple[Any, Any]:
    """`attach` at full strength, for nodes that need the two without it as well: raises MagiCaptureError where one of
    them had it before."""
    made, taught, attached = attach(artifact, model, clip, 1.0, 1.0)
    if attached:
        raise MagiCaptureError(
            f"model, clip: {' and '.join(attached)} had the LoRA of {artifact.name} before; connect those without it, "
            "for this node puts it where it belongs"
        )
    return made, taught


def check_sd1(model: Any, clip: Any) -> None:
    """Raises MagiCaptureError unless both are of SD1.5, or of any model fine-tuned from it."""
    from ..magicapture_core.ldm import PROMPT_DIM

    width = model.model.model_config.unet_config.get("context_dim")
    if width != PROMPT_DIM:
        raise MagiCaptureError(
            f"model: it is not SD1.5 (its prompts are {width} wide, not {PROMPT_DIM}); load an SD1.5 checkpoint"
        )
    encoders = [*clip.tokenize("")]
    if encoders != ["l"]:
        raise MagiCaptureError(
            f"clip: it is not that of SD1.5 (its text encoders are {' and '.join(encoders)}, not l alone); take the "
            "CLIP of an SD1.5 checkpoint"
        )


def check_word(clip: Any, word: str, rows: torch.Tensor, remedy: str) -> None:
    """Raises MagiCaptureError where the CLIP knows the word, as rows that are not these [n,C]."""
    known = getattr(clip.tokenizer, "words", {}).get(word, rows)
    if len(known) != len(rows) or not all(map(torch.equal, known, rows)):
        raise MagiCaptureError(f"word: the CLIP knows another {word} already; {remedy}")


def is_attached(lora: dict[str, torch.Tensor], patcher: Any, key_map: dict[str, Any]) -> bool:
    """Whether these weights, scaled or not, are among the patcher's.

    `halves.scaled` leaves each layer's `down` as it is, and `halves.mix` stacks two: so its rows tell what is there.
    Raises MagiCaptureError when the patcher has none of the layers, or a LoRA that is these weights in part.
    """
    import comfy.lora

    wanted = comfy.lora.load_lora(lora, key_map, log_missing=False)
    if not wanted:
        if lora:
            raise MagiCaptureError("model, clip: none of the LoRA's layers is in them; connect those of SD1.5")
        return False
    key, adapter = next(iter(wanted.items()))
    ours = _down(adapter)
    present = [_down(patch[1]) for patch in patcher.patches.get(key, ())]
    present = [theirs for theirs in present if theirs.shape[1:] == ours.shape[1:]]
    if any(torch.equal(ours, theirs) for theirs in present):
        return True
    if any((ours[:, None] == theirs[None]).all(-1).any() for theirs in present):
        raise MagiCaptureError(
            "artifact, lora_name: MODEL or CLIP has the person or the style of this file already, beside those of "
            "another; connect the artifact of the node that put them there"
        )
    return False


def _down(adapter: Any) -> torch.Tensor:
    """[rank,in] of a LoRA's layer; nothing of any other kind of patch."""
    from comfy.weight_adapter import LoRAAdapter

    return adapter.weights[1].cpu().half().flatten(1) if isinstance(adapter, LoRAAdapter) else torch.zeros(0)
