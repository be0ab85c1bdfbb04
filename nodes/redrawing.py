"""DIIR on MODEL: the core's walk to noise and back, each step by ComfyUI's own sampling.

So whatever others patch into MODEL, a ControlNet and the stages of identities act as in any sampler: on the way back.
The way to noise is not to know the person, and runs without what others patch into the cross-attention of MODEL, which
is where IP-Adapters act.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..magicapture_core.types import MagiCaptureError
from .controls import with_control
from .patching import attach_new, check_sd1
from .sampling import LATENT_FACTOR, encode
from .sockets import to_comfy, to_core
from .staging import apply_identity

if TYPE_CHECKING:
    from ..magicapture_core.artifact import Artifact
    from ..magicapture_core.diir.inversion import Predict
    from ..magicapture_core.diir.restorer import Walk
    from ..magicapture_core.restore import Restorer
    from ..magicapture_core.sefi.identity import SefiIdentity

FRAME = 512  # pixels, what SD1.5 was trained at


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """All that is needed to redraw a face: MODEL and a CONDITIONING without the person, both with them, and how far.
    prompt: of `positive`, its words in place.

    control: what the ControlNet sees of a face [1,3,S,S], and with which strength; see `with_control`.
    """

    plain: tuple[Any, Any]
    prompt: str
    model: Any
    positive: Any
    negative: Any
    vae: Any
    walk: Walk
    control: Callable[[Tensor], tuple[Any, Tensor, float]] | None = None
    on_step: Callable[[], None] = lambda: None
    size: int = FRAME

    def restorer(self) -> Restorer:
        from ..magicapture_core.diir.inversion import denoise, invert
        from ..magicapture_core.diir.restorer import redraw

        sigmas = self.sigmas()

        def forth(latents: Tensor) -> Any:
            model, conditioning = self.plain
            return self.sampled(
                model, conditioning, conditioning, 1.0, sigmas, lambda predict: invert(predict, latents, sigmas)
            )

        def back(path: list[Tensor], mask: Tensor, faces: Tensor) -> Any:
            positive, negative = self.positive, self.negative
            if self.control:
                positive, negative = with_control(positive, negative, *self.control(faces))
            return self.sampled(
                self.model,
                positive,
                negative,
                self.walk.guidance,
                sigmas.flip(0),
                lambda predict: denoise(predict, path, sigmas, mask),
            )

        return redraw(self.encoded, self.decoded, forth, back, self.size)

    def sigmas(self) -> Tensor:
        """[K+1], rising from 0."""
        every = self.model.get_model_object("model_sampling").sigmas.cpu().double()
        return self.walk.sigmas(1 / (every**2 + 1))

    def encoded(self, images: Tensor) -> Tensor:
        """images [1,3,H,W] 0..1 -> latents as the model sees them, where it is."""
        latents = self.vae.encode(to_comfy(images))
        return self.model.model.process_latent_in(latents).to(self.model.load_device, torch.float32)

    def decoded(self, latents: Tensor) -> Tensor:
        return to_core(self.vae.decode(self.model.model.process_latent_out(latents).cpu()))

    def sampled(
        self, model: Any, positive: Any, negative: Any, cfg: float, sigmas: Tensor, way: Callable[[Predict], Any]
    ) -> Any:
        """What `way` makes of the predictions of MODEL, inside of one sampling at these noise levels."""
        import comfy.model_management
        import comfy.sample
        import comfy.samplers

        made = []

        def walked(predict_x0: Callable[..., Tensor], start: Tensor, _sigmas: Tensor, extra_args: Any, **_: Any) -> Any:
            def predict(x: Tensor, sigma: Tensor) -> Tensor:
                comfy.model_management.throw_exception_if_processing_interrupted()
                sigma = sigma.to(x)
                noise = (x - predict_x0(x, sigma.expand(len(x)), **extra_args)) / sigma
                self.on_step()
                return noise

            made.append(way(predict))
            return start

        empty = torch.zeros(1, 4, self.size // LATENT_FACTOR, self.size // LATENT_FACTOR)
        comfy.sample.sample_custom(
            model,
            empty,
            cfg,
            comfy.samplers.KSAMPLER(walked),
            sigmas,
            positive,
            negative,
            empty,
            disable_pbar=True,
            seed=0,
        )
        return made[0]


def open_drawing(
    *,
    model: Any,
    clip: Any,
    artifact: Artifact | None,
    identity: SefiIdentity | None,
    prompt: str,
    negative: str,
    **more: Any,
) -> Drawing:
    """The person on MODEL and CLIP, the prompts encoded with them. Raises as `attach_new` and `apply_identity`, and
    MagiCaptureError where nothing says who the person is."""
    from ..magicapture_core.diir.pictures import fill_personal
    from ..magicapture_core.diir.restorer import PLAIN_PROMPT
    from ..magicapture_core.sefi.config import SLOT

    check_sd1(model, clip)
    if artifact is None and identity is None and SLOT in prompt and is_bare(model):
        raise MagiCaptureError(
            f"artifact, identity: nobody says who {SLOT} is; connect one of them, or a MODEL into which IP-Adapter "
            "FaceID or a LoRA has put the person, or describe them in the prompt"
        )
    plain = without_person(model), encode(clip, PLAIN_PROMPT)
    if artifact is not None:
        model, clip = attach_new(artifact, model, clip)
    if identity is not None:
        model, clip = apply_identity(identity, model, clip)
    text = fill_personal(prompt, artifact, identity)
    positive, negative = encode(clip, text), encode(clip, negative)
    return Drawing(plain=plain, prompt=text, model=model, positive=positive, negative=negative, **more)


def is_bare(model: Any) -> bool:
    """Whether MODEL is as its loader made it."""
    options = {name: value for name, value in model.model_options.items() if value}
    return not (options or model.patches or model.object_patches)


def without_person(model: Any) -> Any:
    """A clone of MODEL without what others patch into its cross-attention; its LoRAs and all else stay."""
    model = model.clone()
    options = model.model_options["transformer_options"] = {**model.model_options["transformer_options"]}
    for name in ("patches", "patches_replace"):
        options[name] = {key: value for key, value in options.get(name, {}).items() if not key.startswith("attn2")}
    return model
