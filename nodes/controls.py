"""A ControlNet on what a sampler is told: its sockets, and ComfyUI's own Apply ControlNet."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.types import MagiCaptureError


def control_sockets() -> list[Any]:
    return [
        io.ControlNet.Input(
            "control_net",
            optional=True,
            tooltip="From Load ControlNet Model, one for SD1.5. Needs a control_image. Acts as Apply ControlNet does.",
        ),
        io.Image.Input(
            "control_image",
            optional=True,
            tooltip="What the ControlNet reads: a pose, edges, depth. Of several pictures the first counts.",
        ),
        io.Float.Input(
            "control_strength",
            default=1.0,
            min=0.0,
            max=10.0,
            step=0.01,
            optional=True,
            tooltip="How strongly the ControlNet acts, where one is connected.",
        ),
    ]


def check_control(control_net: Any, image: Tensor | None, strength: float) -> tuple[Any, Tensor, float] | None:
    """None where nothing is connected. Raises MagiCaptureError for one socket without the other, and for SDXL's."""
    if control_net is None and image is None:
        return None
    if control_net is None or image is None:
        lacking = "control_net" if control_net is None else "control_image"
        raise MagiCaptureError(f"{lacking}: control_net and control_image go together; connect both, or neither")
    check_prompt_width("control_net", control_net)
    return control_net, image, strength


def check_prompt_width(name: str, control_net: Any) -> None:
    """Raises MagiCaptureError for SDXL's and others. name: of the socket."""
    from ..magicapture_core.ldm import PROMPT_DIM

    network = getattr(control_net, "control_model", None)
    weights = {} if network is None else network.state_dict()
    width = next((value.shape[1] for key, value in weights.items() if key.endswith("attn2.to_k.weight")), PROMPT_DIM)
    if width != PROMPT_DIM:
        raise MagiCaptureError(
            f"{name}: it is not for SD1.5 (its prompts are {width} wide, not {PROMPT_DIM}); take one for SD1.5"
        )


def with_control(positive: Any, negative: Any, control_net: Any, image: Tensor, strength: float) -> tuple[Any, Any]:
    """Both CONDITIONINGs behind ComfyUI's own Apply ControlNet, from the first step to the last."""
    from nodes import ControlNetApplyAdvanced  # pyright: ignore[reportAttributeAccessIssue] # ComfyUI's, not ours

    return ControlNetApplyAdvanced().apply_controlnet(positive, negative, control_net, image, strength, 0.0, 1.0)
