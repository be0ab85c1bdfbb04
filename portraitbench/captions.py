"""Says in words what a scene shows: natural sentences in a closed vocabulary, said in full or with parts left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from .parameters import (
    BACKGROUND_COLORS,
    CLOTHES_COLORS,
    CUTS,
    FRAMINGS,
    FRINGES,
    GARMENTS,
    HAIR_COLORS,
    HATS,
    NECKWEAR_FOR,
    PATTERNS,
    TONES,
    Attributes,
    CatIdentity,
    Identity,
    Look,
    Nuisance,
    Setting,
)
from .portrait import Subject

Position = Literal["on the left", "in the middle", "on the right", ""]

MAX_WORDS = 72  # with start and end marks inside CLIP's 77 positions
ADJECTIVES = ("old", "smiling", "pale", "tan", "dark")  # stand before "person", where a learned word stands too
KINDS = ("photo", "portrait", "picture", "rendition")
GRAMMAR = """
a an the of in on with and wearing person people friends cat two three face style good bright cropped background eyes
brows nose lips skin cheeks mole hair part middle left right beard glasses earrings cap collar old closed open mouth
smiling looking light from dark tan brown green blue amber big small thick thin wide narrow full long round red pale
fur stripes patch , - close up front colors
"""


def vocabulary() -> tuple[str, ...]:
    """Every word and sign a caption may hold, sorted."""
    tables: list[Iterable[str]] = [
        BACKGROUND_COLORS, CLOTHES_COLORS, CUTS, FRAMINGS, FRINGES, GARMENTS, HAIR_COLORS, HATS,
        *NECKWEAR_FOR.values(), PATTERNS, TONES, KINDS, GRAMMAR.split(),
    ]  # fmt: skip
    return tuple(
        sorted(
            {word for table in tables for entry in table for word in words_of(entry)} - {"none", "neutral", "normal"}
        )
    )


def words_of(text: str) -> list[str]:
    """A caption in its words and signs, as a tokenizer of whole words sees it."""
    return text.lower().replace(",", " , ").replace("-", " - ").split()


def describe(
    setting: Setting, subjects: Sequence[Subject], positions: Sequence[Position], rng: np.random.Generator | None
) -> str:
    """The caption. With `rng` each part stays with a chance drawn once per caption, so that some say little and some
    nearly all; without, all that is clearly seen is said, the least important parts being dropped where it grows too
    long for the text encoder."""
    keep = Chooser(rng)
    opening = _opening(setting, subjects, keep)
    scenery = _scenery(setting, subjects[0].nuisance, keep)
    parts = [_traits(subject, keep) for subject in subjects]
    while True:
        text = _sentence(opening, subjects, positions, parts, scenery)
        if len(words_of(text)) <= MAX_WORDS:
            return text
        max(parts, key=len).pop()


class Chooser:
    """Decides which parts are said; with no generator, all of them."""

    def __init__(self, rng: np.random.Generator | None) -> None:
        self.rng = rng
        self.chance = 1.0 if rng is None else float(rng.uniform(0.15, 1.0))

    def __call__(self, phrases: Iterable[str]) -> list[str]:
        """The phrases that are said, empty ones left out."""
        said = [phrase for phrase in phrases if phrase]
        if self.rng is None:
            return said
        return [phrase for phrase in said if self.rng.random() < self.chance]

    def one(self, phrases: Sequence[str]) -> str:
        return phrases[0] if self.rng is None else phrases[int(self.rng.integers(len(phrases)))]


def _sentence(
    opening: str, subjects: Sequence[Subject], positions: Sequence[Position], parts: list[list[str]], scenery: list[str]
) -> str:
    if len(subjects) == 1:
        where = [positions[0]] if positions[0] else []
        return ", ".join([f"{opening} {_who(subjects[0], parts[0])}", *where, *scenery])
    people = [f"{where} {_who(subject, part)}" for where, subject, part in zip(positions, subjects, parts, strict=True)]
    return ", ".join([opening, *people, *scenery])


def _opening(setting: Setting, subjects: Sequence[Subject], keep: Chooser) -> str:
    exposure = subjects[0].nuisance.exposure
    framing = {"close-up": keep.one(("close-up", "cropped")), "wide": "wide"}.get(setting.framing, "")
    words = keep([framing]) or keep(["bright" if exposure > 1.04 else ""]) or [keep.one(("", "", "", "good"))]
    kind = " ".join(word for word in ("a", *words, keep.one(KINDS), "of") if word)
    if len(subjects) == 1:
        return kind + (keep.one(("", " the face of")) if setting.framing == "close-up" else "")
    noun = "people" if all(s.identity.kind == "person" for s in subjects) else "friends"
    return f"{kind} {('two', 'three')[len(subjects) - 2]} {noun}"


def _who(subject: Subject, traits: list[str]) -> str:
    """ "an old smiling person with brown eyes and a beard wearing a red suit": traits carry their own lead word."""
    noun = _a(" ".join([*(word for word in ADJECTIVES if word in traits), subject.identity.kind]))
    having = [trait[5:] for trait in traits if trait.startswith("with ")]
    wearing = [trait[8:] for trait in traits if trait.startswith("wearing ")]
    doing = [trait for trait in traits if trait not in ADJECTIVES and not trait.startswith(("with ", "wearing "))]
    text = noun + (f" with {enumerate_words(having)}" if having else "")
    text += f" wearing {enumerate_words(wearing)}" if wearing else ""
    return ", ".join([text, *doing])


def enumerate_words(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _traits(subject: Subject, keep: Chooser) -> list[str]:
    """Phrases about one subject, the most important first."""
    identity, look, attributes, nuisance = subject.identity, subject.look, subject.attributes, subject.nuisance
    if isinstance(identity, CatIdentity):
        return keep([*_cat(identity), f"wearing {_a(look.clothes_color)} collar", *_expression(attributes, nuisance)])
    return keep(
        [
            *_wear(look, attributes),
            *_attributes(attributes),
            keep.one(_skin(identity)),
            *_face(identity, attributes),
            *_expression(attributes, nuisance),
        ]
    )


def _a(words: str) -> str:
    return f"{article(words)} {words}"


def _wear(look: Look, attributes: Attributes) -> list[str]:
    fringe = "bangs" if look.fringe == "bangs" else f"a {look.fringe} part"
    hat = "" if look.hat == "none" or attributes.cap else f"wearing {_a(look.hat_color)} {look.hat}"
    neckwear = "" if look.neckwear == "none" else f"wearing {_a(look.neckwear_color)} {look.neckwear}"
    return [
        f"with {look.cut} {look.hair_color} hair",
        f"wearing {_a(look.clothes_color)} {look.garment}",
        f"wearing {_a(look.hat_color)} cap" if attributes.cap else hat,
        neckwear,
        f"with {fringe}" if not hat and not attributes.cap else "",
    ]


def _attributes(attributes: Attributes) -> list[str]:
    return [
        "old" if attributes.old else "",
        "wearing glasses" if attributes.glasses else "",
        "with a beard" if attributes.beard else "",
        "wearing earrings" if attributes.earrings else "",
    ]


def _face(i: Identity, attributes: Attributes) -> list[str]:
    """The traits that stand out; nobody mentions an average nose."""
    return [
        "" if attributes.eyes_closed else _eyes(extreme(i.eye_size, "small", "big"), i.eye_hue),
        _with(extreme(i.brow_thickness, "thin", "thick"), "brows"),
        _with(extreme(i.lip_fullness, "thin", "full"), "lips"),
        _with(extreme(i.nose_width, "a narrow", "a wide"), "nose"),
        _with(extreme(i.width, "a long", "a round"), "face"),
        "with a mole" if i.mole > 0.6 else "",
        "with red cheeks" if i.blush > 0.75 else "",
    ]


def _skin(i: Identity) -> tuple[str, str]:
    """Two ways to say it."""
    return (f"with {extreme(i.skin, 'light', 'dark', 'tan')} skin", extreme(i.skin, "pale", "dark", "tan"))


def _eyes(size: str, hue: float) -> str:
    color = "brown" if hue < 0.33 else "green" if 0.5 < hue < 0.78 else "blue" if hue > 0.88 else ""
    words = " ".join(word for word in (size, color) if word)
    return f"with {words} eyes" if words else ""


def _with(adjective: str, noun: str) -> str:
    return f"with {adjective} {noun}" if adjective else ""


def extreme(value: float, low: str, high: str, between: str = "") -> str:
    """The word for a value in 0..1 that lies in the lowest or highest 30 %."""
    return low if value < 0.3 else high if value > 0.7 else between


def _cat(i: CatIdentity) -> list[str]:
    tone = extreme(i.fur, "pale", "dark", "")
    color = extreme(i.warmth, "grey", "orange", "brown")
    hue = extreme(i.eye_hue, "amber", "blue", "green")
    return [
        f"with {f'{tone} {color}'.strip()} fur",
        f"with {hue} eyes",
        "with stripes" if i.stripes > 0.55 else "",
        "with a patch" if i.patch > 0.55 else "",
    ]


def _expression(attributes: Attributes, n: Nuisance) -> list[str]:
    return [
        "eyes closed" if attributes.eyes_closed else "",
        "smiling" if n.smile > 0.55 else "",
        "mouth open" if n.mouth_open > 0.4 else "",
        extreme((n.turn + 1) / 2, "looking left", "looking right"),
    ]


def _scenery(setting: Setting, light: Nuisance, keep: Chooser) -> list[str]:
    if setting.pattern == "plain":
        background = f"{_a('plain')} {setting.background} background"
    else:
        background = f"{_a(setting.background)} background with {setting.pattern_color} {setting.pattern}"
    tone = "" if setting.tone == "neutral" else keep.one((f"{setting.tone} colors", f"in the {setting.tone} style"))
    side = extreme((light.light_side * light.light_strength + 1) / 2, "left", "right")
    return keep([f"in front of {background}", tone, f"light from the {side}" if side else ""])
