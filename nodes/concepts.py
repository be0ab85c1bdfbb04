"""AnotherConcept: one more person or style for the same training, chained to any number; and all of them as photos."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfy_api.latest import io
from pydantic import ValidationError
from torch import Tensor

from ..magicapture_core.types import Face, MagiCaptureError, Side, concept_name, side_of
from .portraits import to_portraits
from .sockets import ConceptsType, FacesType, schema

if TYPE_CHECKING:
    from ..magicapture_core.config import TrainConfig
    from ..magicapture_core.types import Photos

SIDES: dict[str, Side] = {"person": "subject", "style": "style"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Concept:
    """What a Face Mask node gives of one person or style, and how its word is written and starts; empty: by itself."""

    side: Side
    images: Tensor
    masks: Tensor
    faces: list[Face] | None
    placeholder_token: str = ""
    initializer_token: str = ""


class AnotherConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Another Person or Style",
            node_id="MagiCaptureAnotherConcept",
            description="One more person or style for the same training: every picture of a step then draws a person "
            "and a style of its own from all of them. Chain several through `more`. Their words are <subject_2>, "
            "<style_2> and so on.",
            inputs=[
                io.Combo.Input(
                    "kind",
                    options=[*SIDES],
                    tooltip="Whether the photos show a person or a style. A pet or a thing: person, with its own word, "
                    "such as dog, in initializer_token.",
                ),
                io.Image.Input("images", tooltip="Square pictures of the person or in the style, from Face Mask."),
                io.Mask.Input("masks", tooltip="Their face masks, white = face, from Face Mask."),
                io.String.Input(
                    "placeholder_token",
                    default="",
                    tooltip="The learned word as it is written in prompts, in angle brackets. Empty: <subject_2> or "
                    "<style_2> and so on.",
                ),
                io.String.Input(
                    "initializer_token",
                    default="",
                    tooltip="The word whose embedding the learned word starts from, such as woman. Empty: as the first "
                    "person or style.",
                ),
                FacesType.Input("faces", optional=True, tooltip="From Face Mask; else looked for again."),
                ConceptsType.Input("more", optional=True, tooltip="From another node of this kind."),
            ],
            outputs=[
                ConceptsType.Output(display_name="more", tooltip="For Train MagiCapture LoRA, or the next such node.")
            ],
        )

    @classmethod
    def execute(
        cls,
        kind: str,
        images: Tensor,
        masks: Tensor,
        placeholder_token: str,
        initializer_token: str,
        faces: list[Face] | None = None,
        more: list[Concept] | None = None,
    ) -> io.NodeOutput:
        concept = Concept(
            side=SIDES[kind],
            images=images,
            masks=masks,
            faces=faces,
            placeholder_token=placeholder_token.strip(),
            initializer_token=initializer_token.strip(),
        )
        check_words(concept)
        return io.NodeOutput([*(more or []), concept])


def check_words(concept: Concept) -> None:
    """Raises MagiCaptureError in one line that names the widget and what it should be."""
    from ..magicapture_core.config import TokenConfig

    word = concept.placeholder_token or f"<{concept_name(concept.side, 2)}>"  # the number comes with the training
    try:
        TokenConfig(placeholder_token=word, initializer_token=concept.initializer_token)
    except ValidationError as error:
        faults = (f"{e['loc'][0]}={e['input']!r}: {e['msg']}" for e in error.errors())
        raise MagiCaptureError("; ".join(faults)) from None


def to_photos(
    first: Iterable[Concept], more: Iterable[Concept], config: TrainConfig
) -> tuple[Photos, TrainConfig, list[str]]:
    """All people and styles at the training's resolution, the settings with a word for each, and notes.

    first: the person and the style that the settings have words for. Raises MagiCaptureError where pictures, masks and
    faces do not belong together.
    """
    given: dict[str, Concept] = {concept.side: concept for concept in first}
    for concept in more:
        config = config.with_another(concept.side, concept.placeholder_token, concept.initializer_token)
        newest = [name for name in config.concepts if side_of(name) == concept.side][-1]
        given[newest] = concept
    photos, notes = {}, []
    for name, concept in given.items():
        photos[name], said = to_portraits(name, concept.images, concept.masks, concept.faces, config.resolution)
        notes += said
    return photos, config, notes


NODES = [AnotherConcept]
