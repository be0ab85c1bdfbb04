"""LoadObjectFeatures: what a pet or a thing looks like, by DINO's weights of the user's."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..magicapture_core.types import MagiCaptureError
from .folders import DINO, OBJECT_FEATURES, other_models
from .sockets import ObjectFeaturesType, schema

BEST_KNOWN = "dino_deitsmall16_pretrain.pth"
NO_FILE = f"(put {BEST_KNOWN} into models/{DINO})"


class LoadObjectFeatures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load Object Features",
            node_id="MagiCaptureLoadObjectFeatures",
            description="Loads a vision transformer of DINO, which sees what a pet or a thing looks like, for Train "
            "MagiCapture LoRA with kind object. Nothing in the file is run.",
            search_aliases=["DINO", "object", "pet", "ViT"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=feature_files() or [NO_FILE],
                    tooltip=f"A .pth, .pt, .bin or .safetensors file in models/{DINO}. Nothing is downloaded: put the "
                    f"file there and press R. {BEST_KNOWN} is the one that the method was made with.",
                )
            ],
            outputs=[
                ObjectFeaturesType.Output(
                    display_name="OBJECT_FEATURES",
                    tooltip="The loaded network. Connect to Train MagiCapture LoRA.",
                )
            ],
        )

    @classmethod
    def execute(cls, model_name: str) -> io.NodeOutput:
        from ..magicapture_core.dino import load_dino

        if model_name == NO_FILE:
            raise MagiCaptureError(f"model_name: no DINO found; put {BEST_KNOWN} into {other_models(DINO)[0]}")
        with torch.inference_mode(False):  # a training wants gradients through it
            return io.NodeOutput(load_dino(Path(folder_paths.get_full_path_or_raise(OBJECT_FEATURES, model_name))))


def feature_files() -> list[str]:
    """What may be loaded, the best known first."""
    from ..magicapture_core.dino import SUFFIXES

    names = [name for name in folder_paths.get_filename_list(OBJECT_FEATURES) if Path(name).suffix.lower() in SUFFIXES]
    return sorted(names, key=lambda name: (Path(name).name != BEST_KNOWN, name))


NODES = [LoadObjectFeatures]
