"""The world: who stands where, drawn deterministically, with everything that no real data set knows.

Pictures are asked for by split and number; the same number is the same picture for ever. `truth` composes identity i
with style s exactly. Splits never share a seed: pretrain for the tiny models, tuning for choosing defaults, test for
the final table. Changing anything that a picture shows asks for a new WORLD_VERSION, and so for new weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .background import apply_tone, paint_background
from .captions import Position, describe
from .draw import Array, Canvas
from .parameters import (
    FRAMINGS,
    AnyIdentity,
    Attributes,
    CatIdentity,
    Identity,
    Kind,
    Look,
    Nuisance,
    Setting,
    Style,
    pick,
)
from .portrait import Subject, paint_subject

WORLD_VERSION = 1
SUPERSAMPLE = 2
CANVASES: tuple[tuple[int, int], ...] = ((64, 64), (64, 96), (64, 128), (96, 96))  # height, width
FACE_SIZES = (16, 64)  # the least and greatest height of a face's box, in pixels
PLACE_WIDTH = 32  # the least width that one of several people stands in

Split = Literal["pretrain", "tuning", "test"]

# Pixels per face unit (a face is about 1.8 units high) as a share of the place's size.
FRAMING_SCALE: dict[str, float] = dict(zip(FRAMINGS, (0.315, 0.215, 0.145), strict=True))
SCALE_LIMITS = (9.4, 32.0)
CAT_SCALE = 0.88  # a cat's face is 2.1 units high


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture before it is painted: canvas in pixels, setting, and the subjects from left to right."""

    height: int
    width: int
    setting: Setting
    subjects: tuple[Subject, ...]


@dataclass(frozen=True, eq=False)
class FaceTruth:
    """One face, in pixels: box [4] x1 y1 x2 y2, landmarks [5,2] (eyes, nose, mouth corners), mask [H,W] bool."""

    box: Array
    landmarks: Array
    mask: NDArray[np.bool_]

    @property
    def size(self) -> float:
        """Height of the box."""
        return float(self.box[3] - self.box[1])


@dataclass(frozen=True, eq=False)
class Picture:
    """image [H,W,3] uint8, one FaceTruth per subject, the caption, and the scene it was painted from."""

    image: NDArray[np.uint8]
    faces: tuple[FaceTruth, ...]
    caption: str
    scene: Scene

    @property
    def mask(self) -> NDArray[np.bool_]:
        """[H,W], all faces."""
        return np.logical_or.reduce([face.mask for face in self.faces])


def random(split: Split, *key: str | int) -> np.random.Generator:
    """The generator of one named thing: seeded from a hash, so no two names and no two splits share numbers."""
    name = "/".join(map(str, (WORLD_VERSION, split, *key)))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest(), "little"))


def identity(split: Split, index: int, kind: Kind = "person") -> AnyIdentity:
    cls = CatIdentity if kind == "cat" else Identity
    return cls.draw(random(split, "identity", kind, index))


def style(split: Split, index: int) -> Style:
    return Style.draw(random(split, "style", index))


def compose(who: AnyIdentity, how: Style, nuisance: Nuisance, height: int = 64, width: int = 64) -> Scene:
    """The scene of one identity in one style, with no attributes."""
    subject = Subject(identity=who, look=how.look, nuisance=nuisance)
    return Scene(height=height, width=width, setting=how.setting, subjects=(subject,))


def truth(
    split: Split, i: int, s: int, count: int, height: int = 64, width: int = 64, kind: Kind = "person"
) -> list[Picture]:
    """`count` true pictures of identity i in style s: what a perfect method would draw."""
    rng = random(split, "truth", kind, i, s)
    who, how = identity(split, i, kind), style(split, s)
    return [render(compose(who, how, Nuisance.draw(rng), height, width)) for _ in range(count)]


def subject_photos(
    split: Split, i: int, count: int, height: int = 64, width: int = 64, kind: Kind = "person"
) -> list[Picture]:
    """`count` photos of identity i: their own hair, other clothes and another setting in each."""
    rng = random(split, "subject photos", kind, i)
    who, hair = identity(split, i, kind), Look.draw(rng)
    photos = []
    for _ in range(count):
        how = Style.draw(rng)
        look = replace(how.look, cut=hair.cut, fringe=hair.fringe, hair_color=hair.hair_color, hat="none")
        setting = replace(how.setting, framing=pick(rng, ("close-up", "normal")))
        photos.append(render(compose(who, Style(look=look, setting=setting), Nuisance.draw(rng), height, width)))
    return photos


def style_photos(split: Split, s: int, count: int, height: int = 64, width: int = 64) -> list[Picture]:
    """`count` photos of different people in style s."""
    rng = random(split, "style photos", s)
    how = style(split, s)
    return [render(compose(Identity.draw(rng), how, Nuisance.draw(rng), height, width)) for _ in range(count)]


def example(split: Split, index: int, height: int = 64, width: int = 64) -> Picture:
    """Picture number `index`: any number of people the canvas has room for, or a cat, with a partial caption."""
    rng = random(split, "example", height, width, index)
    scene = draw_scene(rng, height, width)
    return render(scene, rng)


def draw_scene(rng: np.random.Generator, height: int, width: int) -> Scene:
    """Anyone anywhere: one to three subjects as the canvas has room, each a cat once in twelve, in one light."""
    room = min(3, width // PLACE_WIDTH)
    count = pick(rng, (1, 2, 3)[:room], ((1.0,), (0.75, 0.25), (0.55, 0.30, 0.15))[room - 1])
    setting = Setting.draw(rng)
    light = Nuisance.draw(rng)
    subjects = tuple(_draw_subject(rng, light) for _ in range(count))
    return Scene(height=height, width=width, setting=setting, subjects=subjects)


def _draw_subject(rng: np.random.Generator, light: Nuisance) -> Subject:
    cls = CatIdentity if rng.random() < 1 / 12 else Identity
    nuisance = replace(
        Nuisance.draw(rng), light_side=light.light_side, light_strength=light.light_strength, exposure=light.exposure
    )
    return Subject(identity=cls.draw(rng), look=Look.draw(rng), attributes=Attributes.draw(rng), nuisance=nuisance)


def place(scene: Scene, index: int) -> tuple[float, float, float]:
    """Centre x, y of a subject's face and pixels per unit. Each subject has an equal part of the canvas' width."""
    count = len(scene.subjects)
    width = scene.width / count
    nuisance = scene.subjects[index].nuisance
    scale = FRAMING_SCALE[scene.setting.framing] * min(scene.height, width * 1.1) * (1 + 0.08 * nuisance.zoom)
    if isinstance(scene.subjects[index].identity, CatIdentity):
        scale *= CAT_SCALE
    least, most = SCALE_LIMITS
    if count > 1:
        most = min(most, width / 2.9)
    scale = min(max(scale, least), most)
    room = max(width / 2 - 1.2 * scale, 0.0)
    offset = 0.7 * scene.setting.offset + 0.3 * nuisance.shift_u if count == 1 else 0.3 * nuisance.shift_u
    x = width * (index + 0.5) + room * offset
    y = scene.height * (0.37 + 0.42 * scale / scene.height + 0.03 * nuisance.shift_v)
    return x, y, scale


def positions(scene: Scene) -> tuple[Position, ...]:
    """Where each subject stands, in the captions' words; empty for one who stands near the middle."""
    if len(scene.subjects) == 2:
        return ("on the left", "on the right")
    if len(scene.subjects) == 3:
        return ("on the left", "in the middle", "on the right")
    share = place(scene, 0)[0] / scene.width
    return ("on the left" if share < 0.40 else "on the right" if share > 0.60 else "",)


def render(scene: Scene, rng: np.random.Generator | None = None, enlarge: int = 1) -> Picture:
    """Paint a scene. With `rng` the caption leaves some things out; without, it says all it can.

    `enlarge` paints the same picture that many times larger.
    """
    grain = SUPERSAMPLE * enlarge
    canvas = Canvas(scene.height * grain, scene.width * grain)
    paint_background(canvas, scene.setting)
    faces = []
    for index, subject in enumerate(scene.subjects):
        canvas.planes[3] = 0
        x, y, scale = place(scene, index)
        painted = paint_subject(canvas, x * grain, y * grain, scale * grain, subject)
        mask = shrink(canvas.planes[3:])[0] > 0.5
        faces.append(FaceTruth(painted.box / SUPERSAMPLE, painted.landmarks / SUPERSAMPLE, mask))
    planes = shrink(canvas.planes[:3])
    apply_tone(planes, scene.setting, scene.subjects[0].nuisance.exposure)
    image = (planes.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)
    caption = describe(scene.setting, scene.subjects, positions(scene), rng)
    return Picture(image, tuple(faces), caption, scene)


def shrink(planes: Array) -> Array:
    """[C,SH,SW] -> [C,H,W], the mean of each SUPERSAMPLE x SUPERSAMPLE square."""
    total = planes[:, 0::SUPERSAMPLE, 0::SUPERSAMPLE].copy()
    for row in range(SUPERSAMPLE):
        for column in range(SUPERSAMPLE):
            if row or column:
                total += planes[:, row::SUPERSAMPLE, column::SUPERSAMPLE]
    total *= np.float32(1 / SUPERSAMPLE**2)
    return total
