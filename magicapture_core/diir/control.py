"""A ControlNet of landmarks on the way back of a face, as diffusers runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..images import resize
from ..sampler import PromptEmbeds, taught
from .landmarks import Landmarks

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..backbone import Backbone
    from ..sefi.identity import SefiIdentity

Residuals = Callable[[Tensor, Tensor], dict[str, Any]]  # latents [B,C,h,w], timestep -> what the UNet takes beside them
STRENGTH = 0.7


def nothing(latents: Tensor, timestep: Tensor) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True, eq=False)
class Control:
    """net: a ControlNetModel for this UNet. landmarks: what it is shown of a face. strength: 1 as it was trained."""

    net: Any
    landmarks: Landmarks
    strength: float = STRENGTH

    def residuals(self, faces: Tensor, size: int, prompt_embeds: Tensor) -> Residuals:
        """Of faces [1,3,512,512] in the frame, which the UNet sees at `size` pixels, and prompt_embeds [B,T,C]."""
        pictures = resize(self.landmarks(faces), (size, size)).expand(len(prompt_embeds), -1, -1, -1)
        where = {"device": self.net.device, "dtype": self.net.dtype}

        @torch.no_grad()
        def of(latents: Tensor, timestep: Tensor) -> dict[str, Any]:
            given = latents.to(**where), timestep.to(self.net.device), prompt_embeds.to(**where), pictures.to(**where)
            down, mid = self.net(*given, conditioning_scale=self.strength, return_dict=False)
            return {
                "down_block_additional_residuals": [one.to(latents) for one in down],
                "mid_block_additional_residual": mid.to(latents),
            }

        return of


def plain_embeds(
    backbone: Backbone, artifact: Artifact | None, identities: Sequence[SefiIdentity], prompts: Sequence[str]
) -> Tensor:
    """prompt_embeds [B,T,C] for layers that know of no stages, as a ControlNet's: identities by their plain words."""
    plain = [replace(identity, stages=identity.plain.expand(1, 2, -1)) for identity in identities]
    with torch.no_grad(), taught(backbone, artifact, identities=plain) as vocabulary:
        embeds = PromptEmbeds(backbone, vocabulary, prompts).at(0)
    return embeds[:, 0] if identities else embeds
