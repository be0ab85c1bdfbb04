"""ControlNets for the clone phase of the training: their sockets, and ComfyUI's objects as the core has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..magicapture_core.types import MagiCaptureError
from .controls import check_prompt_width
from .portraits import face_detector
from .weights import plain_weights

if TYPE_CHECKING:
    from ..magicapture_core.collages import Controls
    from ..magicapture_core.config import TrainConfig
    from ..magicapture_core.dataset import Mode
    from ..magicapture_core.landmark_maps import Style
    from ..magicapture_core.types import Photos


def collage_inputs() -> list[Any]:
    """The sockets `skeleton_control_net` and `landmark_control_net`, and the widget `landmark_style`."""
    return [
        io.ControlNet.Input(
            "skeleton_control_net",
            optional=True,
            tooltip="From Load ControlNet Model, OpenPose for SD1.5: the collages of the settings' clone_steps take "
            "turns, under the head's skeleton, under landmarks, and without. It stays as it is.",
        ),
        io.ControlNet.Input(
            "landmark_control_net",
            optional=True,
            tooltip="From Load ControlNet Model, MediaPipe face or OpenPose for SD1.5: the same for the face's "
            "landmarks. One of the two is enough.",
        ),
        io.Combo.Input(
            "landmark_style",
            options=["openpose", "mediapipe"],
            default="openpose",
            optional=True,
            tooltip="How the landmarks are drawn: as landmark_control_net was trained on them.",
        ),
    ]


def read_controls(
    given: Mapping[Mode, Any], style: Style, unet: Any, photos: Photos, config: TrainConfig
) -> tuple[Controls, list[str]]:
    """CONTROL_NETs or None by mode -> what the collages are conditioned on, and notes on those that nothing uses.

    Raises MagiCaptureError for ControlNets that are not SD1.5's, and for photos without a face.
    """
    from ..magicapture_core.collage_controls import controls_of

    connected: dict[Mode, Any] = {mode: net for mode, net in given.items() if net is not None}
    if connected and (config.kind == "object" or not config.clone_steps):
        why = "the settings' kind is object" if config.kind == "object" else "the settings' clone_steps is 0"
        return {}, [f"{mode}_control_net is not used: {why}" for mode in connected]
    if not connected:
        return {}, []
    nets: dict[Mode, Any] = {mode: plain_net(f"{mode}_control_net", net, unet) for mode, net in connected.items()}
    return controls_of(nets, style, photos, face_detector()), []


def plain_net(name: str, control_net: Any, unet: Any) -> Any:
    """diffusers' ControlNetModel with copies of a CONTROL_NET's weights, in fp32 on the CPU. name: of the socket."""
    from ..magicapture_core.collage_controls import REMEDY, controlnet

    patcher = getattr(control_net, "control_model_wrapped", None)
    if patcher is None:
        raise MagiCaptureError(
            f"{name}: a {type(control_net).__name__} has no weights of its own to train by; {REMEDY}"
        )
    check_prompt_width(name, control_net)
    return controlnet(name, plain_weights(patcher), unet)
