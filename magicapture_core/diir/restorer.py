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
from .control import Control, Residuals, nothing, plain_embeds
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
    back: Callable[[list[Tensor], Tensor, Tensor], Tensor],
    size: int = FACE_SIZE,
) -> Restorer:
    """to_latents: images [1,3,size,size] 0..1 -> latents; to_images: the inverse. forth: latents -> their path to
    noise, without the person. back: that path, the mask [1,1,h,w] and the faces [1,3,512,512] -> latents with the
    person.

    What is added to the face is the difference between the two pictures that latents make, with the person and without:
    what the VAE or a smaller frame cannot keep of the face is in both and cancels.
    """
    oval = face_mask(torch.eye(2, 3), (FACE_SIZE, FACE_SIZE))[None]

    def restored(faces: Tensor) -> Tensor:
        latents = to_latents(resize(faces, (size, size)))
        mask = resize(oval, (latents.shape[-2], latents.shape[-1])).to(latents)
        changed = back(forth(latents), mask, faces)
        difference = to_images(changed) - to_images(latents)
        return (faces + resize(difference.to(faces), (FACE_SIZE, FACE_SIZE))).clamp(0, 1)

    return restored


@contextmanager
def redrawing(
    backbone: Backbone,
    artifact: Artifact | None,
    prompt: str,
    identities: Sequence[SefiIdentity] = (),
    negative_prompt: str = "",
    walk: Walk | None = None,
    control: Control | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[Restorer]:
    """Inside the block, the restorer of who the artifact and the identities make of the prompt.

    prompt: with the learned words in place. on_step: called after each of the steps there and back. Raises
    MagiCaptureError as `sampler.taught`.
    """
    walk, unet = walk or Walk(), backbone.unet
    size = unet.config.sample_size * backbone.vae_factor
    prompts = [negative_prompt, prompt]
    with taught(backbone, None) as vocabulary:
        plain = PromptEmbeds(backbone, vocabulary, [PLAIN_PROMPT]).everywhere()
    with taught(backbone, artifact, identities=identities) as vocabulary:
        personal = PromptEmbeds(backbone, vocabulary, prompts).everywhere()
    alphas_cumprod = backbone.noise_scheduler.alphas_cumprod
    sigmas = walk.sigmas(alphas_cumprod)
    levels = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()

    def noise(x: Tensor, sigma: Tensor, embeds: PromptEmbeds, residuals: Residuals = nothing) -> Tensor:
        timestep = (levels - sigma).abs().argmin()
        rows = embeds.at(int(timestep))
        latents = (x / (sigma**2 + 1).sqrt()).expand(len(rows), -1, -1, -1).to(unet.dtype)
        predicted = unet(latents, timestep.to(unet.device), rows, **residuals(latents, timestep)).sample.float()
        on_step()
        return predicted

    def without(x: Tensor, sigma: Tensor) -> Tensor:
        with lora.switched_off(unet):
            return noise(x, sigma, plain)

    def with_person(faces: Tensor) -> Predict:
        shown = plain_embeds(backbone, artifact, identities, prompts)
        residuals = control.residuals(faces, size, shown) if control else nothing

        def predict(x: Tensor, sigma: Tensor) -> Tensor:
            negative, positive = noise(x, sigma, personal, residuals).chunk(2)
            return negative + walk.guidance * (positive - negative)

        return predict

    def walked(predict: Predict, way: Callable[..., Any], *given: Any) -> Any:
        with torch.no_grad(), split_contexts(unet):
            return way(predict, *given)

    layers = kohya.from_kohya(artifact.lora, kohya.UNET, unet) if artifact else {}
    with lora.applied(unet, layers):
        yield redraw(
            to_latents=lambda images: encoded(backbone, images),
            to_images=lambda latents: decode(backbone, latents),
            forth=lambda latents: walked(without, invert, latents, sigmas),
            back=lambda path, mask, faces: walked(with_person(faces), denoise, path, sigmas, mask),
            size=size,
        )


@torch.no_grad()
def encoded(backbone: Backbone, images: Tensor) -> Tensor:
    """images [B,3,H,W] 0..1 -> scaled latents, the means of the VAE's posterior: two calls give the same."""
    vae = backbone.vae
    posterior = vae.encode((images * 2 - 1).to(vae.device, vae.dtype)).latent_dist
    return posterior.mean.float() * vae.config.scaling_factor
