"""From a prompt with learned words to pictures, without ComfyUI: the terminal's sampler, and the training's previews.

In: a backbone, an artifact or a live vocabulary. Out: images [B,3,H,W] in 0..1. A picture depends on its own seed
alone, not on how many are made with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import kohya, lora, tokens
from .attention import capture, split_contexts
from .diffusion import NUM_TIMESTEPS
from .prompts import COMPOSED_PROMPT, fill_prompt
from .tokens import Vocabulary, stage_of
from .types import MagiCaptureError

if TYPE_CHECKING:
    from .artifact import Artifact
    from .backbone import Backbone
    from .heatmaps import AttentionRecord
    from .sefi.identity import SefiIdentity


@contextmanager
def applied(
    backbone: Backbone, artifact: Artifact | None, strength: float = 1.0, identities: Sequence[SefiIdentity] = ()
) -> Iterator[Vocabulary]:
    """The artifact's words and LoRA, and the identities' words, act on the backbone inside the block; yields its
    vocabulary.

    Raises MagiCaptureError when one of them was trained for another kind of model.
    """
    layers = kohya.from_kohya(artifact.lora, kohya.UNET, backbone.unet) if artifact else {}
    with taught(backbone, artifact, strength, identities) as vocabulary, lora.applied(backbone.unet, layers, strength):
        yield vocabulary


@contextmanager
def taught(
    backbone: Backbone, artifact: Artifact | None, strength: float = 1.0, identities: Sequence[SefiIdentity] = ()
) -> Iterator[Vocabulary]:
    """Only the text encoder has them inside the block, the words and the LoRA's part of it. Raises as `applied`."""
    for made in (artifact, *identities):
        if made is not None and made.architecture != backbone.architecture:
            raise MagiCaptureError(
                f"{made.name} was trained for {made.architecture}, this model is {backbone.architecture}: "
                "load the kind of checkpoint it was trained with"
            )
    words = [*(artifact.tokens if artifact else ()), *(identity.token for identity in identities)]
    encoder = backbone.text_encoder
    layers = kohya.from_kohya(artifact.lora, kohya.TEXT_ENCODER, encoder) if artifact else {}
    with lora.applied(encoder, layers, strength), tokens.injected(encoder, words):
        yield Vocabulary.of(backbone.tokenizer, words)


def generate(
    backbone: Backbone,
    artifact: Artifact | None,
    prompt: str = COMPOSED_PROMPT,
    strength: float = 1.0,
    identities: Sequence[SefiIdentity] = (),
    **options: Any,
) -> Tensor:
    """Pictures of a prompt that may hold `{subject}` and `{style}`: [B,3,H,W] in 0..1. Options as for `sample`."""
    with applied(backbone, artifact, strength, identities) as vocabulary:
        return sample(backbone, vocabulary, fill_prompt(prompt, artifact), **options)


@torch.no_grad()
def sample(
    backbone: Backbone,
    vocabulary: Vocabulary,
    prompt: str,
    *,
    negative_prompt: str = "",
    num_images: int = 1,
    record: AttentionRecord | None = None,
    num_steps: int = 30,
    **options: Any,
) -> Tensor:
    """Pictures of a prompt in the vocabulary's words: [B,3,H,W] in 0..1. Options as for `walk`.

    record: gets the attention maps of its words at every step.
    """
    unet = backbone.unet
    embeds = PromptEmbeds(backbone, vocabulary, [negative_prompt, prompt])
    columns = None if record is None else record_columns(vocabulary, embeds.prompts, record, num_images)

    def predict(step: int, latents: Tensor, timestep: Tensor) -> Tensor:
        prompt_embeds = embeds.at(int(timestep)).repeat_interleave(num_images, 0)
        with split_contexts(unet) if columns is None else capture(unet, columns) as maps:
            noise_pred = unet(latents, timestep, prompt_embeds).sample
        if record is not None and maps is not None:
            record.add(step, num_steps, [probs[num_images:] for probs in maps.values()])
        return noise_pred

    return walk(backbone, predict, num_images=num_images, num_steps=num_steps, **options)


@torch.no_grad()
def walk(
    backbone: Backbone,
    predict: Callable[[int, Tensor, Tensor], Tensor],
    *,
    num_images: int = 1,
    num_steps: int = 30,
    guidance: float = 7.0,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    on_step: Callable[[int, int], None] = lambda step, num_steps: None,
) -> Tensor:
    """DPM-Solver++ with classifier-free guidance -> images [B,3,H,W] in 0..1; picture i uses seed + i.

    predict: number of the step, latents [2B,C,h,w], timestep -> noise of the same shape; the first B without, the
    others with the prompt. size: (H, W) in pixels, the model's own when None.
    """
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    unet = backbone.unet
    scheduler: Any = DPMSolverMultistepScheduler.from_config(backbone.noise_scheduler.config)
    scheduler.set_timesteps(num_steps, device=unet.device)
    height, width = size or (unet.config.sample_size * backbone.vae_factor,) * 2
    shape = (backbone.latent_channels, height // backbone.vae_factor, width // backbone.vae_factor)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(num_images)]
    latents = torch.stack(noise).to(unet.device) * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
        noise_pred = predict(step, torch.cat([latents, latents]).to(unet.dtype), timestep).float()
        negative, positive = noise_pred.chunk(2)
        latents = scheduler.step(negative + guidance * (positive - negative), timestep, latents).prev_sample
        on_step(step + 1, num_steps)
    return decode(backbone, latents)


def encode_prompt(backbone: Backbone, input_ids: Tensor) -> Tensor:
    """input_ids [B,T] -> prompt_embeds [B,T,C], the text encoder's last hidden state after its final norm."""
    return backbone.text_encoder(input_ids.to(backbone.text_encoder.device)).last_hidden_state


class PromptEmbeds:
    """Prompts in the text encoder's words, at any timestep; each stage of the words is encoded once."""

    def __init__(self, backbone: Backbone, vocabulary: Vocabulary, prompts: Sequence[str]) -> None:
        self.backbone, self.vocabulary, self.prompts = backbone, vocabulary, prompts
        self._known: dict[tuple[int, ...], Tensor] = {}

    def everywhere(self) -> PromptEmbeds:
        """The same, encoded for every timestep: from now on it needs neither words nor text encoder."""
        for timestep in range(NUM_TIMESTEPS):
            self.at(timestep)
        return self

    def at(self, timestep: int) -> Tensor:
        """[B,T,C]; with words that have stages [B,2,T,C], the prompts of the keys and those of the values."""
        stages = tuple(stage_of(timestep, num_stages) for num_stages in self.vocabulary.staged.values())
        if stages not in self._known:
            sides = self.vocabulary.at(timestep)[: 2 if stages else 1]
            embeds = [encode_prompt(self.backbone, side.encode(self.prompts)) for side in sides]
            self._known[stages] = torch.stack(embeds, 1) if stages else embeds[0]
        return self._known[stages]


def record_columns(vocabulary: Vocabulary, prompts: Sequence[str], record: AttentionRecord, num_images: int) -> Tensor:
    """[2B,K,T] averaging weights for a guided pass: none for the negative half, each word's places for the positive.

    prompts: the negative and the positive one. A word with stages has the same places at all of them.
    """
    vocabulary, _ = vocabulary.at(0)
    input_ids = vocabulary.encode(prompts)
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
