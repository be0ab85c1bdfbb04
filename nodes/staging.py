"""An identity on CLIP and MODEL: a word that is another at each stage of the noise, and one for keys, one for values.

The CLIP encodes a prompt that holds the word in all its variants at once. What it gives is the prompt with the plain
word, which every sampler, ControlNet and node of others understands; the variants travel beside it in the conditioning.
The MODEL looks for them: at each call of the sampler the noise level says the stage, keys get one context of it and
values the other. Whatever does not hold the word goes through both as if they were not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..magicapture_core.config import PLACEHOLDER_PATTERN
from ..magicapture_core.diffusion import NUM_TIMESTEPS
from ..magicapture_core.tokens import stage_of
from ..magicapture_core.types import MagiCaptureError
from .patching import check_architecture, check_sd1, check_word
from .prompting import LearnedTokenizer

if TYPE_CHECKING:
    from ..magicapture_core.sefi.identity import SefiIdentity

KEY = "magicapture_stages"  # of the wrappers, and of the variants in a conditioning
VALUES = "magicapture_values"  # of the values' context, on its way to the UNet


def apply_identity(identity: SefiIdentity, model: Any, clip: Any, word: str = "") -> tuple[Any, Any]:
    """Clones of MODEL and CLIP that know the identity by `word`, or by its own where that is empty.

    A MODEL or CLIP that knows identities already gets this one beside them. Raises MagiCaptureError for models that are
    not SD1.5's, and for a word that is none or is taken.
    """
    from comfy.patcher_extension import WrappersMP

    check_architecture(identity)
    check_sd1(model, clip)
    word = word.strip() or identity.placeholder
    if not re.match(PLACEHOLDER_PATTERN, word):
        raise MagiCaptureError(f"word: {word!r} is not written like <person>: letters and digits in angle brackets")
    check_word(clip, word, identity.plain, f"give {identity.name} a word of its own")
    row = identity.plain[0]
    model = model.clone()
    wrappers = {
        WrappersMP.OUTER_SAMPLE: check_prompts,
        WrappersMP.CALC_COND_BATCH: switch_stage,
        WrappersMP.DIFFUSION_MODEL: feed_values,
    }
    for kind, wrapper in wrappers.items():
        model.remove_wrappers_with_key(kind, KEY)
        model.add_wrapper_with_key(kind, KEY, wrapper)
    clip = clip.clone()
    clip.cond_stage_model = StagedEncoder(clip.cond_stage_model, StagedWord(word, row, identity.stages))
    clip.tokenizer = LearnedTokenizer(clip.tokenizer, {word: [row]})
    return model, clip


@dataclass(frozen=True, eq=False)
class StagedWord:
    """row: [C], the plain word, this very tensor being its token. stages: [S,2,C], for keys and for values."""

    word: str
    row: Tensor
    stages: Tensor


# -- CLIP --------------------------------------------------------------------------------------------------------------


class StagedEncoder:
    """ComfyUI's text encoders that also know staged words; everything else is the wrapped ones'."""

    def __init__(self, encoder: Any, word: StagedWord) -> None:
        """Wrapping again adds to what is known, the newest of a name wins."""
        known = isinstance(encoder, StagedEncoder)
        self.wrapped = encoder.wrapped if known else encoder
        self.words: dict[str, StagedWord] = {**(encoder.words if known else {}), word.word: word}

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped":  # asked for by copy and pickle before __init__ has run
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def encode_token_weights(self, tokens: dict[str, Any]) -> tuple[Any, ...]:
        """Chunks of 77 -> conditioning [1,T,C] with the plain words, pooled output, and where there are staged words
        the prompt's variants, which ComfyUI puts into the conditioning's dictionary."""
        entries = [entry[0] for chunk in tokens["l"] for entry in chunk]
        present = [word for word in self.words.values() if any(entry is word.row for entry in entries)]
        if not present:
            return self.wrapped.encode_token_weights(tokens)
        moments = stages_met([len(word.stages) for word in present])
        variants = [
            {id(word.row): word.stages[stage, role] for word, stage in zip(present, moment, strict=True)}
            for moment in moments
            for role in (0, 1)
        ]
        chunks = [
            [(variant.get(id(entry), entry), *weight) for entry, *weight in chunk]
            for variant in ({}, *variants)
            for chunk in tokens["l"]
        ]
        conditioning, pooled, *_ = self.wrapped.encode_token_weights({**tokens, "l": chunks})
        plain, *contexts = conditioning[0].chunk(1 + len(variants))
        pairs = [torch.stack(pair) for pair in zip(contexts[::2], contexts[1::2], strict=True)]
        prompt = StagedPrompt(present, plain[None], dict(zip(moments, pairs, strict=True)))
        return plain[None], pooled, {KEY: prompt}


def stages_met(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """The stages of words of so many that come together, from the least noise on: of 1 and 2, (0,0) and (0,1)."""
    return sorted({tuple(stage_of(timestep, size) for size in sizes) for timestep in range(NUM_TIMESTEPS)})


# -- MODEL -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class StagedPrompt:
    """plain: [1,T,C] with the plain words. contexts: the stage of each of the words -> [2,T,C], of keys and values."""

    words: Sequence[StagedWord]
    plain: Tensor
    contexts: dict[tuple[int, ...], Tensor]

    def begins(self, conditioning: Tensor) -> bool:
        """Whether a conditioning [B,T',C] is this prompt, with or without more behind it by Conditioning Concat."""
        plain = self.plain.to(conditioning).expand(len(conditioning), -1, -1)
        return torch.equal(conditioning[:, : self.plain.shape[1]], plain)

    def at(self, timestep: int, conditioning: Tensor) -> list[Tensor]:
        """What keys and what values see in the place of `conditioning`, which this prompt begins: [B,T',C] each."""
        rest = conditioning[:, self.plain.shape[1] :]
        pair = self.contexts[tuple(stage_of(timestep, len(word.stages)) for word in self.words)]
        return [torch.cat([context.to(rest).expand(len(rest), -1, -1), rest], 1) for context in pair]


def check_prompts(executor: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Around a whole sampling: raises MagiCaptureError where a prompt has been changed since the CLIP encoded it.

    One that Conditioning Zero Out has emptied holds no words any more, and is taken as it is.
    """
    for cond in (cond for group in executor.class_obj.conds.values() for cond in group if KEY in cond):
        prompt, conditioning = cond[KEY], cond["cross_attn"]
        if conditioning.any() and not prompt.begins(conditioning):
            words = ", ".join(word.word for word in prompt.words)
            raise MagiCaptureError(
                f"positive, negative: a node has mixed the prompt that holds {words} with another, and its stages "
                "cannot follow; take Conditioning (Average) out, and join prompts by Conditioning (Combine) or (Concat)"
            )
    return executor(*args, **kwargs)


def switch_stage(
    executor: Callable[..., Any], model: Any, conds: Sequence[Any], x: Tensor, sigma: Tensor, options: Any
) -> Any:
    """Around one step's prediction, of all prompts: those that hold staged words get the noise level's contexts.

    They are known by what they are, not by where they are: where one of positive and negative has an area, ComfyUI puts
    the other's conditioning into a copy of its dictionary.
    """
    prompts = {cond[KEY] for group in conds for cond in group or () if KEY in cond}
    if prompts:
        timestep = int(model.model_sampling.timestep(sigma.max()).clamp(0, NUM_TIMESTEPS - 1))
        conds = [group and [at_stage(cond, prompts, timestep) for cond in group] for group in conds]
    return executor(model, conds, x, sigma, options)


def at_stage(cond: dict[str, Any], prompts: Iterable[StagedPrompt], timestep: int) -> dict[str, Any]:
    """A copy whose context is the keys', with the values' beside it.

    One that is none of the prompts has its own as both, for only conditionings of the same parts run in one batch. A
    ControlNet, whose layers know of no split, goes on seeing the plain words.
    """
    from comfy.conds import CONDCrossAttn

    plain = cond["model_conds"]["c_crossattn"]
    known = [prompt for prompt in prompts if prompt.begins(plain.cond)]
    prompt = max(known, key=lambda prompt: prompt.plain.shape[1], default=None)  # one may be another's first chunk
    keys, values = map(CONDCrossAttn, prompt.at(timestep, plain.cond)) if prompt else (plain, plain)
    parts = {**cond["model_conds"], "c_crossattn": keys, VALUES: values}
    if "control" in cond:
        parts.setdefault("crossattn_controlnet", plain)
    return {**cond, "model_conds": parts}


def feed_values(
    executor: Callable[..., Tensor],
    x: Tensor,
    timesteps: Tensor,
    context: Tensor,
    y: Any,
    control: Any,
    transformer_options: dict[str, Any],
    **kwargs: Any,
) -> Tensor:
    """Around one call of the UNet: the values of its cross-attentions see their own context, [B,T,C] as `context`.

    First of the patches, so that those of others meet keys and values as the layer will.
    """
    values = kwargs.pop(VALUES, None)
    if values is not None:
        patches = transformer_options.get("patches", {})
        attn2 = [lambda query, keys, _values, _extra: (query, keys, values), *patches.get("attn2_patch", ())]
        transformer_options = {**transformer_options, "patches": {**patches, "attn2_patch": attn2}}
    return executor(x, timesteps, context, y, control, transformer_options, **kwargs)
