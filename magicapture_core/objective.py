"""Eq. 9 and Eq. 10 on one batch: one UNet pass per item, all terms from that same pass, but for the prior's second.

In: a backbone whose text encoder knows the learned words, a batch. Out: per-item terms that can be backpropagated.
Knows nothing of optimizers, phases or steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from . import lora, losses
from .attention import capture
from .config import LossConfig
from .dataset import Batch, Control, Mode
from .diffusion import add_noise, min_snr_weights, predict_x0
from .identity import Recogniser, embed_latents
from .losses import AttentionLoss
from .sampler import encode_prompt
from .tokens import Vocabulary
from .types import MagiCaptureError

if TYPE_CHECKING:
    from .backbone import Backbone


T = TypeVar("T", float, Tensor)


class Terms(NamedTuple, Generic[T]):
    """One value for each term: their weights, an item's or a batch's losses. identity: how unlike the subject the
    prediction is, to a face recogniser or, for an object, to DINO."""

    reconstruction: T
    attention: T
    identity: T
    prior: T

    def weighed(self, weights: Terms[float]) -> T:
        """Eq. 10: the weighed sum."""
        return sum(weight * term for weight, term in zip(weights, self, strict=True))  # pyright: ignore[reportReturnType]


def autocast(unet: Any) -> torch.autocast:
    """Products in the UNet's own precision, where that is not fp32; what is trained stays in fp32."""
    return torch.autocast(unet.device.type, unet.dtype, enabled=unet.dtype != torch.float32)


class Objective:
    """The terms of a batch. ranks: of split adapters, the people's and the styles' share; empty for joint ones.
    attention_loss: of one word's maps and its region, by default attention refocusing as configured. controls: the
    ControlNets behind a batch's hints."""

    def __init__(
        self,
        backbone: Backbone,
        config: LossConfig,
        vocabulary: Vocabulary,
        recogniser: Recogniser | None = None,
        ranks: Sequence[int] = (),
        attention_loss: AttentionLoss | None = None,
        controls: Mapping[Mode, Control] | None = None,
    ) -> None:
        self.backbone, self.config, self.recogniser = backbone, config, recogniser
        self.controls = controls or {}
        self.vocabulary, self.ranks, self.device = vocabulary, torch.tensor(ranks), backbone.unet.device
        self.attention_loss = attention_loss or partial(losses.attention_refocusing, reduce=config.attention_reduce)
        self._decoder = backbone.vae if config.identity_decoder == "vae" else backbone.taesd
        self._alphas_cumprod = backbone.noise_scheduler.alphas_cumprod.to(self.device)
        self._columns: dict[tuple[str, tuple[str, ...]], Tensor] = {}  # prompt, words -> [K,T]
        self._fixed_embeds: dict[str, Tensor] | None = None

    def remember_text(self, text_is_fixed: bool) -> None:
        """While nothing on the text side moves, each prompt is encoded once."""
        self._fixed_embeds = {} if text_is_fixed else None

    @contextmanager
    def terms(self, batch: Batch, weights: Terms[float]) -> Iterator[Terms[Tensor]]:
        """Each item's terms, [B]; zero where the weight is, and identity where the batch asks for no likeness.

        Backpropagate inside the block: a checkpointed layer runs again then, and has to read its maps again.
        """
        columns = self.token_columns(batch)
        grid = (batch.face_masks.shape[-2], batch.face_masks.shape[-1])
        noise, timesteps = batch.noise.to(self.device), batch.timesteps.to(self.device)
        loss_masks, face_masks = batch.loss_masks.to(self.device), batch.face_masks.to(self.device)
        regions = torch.cat([face_masks, 1 - face_masks, batch.other_masks.to(self.device)], 1)
        noisy_latents = add_noise(batch.latents.to(self.device), noise, timesteps, self._alphas_cumprod)
        with ExitStack() as inside:
            self._open_gates(columns, inside)
            columns = columns.to(self.device)  # all that is moved is moved before the UNet: it would wait for it
            with autocast(self.backbone.unet):
                prompt_embeds = self._prompt_embeds(batch.prompts)
            residuals = self._residuals(batch, noisy_latents, timesteps, prompt_embeds)
            base_pred = self._predict_without_lora(noisy_latents, timesteps, prompt_embeds) if weights.prior else None
            maps = inside.enter_context(capture(self.backbone.unet, columns, {grid})) if weights.attention else {}
            noise_pred = self._predict_noise(noisy_latents, timesteps, prompt_embeds, **residuals)
            reconstruction = losses.masked_reconstruction(noise_pred, noise, loss_masks)
            if gamma := self.config.min_snr_gamma:
                reconstruction = reconstruction * min_snr_weights(timesteps, self._alphas_cumprod, gamma)
            attention = identity = prior = torch.zeros_like(reconstruction)
            if weights.attention:
                attention = self._attention(maps, columns, regions)
            if weights.identity and batch.identity_items:
                latents = predict_x0(noisy_latents, noise_pred.float(), timesteps, self._alphas_cumprod)
                identity = self._identity(latents, batch)
            if base_pred is not None:
                prior = losses.masked_reconstruction(noise_pred, base_pred, 1 - loss_masks)
            yield Terms(reconstruction, attention, identity, prior)

    def _open_gates(self, columns: Tensor, inside: ExitStack) -> None:
        """Of split adapters, each item goes through those whose word its prompt holds; one of the class through both.

        columns: [B,K,T] on the CPU, K as `Batch.words`.
        """
        if len(self.ranks):
            held = columns[:, : len(self.ranks)].any(-1)
            held |= ~held.any(1, keepdim=True)
            gates = held.repeat_interleave(self.ranks, 1).to(self.device)
            for model in (self.backbone.unet, self.backbone.text_encoder):
                inside.enter_context(lora.gated(model, gates))

    def token_columns(self, batch: Batch) -> Tensor:
        """[B,K,T] averaging weights of each item's learned words; all zero where its prompt lacks one."""
        items = list(zip(batch.prompts, batch.words, strict=True))
        for prompt, words in set(items) - set(self._columns):
            input_ids = self.vocabulary.encode([prompt])
            self._columns[prompt, words] = torch.cat([self.vocabulary.columns(input_ids, word) for word in words])
        return torch.stack([self._columns[item] for item in items])

    def _predict_noise(
        self, noisy_latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor, **residuals: Any
    ) -> Tensor:
        with autocast(self.backbone.unet):
            return self.backbone.unet(noisy_latents, timesteps, prompt_embeds, **residuals).sample

    @torch.no_grad()
    def _residuals(
        self, batch: Batch, noisy_latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor
    ) -> dict[str, Any]:
        """What the batch's ControlNet adds inside the UNet; nothing without one. It learns nothing, nor through it."""
        control = self.controls.get(batch.modes[0])
        if control is None:
            return {}
        hints = batch.hints.to(self.device, control.net.dtype)
        with autocast(self.backbone.unet):
            down, mid = control.net(noisy_latents, timesteps, prompt_embeds, hints, return_dict=False)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}

    @torch.no_grad()
    def _predict_without_lora(self, noisy_latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        with lora.switched_off(self.backbone.unet):
            return self._predict_noise(noisy_latents, timesteps, prompt_embeds)

    def _prompt_embeds(self, prompts: list[str]) -> Tensor:
        """[B,T,C]."""
        if self._fixed_embeds is None:
            return encode_prompt(self.backbone, self.vocabulary.encode(prompts))
        for prompt in set(prompts) - set(self._fixed_embeds):
            with torch.no_grad():
                self._fixed_embeds[prompt] = encode_prompt(self.backbone, self.vocabulary.encode([prompt]))
        return torch.cat([self._fixed_embeds[prompt] for prompt in prompts])

    def _identity(self, latents: Tensor, batch: Batch) -> Tensor:
        """Eq. 7 of each item's predicted latents, or the object loss in its place, [B]; zero where nothing is asked.

        The items that take part have t ~ U(1, T'), and are T'/T of all: divided by that, the mean is Eq. 7's.
        """
        terms = list(latents.new_zeros(len(latents)))
        for index in batch.identity_items:
            target = batch.objects[index]
            terms[index] = (
                target.loss(self._decoder, latents[index]) if target else self._face(latents[index], batch, index)
            )
        term, num_timesteps = torch.stack(terms), len(self._alphas_cumprod)
        if self.config.identity_weighting == "falling":
            term = term * (1 - batch.timesteps.to(term, non_blocking=True) / num_timesteps).square()
        return term * (num_timesteps / self.config.identity_max_timestep)

    def _face(self, latents: Tensor, batch: Batch, index: int) -> Tensor:
        """[], Eq. 7 of one item's predicted latents [C,h,w]; zero where the face is not alike enough to compare."""
        assert self.recogniser is not None  # without one no item has landmarks
        pred_embeds = embed_latents(self._decoder, self.recogniser, latents, batch.landmarks[index])
        term = losses.identity(pred_embeds, batch.target_embeds[index].to(self.device, non_blocking=True)).amin()
        return term * (term <= 1 - self.config.identity_min_cosine)

    def _attention(self, maps: dict[str, Tensor], columns: Tensor, regions: Tensor) -> Tensor:
        """Mean over each item's words, [B]. regions: [B,K,h',w']; the subject's is the face, the style's the rest."""
        if not maps:
            raise MagiCaptureError(
                f"no attention layer works on a grid of {tuple(regions.shape[-2:])}: change "
                "loss.attention_downscale or the resolution"
            )
        probs = torch.stack(list(maps.values()), 2)  # [B,K,L,heads,h',w']
        terms = [self.attention_loss(probs[:, index], region) for index, region in enumerate(regions.split(1, 1))]
        present = columns.any(-1)  # [B,K], whether the prompt holds the word
        exists = regions.flatten(2).any(2)  # it may vanish on a coarse grid
        return (torch.stack(terms, 1) * (present & exists)).sum(1) / present.sum(1).clamp(min=1)
