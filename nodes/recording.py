"""The recorder: reads the attention of chosen columns while a MODEL samples, and leaves the pictures as they are.

It is a wrapper around the UNet. During a call it puts a function of its own in front of every cross-attention, whatever
other packs have put there before or after it; that function looks at queries and keys and then lets the attention that
would have run make the output, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..magicapture_core.prompts import fill_prompt
from ..magicapture_core.types import MagiCaptureError
from .columns import word_columns

KEY = "magicapture_attention"
BLOCKS = [("middle", 0), *((part, number) for part in ("input", "output") for number in range(12))]  # of SD1.5
PREVIEW_SIDE = 256  # pixels, of each picture in the live preview


def record_attention(
    model: Any, clip: Any, prompt: str, words: str, max_grid: int, artifact: Any = None
) -> tuple[Any, Any]:
    """A clone of MODEL that fills the AttentionRecord, and the record, empty until something samples."""
    from comfy.patcher_extension import WrappersMP

    from ..magicapture_core.heatmaps import AttentionRecord

    if model.model.model_config.unet_config.get("context_dim") != 768:
        raise MagiCaptureError("model: it is not an SD1.5 model; load an SD1.5 checkpoint")
    found, columns = word_columns(clip, prompt, words, artifact)
    recorder = Recorder(AttentionRecord(found), columns, max_grid)
    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, recorder.begin)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, recorder.watch)
    return model, recorder.record


class Recorder:
    """Looks on while a MODEL samples. It may be called from several threads, one per device."""

    def __init__(self, record: Any, columns: Tensor, max_grid: int) -> None:
        self.record, self.columns, self.max_grid = record, columns, max_grid

    def begin(self, executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around one whole sampling: the MODEL is cached between two queues, the record must not add up over them."""
        self.record.reset()
        return executor(*args, **kwargs)

    def watch(
        self,
        executor: Callable[..., Tensor],
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Any,
        control: Any,
        transformer_options: dict[str, Any],
        **kwargs: Any,
    ) -> Tensor:
        """Around one call of the UNet, rows of positive and negative prompts together."""
        options = dict(transformer_options)
        rows = positive_rows(options["cond_or_uncond"], len(x))
        if not rows:
            return executor(x, timesteps, context, y, control, options, **kwargs)
        columns = [spread(self.columns, context[chunk.start]) for chunk in rows]
        seen: list[Tensor] = []

        def look(query: Tensor, key: Tensor, extra: dict[str, Any]) -> None:
            height, width = extra["activations_shape"][-2:]
            if max(height, width) <= self.max_grid and len(query) == len(x):  # regional patches change the rows
                seen.extend(
                    word_probs(query[chunk], key[chunk], weights, extra["n_heads"]).unflatten(-1, (height, width))
                    for chunk, weights in zip(rows, columns, strict=True)
                )

        options["patches_replace"] = watched(options, look)
        output = executor(x, timesteps, context, y, control, options, **kwargs)
        sample_sigmas = options["sample_sigmas"]
        self.record.add(step_of(options["sigmas"], sample_sigmas), len(sample_sigmas) - 1, seen)
        return output


def watched(options: dict[str, Any], look: Callable[[Tensor, Tensor, dict[str, Any]], None]) -> dict[str, Any]:
    """`patches_replace` with `look` in front of the cross-attention of every block, the user's or ComfyUI's own."""

    def plain(query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
        from comfy.ldm.modules.attention import optimized_attention  # looked up late: speed-up packs exchange it

        heads, precision = extra["n_heads"], extra["attn_precision"]
        return optimized_attention(query, key, value, heads, attn_precision=precision, transformer_options=options)

    def looked_at(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def patch(query: Tensor, key: Tensor, value: Tensor, extra: dict[str, Any]) -> Tensor:
            look(query, key, extra)
            return attend(query, key, value, extra)

        return patch

    replaced = options.get("patches_replace", {})
    present = replaced.get("attn2", {})
    attn2 = {block: looked_at(present.get(block, plain)) for block in (*BLOCKS, *present)}
    return {**replaced, "attn2": attn2}


def positive_rows(cond_or_uncond: Sequence[int], num_rows: int) -> list[slice]:
    """The batch is one chunk of equal size per entry, 0 for a positive prompt: the chunks of those."""
    size = num_rows // len(cond_or_uncond)
    return [slice(size * j, size * (j + 1)) for j, kind in enumerate(cond_or_uncond) if kind == 0]


def spread(columns: Tensor, context: Tensor) -> Tensor:
    """Weights [K,T] over the conditioning [T',C] that the sampler really uses, T' >= T.

    ComfyUI repeats the shorter of two prompts up to the length of the longer; repeats of a column share its attention,
    so each gets the full weight. What else follows (text joined by Conditioning Concat) gets none.
    """
    num_columns = columns.shape[1]
    surplus = len(context) - num_columns
    if surplus < 0:
        raise MagiCaptureError(
            f"prompt: {num_columns} columns, but the sampler's positive prompt has {len(context)}; give Record "
            "Attention the same text as the positive prompt"
        )
    if surplus and surplus % num_columns == 0 and torch.equal(context[num_columns:], context[:-num_columns]):
        return columns.repeat(1, len(context) // num_columns)
    return F.pad(columns, (0, surplus))


def word_probs(query: Tensor, key: Tensor, columns: Tensor, heads: int) -> Tensor:
    """query [B,N,C], key [B,T,C], columns [K,T'] with T' <= T -> probabilities [B,K,heads,N]."""
    from ..magicapture_core.attention import token_probs

    columns = F.pad(columns, (0, key.shape[1] - columns.shape[1]))  # tokens that a patch has appended are no words
    query, key = (states.unflatten(-1, (heads, -1)).transpose(1, 2) for states in (query, key))
    return token_probs(query, key, columns.to(query.device).expand(len(query), -1, -1))


def step_of(sigmas: Tensor, sample_sigmas: Tensor) -> int:
    """The step, from 0, of a call at noise level `sigmas` [B] within the falling schedule `sample_sigmas` [steps + 1].

    A call between two levels, as second-order samplers make, belongs to the step that it helps to take.
    """
    level = sigmas.max().to(sample_sigmas) * (1 - 1e-4)  # the level has been through other precisions on its way
    return min(max(int((sample_sigmas >= level).sum()) - 1, 0), len(sample_sigmas) - 2)


# -- a sampling of our own, watched live -------------------------------------------------------------------------------


def record_sampling(
    model: Any = None, clip: Any = None, vae: Any = None, artifact: Any = None, **widgets: Any
) -> tuple[Any, Tensor]:
    """Samples with the widgets' settings while recording -> the record, and the IMAGE [B,H,W,3]."""
    for name, value in (("model", model), ("clip", clip), ("vae", vae)):
        if value is None:
            raise MagiCaptureError(f"{name}: connect record and images, or model, clip and vae")
    prompt = fill_prompt(widgets["prompt"], artifact)
    model, record = record_attention(model, clip, prompt, widgets["words"], widgets["max_grid"], artifact)
    positive, negative = (encode(clip, text) for text in (prompt, widgets["negative_prompt"]))
    latents = sample(model, positive, negative, widgets, live_maps(model, record, widgets["steps"]))
    return record, vae.decode(latents)


def encode(clip: Any, text: str) -> Any:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def sample(model: Any, positive: Any, negative: Any, widgets: dict[str, Any], callback: Callable[..., None]) -> Tensor:
    """What the stock KSampler makes of an empty latent picture with these widgets: latents [B,4,h,w]."""
    import comfy.model_management
    import comfy.sample
    import comfy.utils

    size = (widgets["num_images"], 4, widgets["height"] // 8, widgets["width"] // 8)
    empty = torch.zeros(size, device=comfy.model_management.intermediate_device())
    return comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(empty, widgets["seed"]),
        widgets["steps"],
        widgets["cfg"],
        widgets["sampler_name"],
        widgets["scheduler"],
        positive,
        negative,
        empty,
        denoise=1.0,
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=widgets["seed"],
    )


def live_maps(model: Any, record: Any, num_steps: int) -> Callable[..., None]:
    """A callback for ComfyUI's samplers: the bar every step, and where the user wants previews, the maps so far.

    They are drawn when a new range of steps begins, eight times at most, so that drawing costs next to nothing.
    """
    import comfy.model_management
    import comfy.utils
    import latent_preview

    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    bar = comfy.utils.ProgressBar(num_steps)
    drawn: list[int] = []

    def callback(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        preview = None
        if previewer and record.buckets != drawn:
            drawn[:] = record.buckets
            kind, picture, side = previewer.decode_latent_to_preview_image("JPEG", x0)
            preview = (kind, draw_maps(record, picture), side * len(record.words))
        bar.update_absolute(step + 1, num_steps, preview)

    return callback


def draw_maps(record: Any, picture: Any) -> Any:
    """The first picture of the batch as a PIL image -> the same under the map of each word so far, side by side."""
    from ..magicapture_core.heatmaps import overlay
    from ..magicapture_core.images import from_pil, resize, to_pil
    from ..magicapture_core.sheets import contact_sheet

    scale = PREVIEW_SIDE / max(picture.size)
    image = resize(from_pil(picture)[None], (round(picture.height * scale), round(picture.width * scale)))
    size = (image.shape[-2], image.shape[-1])
    cells = [overlay(image, record.heatmap(word, size)[:1])[0] for word in record.words]
    return to_pil(contact_sheet(cells, len(cells), list(record.words)))
