"""FaceMask: photos in any size -> square training pictures with a face mask each, and pictures to judge both by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.types import MagiCaptureError
from .bounds import within_bounds
from .portraits import face_detector, face_parser
from .sockets import (
    FacesType,
    masks_to_comfy,
    masks_to_core,
    schema,
    settings_sockets,
    settings_values,
    show,
    to_comfy,
    to_core,
)

OPTIONS = {  # widgets of MaskOptions: id -> folded away
    "shape": False,
    "face_index": False,
    "grow": True,
    "feather": True,
    "face_share": True,
    "min_face_size": True,
    "hair": False,
    "classes": True,
    "all_faces": False,
    "combine": True,
}
LATER = ("hair", "classes", "all_faces", "combine")  # than the first release, and whatever comes after them


class FaceMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..magicapture_core.masks import MaskOptions

        return schema(
            "Face Mask",
            node_id="MagiCaptureFaceMask",
            description="Finds the face in every photo, cuts a square around it, and paints the face mask that "
            "training keeps person and style apart with. White is face. A photo that cannot be used is left out and "
            "named in the report.",
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="Photos of one person, or of one style: a list or a batch."),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=1024,
                    step=64,
                    tooltip="Side of the square pictures in pixels. Take the training's resolution; SD1.5 likes 512.",
                ),
                *settings_sockets(MaskOptions.model_validate({}), OPTIONS, LATER),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Your own masks, white = face, or the object where shape is own; one per photo. They "
                    "replace the painted ones, and then no face network is needed, unless combine says otherwise. A "
                    "black mask means: find the face; where shape is own, the photo is left out.",
                ),
                io.String.Input(
                    "file_names",
                    optional=True,
                    force_input=True,
                    tooltip="The photos' names for the report. Connect Load Photos' file names.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="Square pictures for training, as one batch."),
                io.Mask.Output(display_name="masks", tooltip="The face mask of each picture, white = face."),
                FacesType.Output(display_name="FACES", tooltip="Where the face of each picture is."),
                io.Image.Output(
                    display_name="overlay",
                    tooltip="The pictures with their masks drawn over them, and in numbers which photo it is, the "
                    "share that the mask covers, the height of the face; in colours what a face parser found.",
                ),
                io.String.Output(display_name="report", tooltip="What was found in each photo, and what was done."),
                io.Image.Output(
                    display_name="contact sheet",
                    tooltip="Every photo given, used or not, with a green, yellow or red frame and in words: good, or "
                    "what is wrong, such as small, blurred, dark, overexposed, turned away, the same picture twice.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    @within_bounds
    def execute(
        cls,
        images: list[Tensor],
        resolution: list[int],
        masks: list[Tensor] | None = None,
        file_names: list[str] | None = None,
        **widgets: list[Any],
    ) -> io.NodeOutput:
        from ..magicapture_core.masks import MaskOptions, prepare_portraits, require_portraits
        from ..magicapture_core.proofs import overlay, photo_sheet

        photos = name_photos(split(images), file_names or [])
        values = settings_values(MaskOptions.model_validate({}), {name: value[0] for name, value in widgets.items()})
        options = MaskOptions.model_validate(values)
        own_masks = match_masks(masks, len(photos))
        required = own_masks is None or options.combine != "replace" or not all(mask.any() for mask in own_masks)
        detector = None if options.shape == "own" else face_detector(required)
        parser = face_parser() if options.parts else None
        portraits, notes = prepare_portraits(photos, resolution[0], detector, options, own_masks, parser)
        portraits = require_portraits(portraits, notes, "images")
        report, preview = "\n".join(map(str, notes)), overlay(portraits)
        sheet = photo_sheet([image for _, image in photos], notes)
        return io.NodeOutput(
            to_comfy(portraits.images),
            masks_to_comfy(portraits.masks),
            portraits.faces,
            to_comfy(preview),
            report,
            to_comfy(sheet[None]),
            ui=show(report, preview, cls),
        )


def split(batches: Sequence[Tensor]) -> list[Tensor]:
    """A list of IMAGE batches -> single pictures [3,H,W]."""
    return [image for batch in batches for image in to_core(batch)]


def name_photos(images: Sequence[Tensor], names: Sequence[str]) -> list[tuple[str, Tensor]]:
    """Each picture with its file name, or with `photo 1`, `photo 2` where no names are connected."""
    if names and len(names) != len(images):
        raise MagiCaptureError(
            f"file_names: {len(names)} names for {len(images)} images; connect both from the same Load Photos node"
        )
    return list(zip(names or [f"photo {number}" for number in range(1, len(images) + 1)], images, strict=True))


def match_masks(masks: Sequence[Tensor] | None, num_photos: int) -> list[Tensor] | None:
    """The connected masks [1,H,W], one per photo. A black one, which stock loaders give, counts as none later on."""
    if not masks:
        return None
    single = [mask for batch in masks for mask in masks_to_core(batch)]
    if len(single) != num_photos:
        raise MagiCaptureError(f"masks: {len(single)} masks for {num_photos} images; connect one mask per image")
    return single


NODES = [FaceMask]
