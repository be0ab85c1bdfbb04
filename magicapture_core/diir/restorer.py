"""DDIM-inversion identity restoration as a `Restorer`: one framed face in, the same with the person's identity out.

The face is inverted without the person and denoised with them, what lies outside of its oval held to the inverted
latents at every step. `redraw` is the line itself, over any model; `redrawing` gives it this package's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .. import kohya, lora
from ..attention import split_contexts
from ..images import resize
from ..restore import FACE_SIZE, Restorer, face_mask
from ..sampler import PromptEmbeds, decode, taught
from .inversion import Predict, ddim_sigmas, denoise, invert

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..backbone import Backbone
    from ..sefi.identity import SefiIdentity

Mode = Literal["restore", "swap"]
STRENGTHS: dict[Mode, float] = {"restore": 0.5, "swap": 0.7}  # of the way to noise; another's face needs a longer one
PLAIN_PROMPT = "a photo of a person"  # of the inversion, which is not to know who it is
NUM_STEPS, GUIDANCE = 50, 5.0


@dataclass(frozen=True, kw_only=True)
class Walk:
    """How far a face goes towards noise and back. strength: 0..1 of num_steps DDIM steps. guidance: of the way back."""

    strength: float = STRENGTHS["restore"]
    num_steps: int = NUM_STEPS
    guidance: float = GUIDANCE

    def sigmas(self, alphas_cumprod: Tensor) -> Tensor:
        return ddim_sigmas(alphas_cumprod, self.num_steps, self.strength)


def redraw(
    to_latents: Callable[[Tensor], Tensor],
    to_images: Callable[[Tensor], Tensor],
    forth: Callable[[Tensor], list[Tensor]],
    back: Callable[[list[Tensor], Tensor], Tensor],
    size: int = FACE_SIZE,
) -> Restorer:
    """to_latents: images [1,3,size,size] 0..1 -> latents; to_images: the inverse. forth: latents -> their path to
    noise, without the person. back: that path and the mask [1,1,h,w] -> latents with the person.

    What is added to the face is the difference between the two pictures that latents make, with the person and without:
    what the VAE or a smaller frame cannot keep of the face is in both and cancels.
    """
    oval = face_mask(torch.eye(2, 3), (FACE_SIZE, FACE_SIZE))[None]

    def restored(faces: Tensor) -> Tensor:
        latents = to_latents(fitted(faces, size))
        mask = fitted(oval, latents.shape[-1]).to(latents)
        changed = back(forth(latents), mask)
        difference = to_images(changed) - to_images(latents)
        return (faces + fitted(difference.to(faces), FACE_SIZE)).clamp(0, 1)

    return restored


def fitted(images: Tensor, size: int) -> Tensor:
    """[...,S,S] -> [...,size,size], and every bit as it was when the size is right already."""
    return images if images.shape[-1] == size else resize(images, (size, size))


@contextmanager
def redrawing(
    backbone: Backbone,
    artifact: Artifact | None,
    prompt: str,
    identities: Sequence[SefiIdentity] = (),
    negative_prompt: str = "",
    walk: Walk | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[Restorer]:
    """Inside the block, the restorer of who the artifact and the identities make of the prompt.

    prompt: with the learned words in place. on_step: called after each of the steps there and back. Raises
    MagiCaptureError as `sampler.taught`.
    """
    walk, unet = walk or Walk(), backbone.unet
    with taught(backbone, None) as vocabulary:
        plain = PromptEmbeds(backbone, vocabulary, [PLAIN_PROMPT]).everywhere()
    with taught(backbone, artifact, identities=identities) as vocabulary:
        personal = PromptEmbeds(backbone, vocabulary, [negative_prompt, prompt]).everywhere()
    alphas_cumprod = backbone.noise_scheduler.alphas_cumprod
    sigmas = walk.sigmas(alphas_cumprod)
    levels = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()

    def noise(x: Tensor, sigma: Tensor, embeds: PromptEmbeds) -> Tensor:
        timestep = int((levels - sigma).abs().argmin())
        rows = embeds.at(timestep)
        scaled = (x / (sigma**2 + 1).sqrt()).expand(len(rows), -1, -1, -1)
        predicted = unet(scaled.to(unet.dtype), torch.tensor(timestep, device=unet.device), rows).sample.float()
        on_step()
        return predicted

    def without(x: Tensor, sigma: Tensor) -> Tensor:
        with lora.switched_off(unet):
            return noise(x, sigma, plain)

    def with_person(x: Tensor, sigma: Tensor) -> Tensor:
        negative, positive = noise(x, sigma, personal).chunk(2)
        return negative + walk.guidance * (positive - negative)

    def walked(predict: Predict, way: Callable[..., Any], *given: Any) -> Any:
        with torch.no_grad(), split_contexts(unet):
            return way(predict, *given)

    layers = kohya.from_kohya(artifact.lora, kohya.UNET, unet) if artifact else {}
    with lora.applied(unet, layers):
        yield redraw(
            to_latents=lambda images: encoded(backbone, images),
            to_images=lambda latents: decode(backbone, latents),
            forth=lambda latents: walked(without, invert, latents, sigmas),
            back=lambda path, mask: walked(with_person, denoise, path, sigmas, mask),
            size=unet.config.sample_size * backbone.vae_factor,
        )


@torch.no_grad()
def encoded(backbone: Backbone, images: Tensor) -> Tensor:
    """images [B,3,H,W] 0..1 -> scaled latents, the means of the VAE's posterior: two calls give the same."""
    vae = backbone.vae
    posterior = vae.encode((images * 2 - 1).to(vae.device, vae.dtype)).latent_dist
    return posterior.mean.float() * vae.config.scaling_factor
