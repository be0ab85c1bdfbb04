"""ComposedPromptSampler: that person in that style, several candidates through ComfyUI's own samplers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.prompts import COMPOSED_PROMPT, fill_prompt
from ..magicapture_core.types import MagiCaptureError
from . import patching
from .sockets import MAX_INT, ArtifactType, checkpoint_inputs, schema, show, strength_input, text_input

if TYPE_CHECKING:
    from ..magicapture_core.artifact import Artifact


class ComposedPromptSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        import comfy.samplers

        return schema(
            "Composed Prompt Sampler",
            node_id="MagiCaptureComposedPromptSampler",
            description="Makes portraits of the learned person in the learned style. Puts the LoRA on MODEL itself, "
            "unless it is there already.",
            inputs=[
                *checkpoint_inputs(
                    model="An SD1.5 model, with or without this LoRA on it.",
                    clip="The CLIP of the same checkpoint.",
                    vae="Turns latents into pictures.",
                ),
                io.Combo.Input(
                    "lora_name",
                    options=patching.choices(),
                    tooltip="A file made by Train MagiCapture LoRA; newest = the last one trained. Counts only while "
                    "no artifact is connected.",
                ),
                text_input(
                    "prompt",
                    COMPOSED_PROMPT,
                    "{subject} and {style} stand for the learned words, {subject_2} and so on for those of further "
                    "people and styles. Add to the sentence, for example: , wearing sunglasses. Weights such as "
                    "({style}:0.8) work.",
                ),
                text_input("negative", "", "What the pictures should not show."),
                strength_input("strength_model", "How strongly the LoRA acts on the model. Try 0.6, 0.8 and 1."),
                strength_input("strength_clip", "How strongly the LoRA's text part acts, where it has one."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_INT,
                    control_after_generate=True,
                    tooltip="The first picture's seed; the next pictures use the next numbers.",
                ),
                io.Int.Input("steps", default=30, min=1, max=1000, tooltip="Sampling steps of each picture."),
                io.Float.Input(
                    "cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="How closely to follow the prompt."
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="dpmpp_2m",
                    tooltip="ComfyUI's sampling method.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="karras",
                    tooltip="How the noise falls from step to step.",
                ),
                io.Int.Input("width", default=512, min=64, max=2048, step=8, tooltip="Width in pixels."),
                io.Int.Input("height", default=512, min=64, max=2048, step=8, tooltip="Height in pixels."),
                io.Int.Input("count", default=4, min=1, max=64, tooltip="How many pictures to make."),
                ArtifactType.Input(
                    "artifact",
                    optional=True,
                    tooltip="From Train or Load MagiCapture LoRA. Takes the place of the file chosen above.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The pictures, one batch."),
                io.Latent.Output(display_name="latents", tooltip="The same as latents, for a second pass."),
                io.String.Output(display_name="scores", tooltip="The seed of each picture."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **others: Any) -> list[Any]:
        """The file of the widget; it is not looked for while an artifact may be connected instead."""
        try:
            return patching.fingerprint(lora_name)
        except (MagiCaptureError, OSError):
            return []

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        lora_name: str,
        prompt: str,
        negative: str,
        strength_model: float,
        strength_clip: float,
        artifact: Artifact | None = None,
        **sampling: Any,
    ) -> io.NodeOutput:
        learned = patching.check_architecture(artifact) if artifact else patching.load(lora_name)
        model, clip, attached = patching.attach(learned, model, clip, strength_model, strength_clip)
        prompts = [fill_prompt(text, learned) for text in (prompt, negative)]
        positive, negatives = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in prompts)
        latents = sample_each(model, positive, negatives, **sampling)
        images = vae.decode(latents)
        report = [
            f"{learned.name}: {prompts[0]}",
            *([f"{learned.name} was on MODEL already and is not applied twice"] if attached else []),
            *(f"picture {i + 1}: seed {sampling['seed'] + i}" for i in range(len(images))),
        ]
        return io.NodeOutput(images, {"samples": latents}, "\n".join(report), ui=show("\n".join(report)))


def sample_each(
    model: Any,
    positive: Any,
    negative: Any,
    *,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    width: int,
    height: int,
    count: int,
) -> Tensor:
    """Latents [count,4,h,w]. One picture at a time, so that picture i is that of seed + i alone, on any card."""
    import comfy.model_management
    import comfy.sample
    import comfy.utils
    import latent_preview

    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    bar = comfy.utils.ProgressBar(count * steps)
    empty = torch.zeros(1, 4, height // 8, width // 8, device=comfy.model_management.intermediate_device())
    latents = []
    for number in range(count):

        def callback(step: int, x0: Tensor, x: Tensor, total: int, done: int = number * steps) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            preview = previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None
            bar.update_absolute(done + step + 1, count * steps, preview)

        latents.append(
            comfy.sample.sample(
                model,
                comfy.sample.prepare_noise(empty, seed + number),
                steps,
                cfg,
                sampler_name,
                scheduler,
                positive,
                negative,
                empty,
                denoise=1.0,
                callback=callback,
                disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
                seed=seed + number,
            )
        )
    return torch.cat(latents)


NODES = [ComposedPromptSampler]
