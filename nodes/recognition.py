"""LoadFaceRecognition and FaceSimilarity: whose face it is, by a recognition network of the user's."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.types import MagiCaptureError
from .folders import INSIGHTFACE, RECOGNISERS, other_models
from .masks import split
from .portraits import face_detector
from .sockets import FaceRecognitionType, schema, show

NO_FILE = f"(put w600k_r50.onnx or glintr100.onnx into models/{INSIGHTFACE})"
BEST_KNOWN = ("w600k_r50.onnx", "glintr100.onnx")


class LoadFaceRecognition(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load Face Recognition",
            node_id="MagiCaptureLoadFaceRecognition",
            description="Loads a face recognition network: w600k_r50.onnx of insightface's buffalo_l, glintr100.onnx "
            "of antelopev2, or an IResNet of arcface_torch. Nothing in the file is run.",
            search_aliases=["insightface", "ArcFace", "buffalo_l", "antelopev2", "identity"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=recogniser_files() or [NO_FILE],
                    tooltip=f"An .onnx, .pth, .pt or .safetensors file in models/{INSIGHTFACE} or "
                    f"models/{RECOGNISERS}. Nothing is downloaded: put the file there and press R. The usual weights "
                    "are for non-commercial research alone.",
                )
            ],
            outputs=[
                FaceRecognitionType.Output(
                    display_name="FACE_RECOGNITION",
                    tooltip="The loaded network. Connect to Train MagiCapture LoRA, Face Similarity or Restore "
                    "and Upscale.",
                )
            ],
        )

    @classmethod
    def execute(cls, model_name: str) -> io.NodeOutput:
        from ..magicapture_core.recognisers import load_recogniser

        if model_name == NO_FILE:
            raise MagiCaptureError(
                f"model_name: no face recogniser found; put w600k_r50.onnx into {other_models(INSIGHTFACE)[0]}"
            )
        with torch.inference_mode(False):  # a training wants gradients through it
            return io.NodeOutput(load_recogniser(Path(folder_paths.get_full_path_or_raise(RECOGNISERS, model_name))))


class FaceSimilarity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Face Similarity",
            node_id="MagiCaptureFaceSimilarity",
            description="Says how much the faces in some pictures are the face of others: the cosine of a recognition "
            "network's embeddings, 1 for the same picture, about 0 for strangers.",
            search_aliases=["CSIM", "likeness", "identity", "face compare"],
            is_input_list=True,
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="The pictures to judge, such as those of Composed Prompt Sampler: a list or a batch.",
                ),
                io.Image.Input(
                    "reference",
                    tooltip="Photos of the person, best some that no training has seen: a list or a batch.",
                ),
                FaceRecognitionType.Input("face_recognition", tooltip="From Load Face Recognition."),
            ],
            outputs=[
                io.Float.Output(
                    display_name="score", tooltip="The mean over the pictures; one without a face counts 0."
                ),
                io.String.Output(display_name="report", tooltip="The score of every picture."),
            ],
        )

    @classmethod
    def execute(cls, images: list[Tensor], reference: list[Tensor], face_recognition: list[Any]) -> io.NodeOutput:
        """Lists, as ComfyUI hands them over: Load Photos gives photos one by one, and all of them are the reference.

        On the CPU: a face takes about a tenth of a second there, and no memory of the graphics card.
        """
        from ..magicapture_core.likeness import similarity

        scores = similarity(face_recognition[0], face_detector(), split(images), split(reference))
        score = mean(value or 0.0 for value in scores)
        lines = [f"mean {score:.3f}"]
        for number, value in enumerate(scores, 1):
            lines.append(f"picture {number}: {'no face' if value is None else f'{value:.3f}'}")
        report = "\n".join(lines)
        return io.NodeOutput(score, report, ui=show(report))


def recogniser_files() -> list[str]:
    """What may be loaded, insightface's recognisers first."""
    from ..magicapture_core.recognisers import SUFFIXES

    names = [name for name in folder_paths.get_filename_list(RECOGNISERS) if Path(name).suffix.lower() in SUFFIXES]
    return sorted(names, key=lambda name: (Path(name).name not in BEST_KNOWN, name))


NODES = [LoadFaceRecognition, FaceSimilarity]
