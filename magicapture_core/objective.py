"""Eq. 9 and Eq. 10 on one batch: one UNet pass per item, all three terms from that same pass.

In: a backbone whose text encoder knows the learned words, a batch. Out: per-item terms that can be backpropagated.
Knows nothing of optimizers, phases or steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import losses
from .attention import capture
from .config import LossConfig
from .dataset import Batch
from .diffusion import add_noise, predict_x0
from .identity import Recogniser, embed_latents
from .sampler import encode_prompt
from .tokens import Vocabulary
from .types import MagiCaptureError

if TYPE_CHECKING:
    from .backbone import Backbone


class Objective:
    """The terms of a batch. placeholders: the subject's and the style's learned word, in this order."""

    def __init__(
        self,
        backbone: Backbone,
        config: LossConfig,
        vocabulary: Vocabulary,
        placeholders: Sequence[str],
        recogniser: Recogniser | None = None,
    ) -> None:
        self.backbone, self.config, self.recogniser = backbone, config, recogniser
        self.vocabulary, self.placeholders = vocabulary, placeholders
        self.device = backbone.unet.device
        self._alphas_cumprod = backbone.noise_scheduler.alphas_cumprod.to(self.device)
        self._fixed_embeds: dict[str, Tensor] | None = None

    def remember_text(self, text_is_fixed: bool) -> None:
        """While nothing on the text side moves, each prompt is encoded once."""
        self._fixed_embeds = {} if text_is_fixed else None

    @contextmanager
    def terms(self, batch: Batch, refocus: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Reconstruction, attention refocusing and identity of each item, three times [B].

        Refocusing is zero without `refocus`, identity where the batch has no landmarks. Backpropagate inside the block:
        a checkpointed layer runs again then, and has to read its maps again.
        """
        columns = self.token_columns(batch.prompts).to(self.device) if refocus else None
        grid = (batch.face_masks.shape[-2], batch.face_masks.shape[-1])
        noise, timesteps = batch.noise.to(self.device), batch.timesteps.to(self.device)
        noisy_latents = add_noise(batch.latents.to(self.device), noise, timesteps, self._alphas_cumprod)
        with nullcontext({}) if columns is None else capture(self.backbone.unet, columns, {grid}) as maps:
            noise_pred = self._predict_noise(noisy_latents, timesteps, batch.prompts)
            reconstruction = losses.masked_reconstruction(noise_pred, noise, batch.loss_masks.to(self.device))
            attention = torch.zeros_like(reconstruction)
            if columns is not None:
                attention = self._refocusing(maps, columns, batch.face_masks.to(self.device))
            latents = predict_x0(noisy_latents, noise_pred.float(), timesteps, self._alphas_cumprod)
            yield reconstruction, attention, self._identity(latents, batch)

    def token_columns(self, prompts: list[str]) -> Tensor:
        """[B,2,T] averaging weights of the two learned words; all zero where a prompt lacks one."""
        input_ids = self.vocabulary.encode(prompts)
        return torch.stack([self.vocabulary.columns(input_ids, word) for word in self.placeholders], 1)

    def _predict_noise(self, noisy_latents: Tensor, timesteps: Tensor, prompts: list[str]) -> Tensor:
        unet = self.backbone.unet
        with torch.autocast(self.device.type, unet.dtype, enabled=unet.dtype != torch.float32):
            return unet(noisy_latents, timesteps, self._prompt_embeds(prompts)).sample

    def _prompt_embeds(self, prompts: list[str]) -> Tensor:
        """[B,T,C]."""
        if self._fixed_embeds is None:
            return encode_prompt(self.backbone, self.vocabulary.encode(prompts))
        for prompt in set(prompts) - set(self._fixed_embeds):
            with torch.no_grad():
                self._fixed_embeds[prompt] = encode_prompt(self.backbone, self.vocabulary.encode([prompt]))
        return torch.cat([self._fixed_embeds[prompt] for prompt in prompts])

    def _identity(self, latents: Tensor, batch: Batch) -> Tensor:
        """Eq. 7 of each item's predicted latents, [B]; zero where there is nothing to compare.

        The items that take part have t ~ U(1, T'), and are T'/T of all: divided by that, the mean is Eq. 7's.
        """
        terms = list(latents.new_zeros(len(latents)))
        if self.recogniser is not None:
            for index in batch.identity_items:
                pred_embeds = embed_latents(self.backbone.vae, self.recogniser, latents[index], batch.landmarks[index])
                [terms[index]] = losses.identity(pred_embeds, batch.target_embeds[index, None].to(self.device))
        return torch.stack(terms) * (len(self._alphas_cumprod) / self.config.identity_max_timestep)

    def _refocusing(self, maps: dict[str, Tensor], columns: Tensor, face_masks: Tensor) -> Tensor:
        """Mean over each item's words, Eq. 8: the subject's region is the face, the style's all the rest. [B]."""
        if not maps:
            raise MagiCaptureError(
                f"no attention layer works on a grid of {tuple(face_masks.shape[-2:])}: change "
                "loss.attention_downscale or the resolution"
            )
        probs = torch.stack(list(maps.values()), 2)  # [B,K,L,heads,h',w']
        regions = (face_masks, 1 - face_masks)
        terms = [
            losses.attention_refocusing(probs[:, index], region, self.config.attention_reduce)
            for index, region in enumerate(regions)
        ]
        present = columns.sum(-1)  # [B,K], 1 where the prompt holds the word; an absent word's map is zero, so its term
        asked = torch.stack([region.flatten(1).any(1) for region in regions], 1)  # a region may vanish on a coarse grid
        return (torch.stack(terms, 1) * asked).sum(1) / present.sum(1)
