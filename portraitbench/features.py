"""What the numbers of a person's identity mean: measures, colours and outline of the face.

Units of the face: its centre at (0, 0), eyes near v = 0, chin near v = 1. Paints nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .draw import Array, Color, lerp, mix, scaled, smoothstep
from .parameters import Identity

CROWN = 1.02  # the top of the skull lies at v = -CROWN
HAIRLINE = -0.80  # no hair leaves more of the face free than this
SKIN_TONES: tuple[Color, ...] = ((0.99, 0.86, 0.77), (0.92, 0.71, 0.56), (0.72, 0.49, 0.35), (0.44, 0.29, 0.21))
ROSY: Color = (0.93, 0.48, 0.52)
GOLDEN: Color = (0.86, 0.68, 0.26)
EYE_COLORS: tuple[Color, ...] = ((0.27, 0.16, 0.09), (0.50, 0.33, 0.13), (0.33, 0.50, 0.24), (0.27, 0.55, 0.80))


@dataclass(frozen=True)
class Features:
    """The measures and colours of one face: what the identity's numbers mean."""

    skin: Color
    shadow: Color
    half_width: float
    chin: float
    jaw: float
    cheeks: float
    eye_u: float
    eye_v: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    eye_color: Color
    brow_v: float
    brow_thickness: float
    brow_arch: float
    brow_color: Color
    nose_v: float
    nose_width: float
    mouth_v: float
    mouth_width: float
    lip: float
    lip_color: Color
    blush: float
    ear: float
    mole: tuple[float, float, float]  # u, v, radius

    @classmethod
    def of(cls, identity: Identity) -> Features:
        i = identity
        skin = blend(SKIN_TONES, i.skin)
        skin = mix(skin, mix(ROSY, GOLDEN, i.undertone), 0.22)
        eye_v = lerp(-0.10, 0.04, i.eye_height)
        nose_v = eye_v + lerp(0.36, 0.56, i.nose_length)
        chin = lerp(0.92, 1.16, i.chin)
        return cls(
            skin=skin,
            shadow=(skin[0] * 0.74, skin[1] * 0.60, skin[2] * 0.56),
            half_width=lerp(0.66, 0.88, i.width),
            chin=chin,
            jaw=lerp(-0.22, 0.14, i.jaw),
            cheeks=lerp(0.0, 0.10, i.cheeks),
            eye_u=lerp(0.26, 0.41, i.eye_distance),
            eye_v=eye_v,
            eye_width=lerp(0.115, 0.205, i.eye_size),
            eye_height=lerp(0.115, 0.205, i.eye_size) * lerp(0.42, 0.74, i.eye_openness),
            eye_tilt=lerp(-0.22, 0.26, i.eye_tilt),
            eye_color=blend(EYE_COLORS, i.eye_hue),
            brow_v=eye_v - lerp(0.20, 0.32, i.brow_height),
            brow_thickness=lerp(0.02, 0.10, i.brow_thickness),
            brow_arch=lerp(0.0, 0.15, i.brow_arch),
            brow_color=mix((0.72, 0.52, 0.30), (0.12, 0.08, 0.07), i.brow_darkness),
            nose_v=nose_v,
            nose_width=lerp(0.09, 0.215, i.nose_width),
            mouth_v=lerp(nose_v, chin, 0.44),
            mouth_width=lerp(0.17, 0.37, i.mouth_width),
            lip=lerp(0.035, 0.115, i.lip_fullness),
            lip_color=mix(scaled(skin, 0.78), (0.80, 0.20, 0.27), lerp(0.15, 0.95, i.lip_redness)),
            blush=lerp(0.0, 0.62, i.blush),
            ear=lerp(0.13, 0.22, i.ear_size),
            mole=(
                lerp(-0.52, 0.52, i.mole_u),
                lerp(0.18, 0.62, i.mole_v),
                0.025 + 0.07 * (i.mole - 0.5) if i.mole > 0.5 else 0.0,
            ),
        )

    def landmarks(self, smile: float) -> list[tuple[float, float]]:
        """Eye, eye, nose tip, mouth corner, mouth corner, each pair from left to right."""
        corner = self.mouth_width * (1 + 0.16 * smile), self.mouth_v - 0.09 * smile
        return [
            (-self.eye_u, self.eye_v),
            (self.eye_u, self.eye_v),
            (0.0, self.nose_v - 0.06),
            (-corner[0], corner[1]),
            corner,
        ]

    def outline(self) -> list[tuple[float, float]]:
        """Points that bound the face below the hairline, ears included."""
        ear_u, ear_v = self.half_width * 0.97 + 0.62 * self.ear + 0.05, self.eye_v + 0.12
        wide = self.half_width * (1 + 1.1 * self.cheeks)
        points = [
            (ear_u, ear_v - 0.2),
            (ear_u, ear_v + 0.2),
            (wide, 0.2),
            (0.15, self.chin),
            (0.30, HAIRLINE),
            (0, HAIRLINE),
        ]
        return points + [(-u, v) for u, v in points]


def blend(colors: tuple[Color, ...], t: float) -> Color:
    """The colour at t in 0..1 along a row of colours."""
    position = t * (len(colors) - 1)
    index = min(int(position), len(colors) - 2)
    return mix(colors[index], colors[index + 1], position - index)


def head_distance(u: Array, v: Array, f: Features) -> Array:
    """The outline of skull, cheeks and jaw: an ellipse whose width follows the height."""
    below = np.clip(v / f.chin, 0, 1)
    profile = 1 + f.cheeks * smoothstep(-0.5, 0.45, v) * (1 - below * below) * 1.6 + f.jaw * below * below
    height = np.where(v < 0, np.float32(CROWN), np.float32(f.chin))
    rho = np.hypot(u / (f.half_width * profile), v / height)
    return np.hypot(u, v) * (1 - 1 / np.maximum(rho, 1e-3))
