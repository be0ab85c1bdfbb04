"""A contact sheet of the world to look at, and its speed."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .captions import words_of
from .parameters import Attributes, CatIdentity, Look, Nuisance, Setting
from .portrait import Subject
from .world import CANVASES, Picture, Scene, compose, draw_scene, example, identity, random, render, style

COLUMNS = 8
ENLARGE = 2  # cells are 128 px
LABEL_HEIGHT = 16
Pixels = NDArray[np.uint8]


def draw_sheet(path: Path) -> None:
    """Rows of eight: what each kind of parameter changes while the others stay."""
    rows = {
        "one identity in eight styles": _styles_of_one(),
        "eight identities in one style": _identities_in_one(),
        "nuisance only": _nuisance_only(),
        "attributes: none, eyes closed, beard, old, cap, glasses, earrings, all": _attributes(),
        "training pictures": [_at_random(index, 64, 64) for index in range(COLUMNS)],
        "two and three people": [_at_random(index, 64, 128, people=2 + index % 2) for index in range(4)],
        "cats": [_cat(index) for index in range(COLUMNS)],
        "face boxes, landmarks, masks": [_marked(_at_random(index + 20, 64, 64)) for index in range(COLUMNS)],
    }
    images = [_label(text, [_pixels(cell) for cell in cells]) for text, cells in rows.items()]
    Image.fromarray(np.concatenate(images, 0)).save(path)


def _pixels(cell: Picture | Pixels) -> Pixels:
    return cell.image if isinstance(cell, Picture) else cell


def _label(text: str, cells: list[Pixels]) -> Pixels:
    row = np.concatenate(cells, 1)
    strip = Image.new("RGB", (row.shape[1], LABEL_HEIGHT), "white")
    ImageDraw.Draw(strip).text((4, 2), text, fill="black")
    return np.concatenate([np.asarray(strip), row], 0)


def _styles_of_one() -> list[Picture]:
    who = identity("pretrain", 1)
    return [render(compose(who, style("pretrain", s), Nuisance(smile=0.5)), enlarge=ENLARGE) for s in range(COLUMNS)]


def _identities_in_one() -> list[Picture]:
    how = style("pretrain", 5)
    people = [identity("pretrain", i) for i in range(COLUMNS)]
    return [render(compose(who, how, Nuisance(smile=0.5)), enlarge=ENLARGE) for who in people]


def _nuisance_only() -> list[Picture]:
    rng = random("pretrain", "sheet")
    who, how = identity("pretrain", 3), style("pretrain", 3)
    return [render(compose(who, how, Nuisance.draw(rng)), enlarge=ENLARGE) for _ in range(COLUMNS)]


def _attributes() -> list[Picture]:
    names = [field.name for field in fields(Attributes)]
    cases = [Attributes(), *(Attributes(**{name: True}) for name in names), Attributes(**dict.fromkeys(names, True))]
    plain = compose(identity("pretrain", 4), style("pretrain", 4), Nuisance(smile=0.3))
    setting, look = replace(plain.setting, framing="close-up"), replace(plain.subjects[0].look, hat="none")
    scenes = [
        replace(plain, setting=setting, subjects=(replace(plain.subjects[0], look=look, attributes=case),))
        for case in cases
    ]
    return [render(scene, enlarge=ENLARGE) for scene in scenes]


def _at_random(index: int, height: int, width: int, people: int | None = None) -> Picture:
    rng = random("pretrain", "sheet", height, width, index)
    scene = draw_scene(rng, height, width)
    while people is not None and len(scene.subjects) != people:
        scene = draw_scene(rng, height, width)
    return render(scene, enlarge=ENLARGE)


def _cat(index: int) -> Picture:
    rng = random("pretrain", "sheet", "cat", index)
    subject = Subject(identity=CatIdentity.draw(rng), look=Look.draw(rng), nuisance=Nuisance.draw(rng))
    return render(Scene(height=64, width=64, setting=Setting.draw(rng), subjects=(subject,)), enlarge=ENLARGE)


def _marked(picture: Picture) -> Pixels:
    """The picture with its masks in pink, boxes and landmarks in green."""
    image = picture.image.copy()
    image[picture.mask] = image[picture.mask] // 2 + np.array([127, 0, 90], np.uint8)
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    for face in picture.faces:
        draw.rectangle(face.box.tolist(), outline="lime")
        for x, y in face.landmarks.tolist():
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill="lime")
    return np.asarray(canvas)


def print_timing(count: int = 200) -> None:
    """Pictures per second of one process, and the longest caption, for every canvas."""
    for height, width in CANVASES:
        started = time.perf_counter()
        pictures = [example("pretrain", index, height, width) for index in range(count)]
        seconds = (time.perf_counter() - started) / count
        longest = max(len(words_of(picture.caption)) for picture in pictures)
        print(
            f"{height}x{width}: {1000 * seconds:.1f} ms, {1 / seconds:.0f} pictures/s, longest caption {longest} words"
        )
