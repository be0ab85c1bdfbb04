"""A group on MODEL: ComfyUI's side of the core's mask-guided cross-attention.

Each person's text is encoded by a CLIP of their own, which knows only their words, and travels in the conditioning of
the whole picture to the UNet. Around every call of that the core's hooks confine text and LoRA to the person's region:
whatever other packs do to MODEL goes on in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..magicapture_core.diffusion import NUM_TIMESTEPS
from ..magicapture_core.kohya import UNET, read_layers
from ..magicapture_core.types import LoraLayer, MagiCaptureError
from .patching import attach_new, check_sd1
from .sampling import encode
from .staging import KEY as STAGES
from .staging import StagedPrompt, apply_identity

if TYPE_CHECKING:
    from ..magicapture_core.artifact import Artifact
    from ..magicapture_core.group.attention import Regions
    from ..magicapture_core.group.people import Person

KEY = "magicapture_group"  # of the wrappers, and of the people's texts in a conditioning and on their way to the UNet
LAYOUT = "magicapture_layout"  # in a conditioning, what it says in the first steps
COMPILED = "torch.compile"  # what ComfyUI calls the wrapper of a compiled MODEL
SIDES = ("keys", "values")


def apply_group(
    people: Sequence[Person], model: Any, clip: Any, prompt: str, negative: str, layout: str = "", delay: float = 0.0
) -> tuple[Any, Any, Any]:
    """MODEL, positive and negative in whose pictures the people stand in their regions, whatever samples them.

    prompt: of the whole picture, behind each person's own. layout, delay: where given, a prompt that makes the first
    steps alone, and their share of all, 0..1. Raises MagiCaptureError for models that are not SD1.5's, for a compiled
    one, for a LoRA that MODEL or CLIP had before, and for a name in what is said of the whole picture.
    """
    from comfy.patcher_extension import WrappersMP

    from ..magicapture_core.group.attention import Regions
    from ..magicapture_core.group.people import check_base

    check_sd1(model, clip)
    check_base(prompt, negative, layout)
    if model.get_wrappers(WrappersMP.APPLY_MODEL, COMPILED):
        raise MagiCaptureError("model: it is compiled, and the regions cannot reach inside; take Torch Compile out")
    members = [join(person, model, clip, prompt, negative) for person in people]
    layers, positives, negatives = zip(*members, strict=True)
    regions = Regions([person.region for person in people])
    model = model.clone()
    delay = delay if layout else 0.0
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, partial(hand_over, len(people), delay))
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, partial(in_regions, regions, layers))
    positive = with_texts(encode(clip, prompt), positives)
    if layout:
        positive = [[tensor, {**more, LAYOUT: encode(clip, layout)[0][0]}] for tensor, more in positive]
    return model, positive, with_texts(encode(clip, negative), negatives)


class Text(NamedTuple):
    """conditioning: [1,T,C]. staged: where the text holds an identity's word."""

    conditioning: Tensor
    staged: StagedPrompt | None = None

    @classmethod
    def of(cls, clip: Any, text: str) -> Text:
        conditioning, more = encode(clip, text)[0]
        return cls(conditioning, more.get(STAGES))

    def at(self, timestep: int) -> list[Tensor]:
        """What keys and values see, [1,T,C] each."""
        if self.staged is None:
            return [self.conditioning] * 2
        return self.staged.at(timestep, self.conditioning)


class Member(NamedTuple):
    """A person whose texts are encoded. layers: their LoRA, by the names of the UNet's layers."""

    layers: dict[str, LoraLayer]
    positive: Text
    negative: Text


def join(person: Person, model: Any, clip: Any, prompt: str, negative: str) -> Member:
    layers: dict[str, LoraLayer] = {}
    if person.artifact is not None:
        _, clip = attach_new(person.artifact, model, clip)
        layers = find_layers(person.artifact, model)
    for identity in person.identities:
        _, clip = apply_identity(identity, model, clip)
    return Member(layers, Text.of(clip, person.text(prompt)), Text.of(clip, negative))


def with_texts(conditioning: Any, texts: Sequence[Text]) -> Any:
    """CONDITIONING that says, beside what holds for the whole picture, what each person's region shows."""
    return [[tensor, {**more, KEY: texts}] for tensor, more in conditioning]


def find_layers(artifact: Artifact, model: Any) -> dict[str, LoraLayer]:
    """The UNet's part of its LoRA, by the names of MODEL's layers, as precise as MODEL, where it will run.

    What MODEL lacks acts as little as with stock loaders. Raises MagiCaptureError for one of another size there.
    """
    import comfy.lora

    paths = comfy.lora.model_lora_keys_unet(model.model, {})
    layers = read_layers({key: value for key, value in artifact.lora.items() if key.startswith(f"{UNET}_")})
    unet, found = model.model.diffusion_model, {}
    for name, layer in layers.items():
        if name not in paths:
            continue
        path = paths[name].removeprefix("diffusion_model.").removesuffix(".weight")
        module = unet.get_submodule(path)
        size, wanted = (layer.up.shape[0], layer.down.shape[1]), (module.out_features, module.in_features)
        if size != wanted:
            raise MagiCaptureError(
                f"artifact: {artifact.name} is for another model, its layer {name} for a weight of {size}, which is "
                f"{wanted} here; connect a MODEL like the one it was trained on"
            )
        found[path] = layer.to(model.load_device, model.model.manual_cast_dtype or model.model.get_dtype())
    return found


def hand_over(
    count: int,
    delay: float,
    executor: Callable[..., Any],
    model: Any,
    conds: Sequence[Any],
    x: Tensor,
    sigma: Tensor,
    options: dict[str, Any],
) -> Any:
    """Around one step's prediction, of all prompts: the people's texts of this noise level go beside them; in the first
    steps, a share `delay` of all, the layout's prompt goes alone."""
    if is_first(delay, sigma, options["transformer_options"].get("sample_sigmas")):
        return executor(model, [group and [laid_out(cond) for cond in group] for group in conds], x, sigma, options)
    timestep = int(model.model_sampling.timestep(sigma.max()).clamp(0, NUM_TIMESTEPS - 1))
    conds = [group and [with_people(cond, count, timestep) for cond in group] for group in conds]
    return executor(model, conds, x, sigma, options)


def is_first(delay: float, sigma: Tensor, sigmas: Tensor | None) -> bool:
    """Whether a call at noise level `sigma` belongs to the first steps. sigmas: [K+1] falling, of the whole sampling;
    None where its sampler told none, which has no first steps."""
    if sigmas is None:
        return False
    last = float(sigmas[round(delay * (len(sigmas) - 1))])
    return delay > 0 and float(sigma.max()) > last * (1 + 1e-5)


def laid_out(cond: dict[str, Any]) -> dict[str, Any]:
    """A copy of a prompt that says what its layout says; where it has none, as the negative one, itself."""
    from comfy.conds import CONDCrossAttn

    if LAYOUT not in cond:
        return cond
    return {**cond, "model_conds": {**cond["model_conds"], "c_crossattn": CONDCrossAttn(cond[LAYOUT])}}


def with_people(cond: dict[str, Any], count: int, timestep: int) -> dict[str, Any]:
    """A copy of a prompt with so many people's texts beside it; where it has none, such as an empty prompt that a
    guidance of others adds, it is what all regions show too."""
    from comfy.conds import CONDCrossAttn

    parts = dict(cond["model_conds"])
    texts = cond.get(KEY) or [Text(parts["c_crossattn"].cond)] * count
    for number, text in enumerate(texts):
        for side, context in zip(SIDES, text.at(timestep), strict=True):
            parts[f"{KEY}_{number}_{side}"] = CONDCrossAttn(context)
    return {**cond, "model_conds": parts}


def in_regions(
    regions: Regions,
    layers: Sequence[dict[str, LoraLayer]],
    executor: Callable[..., Tensor],
    x: Tensor,
    timesteps: Tensor,
    context: Tensor,
    y: Any,
    control: Any,
    transformer_options: dict[str, Any],
    **kwargs: Any,
) -> Tensor:
    """Around one call of the UNet. layers: of each person. In the first steps there is nobody yet."""
    from ..magicapture_core.group.attention import Branch, acting

    if f"{KEY}_0_keys" not in kwargs:
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)
    unet, branches = executor.class_obj, []
    for number, own in enumerate(layers):
        keys, values = (kwargs.pop(f"{KEY}_{number}_{side}") for side in SIDES)
        modules = {unet.get_submodule(path): layer for path, layer in own.items()}
        branches.append(Branch(keys=keys, values=values, layers=modules))
    with acting(unet, regions, branches):
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)
