"""LoadMagiCaptureLoRA: a trained file back onto MODEL and CLIP, its learned words usable in any prompt."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import patching
from .bounds import within_bounds
from .sockets import ArtifactType, checkpoint_inputs, schema, strength_input

SAME_FILE = "the same file"


class LoadMagiCaptureLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load MagiCapture LoRA",
            node_id="LoadMagiCaptureLoRA",
            description="Puts a trained LoRA on MODEL and CLIP and teaches the CLIP its words: then <subject> and "
            "<style> can be written in any prompt node.",
            inputs=[
                *checkpoint_inputs(model="An SD1.5 model.", clip="The CLIP of the same checkpoint."),
                io.Combo.Input(
                    "lora_name",
                    options=patching.LORAS.choices(),
                    tooltip="A file made by Train MagiCapture LoRA; newest = the last one trained.",
                ),
                strength_input(
                    "strength_model", "How strongly the LoRA acts on the model. Below 1: closer to the base model."
                ),
                strength_input(
                    "strength_clip",
                    "How strongly the LoRA's text part acts, where it has one. The learned words always count.",
                ),
                strength_input(
                    "strength_subject",
                    "How strongly the person's half of the LoRA acts, all people's where it has several. Other "
                    "than 1 needs a LoRA of split adapters.",
                    optional=True,
                ),
                strength_input(
                    "strength_style",
                    "How strongly the style's half of the LoRA acts, all styles' where it has several. Other "
                    "than 1 needs a LoRA of split adapters.",
                    optional=True,
                ),
                io.Combo.Input(
                    "style_lora_name",
                    options=[SAME_FILE, *patching.LORAS.choices()],
                    default=SAME_FILE,
                    optional=True,
                    tooltip="Take the style, its word and its half of the LoRA, from another file: the person of the "
                    "one in the style of the other. Both must be of split adapters.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the LoRA attached."),
                io.Clip.Output(display_name="clip", tooltip="The CLIP that knows the learned words."),
                ArtifactType.Output(
                    display_name="artifact", tooltip="Words, LoRA and settings together, for the pack's own nodes."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, style_lora_name: str = SAME_FILE, **others: Any) -> list[Any]:
        names = [name for name in (lora_name, style_lora_name) if name != SAME_FILE]
        return [patching.LORAS.fingerprint(name) for name in names]

    @classmethod
    @within_bounds
    def execute(
        cls,
        model: Any,
        clip: Any,
        lora_name: str,
        strength_model: float,
        strength_clip: float,
        strength_subject: float = 1.0,
        strength_style: float = 1.0,
        style_lora_name: str = SAME_FILE,
    ) -> io.NodeOutput:
        from ..magicapture_core import halves

        artifact = patching.load(lora_name)
        if style_lora_name != SAME_FILE:
            other = patching.load(style_lora_name)
            artifact = halves.mix(artifact, other, f"{artifact.name}_in_{other.name}")
        artifact = halves.scaled(artifact, {"subject": strength_subject, "style": strength_style})
        model, clip, _ = patching.attach(artifact, model, clip, strength_model, strength_clip)
        return io.NodeOutput(model, clip, artifact)


NODES = [LoadMagiCaptureLoRA]
