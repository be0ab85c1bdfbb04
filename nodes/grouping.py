"""A group on MODEL: ComfyUI's side of the core's mask-guided cross-attention.

Each person's text is encoded by a CLIP of their own, which knows only their words. Around every call of the UNet the
core's hooks confine text and LoRA to the person's region: whatever other packs do to MODEL goes on in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..magicapture_core.diffusion import NUM_TIMESTEPS
from ..magicapture_core.kohya import UNET, read_layers
from ..magicapture_core.types import LoraLayer, MagiCaptureError
from .patching import attach_new, check_sd1
from .sampling import encode
from .staging import KEY as STAGES
from .staging import StagedPrompt, apply_identity

if TYPE_CHECKING:
    from ..magicapture_core.artifact import Artifact
    from ..magicapture_core.group.attention import Branch
    from ..magicapture_core.group.people import Person

KEY = "magicapture_group"


def apply_group(people: Sequence[Person], model: Any, clip: Any, prompt: str, negative: str) -> Any:
    """A clone of MODEL in whose pictures the people stand in their regions, whatever samples them.

    prompt: of the whole picture, behind each person's own. Raises MagiCaptureError for models that are not SD1.5's, for
    a LoRA that MODEL or CLIP had before, and for a name in what is said of the whole picture.
    """
    from comfy.patcher_extension import WrappersMP

    from ..magicapture_core.group.people import check_base

    check_sd1(model, clip)
    check_base(prompt, negative)
    members = [join(person, model, clip, prompt, negative) for person in people]
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, partial(in_regions, members))
    return model


class Text(NamedTuple):
    """conditioning: [1,T,C]. staged: where the text holds an identity's word."""

    conditioning: Tensor
    staged: StagedPrompt | None

    @classmethod
    def of(cls, clip: Any, text: str) -> Text:
        conditioning, more = encode(clip, text)[0]
        return cls(conditioning, more.get(STAGES))

    def at(self, timestep: int) -> list[Tensor]:
        """What keys and values see, [1,T,C] each."""
        if self.staged is None:
            return [self.conditioning] * 2
        return self.staged.at(timestep, self.conditioning)


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """A person whose texts are encoded. layers: their LoRA, by MODEL's own layers, where MODEL is loaded."""

    person: Person
    positive: Text
    negative: Text
    layers: Mapping[nn.Module, LoraLayer]

    def branch(self, timestep: int, is_negative: Sequence[int], rows: int) -> Branch:
        """For a batch of so many rows for each prompt, negative or not."""
        from ..magicapture_core.group.attention import Branch

        texts = [(self.negative if negative else self.positive).at(timestep) for negative in is_negative]
        keys, values = (stacked(side, rows) for side in zip(*texts, strict=True))
        return Branch(mask=self.person.region, keys=keys, values=values, layers=self.layers)


def stacked(texts: Sequence[Tensor], rows: int) -> Tensor:
    """[1,T_i,C] of prompts -> [rows * prompts, T, C]; shorter ones are repeated, which attention does not notice."""
    length = math.lcm(*(text.shape[1] for text in texts))
    return torch.cat([text.repeat(rows, length // text.shape[1], 1) for text in texts])


def join(person: Person, model: Any, clip: Any, prompt: str, negative: str) -> Member:
    layers: dict[nn.Module, LoraLayer] = {}
    if person.artifact is not None:
        _, clip = attach_new(person.artifact, model, clip)
        layers = find_layers(person.artifact, model)
    for identity in person.identities:
        _, clip = apply_identity(identity, model, clip)
    text = person.text(prompt)
    return Member(person=person, positive=Text.of(clip, text), negative=Text.of(clip, negative), layers=layers)


def find_layers(artifact: Artifact, model: Any) -> dict[nn.Module, LoraLayer]:
    """The UNet's part of its LoRA, by the layers of MODEL; those that MODEL lacks act as little as with stock loaders.

    Raises MagiCaptureError for one that has another size there.
    """
    import comfy.lora

    paths = comfy.lora.model_lora_keys_unet(model.model, {})
    layers = read_layers({key: value for key, value in artifact.lora.items() if key.startswith(f"{UNET}_")})
    found = {}
    for name, layer in layers.items():
        if name not in paths:
            continue
        module = model.model.get_submodule(paths[name].removesuffix(".weight"))
        size, wanted = (layer.up.shape[0], layer.down.shape[1]), (module.out_features, module.in_features)
        if size != wanted:
            raise MagiCaptureError(
                f"artifact: {artifact.name} is for another model, its layer {name} for a weight of {size}, which is "
                f"{wanted} here; connect a MODEL like the one it was trained on"
            )
        found[module] = layer.to(model.load_device)
    return found


def in_regions(
    members: Sequence[Member],
    executor: Callable[..., Tensor],
    x: Tensor,
    timesteps: Tensor,
    context: Tensor,
    y: Any,
    control: Any,
    transformer_options: dict[str, Any],
    **kwargs: Any,
) -> Tensor:
    """Around one call of the UNet."""
    from ..magicapture_core.group.attention import acting

    is_negative = transformer_options["cond_or_uncond"]
    timestep = int(timesteps.max().clamp(0, NUM_TIMESTEPS - 1))
    branches = [member.branch(timestep, is_negative, len(x) // len(is_negative)) for member in members]
    with acting(executor.class_obj, branches):
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)
