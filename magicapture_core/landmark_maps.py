"""Faces as the pictures that public face ControlNets were trained on: FaceMesh's landmarks, drawn on black.

`openpose` is the face of OpenPose's annotator (lllyasviel/control_v11p_sd15_openpose): white dots at iBUG's 68 points
and the pupils. `mediapipe` is CrucibleAI/ControlNetMediaPipeFace: outlines, a colour for each part, and the pupils.
FaceMesh's 468 points have no irises: a pupil is drawn in the middle of its eye, as if it looked straight ahead.
`skeleton_map` is the head of OpenPose's skeleton, nose, eyes and ears; FaceMesh knows of no neck and no shoulders.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .images import from_pil

Style = Literal["openpose", "mediapipe"]
Colour = tuple[int, int, int]
Spot = tuple[int, int]

ANNOTATED = 512  # pixels, the side at which the annotators draw; at others everything is in proportion
DOT, LINE, PUPIL = 3, 2, 2  # a dot's radius, a line's width, half a pupil's side, at that side
JOINT, BONE, DIMMED = 4, 8, 0.6  # a joint's radius, a bone's width, how bright it is beside its colour

# Chains of FaceMesh's points. Right and left are the person's own: the right eye is on the left of the picture.
OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150,
    136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109, 10,
)  # fmt: skip
RIGHT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246, 33)
LEFT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466, 263)
RIGHT_BROW = ((46, 53, 52, 65, 55), (70, 63, 105, 66, 107))
LEFT_BROW = ((276, 283, 282, 295, 285), (300, 293, 334, 296, 336))
LIPS = (
    (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185, 61),
    (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191, 78),
)

OUTLINES: dict[Colour, tuple[tuple[int, ...], ...]] = {  # in CrucibleAI's colours, RGB
    (10, 200, 10): (OVAL,),
    (10, 200, 180): (LEFT_EYE,),
    (10, 220, 180): LEFT_BROW,
    (180, 200, 10): (RIGHT_EYE,),
    (180, 220, 10): RIGHT_BROW,
    (10, 180, 10): LIPS,
}
PUPILS: dict[Colour, tuple[int, ...]] = {(250, 200, 10): RIGHT_EYE[:-1], (10, 200, 250): LEFT_EYE[:-1]}

# iBUG's 68 points in their order, and the two pupils that OpenPose adds: each the mean of these of FaceMesh's.
IBUG: tuple[tuple[int, ...], ...] = (
    (127,), (234,), (93,), (132, 58), (58, 172), (136,), (150,), (176,), (152,),  # jaw, from the right ear to the chin
    (400,), (379,), (365,), (288, 397), (361, 288), (323,), (454,), (356,),
    (70,), (63,), (105,), (66,), (107,), (336,), (296,), (334,), (293,), (300,),  # brows
    (168, 6), (197, 195), (5,), (4,), (98,), (97,), (2,), (326,), (327,),  # nose
    (33,), (160,), (158,), (133,), (153,), (144,), (362,), (385,), (387,), (263,), (373,), (380,),  # eyes
    (61,), (39,), (37,), (0,), (267,), (269,), (291,), (321,), (314,), (17,), (84,), (91,),  # lips, outside
    (78,), (82,), (13,), (312,), (308,), (317,), (14,), (87,),  # and inside
    RIGHT_EYE[:-1], LEFT_EYE[:-1],
)  # fmt: skip

# The five joints of OpenPose's head, each the mean of these of FaceMesh's points; and its four bones.
HEAD: dict[str, tuple[int, ...]] = {
    "nose": (4,),
    "right_eye": RIGHT_EYE[:-1],
    "left_eye": LEFT_EYE[:-1],
    "right_ear": (127, 234),
    "left_ear": (356, 454),
}
JOINTS: dict[str, Colour] = {
    "nose": (255, 0, 0),
    "right_eye": (170, 0, 255),
    "left_eye": (255, 0, 255),
    "right_ear": (255, 0, 170),
    "left_ear": (255, 0, 85),
}
BONES: dict[tuple[str, str], Colour] = {
    ("nose", "right_eye"): (85, 0, 255),
    ("right_eye", "right_ear"): (170, 0, 255),
    ("nose", "left_eye"): (255, 0, 255),
    ("left_eye", "left_ear"): (255, 0, 170),
}


def skeleton_map(mesh: Tensor, size: int) -> Tensor:
    """As `landmark_map`: the head of a skeleton, bones below joints."""
    canvas = Image.new("RGB", (size, size))
    draw, scale = ImageDraw.Draw(canvas), size / ANNOTATED
    spots = {name: mesh[list(indices)].mean(0) for name, indices in HEAD.items()}
    for (start, end), (red, green, blue) in BONES.items():
        dimmed = round(red * DIMMED), round(green * DIMMED), round(blue * DIMMED)
        draw.polygon(_ellipse(spots[start], spots[end], BONE * scale / 2), fill=dimmed)
    for name, colour in JOINTS.items():
        (x, y), reach = _pixel(spots[name]), round(JOINT * scale)
        draw.point((x, y), fill=colour)  # what an ellipse without extent is not
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)
    return from_pil(canvas)


def _ellipse(start: Tensor, end: Tensor, half_width: float) -> list[tuple[float, float]]:
    """The outline of one that reaches from point to point [2]."""
    middle, along = (start + end) / 2, (end - start) / 2
    across = torch.stack([-along[1], along[0]]) / along.norm().clamp(min=1e-6) * half_width
    turns = torch.linspace(0, 2 * torch.pi, 33)[:-1, None]
    return [(x, y) for x, y in (middle + turns.cos() * along + turns.sin() * across).tolist()]


def landmark_map(mesh: Tensor, size: int, style: Style) -> Tensor:
    """mesh: FaceMesh's landmarks [468,2] in pixels of a square picture of this size -> [3,size,size] 0..1, on black.

    What lies outside of the picture is not drawn.
    """
    canvas = Image.new("RGB", (size, size))
    draw, scale = ImageDraw.Draw(canvas), size / ANNOTATED
    if style == "openpose":
        for x, y in map(_pixel, ibug_points(mesh)):
            reach = round(DOT * scale)
            draw.point((x, y), fill="white")  # what an ellipse without extent is not
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill="white")
        return from_pil(canvas)
    for colour, chains in OUTLINES.items():
        for chain in chains:
            for ends in pairwise(_pixel(mesh[index]) for index in chain):
                draw.line(ends, fill=colour, width=max(round(LINE * scale), 1))
    for colour, eye in PUPILS.items():
        (x, y), half = _pixel(mesh[list(eye)].mean(0)), round(PUPIL * scale)
        draw.rectangle((x - half, y - half, x + max(half - 1, 0), y + max(half - 1, 0)), fill=colour)
    return from_pil(canvas)


def ibug_points(mesh: Tensor) -> Tensor:
    """FaceMesh's landmarks [468,2] -> iBUG's 68 and the right and left pupil [70,2]."""
    return torch.stack([mesh[list(indices)].mean(0) for indices in IBUG])


def _pixel(point: Tensor) -> Spot:
    """The pixel that holds a point."""
    x, y = point.floor().tolist()
    return int(x), int(y)
