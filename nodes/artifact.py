"""LoadMagiCaptureLoRA: a trained file back onto MODEL and CLIP, its learned words usable in any prompt."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import patching
from .sockets import ArtifactType, checkpoint_inputs, schema, strength_input


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
                    options=patching.choices(),
                    tooltip="A file made by Train MagiCapture LoRA; newest = the last one trained.",
                ),
                strength_input(
                    "strength_model", "How strongly the LoRA acts on the model. Below 1: closer to the base model."
                ),
                strength_input(
                    "strength_clip",
                    "How strongly the LoRA's text part acts, where it has one. The learned words always count.",
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
    def fingerprint_inputs(cls, lora_name: str, **others: Any) -> list[Any]:
        return patching.fingerprint(lora_name)

    @classmethod
    def execute(
        cls, model: Any, clip: Any, lora_name: str, strength_model: float, strength_clip: float
    ) -> io.NodeOutput:
        artifact = patching.load(lora_name)
        model, clip, _ = patching.attach(artifact, model, clip, strength_model, strength_clip)
        return io.NodeOutput(model, clip, artifact)


NODES = [LoadMagiCaptureLoRA]
