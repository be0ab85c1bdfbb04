"""LoadFaceRestorer and RestoreAndUpscale: faces through a restoration network, pictures through an upscaler."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.face_outcomes import MAX_LIKENESS_LOSS
from ..magicapture_core.types import MagiCaptureError
from .bounds import within_bounds
from .masks import split
from .portraits import face_detector
from .sockets import FaceRecognitionType, masks_to_core, schema, show, to_comfy, to_core

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
        from comfy import model_management
        from comfy.model_patcher import ModelPatcher

        from ..magicapture_core.restore import load_restorer

        if model_name == NO_FILE:
            raise MagiCaptureError(f"model_name: no face restorer found; put GFPGANv1.4.pth into {restorer_folder()}")
        restorer = load_restorer(folder_paths.get_full_path_or_raise(KIND, model_name))
        devices = model_management.get_torch_device(), model_management.unet_offload_device()
        restorer.descriptor.patcher = ModelPatcher(restorer.descriptor.model, *devices)
        return io.NodeOutput(restorer)


class RestoreAndUpscale(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Restore and Upscale",
            node_id="MagiCaptureRestoreAndUpscale",
            description="Enlarges pictures and restores the faces in them. Faces are found, framed, restored at 512 "
            "pixels and blended back; nothing but the faces is touched by the restorer. With a face recogniser "
            "and photos of the person, a face that is no longer theirs is put back as it was.",
            search_aliases=["face restore", "upscale", "GFPGAN", "ESRGAN", "face detailer", "likeness"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures to finish: a list, or a batch."),
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
                io.Int.Input(
                    "face_index",
                    default=-1,
                    optional=True,
                    min=-1,
                    max=99,
                    tooltip="Which face is restored, counted from 0 from the left; -1 restores all, and then of "
                    "several only the face most like the reference is compared with it.",
                ),
                io.Boolean.Input(
                    "match_colour",
                    default=True,
                    optional=True,
                    tooltip="A restored face takes the colours and the light of the face that it replaces: restorers "
                    "shift the skin. Off for old or faded pictures whose colours the restorer should mend.",
                ),
                io.Float.Input(
                    "max_likeness_loss",
                    default=MAX_LIKENESS_LOSS,
                    optional=True,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    tooltip="A restored face whose likeness to the reference fell by more than this is put back as it "
                    "was; 2 never does. Works with face recognition and reference connected.",
                ),
                FaceRecognitionType.Input(
                    "face_recognition",
                    optional=True,
                    tooltip="From Load Face Recognition, to compare the person's face before and after. Needs "
                    "reference.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="Photos of the person: a list or a batch. Needs face recognition.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip="The finished pictures: a list of those that came as a list, a batch of a batch.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="For each picture: the faces found, what was done with them, the person's likeness before "
                    "and after.",
                ),
                io.Float.Output(
                    display_name="likeness before",
                    tooltip="To the reference, of the person's enlarged face before it was restored: the mean over the "
                    "pictures in which it was compared; 0 where in none.",
                ),
                io.Float.Output(
                    display_name="likeness after",
                    tooltip="The same in the finished pictures, where a face that was put back counts as it was.",
                ),
            ],
        )

    @classmethod
    @within_bounds
    def execute(
        cls,
        images: list[Tensor],
        upscale_by: list[float],
        fidelity: list[float],
        upscale_model: Sequence[Any] = (None,),
        face_restorer: Sequence[Any] = (None,),
        mask: list[Tensor] | None = None,
        face_index: Sequence[int] = (-1,),
        match_colour: Sequence[bool] = (True,),
        max_likeness_loss: Sequence[float] = (MAX_LIKENESS_LOSS,),
        face_recognition: Sequence[Any] = (None,),
        reference: list[Tensor] | None = None,
    ) -> io.NodeOutput:
        """Lists, as ComfyUI hands them over: one report for all pictures, and photos of different sizes."""
        from ..magicapture_core import restore
        from ..magicapture_core.face_outcomes import mean_likeness

        batches = [to_core(batch) for batch in images]
        pictures = [picture for batch in batches for picture in batch]
        regions = match_regions(mask, pictures)
        upscaler, restorer = upscale_model[0], face_restorer[0]
        detector = face_detector() if restorer else None
        guard = make_guard(detector, face_recognition[0], reference, max_likeness_loss[0])
        restorer = restorer.with_fidelity(fidelity[0]) if restorer else None
        painter = restore.match_colour(restorer) if restorer and match_colour[0] else restorer
        options = {"factor": upscale_by[0], "face_index": face_index[0], "guard": guard}
        finished, told = [], []
        with on_device(upscaler, restorer and restorer.descriptor) as device:
            for picture, region in zip(pictures, regions, strict=True):
                faces = detector.detect(picture) if detector else []
                more = {"region": region, "progress": watch(), "device": device}
                restored, outcomes = restore.restore_and_upscale(picture, faces, painter, upscaler, **options, **more)
                finished.append(restored)
                told.append((faces, outcomes))
        text = "\n".join(restore.report(restorer, upscaler, guard, told))
        before, after = mean_likeness([outcome for _, outcomes in told for outcome in outcomes]) or (0.0, 0.0)
        return io.NodeOutput(in_batches(finished, batches), text, before, after, ui=show(text))


def make_guard(detector: Any, face_recognition: Any, reference: Sequence[Tensor] | None, max_loss: float) -> Any:
    """What puts a face back that lost the person of the reference; None where nothing is restored or compared."""
    from ..magicapture_core.likeness import likeness_to
    from ..magicapture_core.restore import Guard

    if face_recognition is not None and not reference:
        raise MagiCaptureError("reference: connect photos of the person too, or take face_recognition out")
    if reference and face_recognition is None:
        raise MagiCaptureError("face_recognition: connect Load Face Recognition too, or take reference out")
    if face_recognition is None or reference is None or detector is None:
        return None
    return Guard(likeness=likeness_to(face_recognition, detector, split(reference)), max_loss=max_loss)


def restorer_files() -> list[str]:
    """What can be loaded; the folder is made known to ComfyUI, which has none of this kind itself."""
    folder_paths.add_model_folder_path(KIND, str(restorer_folder()))
    return [name for name in folder_paths.get_filename_list(KIND) if name.endswith((".pth", ".safetensors"))]


def restorer_folder() -> Path:
    return Path(folder_paths.models_dir, KIND)


def match_regions(masks: Sequence[Tensor] | None, pictures: Sequence[Tensor]) -> list[Tensor | None]:
    """List of MASK -> for each of the pictures [3,H,W] its region [1,H,W], None = everywhere."""
    if not masks:
        return [None] * len(pictures)
    regions = [region for batch in masks for region in masks_to_core(batch)]
    if len(regions) not in (1, len(pictures)):
        raise MagiCaptureError(f"mask: {len(regions)} masks for {len(pictures)} images; connect one, or one for each")
    each = regions * (len(pictures) // len(regions))
    return [fit_region(region, picture) for region, picture in zip(each, pictures, strict=True)]


def fit_region(region: Tensor, picture: Tensor) -> Tensor | None:
    """A region at the size of its picture; a black one is none."""
    from ..magicapture_core.images import resize

    height, width = picture.shape[-2:]
    return resize(region[None], (height, width))[0] if region.any() else None


def in_batches(pictures: Iterable[Tensor], batches: Sequence[Tensor]) -> list[Tensor]:
    """Finished pictures [3,H,W] -> IMAGEs, as many in each as in the batch that they came from."""
    import torch

    rest = iter(pictures)
    return [to_comfy(torch.stack(list(islice(rest, len(batch))))) for batch in batches]


@contextmanager
def on_device(*descriptors: Any) -> Iterator[Any]:
    """ComfyUI's device, with spandrel's models on it and room beside them; None is no model.

    ComfyUI from 0.29 on keeps a `patcher` with each UPSCALE_MODEL. Before, its own node moves the model there and back,
    and so does this: a patcher would go on counting as loaded what that node has taken away.
    """
    from comfy import model_management

    device = model_management.get_torch_device()
    patchers = [model.patcher for model in descriptors if hasattr(model, "patcher")]
    moved = [model for model in descriptors if model is not None and not hasattr(model, "patcher")]
    try:
        for model in moved:
            model_management.free_memory(model_management.module_size(model.model) + TILE_MEMORY, device)
            model.to(device)
        model_management.load_models_gpu(patchers, memory_required=TILE_MEMORY)
        yield device
    finally:
        for model in moved:
            model.to("cpu")


def watch() -> Any:
    """Moves the node's bar, and stops between two tiles or faces when Cancel was pressed."""
    from comfy import model_management, utils

    bar = utils.ProgressBar(1)

    def update(done: int, total: int) -> None:
        model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return update


NODES = [LoadFaceRestorer, RestoreAndUpscale]
