"""What Composed Prompt Sampler and Strength Sweep share: their sockets, and the way from these to shots.

A Scene is all that does not change between two pictures, a Take is the scene at certain strengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.kohya import TEXT_ENCODER, UNET
from ..magicapture_core.prompts import COMPOSED_PROMPT, fill_prompt
from ..magicapture_core.types import Side, side_of
from . import patching
from .controls import check_control, control_sockets, with_control
from .portraits import likeness_judge
from .prompting import LearnedTokenizer
from .sampling import Shot, encode, odd_size, sampler_sockets
from .sockets import ArtifactType, FaceRecognitionType, checkpoint_inputs, strength_input, text_input

if TYPE_CHECKING:
    from ..magicapture_core.artifact import Artifact

STRENGTHS = ("strength_model", "strength_clip", "strength_subject", "strength_style")
PARTS = (("MODEL", "strength_model", UNET), ("CLIP", "strength_clip", TEXT_ENCODER))


# -- sockets -----------------------------------------------------------------------------------------------------------


def required_sockets(seed: str) -> list[Any]:
    """seed: its tooltip."""
    return [
        *checkpoint_inputs(
            model="An SD1.5 model, with or without this LoRA on it.",
            clip="The CLIP of the same checkpoint.",
            vae="Turns latents into pictures.",
        ),
        io.Combo.Input(
            "lora_name",
            options=patching.LORAS.choices(),
            tooltip="A file made by Train MagiCapture LoRA; newest = the last one trained. Counts only while "
            "no artifact is connected.",
        ),
        text_input(
            "prompt",
            COMPOSED_PROMPT,
            "{subject} and {style} stand for the learned words, {subject_2} and so on for those of further "
            "people and styles. Add to the sentence, for example: , wearing sunglasses. Weights such as "
            "({style}:0.8) work.",
        ),
        text_input("negative", "", "What the pictures should not show."),
        strength_input("strength_model", "How strongly the LoRA acts on the model. Try 0.6, 0.8 and 1."),
        strength_input("strength_clip", "How strongly the LoRA's text part acts, where it has one."),
        *sampler_sockets(seed),
    ]


def optional_sockets() -> list[Any]:
    return [
        ArtifactType.Input(
            "artifact",
            optional=True,
            tooltip="From Train or Load MagiCapture LoRA. Takes the place of the file chosen above.",
        ),
        strength_input(
            "strength_subject",
            "How strongly the person acts. A LoRA of split adapters: the person's half of it. Of joint ones: the "
            "weight of the learned word, as in (<subject>:0.8). The report says which.",
            optional=True,
        ),
        strength_input(
            "strength_style",
            "How strongly the style acts. A LoRA of split adapters: the style's half of it. Of joint ones: the "
            "weight of the learned word, as in (<style>:0.8). The report says which.",
            optional=True,
        ),
        *control_sockets(),
        FaceRecognitionType.Input(
            "face_recognition",
            optional=True,
            tooltip="From Load Face Recognition. With a reference, each picture's likeness is measured.",
        ),
        io.Image.Input(
            "reference",
            optional=True,
            tooltip="Photos of the person, best some that no training has seen: a list or a batch. Goes with "
            "face_recognition.",
        ),
    ]


# -- from sockets to shots ---------------------------------------------------------------------------------------------


class Take(NamedTuple):
    """A scene at certain strengths. notes: what these did besides the obvious. idle: strength -> why it cannot act."""

    shot: Shot
    notes: list[str]
    idle: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """prompt, negative: with the learned words in place. strengths: by the names of STRENGTHS."""

    model: Any
    clip: Any
    learned: Artifact
    prompt: str
    negative: str
    strengths: dict[str, float]
    control: tuple[Any, Tensor, float] | None
    judge: Callable[[Tensor], list[float | None]] | None
    settings: dict[str, Any]
    size: tuple[int, int]

    def report(self, take: Take) -> list[str]:
        """Its first lines: whose LoRA, the prompt, and what was not done as asked."""
        return [f"{self.learned.name}: {self.prompt}", *take.notes, *odd_size(self.size)]

    def take(self, strengths: Mapping[str, float]) -> Take:
        """The LoRA and the learned words at these strengths; the prompts encoded with them, behind the ControlNet."""
        from ..magicapture_core import halves

        sides: dict[Side, float] = {side: strengths[f"strength_{side}"] for side in get_args(Side)}
        learned = halves.scaled(self.learned, sides) if self.learned.rank_split else self.learned
        model, clip, attached = patching.attach(
            learned, self.model, self.clip, strengths["strength_model"], strengths["strength_clip"]
        )
        if not learned.rank_split:
            weights = {token.placeholder: sides[side_of(token.name)] for token in learned.tokens}
            clip.tokenizer = LearnedTokenizer(clip.tokenizer, {}, weights)
        positive, negative = (encode(clip, text) for text in (self.prompt, self.negative))
        if self.control:
            positive, negative = with_control(positive, negative, *self.control)
        idle = idle_strengths(learned, attached, self.prompt + self.negative)
        return Take(Shot(model, positive, negative), [*notes(learned, attached, strengths, idle)], idle)


def open_scene(
    *,
    model: Any,
    clip: Any,
    lora_name: str,
    prompt: str,
    negative: str,
    width: int,
    height: int,
    artifact: Artifact | None = None,
    control_net: Any = None,
    control_image: Tensor | None = None,
    control_strength: float = 1.0,
    face_recognition: Any = None,
    reference: Sequence[Tensor] | None = None,
    **widgets: Any,
) -> Scene:
    """The sockets of both lists above but `vae` and `seed`. Raises MagiCaptureError for what cannot go together."""
    learned = patching.check_architecture(artifact) if artifact else patching.load(lora_name)
    return Scene(
        model=model,
        clip=clip,
        learned=learned,
        prompt=fill_prompt(prompt, learned),
        negative=fill_prompt(negative, learned),
        strengths={name: widgets.pop(name, 1.0) for name in STRENGTHS},
        control=check_control(control_net, control_image, control_strength),
        judge=likeness_judge(face_recognition, reference),
        settings=widgets,
        size=(width, height),
    )


def idle_strengths(learned: Artifact, attached: Iterable[str], text: str) -> dict[str, str]:
    """Which of the four strengths cannot act, and why. attached: those of MODEL and CLIP that had the LoRA already."""
    had = {part: f"it was on {part} already, so set this in the node that put it there" for part in attached}
    idle = {}
    for part, name, prefix in PARTS:
        if not any(key.startswith(prefix) for key in learned.lora):
            idle[name] = f"it has no part for {part}"
        elif part in had:
            idle[name] = had[part]
    for side in get_args(Side):
        words = [token.placeholder for token in learned.tokens if side_of(token.name) == side]
        if learned.rank_split and not learned.rank_split.get(side):
            idle[f"strength_{side}"] = f"it holds no {side}"
        elif learned.rank_split and "MODEL" in had:
            idle[f"strength_{side}"] = had["MODEL"]
        elif not learned.rank_split and not any(word in text for word in words):
            idle[f"strength_{side}"] = f"the prompt holds no learned word of a {side}"
    return idle


def notes(
    learned: Artifact, attached: list[str], strengths: Mapping[str, float], idle: Mapping[str, str]
) -> Iterable[str]:
    """In words, what became of the strengths that are not 1."""
    if attached:
        yield f"{learned.name} was on {' and '.join(attached)} already and is not applied twice"
    asked = {name: strengths[name] for name in STRENGTHS if strengths[name] != 1}
    yield from (
        f"{name} {value:g} has no effect with {learned.name}: {idle[name]}"
        for name, value in asked.items()
        if name in idle
    )
    for side in get_args(Side):
        name = f"strength_{side}"
        if name not in asked or name in idle:
            continue
        if learned.rank_split:
            yield f"{name} {asked[name]:g} scales the LoRA's half of the {side}"
        else:
            words = [token.placeholder for token in learned.tokens if side_of(token.name) == side]
            weighted = ", ".join(f"({word}:{asked[name]:g})" for word in words)
            yield f"{name} weighs the words, {weighted}: {learned.name} has joint adapters, which are no halves"


def in_words(score: float | None) -> str:
    return "no face" if score is None else f"likeness {score:.3f}"
