"""LoadFaceRestorer and RestoreAndUpscale: faces through a restoration network, pictures through an upscaler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.types import MagiCaptureError
from .portraits import face_detector
from .sockets import masks_to_core, schema, show, to_comfy, to_core

FaceRestorerType = io.Custom("FACE_RESTORER")

KIND = "facerestore_models"  # the folder that other packs keep these files in as well
NO_FILE = f"(put GFPGANv1.4.pth into models/{KIND})"
TILE_MEMORY = 2 * 2**30  # bytes that a tile or a face of 512 pixels takes at most


class LoadFaceRestorer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load Face Restorer",
            node_id="MagiCaptureLoadFaceRestorer",
            description="Loads a face restoration model: GFPGAN 1.2 to 1.4, or RestoreFormer. CodeFormer loads too "
            "where the Python package spandrel_extra_arches is installed; it must not be used commercially.",
            search_aliases=["GFPGAN", "CodeFormer", "RestoreFormer", "face restore"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=restorer_files() or [NO_FILE],
                    tooltip=f"A .pth or .safetensors file in models/{KIND}. Nothing is downloaded: put the file there "
                    "and press R.",
                )
            ],
            outputs=[
                FaceRestorerType.Output(
                    display_name="FACE_RESTORER", tooltip="The loaded model. Connect to Restore and Upscale."
                )
            ],
        )

    @classmethod
    def execute(cls, model_name: str) -> io.NodeOutput:
        from ..magicapture_core.restore import load_restorer

        if model_name == NO_FILE:
            raise MagiCaptureError(f"model_name: no face restorer found; put GFPGANv1.4.pth into {restorer_folder()}")
        return io.NodeOutput(load_restorer(folder_paths.get_full_path_or_raise(KIND, model_name)))


class RestoreAndUpscale(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Restore and Upscale",
            node_id="MagiCaptureRestoreAndUpscale",
            description="Enlarges pictures and restores the faces in them. Faces are found, framed, restored at 512 "
            "pixels and blended back; nothing but the faces is touched by the restorer.",
            search_aliases=["face restore", "upscale", "GFPGAN", "ESRGAN", "face detailer"],
            inputs=[
                io.Image.Input("images", tooltip="The pictures to finish."),
                io.Float.Input(
                    "upscale_by",
                    default=2.0,
                    min=1.0,
                    max=8.0,
                    step=0.25,
                    tooltip="How much larger the result is, whatever the upscale model's own factor. 1 keeps the size.",
                ),
                io.Float.Input(
                    "fidelity",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="0 = cleanest face, 1 = closest to the face that was there. Only CodeFormer has this "
                    "choice; the report says when the value has no effect.",
                ),
                io.UpscaleModel.Input(
                    "upscale_model",
                    optional=True,
                    tooltip="From Load Upscale Model, such as Real-ESRGAN. Without it pictures grow by plain bicubic.",
                ),
                FaceRestorerType.Input(
                    "face_restorer",
                    optional=True,
                    tooltip="From Load Face Restorer. Without it faces stay as they are, and none is looked for.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where faces may be restored; one for all pictures, or one each. A black mask, "
                    "as stock loaders give for pictures without one, means everywhere.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The finished pictures."),
                io.String.Output(
                    display_name="report", tooltip="For each picture: the faces found, and what was done with them."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        upscale_by: float,
        fidelity: float,
        upscale_model: Any = None,
        face_restorer: Any = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        import torch

        from ..magicapture_core.restore import describe, restore_and_upscale

        pictures = to_core(images).cpu()
        regions = match_regions(mask, pictures)
        detector = face_detector() if face_restorer else None
        restorer = face_restorer.with_fidelity(fidelity) if face_restorer else None
        device = to_device(upscale_model, restorer and restorer.descriptor)
        finished, report = [], [header(restorer, upscale_model)]
        for number, (picture, region) in enumerate(zip(pictures, regions, strict=True), 1):
            faces = detector.detect(picture) if detector else []
            options = {"factor": upscale_by, "region": region, "device": device, "progress": watch()}
            finished.append(restore_and_upscale(picture, faces, restorer, upscale_model, **options))
            report.append(f"picture {number}: {describe(faces, restorer is not None, region)}")
        text = "\n".join(report)
        return io.NodeOutput(to_comfy(torch.stack(finished)), text, ui=show(text))


def restorer_files() -> list[str]:
    """What can be loaded; the folder is made known to ComfyUI, which has none of this kind itself."""
    folder_paths.add_model_folder_path(KIND, str(restorer_folder()))
    return [name for name in folder_paths.get_filename_list(KIND) if name.endswith((".pth", ".safetensors"))]


def restorer_folder() -> Path:
    return Path(folder_paths.models_dir, KIND)


def match_regions(mask: Tensor | None, pictures: Tensor) -> list[Tensor | None]:
    """MASK -> for each of the pictures [B,3,H,W] its region [1,H,W], None = everywhere."""
    from ..magicapture_core.images import resize

    if mask is None:
        return [None] * len(pictures)
    regions = masks_to_core(mask)
    if len(regions) not in (1, len(pictures)):
        raise MagiCaptureError(f"mask: {len(regions)} masks for {len(pictures)} images; connect one, or one for each")
    height, width = pictures.shape[-2:]
    fitted = [resize(region[None], (height, width))[0].clamp(0, 1) if region.any() else None for region in regions]
    return fitted * (len(pictures) // len(fitted))


def to_device(*descriptors: Any) -> Any:
    """Lets ComfyUI bring spandrel's models to its device, and make room for them there; returns that device.

    ComfyUI from 0.29 on keeps a `patcher` with each UPSCALE_MODEL for this; here every descriptor gets one.
    """
    from comfy import model_management
    from comfy.model_patcher import ModelPatcher

    device = model_management.get_torch_device()
    models = [descriptor for descriptor in descriptors if descriptor is not None]
    for model in models:
        if not hasattr(model, "patcher"):
            model.patcher = ModelPatcher(model.model, device, model_management.unet_offload_device())
    model_management.load_models_gpu([model.patcher for model in models], memory_required=TILE_MEMORY)
    return device


def watch() -> Any:
    """Moves the node's bar, and stops between two tiles or faces when Cancel was pressed."""
    from comfy import model_management, utils

    bar = utils.ProgressBar(1)

    def update(done: int, total: int) -> None:
        model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return update


def header(restorer: Any, upscale_model: Any) -> str:
    """Which models work here."""
    faces = "none" if restorer is None else restorer.architecture
    if restorer is not None and not restorer.has_fidelity:
        faces += " (fidelity has no effect on it)"
    upscaler = "bicubic" if upscale_model is None else f"{upscale_model.architecture.name} x{upscale_model.scale}"
    return f"face restorer: {faces}; upscaler: {upscaler}"


NODES = [LoadFaceRestorer, RestoreAndUpscale]
