"""What a judge can read off one subject of a picture, as numbers: style words by table, attributes as yes or no."""

from __future__ import annotations

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
    CatIdentity,
    Setting,
)
from .portrait import Subject

UNSEEN = -100  # cross_entropy's own mark for what does not count
COLORS = tuple(CLOTHES_COLORS)
STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "hair_color": tuple(HAIR_COLORS),
    "cut": CUTS,
    "fringe": FRINGES,
    "garment": GARMENTS,
    "clothes_color": COLORS,
    "neckwear": tuple(dict.fromkeys(word for words in NECKWEAR_FOR.values() for word in words)),
    "neckwear_color": COLORS,
    "hat": (*HATS, "cap"),
    "hat_color": COLORS,
    "background": tuple(BACKGROUND_COLORS),
    "pattern": PATTERNS,
    "pattern_color": tuple(BACKGROUND_COLORS),
    "tone": TONES,
    "framing": FRAMINGS,
}
ATTRIBUTES = ("eyes_closed", "beard", "old", "cap", "glasses", "earrings")


def style_words(subject: Subject, setting: Setting) -> dict[str, str]:
    """Each style attribute that shows, by its word; what is hidden or absent is left out."""
    words = {"background": setting.background, "pattern": setting.pattern, "tone": setting.tone}
    words["framing"] = setting.framing
    if setting.pattern != "plain":
        words["pattern_color"] = setting.pattern_color
    if isinstance(subject.identity, CatIdentity):
        return words
    look = subject.look
    hat = "cap" if subject.attributes.cap else look.hat
    words |= {"hair_color": look.hair_color, "cut": look.cut, "garment": look.garment, "hat": hat}
    words |= {"clothes_color": look.clothes_color, "neckwear": look.neckwear}
    if look.neckwear != "none":
        words["neckwear_color"] = look.neckwear_color
    words |= {"fringe": look.fringe} if hat == "none" else {"hat_color": look.hat_color}
    return words


def style_labels(subject: Subject, setting: Setting) -> list[int]:
    """The place of each attribute's word in its table, in the order of STYLE_WORDS; UNSEEN where it does not show."""
    words = style_words(subject, setting)
    return [table.index(words[name]) if name in words else UNSEEN for name, table in STYLE_WORDS.items()]


def attribute_labels(subject: Subject) -> list[int]:
    """0 or 1 in the order of ATTRIBUTES."""
    return [int(getattr(subject.attributes, name)) for name in ATTRIBUTES]
