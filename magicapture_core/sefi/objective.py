"""The loss of SeFi-IDE on one batch: one UNet pass per item, both terms from that same pass.

In: a backbone, the module that gives the words of all stages, the encoded photos. Out: per-item terms that can be
backpropagated. Knows nothing of optimizers or steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import losses
from ..attention import compared, split_contexts
from ..config import TokenConfig
from ..dataset import ItemKey
from ..diffusion import NUM_TIMESTEPS, add_noise
from ..objective import Terms, autocast
from ..sampler import encode_prompt
from ..tokens import Vocabulary, initial_token
from ..types import MagiCaptureError, Token
from .config import SLOT, SefiConfig

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..identity import Likeness


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedPhotos:
    """The photos in latent space; mean, std: [2,N,C,h,w] of the VAE's posterior, unscaled, as they are and mirrored;
    [1,N,C,h,w] where nothing is ever mirrored.

    likeness: what a look is compared with; None without a recogniser. The loss does not know it.
    """

    mean: Tensor
    std: Tensor
    scaling_factor: float
    likeness: Likeness | None = None

    def draw(self, config: SefiConfig, items: Sequence[ItemKey]) -> Batch:
        """The items of one forward pass, each drawn by itself: photo, mirror, t ~ U, VAE sample and noise."""
        drawn = [self._draw(config, item) for item in items]
        latents, noise, timesteps = (torch.stack(values) for values in zip(*drawn, strict=True))
        return Batch(latents=latents, noise=noise, timesteps=timesteps)

    def _draw(self, config: SefiConfig, item: ItemKey) -> tuple[Tensor, Tensor, Tensor]:
        generator = item.generator(config.seed)
        photo = int(torch.randint(self.mean.shape[1], (), generator=generator))
        mirrored = int(torch.randint(2, (), generator=generator)) if config.flip else 0
        timestep = torch.randint(NUM_TIMESTEPS, (), generator=generator)
        mean, std = self.mean[mirrored, photo], self.std[mirrored, photo]
        latents = mean + std * torch.randn(mean.shape, generator=generator)
        return latents * self.scaling_factor, torch.randn(mean.shape, generator=generator), timestep


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """latents, noise: [B,C,h,w], scaled as the UNet wants them. timesteps: [B]."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor


class SefiObjective:
    """Of one run: the text encoder has to know the words of all stages, as `tokens.extended` arranges it."""

    def __init__(self, backbone: Backbone, config: SefiConfig, words: nn.Module) -> None:
        """words: gives [2S,C] when called."""
        self.backbone, self.config, self.device = backbone, config, backbone.unet.device
        self.vocabulary = Vocabulary.of(backbone.tokenizer, [token_of(config, words)])
        self._alphas_cumprod = backbone.noise_scheduler.alphas_cumprod.to(self.device)
        reference = self._reference_ids()
        with torch.no_grad(), autocast(backbone.unet):
            self._reference = encode_prompt(backbone, reference)

    def _reference_ids(self) -> Tensor:
        """[1,T], of the sentence with the plain word.

        Raises MagiCaptureError where it is not the learned sentence but for that word: each token's attention is
        compared with that of the token in its place.
        """
        words = (self.config.initializer_token, self.config.placeholder_token)
        plain, learned = self.vocabulary.at(0)[0].encode([self.config.sentence(word) for word in words])
        if (plain < 0).any() or (learned < 0).sum() != 1 or (plain != learned).sum() != 1:
            raise MagiCaptureError(
                f"template: {self.config.template[:60]!r} does not hold {SLOT} as a word by itself; put "
                "spaces around it"
            )
        return plain[None]

    @contextmanager
    def terms(self, batch: Batch, weights: Terms[float]) -> Iterator[Terms[Tensor]]:
        """Each item's terms, [B]: L = ||eps - eps_theta(z_t, t, {c^K, c^V})||^2 + lambda ||A_t - A_r||^2.

        The reconstruction is the mean over all pixels. A_t and A_r are of the same queries: those of this very pass.
        identity and prior are zero. Backpropagate inside the block, as checkpointed layers run again then.
        """
        unet, noise, timesteps = self.backbone.unet, batch.noise.to(self.device), batch.timesteps.to(self.device)
        noisy_latents = add_noise(batch.latents.to(self.device), noise, timesteps, self._alphas_cumprod)
        with autocast(unet):
            contexts = self._contexts(batch.timesteps.tolist(), bool(weights.attention))
        looked_at = compared(unet, self._largest(noisy_latents)) if weights.attention else split_contexts(unet)
        with looked_at as differences:
            with autocast(unet):
                noise_pred = unet(noisy_latents, timesteps, contexts).sample
            everywhere = torch.ones_like(noise[:, :1])
            reconstruction = losses.masked_reconstruction(noise_pred, noise, everywhere)
            nothing = torch.zeros_like(reconstruction)
            attention = self._attention(differences or {}) if weights.attention else nothing
            yield Terms(reconstruction, attention, nothing, nothing)

    def _attention(self, differences: dict[str, Tensor]) -> Tensor:
        """[B], the mean over the layers."""
        if not differences:
            raise MagiCaptureError(
                f"no attention layer works on the latent's size divided by {self.config.attention_downscale}: lower "
                "attention_downscale"
            )
        return torch.stack([*differences.values()]).mean(0)

    def _contexts(self, timesteps: Sequence[int], with_reference: bool) -> Tensor:
        """[B,2,T,C] of keys and values, or with the reference's [B,3,T,C]; the learned ones encoded in one pass."""
        roles = 2 if self.config.key_value_split else 1
        sentences = [self.config.sentence(self.config.placeholder_token)]
        rows = [side.encode(sentences) for timestep in timesteps for side in self.vocabulary.at(timestep)[:roles]]
        embeds = encode_prompt(self.backbone, torch.cat(rows)).unflatten(0, (-1, roles))
        contexts = embeds.expand(-1, 2, -1, -1)
        return torch.cat([contexts, self._reference.expand_as(contexts[:, :1])], 1) if with_reference else contexts

    def _largest(self, latents: Tensor) -> int:
        """Cells of the grids that the attention loss reads."""
        height, width = latents.shape[-2:]
        return (height // self.config.attention_downscale) * (width // self.config.attention_downscale)


def token_of(config: SefiConfig, words: nn.Module) -> Token:
    """The words as they are now, copied to the CPU."""
    with torch.no_grad():
        vectors = words().float().cpu().clone()
    return Token(
        name="subject",
        placeholder=config.placeholder_token,
        initializer=config.initializer_token,
        vectors=vectors,
        num_stages=config.num_stages,
    )


def plain_word(backbone: Backbone, config: SefiConfig) -> Tensor:
    """[C], the embedding of the plain word.

    Raises MagiCaptureError when it is not one token of the vocabulary: the learned word, which takes its place, is.
    """
    table = backbone.text_encoder.get_input_embeddings().weight
    word = TokenConfig(placeholder_token=config.placeholder_token, initializer_token=config.initializer_token)
    return initial_token("identity", word, backbone.tokenizer, table, torch.Generator()).vectors[0]
