"""Draws the pack's eight sample pictures: four photos of one invented person, and four people in one style."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from .background import apply_tone, paint_background
from .draw import Array, Canvas
from .parameters import Identity, Look, Nuisance, Setting
from .portrait import Subject, paint_subject
from .world import SUPERSAMPLE, shrink

HEIGHT, WIDTH = 768, 640

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


def paint_shot(shot: Shot) -> Array:
    """One photo as [3,H,W] in 0..1."""
    height = HEIGHT * SUPERSAMPLE
    canvas = Canvas(height, WIDTH * SUPERSAMPLE)
    paint_background(canvas, shot.setting)
    paint_subject(canvas, shot.x * height, shot.y * height, shot.scale * height, shot.subject)
    planes = shrink(canvas.planes[:3])
    apply_tone(planes, shot.setting, shot.subject.nuisance.exposure)
    return planes


def draw_samples(folder: Path) -> list[Path]:
    """Writes person_1..4.jpg and style_1..4.jpg and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, shots in (("person", person_shots()), ("style", style_shots())):
        for number, shot in enumerate(shots, 1):
            pixels = (paint_shot(shot).transpose(1, 2, 0) * 255).round().astype(np.uint8)
            paths.append(folder / f"{name}_{number}.jpg")
            Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths
