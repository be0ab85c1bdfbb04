"""What a picture is made of: identity, style, attributes and nuisance, each its own frozen dataclass of plain values.

Every field of an identity lies in 0..1 and is drawn evenly; the painters decide what a value means in shapes and
colours. Identity never says anything about style, and no attribute is part of either.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal, Self, TypeVar

import numpy as np

from .draw import Color

HAIR_COLORS: dict[str, Color] = {
    "black": (0.12, 0.11, 0.13),
    "brown": (0.38, 0.23, 0.15),
    "blond": (0.88, 0.70, 0.40),
    "red": (0.70, 0.29, 0.13),
    "grey": (0.68, 0.68, 0.71),
    "blue": (0.23, 0.35, 0.70),
    "pink": (0.90, 0.50, 0.64),
}
CLOTHES_COLORS: dict[str, Color] = {
    "white": (0.94, 0.93, 0.90),
    "black": (0.17, 0.18, 0.22),
    "red": (0.77, 0.20, 0.22),
    "yellow": (0.95, 0.77, 0.27),
    "green": (0.27, 0.57, 0.38),
    "blue": (0.20, 0.38, 0.68),
    "purple": (0.49, 0.30, 0.63),
    "orange": (0.92, 0.51, 0.22),
}
BACKGROUND_COLORS: dict[str, Color] = {
    "white": (0.95, 0.94, 0.92),
    "grey": (0.60, 0.63, 0.67),
    "yellow": (0.97, 0.85, 0.50),
    "orange": (0.95, 0.64, 0.40),
    "pink": (0.95, 0.70, 0.75),
    "purple": (0.60, 0.48, 0.73),
    "blue": (0.42, 0.62, 0.84),
    "green": (0.48, 0.70, 0.52),
}
CUTS = ("short", "medium", "long", "curly", "tied")
FRINGES = ("middle", "side", "bangs")
NECKWEAR_FOR: dict[str, tuple[str, ...]] = {
    "suit": ("none", "tie", "bow tie"),
    "shirt": ("none", "tie", "bow tie"),
    "sweater": ("none", "scarf"),
    "hoodie": ("none", "scarf"),
    "dress": ("none",),
}
GARMENTS = tuple(NECKWEAR_FOR)
HATS = ("none", "hat", "beanie")
PATTERNS = ("plain", "stripes", "dots", "checks", "rays")
TONES = ("neutral", "warm", "cool", "faded")
FRAMINGS = ("close-up", "normal", "wide")

Kind = Literal["person", "cat"]
Choice = TypeVar("Choice")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A vector of named numbers in 0..1."""

    kind: ClassVar[Kind]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        return cls(**{f.name: float(rng.random()) for f in fields(cls)})

    def vector(self) -> np.ndarray:
        """[n] float64, in the order of the fields."""
        return np.array([getattr(self, f.name) for f in fields(self)])

    def shows(self) -> np.ndarray:
        """[n] bool: the fields that a picture can tell."""
        return np.ones(len(fields(self)), bool)


@dataclass(frozen=True, kw_only=True)
class Identity(Unit):
    """A person's face."""

    kind: ClassVar[Kind] = "person"
    skin: float  # light .. dark
    undertone: float  # rosy .. golden
    width: float
    chin: float  # short .. long
    jaw: float  # pointed .. square
    cheeks: float  # flat .. full
    eye_distance: float
    eye_size: float
    eye_openness: float  # narrow .. round
    eye_tilt: float  # falling .. rising outwards
    eye_hue: float  # brown .. green .. blue
    eye_height: float
    brow_thickness: float
    brow_arch: float
    brow_darkness: float
    brow_height: float
    nose_length: float
    nose_width: float
    mouth_width: float
    lip_fullness: float
    lip_redness: float
    blush: float
    ear_size: float
    mole: float  # none up to one half, then larger
    mole_u: float
    mole_v: float

    def shows(self) -> np.ndarray:
        """All, but where a mole is when there is none."""
        return np.array([self.mole > 0.5 or f.name not in ("mole_u", "mole_v") for f in fields(self)])


@dataclass(frozen=True, kw_only=True)
class CatIdentity(Unit):
    """A cat's face: the pet of this world."""

    kind: ClassVar[Kind] = "cat"
    fur: float  # light .. dark
    warmth: float  # grey .. orange
    width: float
    cheeks: float
    ear_size: float
    ear_spread: float
    eye_distance: float
    eye_size: float
    eye_hue: float  # amber .. green .. blue
    stripes: float  # none up to a third, then stronger
    patch: float  # none up to a half, then larger, over one eye
    muzzle: float  # size of the pale muzzle
    nose: float  # pink .. black
    whiskers: float


AnyIdentity = Identity | CatIdentity


@dataclass(frozen=True, kw_only=True)
class Look:
    """Hair and clothes. Words of the tables above."""

    cut: str
    fringe: str
    hair_color: str
    garment: str
    clothes_color: str
    neckwear: str
    neckwear_color: str
    hat: str
    hat_color: str

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        garment = pick(rng, GARMENTS)
        clothes_color = pick(rng, tuple(CLOTHES_COLORS))
        return cls(
            cut=pick(rng, CUTS),
            fringe=pick(rng, FRINGES),
            hair_color=pick(rng, tuple(HAIR_COLORS)),
            garment=garment,
            clothes_color=clothes_color,
            neckwear=pick(rng, NECKWEAR_FOR[garment]),
            neckwear_color=pick(rng, without(CLOTHES_COLORS, clothes_color, "white")),
            hat=pick(rng, HATS, (0.76, 0.12, 0.12)),
            hat_color=pick(rng, tuple(CLOTHES_COLORS)),
        )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Background, colour tone and framing."""

    background: str
    pattern: str
    pattern_color: str
    pattern_scale: float  # 0..1, small .. large
    pattern_angle: float  # radians
    tone: str
    framing: str
    offset: float  # -1..1, where the person stands between the left and the right

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        background = pick(rng, tuple(BACKGROUND_COLORS))
        return cls(
            background=background,
            pattern=pick(rng, PATTERNS),
            pattern_color=pick(rng, without(BACKGROUND_COLORS, background)),
            pattern_scale=float(rng.random()),
            pattern_angle=float(rng.uniform(-np.pi / 2, np.pi / 2)),
            tone=pick(rng, TONES, (0.4, 0.2, 0.2, 0.2)),
            framing=pick(rng, FRAMINGS),
            offset=float(rng.uniform(-1, 1)),
        )


@dataclass(frozen=True, kw_only=True)
class Style:
    """Everything the photos of one style share, and nothing of the face."""

    look: Look
    setting: Setting

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        return cls(look=Look.draw(rng), setting=Setting.draw(rng))


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What a person may wear or be in one picture. None of it belongs to identity or style."""

    eyes_closed: bool = False
    beard: bool = False
    old: bool = False
    cap: bool = False
    glasses: bool = False
    earrings: bool = False

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Each is there once in eight pictures, independently."""
        return cls(**{f.name: bool(rng.random() < 1 / 8) for f in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class Nuisance:
    """What changes from photo to photo of the same person in the same style."""

    turn: float = 0.0  # -1..1, left .. right
    nod: float = 0.0  # -1..1, up .. down
    roll: float = 0.0  # radians
    shift_u: float = 0.0  # -1..1 of the room the place leaves
    shift_v: float = 0.0
    zoom: float = 0.0  # -1..1
    smile: float = 0.3  # -0.3..1
    mouth_open: float = 0.0  # 0..1
    gaze: float = 0.0  # -1..1
    light_side: float = -0.4  # -1..1, from the left .. from the right
    light_strength: float = 0.5  # 0..1
    exposure: float = 1.0  # gain of the whole picture

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        return cls(
            turn=float(rng.uniform(-1, 1)),
            nod=float(rng.uniform(-1, 1)),
            roll=float(rng.uniform(-0.14, 0.14)),
            shift_u=float(rng.uniform(-1, 1)),
            shift_v=float(rng.uniform(-1, 1)),
            zoom=float(rng.uniform(-1, 1)),
            smile=float(rng.uniform(-0.3, 1)),
            mouth_open=float(max(0.0, rng.uniform(-1, 1))),
            gaze=float(rng.uniform(-1, 1)),
            light_side=float(rng.uniform(-1, 1)),
            light_strength=float(rng.uniform(0.2, 1)),
            exposure=float(rng.uniform(0.9, 1.08)),
        )


def pick(rng: np.random.Generator, choices: tuple[Choice, ...], weights: tuple[float, ...] | None = None) -> Choice:
    return choices[int(rng.choice(len(choices), p=weights))]


def without(table: dict[str, Color], *words: str) -> tuple[str, ...]:
    return tuple(word for word in table if word not in words)
