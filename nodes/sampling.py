"""What every sampler of ours shares: its sockets, and the way from a prompt and a MODEL to latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.types import MagiCaptureError

LATENT_FACTOR = 8  # pixels of a side for each latent
NUM_SEEDS = 2**64  # as KSampler has them


def sampler_sockets(seed: str) -> list[Any]:
    """What every sampler asks for. seed: its tooltip."""
    import comfy.samplers

    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=NUM_SEEDS - 1,
            control_after_generate=True,
            tooltip=seed,
        ),
        io.Int.Input("steps", default=30, min=1, max=1000, tooltip="Sampling steps of each picture."),
        io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="How closely to follow the prompt."),
        io.Combo.Input(
            "sampler_name",
            options=comfy.samplers.KSampler.SAMPLERS,
            default="dpmpp_2m",
            tooltip="ComfyUI's sampling method.",
        ),
        io.Combo.Input(
            "scheduler",
            options=comfy.samplers.KSampler.SCHEDULERS,
            default="karras",
            tooltip="How the noise falls from step to step.",
        ),
        io.Int.Input("width", default=512, min=64, max=2048, step=8, tooltip="Width in pixels."),
        io.Int.Input("height", default=512, min=64, max=2048, step=8, tooltip="Height in pixels."),
    ]


class Shot(NamedTuple):
    """What makes a picture once there is a seed: MODEL, and two CONDITIONINGs."""

    model: Any
    positive: Any
    negative: Any


def seeds_from(first: int, count: int) -> list[int]:
    """The numbers from the first on; after the last seed there is comes 0."""
    return [(first + number) % NUM_SEEDS for number in range(count)]


def sample(shots: Sequence[tuple[Shot, int]], settings: Mapping[str, Any], size: tuple[int, int]) -> Tensor:
    """Shots with their seeds -> latents [N,4,h,w]. One picture at a time, so that each is that of its seed alone, on
    any card. size: (width, height) in pixels.

    Raises MagiCaptureError for a picture that holds NaN.
    """
    import comfy.model_management
    import comfy.sample
    import comfy.utils

    watch = live_previews(shots[0][0].model, len(shots), settings["steps"])
    wide, high = (side // LATENT_FACTOR for side in size)
    empty = torch.zeros(1, 4, high, wide, device=comfy.model_management.intermediate_device())
    made = []
    for number, (shot, seed) in enumerate(shots):
        latents = comfy.sample.sample(
            shot.model,
            comfy.sample.prepare_noise(empty, seed),
            positive=shot.positive,
            negative=shot.negative,
            latent_image=empty,
            callback=watch(number),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
            **settings,
        )
        if not latents.isfinite().all():
            raise MagiCaptureError(
                f"seed {seed}: the picture holds NaN; lower cfg or the strengths, or start ComfyUI with --force-fp32"
            )
        made.append(latents)
    return torch.cat(made)


def odd_size(size: tuple[int, int]) -> list[str]:
    """A line of a report where width and height are no multiples of 8, on the size that is made."""
    wide, high = (side // LATENT_FACTOR * LATENT_FACTOR for side in size)
    return [f"width, height: {wide} x {high}, the next smaller multiples of 8"] if (wide, high) != size else []


def encode(clip: Any, text: str) -> Any:
    """CONDITIONING, as CLIP Text Encode makes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def live_previews(model: Any, count: int, steps: int) -> Callable[[int], Callable[..., None]]:
    """Number of a picture -> the callback of its sampling: one bar for all, previews on it, and Cancel."""
    import comfy.model_management
    import comfy.utils
    import latent_preview

    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    bar = comfy.utils.ProgressBar(count * steps)

    def watch(number: int) -> Callable[..., None]:
        def callback(step: int, x0: Tensor, x: Tensor, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            preview = previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None
            bar.update_absolute(number * steps + step + 1, count * steps, preview)

        return callback

    return watch
