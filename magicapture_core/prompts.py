"""Templates of the tasks. Text in, text out; knows nothing of tokenizers.

Every template holds its placeholders exactly once, and `{noun}`, the subject's class. The first of each task is the
paper's (methods: section 3.3 of arXiv 2309.06895); the others say the same in other words, so that the learned words
do not cling to one sentence.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .types import CONCEPT_PATTERN, MagiCaptureError, Task

if TYPE_CHECKING:
    from .artifact import Artifact

PERSON = "person"  # the noun of the paper's templates
TEMPLATES: dict[Task, tuple[str, ...]] = {
    "source": (
        "A photo of {subject} {noun}",
        "A portrait of {subject} {noun}",
        "A close-up photo of {subject} {noun}",
        "A cropped photo of {subject} {noun}",
        "A good photo of {subject} {noun}",
        "A bright photo of {subject} {noun}",
        "A picture of the face of {subject} {noun}",
        "A rendition of {subject} {noun}",
    ),
    "reference": (
        "A photo of a {noun} in the {style} style",
        "A portrait of a {noun} in the {style} style",
        "A close-up photo of a {noun} in the {style} style",
        "A cropped photo of a {noun} in the {style} style",
        "A good photo of a {noun} in the {style} style",
        "A picture of a {noun} in the {style} style",
        "A rendition of a {noun} in the {style} style",
    ),
    "composed": (
        "A photo of a {subject} {noun} in the {style} style",
        "A portrait of a {subject} {noun} in the {style} style",
        "A close-up photo of a {subject} {noun} in the {style} style",
        "A cropped photo of a {subject} {noun} in the {style} style",
        "A good photo of a {subject} {noun} in the {style} style",
        "A bright photo of a {subject} {noun} in the {style} style",
        "A picture of a {subject} {noun} in the {style} style",
        "A rendition of a {subject} {noun} in the {style} style",
    ),
    "class": (
        "A photo of a {noun}",
        "A portrait of a {noun}",
        "A close-up photo of a {noun}",
        "A cropped photo of a {noun}",
        "A good photo of a {noun}",
        "A bright photo of a {noun}",
        "A picture of a {noun}",
        "A rendition of a {noun}",
    ),
}

COLLAGES: dict[str, tuple[str, ...]] = {  # of one face, of several of one person, of two people
    "one": (
        "A photo of {subject} {noun}",
        "A good photo of {subject} {noun}",
        "A bright photo of {subject} {noun}",
        "A rendition of {subject} {noun}",
    ),
    "several": (
        "Several photos of {subject} {noun}",
        "A collage of photos of {subject} {noun}",
        "A contact sheet of photos of {subject} {noun}",
    ),
    "two": (
        "A photo of {subject} {noun} and {other} {other_noun}",
        "A good photo of {subject} {noun} and {other} {other_noun}",
        "A bright photo of {subject} {noun} and {other} {other_noun}",
    ),
}

SLOT = rf"\{{({CONCEPT_PATTERN})\}}"


def templates(noun: str = PERSON) -> dict[Task, tuple[str, ...]]:
    """The templates of a person, or of what `noun` says, such as a dog or a teapot: that one has no face to ask for."""
    return {
        task: tuple(text.replace("{noun}", noun) for text in texts if noun == PERSON or "face" not in text)
        for task, texts in TEMPLATES.items()
    }


COMPOSED_PROMPT = templates()["composed"][0]


def fill(template: str, subject: str, style: str) -> str:
    """The template with both placeholder tokens in their places; other text, braces too, stays as it is."""
    return template.replace("{subject}", subject).replace("{style}", style)


def fill_prompt(prompt: str, artifact: Artifact | None) -> str:
    """`{subject}`, `{style}`, `{subject_2}` ... become the artifact's learned words; other text stays as it is.

    Raises MagiCaptureError for one that it lacks.
    """
    words = {token.name: token.placeholder for token in artifact.tokens} if artifact else {}
    asked = re.findall(SLOT, prompt)
    missing = [f"{{{concept}}}" for concept in dict.fromkeys(asked) if concept not in words]
    if missing:
        owner = artifact.name if artifact else "a model without a MagiCapture LoRA"
        raise MagiCaptureError(f"prompt: {owner} has no learned word for {' and '.join(missing)}; leave it out")
    return re.sub(SLOT, lambda slot: words[slot[1]], prompt)
