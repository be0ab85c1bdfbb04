"""Paints one person or cat: frames from pose, then the layers back to front."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from . import cat
from .accessories import paint_cap, paint_earrings, paint_glasses, paint_hat
from .clothes import BODY_BOX, paint_clothes, paint_neck
from .draw import Array, Canvas, Frame
from .face import HEAD_BOX, paint_face
from .features import Features
from .hair import HAIR_BOX, paint_back_hair, paint_beard, paint_front_hair
from .parameters import CLOTHES_COLORS, AnyIdentity, Attributes, CatIdentity, Identity, Look, Nuisance

TURN, NOD = 0.15, 0.07  # how far the middle of the face moves at full turn and nod
NO_ATTRIBUTES, STILL = Attributes(), Nuisance()
NECK_V = 1.0  # the head rolls about the point (0, NECK_V)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One person or pet of a picture. `look` and `attributes` say what is worn; a cat wears a collar and its hat."""

    identity: AnyIdentity
    look: Look
    attributes: Attributes = NO_ATTRIBUTES
    nuisance: Nuisance = STILL


@dataclass(frozen=True, eq=False)
class Painted:
    """Where a face came to lie, in pixels of the canvas painted on."""

    box: Array  # [4] x1 y1 x2 y2: hairline or ears to chin, hidden parts too
    landmarks: Array  # [5,2] x y: eye, eye, nose, mouth corner, mouth corner, left before right


def frames(x: float, y: float, scale: float, nuisance: Nuisance) -> tuple[Frame, Frame]:
    """Head and body of someone whose upright face has its centre at pixel (x, y), `scale` pixels per unit."""
    arm = NECK_V * scale
    head = Frame(
        x + arm * math.sin(nuisance.roll),
        y + arm * (1 - math.cos(nuisance.roll)),
        scale,
        roll=nuisance.roll,
        turn=TURN * nuisance.turn,
        nod=NOD * nuisance.nod,
    )
    return head, Frame(x, y, scale)


def paint_subject(canvas: Canvas, x: float, y: float, scale: float, subject: Subject) -> Painted:
    """Paints all layers; the canvas' mask plane gains the visible face."""
    head, body = frames(x, y, scale, subject.nuisance)
    identity = subject.identity
    if isinstance(identity, CatIdentity):
        features = cat.CatFeatures.of(identity)
        paint_cat(canvas, head, body, features, subject)
        return Painted(_bounds(head, features.outline()), head.to_pixels(features.landmarks()))
    features = Features.of(identity)
    paint_person(canvas, head, body, identity, features, subject)
    return Painted(_bounds(head, features.outline()), head.to_pixels(features.landmarks(subject.nuisance.smile)))


def paint_person(
    canvas: Canvas, head: Frame, body: Frame, identity: Identity, features: Features, subject: Subject
) -> None:
    look, attributes, nuisance = subject.look, subject.attributes, subject.nuisance
    hair, torso, face = canvas.patch(head, HAIR_BOX), canvas.patch(body, BODY_BOX), canvas.patch(head, HEAD_BOX)
    paint_back_hair(hair, features, look, covered=attributes.cap or look.hat != "none")
    paint_neck(torso, features)
    paint_clothes(torso, look, nuisance)
    paint_face(face, features, attributes, nuisance)
    if attributes.beard:
        paint_beard(face, features, nuisance.mouth_open)
    if attributes.glasses:
        paint_glasses(face, features)
    if attributes.earrings:
        paint_earrings(face, features)
    paint_front_hair(hair, features, look)
    if attributes.cap:
        paint_cap(hair, features.half_width, CLOTHES_COLORS[look.hat_color])
    else:
        paint_hat(hair, features.half_width, look)


def paint_cat(canvas: Canvas, head: Frame, body: Frame, features: cat.CatFeatures, subject: Subject) -> None:
    cat.paint_body(canvas.patch(body, BODY_BOX), features, subject.look)
    face = canvas.patch(head, cat.CAT_BOX)
    cat.paint_cat_face(face, features, subject.nuisance, subject.attributes.eyes_closed)


def _bounds(frame: Frame, outline: list[tuple[float, float]]) -> Array:
    points = frame.to_pixels(outline)
    return np.concatenate([points.min(0), points.max(0)])
