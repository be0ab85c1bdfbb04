"""What speaks against a photo: measures of its pixels and landmarks, and the limits beyond which they are told.

Warnings alone: nothing here leaves a photo out. Knows no networks.

The limits lie between what was measured on sound pictures (one public portrait, a group photo of six, drawn people
with skin from light to dark) and on the same ones spoilt; tests hold both sides, but for the group photo.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .images import resize
from .types import Face

LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
FACE_HEIGHT = 112  # at most, in pixels, at which sharpness is judged; that of face recognition
BLURRED = 1.4  # pixels of that; measured 0.6-0.9 on sharp faces, 1.9-2.6 after a blur of 2 % of the face's height
DARK = 0.35  # brightness of the face's brightest twentieth; 0.47 on the darkest skin, 0.26 after three tenths of light
OVEREXPOSED, WHITE = 0.25, 0.98  # white pixels; 0.01 and less, 0.38 and more in real photos 1.7 times as bright
TURNED = 40.0  # degrees to the side; a three-quarter view measured 35, a near profile 50
NOSE = 0.62  # how far the tip of the nose stands out, in distances of the eyes; 0.5-0.7 by FaceMesh
ENLARGED = 1.5  # times by which a square is: its face is small
SAME = 0.985  # correlation; 0.999 of a photo saved anew, half as large, darker or mirrored, 0.969 of one studio's
FINGERPRINT = 32  # pixels


def face_warnings(image: Tensor, face: Face) -> list[str]:
    """image [3,H,W] 0..1, a face in it -> what is wrong with how it shows there."""
    left, top, right, bottom = face.box.tolist()
    across, down = 0.2 * (right - left), 0.15 * (bottom - top)  # past hair and background
    pixels = _reduced(image, face.box + torch.tensor([across, down, -across, -down]))
    brightest, white = float(pixels.flatten().quantile(0.95)), float((pixels >= WHITE).float().mean())
    yaw = 0.0 if face.landmarks is None else turn(face.landmarks)
    faults = {
        "blurred": blur(image, face.box) > BLURRED,
        "dark": brightest < DARK,
        "overexposed": white > OVEREXPOSED,
        f"turned away by {abs(yaw):.0f} degrees": abs(yaw) > TURNED,
    }
    return [words for words, is_so in faults.items() if is_so]


def blur(image: Tensor, box: Tensor) -> float:
    """How wide edges are in the face box [4] of image [3,H,W], in pixels of a face of at most 112: the standard
    deviation of the blur.

    An edge blurred by a Gaussian has a slope g with sum(g^2) / sum(g'^2) = 2 sigma^2, whatever its height: neither
    light nor contrast counts. Taken along rows and columns, the larger counts, since a shaken camera blurs one of them.
    """
    grey = _reduced(image, box)
    return max(_edge_width(grey), _edge_width(grey.T))


def _edge_width(grey: Tensor) -> float:
    slope = grey.diff(dim=1)
    return float((slope.square().mean() / (2 * slope.diff(dim=1).square().mean().clamp(min=1e-12))).sqrt())


def turn(landmarks: Tensor) -> float:
    """landmarks [5,2] as in `Face` -> how far the face is turned, in degrees, > 0 to the right of the picture.

    The nose stands out of the plane of eyes and mouth, so that its tip leaves their middle by tan(turn), while the
    eyes' own distance shrinks with cos(turn).
    """
    across = landmarks[1] - landmarks[0]
    middle = (landmarks[:2].mean(0) + landmarks[3:].mean(0)) / 2
    offset = (landmarks[2] - middle) @ across / across.square().sum().clamp(min=1e-6)
    return math.degrees(math.atan(float(offset) / NOSE))


def fingerprint(image: Tensor) -> Tensor:
    """image [3,H,W] -> [2,1024]: its small grey picture and the mirrored one, each without mean and of length 1."""
    small = resize(_grey(image)[None, None], (FINGERPRINT, FINGERPRINT))[0]
    both = torch.cat([small, small.flip(2)]).flatten(1)
    both = both - both.mean(1, keepdim=True)
    return both / both.norm(dim=1, keepdim=True).clamp(min=1e-6)


def find_same(fingerprints: Mapping[str, Tensor], own: Tensor) -> str | None:
    """The name of the first picture that is the same, maybe mirrored, saved anew, smaller or darker; None without."""
    return next((name for name, other in fingerprints.items() if (other @ own[0]).max() > SAME), None)


def _reduced(image: Tensor, box: Tensor) -> Tensor:
    """image [3,H,W] -> the brightness of what a box [4] holds of it, at most 112 pixels high and 3 or more a side; of
    the nearest pixel where it holds none."""
    left, top, right, bottom = (int(edge) for edge in box.round())
    left, top = min(max(left, 0), image.shape[2] - 1), min(max(top, 0), image.shape[1] - 1)
    inside = image[:, top : max(bottom, top + 1), left : max(right, left + 1)]
    height, width = inside.shape[1:]
    scale = min(1.0, FACE_HEIGHT / height)
    return _grey(resize(inside[None], (max(3, round(height * scale)), max(3, round(width * scale))))[0])


def _grey(image: Tensor) -> Tensor:
    """[3,H,W] -> [H,W]"""
    return (image * LUMA).sum(0)
