"""MagiCaptureSettings: every knob of the training as one socket."""

from __future__ import annotations

from typing import Any, Literal

from comfy_api.latest import io

from ..magicapture_core.config import Preset, TrainConfig, parse_config
from .bounds import within_bounds
from .sockets import SettingsType, schema, settings_sockets, settings_values

CUSTOM: Literal["custom"] = "custom"
OFFERED: tuple[Preset, ...] = ("quick", "standard", "paper")  # `tiny` is for a model that ComfyUI does not have
WIDGETS = {  # id -> folded away; saved workflows hold values by position, so new ones go to the end
    "inversion_num_steps": False,
    "tuning_num_steps": False,
    "accumulate": False,
    "resolution": False,
    "seed": False,
    "lora_rank": False,
    "lora_alpha": False,
    "lora_targets": False,
    "lora_text_encoder": False,
    "subject_initializer_token": False,
    "loss_attention_weight": False,
    "gradient_checkpointing": False,
    "batch_size": True,
    "dtype": True,
    "flip": True,
    "subject_placeholder_token": True,
    "subject_num_vectors": True,
    "style_placeholder_token": True,
    "style_initializer_token": True,
    "style_num_vectors": True,
    "inversion_token_learning_rate": True,
    "inversion_weight_decay": True,
    "tuning_lora_learning_rate": True,
    "tuning_token_learning_rate": True,
    "tuning_weight_decay": True,
    "tuning_tasks": True,
    "loss_attention_reduce": True,
    "loss_attention_downscale": True,
    "max_grad_norm": True,
    "loss_identity_weight": True,
    "loss_identity_max_timestep": True,
    "loss_identity_tasks": True,
    "lora_adapters": True,
    "loss_identity_target": True,
    "loss_identity_weighting": True,
    "loss_identity_min_cosine": True,
    "loss_min_snr_gamma": True,
    "loss_prior_weight": True,
    "inversion_pull_norm": True,
    "optimizer": True,
    "loss_identity_decoder": True,
    "kind": False,
    "loss_object_weight": True,
    "tuning_class_images": True,
    "clone_steps": True,
}
LATER = ("clone_steps",)


class MagiCaptureSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "MagiCapture Settings",
            node_id="MagiCaptureSettings",
            description="Settings of the training. Without this node the defaults hold.",
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=[CUSTOM, *OFFERED],
                    default=CUSTOM,
                    tooltip="custom: every widget counts as it stands. A preset replaces exactly three of them: "
                    + "; ".join(f"{name} = {_in_words(TrainConfig.preset(name))}" for name in OFFERED)
                    + ". All other widgets count in any case.",
                ),
                *settings_sockets(parse_config({}), WIDGETS, LATER),
            ],
            outputs=[SettingsType.Output(display_name="settings", tooltip="Connect to Train MagiCapture LoRA.")],
        )

    @classmethod
    @within_bounds
    def execute(cls, preset: Preset | Literal["custom"], **widgets: Any) -> io.NodeOutput:
        return io.NodeOutput(chosen_config(preset, widgets))


def chosen_config(preset: Preset | Literal["custom"], widgets: dict[str, Any]) -> TrainConfig:
    """The widgets' values, with the preset's three in their places unless it is `custom`."""
    values = settings_values(parse_config({}), widgets)
    if preset != CUSTOM:
        chosen = TrainConfig.preset(preset)
        values["inversion"]["num_steps"] = chosen.inversion.num_steps
        values["tuning"]["num_steps"] = chosen.tuning.num_steps
        values["accumulate"] = chosen.accumulate
    return parse_config(values)


def _in_words(config: TrainConfig) -> str:
    return (
        f"inversion num steps {config.inversion.num_steps}, tuning num steps {config.tuning.num_steps}, "
        f"accumulate {config.accumulate}"
    )


NODES = [MagiCaptureSettings]
