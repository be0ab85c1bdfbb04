"""Pictures of a group: the walk of `sampler`, each step one pass of the UNet whatever the number of people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import kohya
from ..backbone import Backbone
from ..sampler import PromptEmbeds, taught, walk
from ..types import LoraLayer
from .attention import Branch, Regions, acting
from .people import Person, check_base, check_people

Predict = Callable[[int, Tensor, Tensor], Tensor]  # of `walk`


@torch.no_grad()
def generate_group(
    backbone: Backbone,
    people: Sequence[Person],
    prompt: str = "",
    *,
    negative_prompt: str = "",
    num_images: int = 1,
    num_steps: int = 30,
    layout: str = "",
    delay: float = 0.0,
    **options: Any,
) -> Tensor:
    """Pictures [B,3,H,W] in 0..1 of the people in their regions, and of what the prompt says everywhere else.

    The learned words of one are unknown to the others, so that two may have the same. The negative prompt holds
    everywhere. One person whose mask is full is what `sampler.generate` makes of `Person.text`. layout, delay: as
    `delayed` has them, the first steps as a share of all, 0..1. options: of `sampler.walk`. Raises MagiCaptureError for
    what `check_people` and `sampler.taught` refuse.
    """
    predict = delayed(
        backbone,
        group_predictor(backbone, people, prompt, negative_prompt),
        layout,
        round(delay * num_steps),
        negative_prompt=negative_prompt,
    )
    return walk(backbone, predict, num_images=num_images, num_steps=num_steps, **options)


def delayed(backbone: Backbone, predict: Predict, layout: str, num_first: int, *, negative_prompt: str = "") -> Predict:
    """The same but for the first steps, so many: these the prompt `layout` makes alone, which knows nobody and says how
    many there are and where.

    A LoRA of photos of one person alone draws one person, and how many there are is settled in the first steps; as
    FastComposer (arXiv 2305.10431) delays its subjects.
    """
    check_base(layout)
    with taught(backbone, None) as vocabulary:
        embeds = PromptEmbeds(backbone, vocabulary, [negative_prompt, layout])

    def predict_delayed(step: int, latents: Tensor, timestep: Tensor) -> Tensor:
        if step >= num_first:
            return predict(step, latents, timestep)
        rows = embeds.at(int(timestep)).repeat_interleave(len(latents) // 2, 0)
        return backbone.unet(latents, timestep, rows).sample

    return predict_delayed


def group_predictor(backbone: Backbone, people: Sequence[Person], prompt: str, negative_prompt: str = "") -> Predict:
    """One pass of the UNet as `walk` asks for it. Raises as `generate_group`."""
    unet = backbone.unet
    check_base(prompt, negative_prompt)
    with taught(backbone, None) as vocabulary:
        base = PromptEmbeds(backbone, vocabulary, [negative_prompt, prompt])
    texts = [_learned(backbone, person, negative_prompt, prompt) for person in check_people(people)]
    layers = [_layers(backbone, person) for person in people]
    regions = Regions([person.region for person in people])

    def predict(_step: int, latents: Tensor, timestep: Tensor) -> Tensor:
        def rows(embeds: PromptEmbeds) -> Tensor:
            return embeds.at(int(timestep)).repeat_interleave(len(latents) // 2, 0)

        branches = [_branch(rows(text), lora) for text, lora in zip(texts, layers, strict=True)]
        with acting(unet, regions, branches):
            return unet(latents, timestep, rows(base)).sample

    return predict


def _learned(backbone: Backbone, person: Person, negative_prompt: str, prompt: str) -> PromptEmbeds:
    """The negative prompt and the person's text, at every stage that their word has."""
    with taught(backbone, person.artifact, identities=person.identities) as vocabulary:
        return PromptEmbeds(backbone, vocabulary, [negative_prompt, person.text(prompt)]).everywhere()


def _layers(backbone: Backbone, person: Person) -> dict[nn.Module, LoraLayer]:
    """Their LoRA by the UNet's own layers, where these are."""
    if person.artifact is None:
        return {}
    found = kohya.from_kohya(person.artifact.lora, kohya.UNET, backbone.unet)
    return {backbone.unet.get_submodule(path): lora.to(backbone.unet.device) for path, lora in found.items()}


def _branch(embeds: Tensor, layers: Mapping[nn.Module, LoraLayer]) -> Branch:
    """embeds: [B,T,C], or [B,2,T,C] for keys and values apart."""
    keys, values = embeds.unbind(1) if embeds.ndim == 4 else (embeds, embeds)
    return Branch(keys=keys, values=values, layers=layers)
