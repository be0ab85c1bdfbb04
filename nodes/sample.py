"""ComposedPromptSampler: that person in that style, several candidates through ComfyUI's own samplers."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from . import patching
from .bounds import within_bounds
from .sampling import sample, seeds_from
from .scene import in_words, open_scene, optional_sockets, required_sockets
from .sockets import schema, show, single, to_comfy, to_core


class ComposedPromptSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Composed Prompt Sampler",
            node_id="MagiCaptureComposedPromptSampler",
            description="Makes portraits of the learned person in the learned style. Puts the LoRA on MODEL itself, "
            "unless it is there already.",
            is_input_list=True,
            inputs=[
                *required_sockets("The first picture's seed; the next pictures use the next numbers."),
                io.Int.Input("count", default=4, min=1, max=64, tooltip="How many pictures to make."),
                *optional_sockets(),
                io.Boolean.Input(
                    "show_scores",
                    default=False,
                    optional=True,
                    tooltip="Writes place, likeness and seed on the pictures. The latents stay clean.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    tooltip="The pictures, one batch; the most alike first where likeness is measured.",
                ),
                io.Latent.Output(
                    display_name="latents", tooltip="The same as latents in the same order, for a second pass."
                ),
                io.String.Output(display_name="scores", tooltip="The seed of each picture, and its likeness."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: list[str], **others: Any) -> list[Any]:
        return patching.fingerprint_if_there(lora_name[0])

    @classmethod
    @within_bounds
    def execute(cls, **lists: Any) -> io.NodeOutput:
        return cls.compose(**single(lists))

    @classmethod
    def compose(cls, *, vae: Any, seed: int, count: int, show_scores: bool = False, **inputs: Any) -> io.NodeOutput:
        from ..magicapture_core.likeness import ranked

        scene = open_scene(**inputs)
        take = scene.take(scene.strengths)
        seeds = seeds_from(seed, count)
        latents = sample([(take.shot, each) for each in seeds], scene.settings, scene.size)
        images = vae.decode(latents)
        scores = scene.judge(images) if scene.judge else []
        order = ranked(scores) if scores else [*range(count)]
        lines = [", ".join([f"seed {seeds[place]}", *map(in_words, scores[place : place + 1])]) for place in order]
        report = [*scene.report(take), *(f"picture {rank}: {line}" for rank, line in enumerate(lines, 1))]
        images, latents = images[order], latents[order]
        if show_scores:
            images = labelled(images, [f"{rank}: {line}" for rank, line in enumerate(lines, 1)])
        return io.NodeOutput(images, {"samples": latents}, "\n".join(report), ui=show("\n".join(report)))


def labelled(images: Tensor, texts: list[str]) -> Tensor:
    """IMAGE with a text on each of its pictures, in the size they have."""
    from ..magicapture_core.sheets import write_on

    return to_comfy(torch.stack([write_on(image, text) for image, text in zip(to_core(images), texts, strict=True)]))


NODES = [ComposedPromptSampler]
