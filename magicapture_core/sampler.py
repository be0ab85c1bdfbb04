"""From a prompt with learned words to pictures, without ComfyUI: the terminal's sampler, and the training's previews.

In: a backbone, an artifact or a live vocabulary. Out: images [B,3,H,W] in 0..1. A picture depends on its own seed
alone, not on how many are made with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import kohya, lora, tokens
from .attention import capture
from .prompts import COMPOSED_PROMPT, fill_prompt
from .tokens import Vocabulary
from .types import MagiCaptureError

if TYPE_CHECKING:
    from .artifact import Artifact
    from .backbone import Backbone
    from .heatmaps import AttentionRecord


@contextmanager
def applied(backbone: Backbone, artifact: Artifact | None, strength: float = 1.0) -> Iterator[Vocabulary]:
    """The artifact's words and LoRA act on the backbone inside the block; yields its vocabulary.

    Raises MagiCaptureError when the artifact was trained for another kind of model.
    """
    if artifact is None:
        yield Vocabulary.of(backbone.tokenizer, [])
        return
    if artifact.architecture != backbone.architecture:
        raise MagiCaptureError(
            f"{artifact.name} was trained for {artifact.architecture}, this model is {backbone.architecture}: "
            "load the kind of checkpoint it was trained with"
        )
    with ExitStack() as stack:
        for model, prefix in ((backbone.unet, kohya.UNET), (backbone.text_encoder, kohya.TEXT_ENCODER)):
            stack.enter_context(lora.applied(model, kohya.from_kohya(artifact.lora, prefix, model), strength))
        stack.enter_context(tokens.injected(backbone.text_encoder, artifact.tokens))
        yield Vocabulary.of(backbone.tokenizer, artifact.tokens)


def generate(
    backbone: Backbone,
    artifact: Artifact | None,
    prompt: str = COMPOSED_PROMPT,
    strength: float = 1.0,
    **options: Any,
) -> Tensor:
    """Pictures of a prompt that may hold `{subject}` and `{style}`: [B,3,H,W] in 0..1. Options as for `sample`."""
    with applied(backbone, artifact, strength) as vocabulary:
        return sample(backbone, vocabulary, fill_prompt(prompt, artifact), **options)


@torch.no_grad()
def sample(
    backbone: Backbone,
    vocabulary: Vocabulary,
    prompt: str,
    *,
    negative_prompt: str = "",
    num_images: int = 1,
    num_steps: int = 30,
    guidance: float = 7.0,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    record: AttentionRecord | None = None,
    on_step: Callable[[int, int], None] = lambda step, num_steps: None,
) -> Tensor:
    """DPM-Solver++ with classifier-free guidance -> images [B,3,H,W] in 0..1; picture i uses seed + i.

    size: (H, W) in pixels, the model's own when None. record: gets the attention maps of its words at every step.
    """
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    unet = backbone.unet
    scheduler: Any = DPMSolverMultistepScheduler.from_config(backbone.noise_scheduler.config)
    scheduler.set_timesteps(num_steps, device=unet.device)
    height, width = size or (unet.config.sample_size * backbone.vae_factor,) * 2
    shape = (backbone.latent_channels, height // backbone.vae_factor, width // backbone.vae_factor)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(num_images)]
    latents = torch.stack(noise).to(unet.device) * scheduler.init_noise_sigma

    input_ids = vocabulary.encode([negative_prompt, prompt])
    prompt_embeds = encode_prompt(backbone, input_ids).repeat_interleave(num_images, 0)
    columns = None if record is None else record_columns(vocabulary, input_ids, record, num_images)
    for step, timestep in enumerate(scheduler.timesteps):
        doubled = torch.cat([latents, latents]).to(unet.dtype)
        with nullcontext({}) if columns is None else capture(unet, columns) as maps:
            noise_pred = unet(doubled, timestep, prompt_embeds).sample.float()
        if record is not None:
            record.add(step, num_steps, [probs[num_images:] for probs in maps.values()])
        negative, positive = noise_pred.chunk(2)
        latents = scheduler.step(negative + guidance * (positive - negative), timestep, latents).prev_sample
        on_step(step + 1, num_steps)
    return decode(backbone, latents)


def encode_prompt(backbone: Backbone, input_ids: Tensor) -> Tensor:
    """input_ids [B,T] -> prompt_embeds [B,T,C], the text encoder's last hidden state after its final norm."""
    return backbone.text_encoder(input_ids.to(backbone.text_encoder.device)).last_hidden_state


def record_columns(vocabulary: Vocabulary, input_ids: Tensor, record: AttentionRecord, num_images: int) -> Tensor:
    """[2B,K,T] averaging weights for a guided pass: none for the negative half, each word's places for the positive."""
    columns = torch.stack([vocabulary.columns(input_ids, word) for word in record.words], 1)
    missing = [word for word, found in zip(record.words, columns[1].sum(-1), strict=True) if not found]
    if missing:
        raise MagiCaptureError(f"not in the prompt: {', '.join(missing)}; look only at words that the prompt holds")
    columns[0] = 0
    return columns.repeat_interleave(num_images, 0)


@torch.no_grad()
def decode(backbone: Backbone, latents: Tensor) -> Tensor:
    """Scaled latents [B,C,h,w] -> images [B,3,H,W] in 0..1, one at a time for memory's sake. Always finite."""
    vae = backbone.vae
    decoded = [
        vae.decode((latent / vae.config.scaling_factor).to(vae.device, vae.dtype)).sample for latent in latents.split(1)
    ]
    images = (torch.cat(decoded).float().cpu() / 2 + 0.5).clamp(0, 1)
    if not images.isfinite().all():
        raise MagiCaptureError("the picture holds NaN: use bf16 or fp32 instead of fp16, or another VAE")
    return images
