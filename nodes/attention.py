"""RecordAttention and AttentionMapViewer: where each word of a prompt looks, taken from the sampling itself."""

from __future__ import annotations

import uuid
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.prompts import COMPOSED_PROMPT, fill, fill_prompt
from ..magicapture_core.types import MagiCaptureError
from .bounds import within_bounds
from .recording import record_attention, record_sampling
from .sockets import (
    ArtifactType,
    advanced,
    checkpoint_inputs,
    masks_to_comfy,
    masks_to_core,
    schema,
    show,
    text_input,
    to_comfy,
    to_core,
)

RecordType = io.Custom("ATTENTION_RECORD")
FRAMES_PER_SECOND = 2.0
PLAYED_SIDE = 4096  # pixels, of the animation on the node

WORDS_TOOLTIP = (
    "What to look for, separated by commas or lines, as it stands in the prompt: words, several words in a row, "
    "learned words like <subject>, embedding:name."
)
PROMPT_TOOLTIP = (
    "weights like (word:1.2), embedding:name and long texts work. {subject} and {style} stand for the learned words "
    "of a connected artifact."
)


class RecordAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Record Attention",
            node_id="MagiCaptureRecordAttention",
            description="Watches where words look while your own KSampler makes the picture. The picture does not "
            "change. Connect MODEL to the KSampler, and the record with the finished picture to Attention Map Viewer.",
            search_aliases=["attention map", "heatmap", "DAAM"],
            inputs=[
                *checkpoint_inputs(
                    model="Any SD1.5 model, with LoRA, ControlNet, IP-Adapter or without.",
                    clip="The CLIP that the positive prompt is encoded with.",
                ),
                prompt_input("The same text that goes into the KSampler's positive prompt; "),
                words_input(),
                max_grid_input(),
                artifact_input(),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The same model, watched. Connect to a KSampler."),
                RecordType.Output(
                    display_name="record",
                    tooltip="What was seen in the last sampling with this MODEL. Connect to Attention Map Viewer.",
                ),
            ],
        )

    @classmethod
    @within_bounds
    def execute(
        cls, model: Any, clip: Any, prompt: str, words: str, max_grid: int, artifact: Any = None
    ) -> io.NodeOutput:
        return io.NodeOutput(*record_attention(model, clip, fill_prompt(prompt, artifact), words, max_grid, artifact))


class AttentionMapViewer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        import comfy.samplers

        samplers, schedulers = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS
        return schema(
            "Attention Map Viewer",
            node_id="MagiCaptureAttentionMapViewer",
            description="Shows where words look in a picture. Connect a record of Record Attention and the pictures "
            "of that sampling; or MODEL, CLIP and VAE, and the node samples by itself with the widgets below.",
            search_aliases=["attention map", "heatmap", "DAAM"],
            is_output_node=True,
            inputs=[
                RecordType.Input(
                    "record",
                    optional=True,
                    tooltip="From Record Attention. With it nothing is sampled here, and of the widgets only the "
                    "threshold counts.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Goes with the record: the pictures that were sampled with the recorded MODEL, any size.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the words should look, white = there; one for all pictures or one each. The report "
                    "then says how much of every word's attention falls outside.",
                ),
                *checkpoint_inputs(
                    optional=True,
                    model="Without a record: any SD1.5 model, to sample with.",
                    clip="Without a record: the CLIP that goes with the model.",
                    vae="Without a record: the VAE that goes with the model.",
                ),
                artifact_input(),
                prompt_input("Without a record: the positive prompt; "),
                text_input("negative_prompt", "", "Without a record: what the pictures should not show."),
                words_input(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Without a record: the starting noise.",
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Without a record: sampling steps."),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Without a record: guidance, how strictly the prompt is followed.",
                ),
                io.Combo.Input("sampler_name", options=samplers, tooltip="Without a record: ComfyUI's samplers."),
                io.Combo.Input("scheduler", options=schedulers, tooltip="Without a record: ComfyUI's schedulers."),
                size_input("width"),
                size_input("height"),
                io.Int.Input("num_images", default=1, min=1, max=64, tooltip="Without a record: how many pictures."),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="From this heat on a place is white in the masks. 0 is a word's coldest place in the "
                    "picture, 1 its hottest.",
                ),
                max_grid_input(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="overlay", tooltip="Heat maps over the pictures: a row per picture, a column per word."
                ),
                io.Image.Output(
                    display_name="strip",
                    tooltip="How the maps change while sampling, one sheet per picture: a row per word, a column per "
                    "range of steps, eight at most. The maps of a row share one scale.",
                ),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="Where a word looks, white, cut at the threshold: all words of the first picture, then all "
                    "of the second, and so on.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="Attention of every word in numbers; with a mask, the share that leaks outside.",
                ),
                io.Image.Output(
                    display_name="resolutions",
                    tooltip="The maps of each size that the model makes, one sheet per picture: a row per word, a "
                    "column per size, coarse to fine.",
                ),
                io.Image.Output(
                    display_name="frames",
                    tooltip="The strip as an animation, a frame per range of steps: a row per picture, a column per "
                    "word. Connect to a node that saves videos or animated pictures.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    @within_bounds
    def execute(
        cls,
        threshold: float,
        record: Any = None,
        images: Tensor | None = None,
        mask: Tensor | None = None,
        **sampling: Any,
    ) -> io.NodeOutput:
        from ..magicapture_core import heatmaps

        if record is None:
            record, images = record_sampling(**sampling)
        if images is None:
            raise MagiCaptureError("images: connect the pictures that were sampled with the recorded MODEL")
        pictures = to_core(images)
        overlay = heatmaps.overlays(record, pictures)[None]
        maps = heatmaps.over_steps(record, pictures)
        strips, frames = heatmaps.strips(record, pictures, maps), heatmaps.frames(record, pictures, maps)
        grids = heatmaps.resolutions(record, pictures)
        report = describe(record, None if mask is None else masks_to_core(mask))
        return io.NodeOutput(
            to_comfy(overlay),
            to_comfy(torch.stack(strips)),
            masks_to_comfy(word_masks(record, pictures, threshold)),
            report,
            to_comfy(torch.stack(grids)),
            to_comfy(frames),
            ui={**show(report), **animation(frames, cls)},
        )


# -- sockets of both nodes ----------------------------------------------------------------------------------------


def prompt_input(meaning: str) -> Any:
    default = fill(COMPOSED_PROMPT, "<subject>", "<style>")
    return text_input("prompt", default, meaning + PROMPT_TOOLTIP)


def words_input() -> Any:
    return text_input("words", "person", WORDS_TOOLTIP)


def artifact_input() -> Any:
    return ArtifactType.Input(
        "artifact",
        optional=True,
        tooltip="Of Load MagiCapture LoRA: its learned words are looked for too, where they stand in the prompt. The "
        "LoRA itself must be on MODEL and CLIP already.",
    )


def max_grid_input() -> Any:
    return advanced(
        io.Int.Input(
            "max_grid",
            default=32,
            min=8,
            max=256,
            tooltip="Maps with a longer side are not read. At 512 pixels the layers have 64, 32, 16 and 8; the finest "
            "are slow and show texture rather than meaning.",
        )
    )


def size_input(name: str) -> Any:
    return io.Int.Input(
        name, default=512, min=64, max=2048, step=8, tooltip=f"Without a record: {name} of the pictures in pixels."
    )


# -- what the viewer puts out -------------------------------------------------------------------------------------


def word_masks(record: Any, images: Tensor, threshold: float) -> Tensor:
    """[B * K,1,H,W]: all words of the first picture, then all of the second."""
    masks = [record.masks(word, (images.shape[-2], images.shape[-1]), threshold) for word in record.words]
    return torch.stack(masks, 1).flatten(0, 1)


def animation(frames: Tensor, cls: Any) -> dict[str, Any]:
    """frames [n,3,H,W] as one moving picture in ComfyUI's folder of previews: what the page shows on the node. It has
    room for one picture where that moves, so the overlay is left to its output. Many pictures are shown smaller: WebP
    ends at 16383 pixels."""
    from comfy_api.latest import ui

    from ..magicapture_core.images import shrink

    shown = to_comfy(shrink(frames, PLAYED_SIDE))
    options = {"fps": FRAMES_PER_SECOND, "lossless": False, "quality": 85, "method": 4}
    folder, prefix = io.FolderType.temp, f"magicapture_maps_{uuid.uuid4().hex[:8]}"
    return {
        "images": [ui.ImageSaveHelper.save_animated_webp(shown, prefix, folder, cls, **options)],
        "animated": (True,),
    }


def describe(record: Any, masks: Tensor | None) -> str:
    """One line per word: its mean attention; with masks [B or 1,1,H,W], its leakage too, picture by picture."""
    if masks is not None and len(masks) not in (1, record.num_pictures):
        raise MagiCaptureError(
            f"mask: {len(masks)} masks for {record.num_pictures} pictures; connect one, or one per picture"
        )
    sizes = ", ".join(f"{height}x{width}" for height, width in record.grids)
    lines = [f"{record.num_steps} steps in {len(record.buckets)} ranges, maps of {sizes}"]
    for word in record.words:
        lines.append(f"{word}: mean attention {_percent(record.attention(word).mean((1, 2)))}")
        if masks is not None:
            lines[-1] += f", outside the mask {_percent(record.leakage(word, masks))}"
    if masks is not None:
        lines.append(f"even attention would be outside the mask by {_percent(1 - masks.mean((1, 2, 3)))}")
    return "\n".join(lines)


def _percent(shares: Tensor) -> str:
    return " / ".join(f"{share:.1%}" for share in shares)


NODES = [RecordAttention, AttentionMapViewer]
