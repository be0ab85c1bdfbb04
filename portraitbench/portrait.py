"""One person or cat into a place of the canvas: frames from nuisance and framing, then the layers back to front."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .clothes import BODY_BOX, paint_clothes, paint_neck
from .draw import Array, Canvas, Frame
from .face import HEAD_BOX, Features, paint_face
from .hair import (
    HAIR_BOX,
    paint_back_hair,
    paint_beard,
    paint_cap,
    paint_earrings,
    paint_front_hair,
    paint_glasses,
    paint_hat,
)
from .parameters import CLOTHES_COLORS, Attributes, Identity, Nuisance, Style

TURN, NOD = 0.15, 0.07  # how far the middle of the face moves at full turn and nod
NECK = (0.0, 1.0)  # the head rolls about this point


def frames(x: float, y: float, scale: float, nuisance: Nuisance) -> tuple[Frame, Frame]:
    """Head and body frames of a person whose upright face centre lies at pixel (x, y), `scale` pixels per unit."""
    body = Frame(x, y, scale)
    [[pivot_x, pivot_y]] = body.to_pixels([NECK])
    sin, cos = np.sin(nuisance.roll), np.cos(nuisance.roll)
    head = Frame(
        float(pivot_x + sin * NECK[1] * scale),
        float(pivot_y - cos * NECK[1] * scale),
        scale,
        roll=nuisance.roll,
        turn=TURN * nuisance.turn,
        nod=NOD * nuisance.nod,
    )
    return head, body


def paint_person(
    canvas: Canvas, x: float, y: float, scale: float,
    identity: Identity, style: Style, attributes: Attributes, nuisance: Nuisance,
) -> Array:
    """Paints all layers of one person and returns the landmarks [5,2] in pixels. The canvas' mask plane gains the face."""
    head, body = frames(x, y, scale, nuisance)
    features = Features.of(identity)
    hair, torso, face = canvas.patch(head, HAIR_BOX), canvas.patch(body, BODY_BOX), canvas.patch(head, HEAD_BOX)
    paint_back_hair(hair, features, style, covered=attributes.cap or style.hat != "none")
    paint_neck(torso, features)
    paint_clothes(torso, style, nuisance)
    paint_face(face, identity, attributes, nuisance)
    if attributes.beard:
        paint_beard(face, features, nuisance.mouth_open)
    if attributes.glasses:
        paint_glasses(face, features)
    if attributes.earrings:
        paint_earrings(face, features)
    paint_front_hair(hair, features, style)
    if attributes.cap:
        paint_cap(hair, features, CLOTHES_COLORS[style.hat_color])
    else:
        paint_hat(hair, features, style)
    return head.to_pixels(features.landmarks(nuisance.smile))
