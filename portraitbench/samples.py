"""Draws the pack's sample pictures: four photos of one invented person, and four people in one style; four photos of
one cat, and four cats in one style, smaller, with masks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from .background import apply_tone, paint_background
from .draw import Array, Canvas
from .parameters import CatIdentity, Identity, Look, Nuisance, Setting
from .portrait import Subject, paint_subject
from .world import SUPERSAMPLE, shrink

HEIGHT, WIDTH = 768, 640
SMALL = 3  # times smaller are the cats, for the archive's sake

PERSON = Identity(
    skin=0.40, undertone=0.60, width=0.45, chin=0.50, jaw=0.42, cheeks=0.45, eye_distance=0.48, eye_size=0.72,
    eye_openness=0.62, eye_tilt=0.62, eye_hue=0.70, eye_height=0.50, brow_thickness=0.45, brow_arch=0.62,
    brow_darkness=0.85, brow_height=0.45, nose_length=0.42, nose_width=0.38, mouth_width=0.62, lip_fullness=0.55,
    lip_redness=0.60, blush=0.22, ear_size=0.40, mole=0.62, mole_u=0.76, mole_v=0.80,
)  # fmt: skip
HOME = Look(
    cut="medium", fringe="side", hair_color="brown", garment="sweater", clothes_color="yellow",
    neckwear="none", neckwear_color="red", hat="none", hat_color="blue",
)  # fmt: skip
STAGE = Look(
    cut="short", fringe="side", hair_color="black", garment="suit", clothes_color="blue",
    neckwear="bow tie", neckwear_color="red", hat="hat", hat_color="blue",
)  # fmt: skip
SUN = Setting(
    background="orange", pattern="rays", pattern_color="yellow", pattern_scale=0.45, pattern_angle=0.2,
    tone="warm", framing="normal", offset=0.0,
)  # fmt: skip
NEUTRAL = replace(SUN, tone="neutral", pattern_scale=0.5, pattern_color="white")
CAT = CatIdentity(
    fur=0.45, warmth=0.95, width=0.55, cheeks=0.60, ear_size=0.60, ear_spread=0.55, eye_distance=0.50, eye_size=0.75,
    eye_hue=0.60, stripes=0.95, patch=0.20, muzzle=0.55, nose=0.15, whiskers=0.60,
)  # fmt: skip
NIGHT = replace(SUN, background="purple", pattern="dots", pattern_color="pink", tone="cool")
STYLE_CATS = (3, 8, 11, 14)
STYLE_PEOPLE = (32, 28, 20, 38)  # seeds whose faces stand well beside each other


@dataclass(frozen=True)
class Shot:
    """A subject in a setting; the face's centre and scale are given in canvas heights."""

    subject: Subject
    setting: Setting
    x: float
    y: float
    scale: float


def person_shots() -> list[Shot]:
    """One person: other clothes, walls, poses and light in each photo."""
    looks = [
        HOME,
        replace(HOME, garment="shirt", clothes_color="white"),
        replace(HOME, garment="hoodie", clothes_color="blue"),
        replace(HOME, garment="dress", clothes_color="red"),
    ]
    settings = [
        replace(NEUTRAL, background="blue", pattern="plain"),
        replace(NEUTRAL, background="green", pattern="dots", pattern_angle=0.0),
        replace(NEUTRAL, background="pink", pattern="stripes", pattern_angle=1.1),
        replace(NEUTRAL, background="yellow", pattern="checks", pattern_angle=0.5),
    ]
    poses = [
        Nuisance(turn=-0.25, smile=0.8, light_side=-0.5),
        Nuisance(turn=0.7, roll=-0.08, smile=0.5, mouth_open=0.6, light_side=0.7),
        Nuisance(turn=-0.8, nod=0.4, roll=0.07, smile=0.55, gaze=-0.5),
        Nuisance(turn=0.3, nod=-0.4, roll=0.03, smile=1.0, mouth_open=0.9, light_side=0.3),
    ]
    places = [(0.42, 0.43, 0.225), (0.40, 0.45, 0.20), (0.44, 0.44, 0.24), (0.41, 0.42, 0.19)]
    return [
        Shot(Subject(identity=PERSON, look=look, nuisance=pose), setting, *spot)
        for look, setting, pose, spot in zip(looks, settings, poses, places, strict=True)
    ]


def style_shots() -> list[Shot]:
    """Four other people, all in the same suit, hat, background and tone."""
    poses = [
        Nuisance(turn=0.3, smile=0.5, light_side=0.6),
        Nuisance(turn=-0.5, smile=0.7, roll=0.04, light_side=0.6),
        Nuisance(turn=0.1, smile=0.7, roll=-0.05, light_side=0.6),
        Nuisance(turn=0.6, smile=0.9, mouth_open=0.5, light_side=0.6),
    ]
    people = [Identity.draw(np.random.default_rng(seed)) for seed in STYLE_PEOPLE]
    return [
        Shot(Subject(identity=who, look=STAGE, nuisance=pose), SUN, 0.4167, 0.45, 0.185)
        for who, pose in zip(people, poses, strict=True)
    ]


def object_shots() -> list[Shot]:
    """One cat, in front of other walls, in other poses and light."""
    settings = [
        replace(NEUTRAL, background="blue", pattern="plain"),
        replace(NEUTRAL, background="green", pattern="checks", pattern_angle=0.5),
        replace(NEUTRAL, background="grey", pattern="stripes", pattern_angle=1.1),
        replace(NEUTRAL, background="pink", pattern="dots", pattern_angle=0.0),
    ]
    poses = [
        Nuisance(turn=-0.25, light_side=-0.5),
        Nuisance(turn=0.7, roll=-0.10, mouth_open=0.6, light_side=0.7),
        Nuisance(turn=-0.8, nod=0.4, roll=0.09, gaze=-0.5),
        Nuisance(turn=0.3, nod=-0.4, light_side=0.3),
    ]
    places = [(0.42, 0.45, 0.20), (0.40, 0.47, 0.18), (0.44, 0.46, 0.21), (0.41, 0.44, 0.17)]
    return [
        Shot(Subject(identity=CAT, look=HOME, nuisance=pose), setting, *spot)
        for setting, pose, spot in zip(settings, poses, places, strict=True)
    ]


def object_style_shots() -> list[Shot]:
    """Four other cats, all with the same collar, background and tone."""
    poses = [Nuisance(turn=0.3), Nuisance(turn=-0.5, roll=0.05), Nuisance(roll=-0.05), Nuisance(turn=0.6)]
    cats = [CatIdentity.draw(np.random.default_rng(seed)) for seed in STYLE_CATS]
    return [
        Shot(Subject(identity=who, look=STAGE, nuisance=pose), NIGHT, 0.4167, 0.47, 0.18)
        for who, pose in zip(cats, poses, strict=True)
    ]


def paint_shot(shot: Shot, smaller: int = 1) -> Array:
    """One photo as [3,H,W] in 0..1."""
    canvas = Canvas(HEIGHT // smaller * SUPERSAMPLE, WIDTH // smaller * SUPERSAMPLE)
    paint_background(canvas, shot.setting)
    _paint(canvas, shot)
    planes = shrink(canvas.planes[:3])
    apply_tone(planes, shot.setting, shot.subject.nuisance.exposure)
    return planes


def paint_mask(shot: Shot, smaller: int = 1) -> Array:
    """Where the subject is, all of it: [H,W] in 0..1. It hides what differs between a white and a black ground."""
    grounds = []
    for colour in (0, 1):
        canvas = Canvas(HEIGHT // smaller * SUPERSAMPLE, WIDTH // smaller * SUPERSAMPLE)
        canvas.planes[:3] = colour
        _paint(canvas, shot)
        grounds.append(shrink(canvas.planes[:3]))
    return 1 - (grounds[1] - grounds[0]).max(0)


def _paint(canvas: Canvas, shot: Shot) -> None:
    height = canvas.height
    paint_subject(canvas, shot.x * height, shot.y * height, shot.scale * height, shot.subject)


def draw_samples(folder: Path) -> list[Path]:
    """Writes person_1..4.jpg, style_1..4.jpg, object_1..4.jpg and object-style_1..4.jpg, these two with masks in a
    folder of their own, and returns the paths of the pictures."""
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    sides = (  # shots, times smaller, quality, with masks
        ("person", person_shots(), 1, 90, False),
        ("style", style_shots(), 1, 90, False),
        ("object", object_shots(), SMALL, 78, True),
        ("object-style", object_style_shots(), SMALL, 78, True),
    )
    paths = []
    for name, shots, smaller, quality, masked in sides:
        for number, shot in enumerate(shots, 1):
            pixels = (paint_shot(shot, smaller).transpose(1, 2, 0) * 255).round().astype(np.uint8)
            paths.append(folder / f"{name}_{number}.jpg")
            Image.fromarray(pixels).save(paths[-1], quality=quality)
            if masked:
                mask = Image.fromarray((paint_mask(shot, smaller) > 0.5).astype(np.uint8) * 255)
                mask.convert("1").save(folder / "masks" / f"{name}_{number}.png", optimize=True)
    return paths
