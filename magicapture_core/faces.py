"""Where the faces are: boxes, 468 landmarks, five points, and the warps that align them.

In: an image [3,H,W] 0..1. Out: `Face`s in its pixels, from left to right. The networks are MediaPipe's BlazeFace
(V. Bazarevsky et al., arXiv 1907.05047) and FaceMesh (Y. Kartynnik et al., arXiv 1907.06724), run by face_nets.py.

Coordinates count from the corner of the picture: x = 0 is its left edge, x = W its right edge, and the centre of the
first pixel is (.5, .5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .face_nets import FaceNet
from .images import resize
from .models import FACE_NETS, find_model, models_folder
from .types import Face, MagiCaptureError

# Eye, eye, nose tip, mouth corner, mouth corner in the 112-pixel pictures that face recognition is trained on.
ARCFACE_POINTS = torch.tensor(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
# The same five among FaceMesh's 468: an eye is the middle of its corners.
FIVE_POINTS = ((33, 133), (362, 263), (4,), (61,), (291,))

MAX_SIDE = 1280  # larger pictures are reduced for the search; landmarks are placed in the full picture
MIN_TILE = 192
THRESHOLD = 0.5  # for a sighting
# What tiles take for a face, a cup, a cat, a badge on a sleeve, is looked at once more, upright and from farther away.
SECOND_LOOK_SCALE = 3.0  # of the box
SECOND_LOOK, FIRST_LOOK = 0.6, 0.8  # enough in the second; enough in the first where FaceMesh agrees
SAME_FACE, INSIDE_FACE = 0.3, 0.6  # overlap by union; by the smaller box, since tiles cut faces
MESH_SCALE = 1.5  # FaceMesh sees the face box enlarged by this factor
NUM_LANDMARKS = 468


@dataclass(frozen=True, kw_only=True, eq=False)
class Sightings:
    """points [N,8,2]: two corners of the box, eye, eye, nose, mouth, ear, ear. scores [N]."""

    points: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def where(self, chosen: Tensor) -> Sightings:
        return Sightings(points=self.points[chosen], scores=self.scores[chosen])


def load_face_detector(folder: Path | None = None) -> FaceDetector:
    """The face networks of a models folder, by default MagiCapture's.

    Raises MagiCaptureError with the command that gets them when one is missing.
    """
    folders = [folder or models_folder()]
    return FaceDetector(*(FaceNet(find_model(f"faces/{name}.npz", folders)) for name in FACE_NETS))


class FaceDetector:
    """Runs on the CPU, without gradients."""

    def __init__(self, short_range: FaceNet, full_range: FaceNet, mesh: FaceNet) -> None:
        self.short_range, self.full_range, self.mesh_net = short_range.eval(), full_range.eval(), mesh.eval()
        self.anchors = {short_range: make_anchors(128, ((8, 2), (16, 6))), full_range: make_anchors(192, ((4, 1),))}

    @torch.no_grad()
    def detect(self, image: Tensor) -> list[Face]:
        """image [3,H,W] 0..1 -> the faces that are certain, from left to right."""
        image = image.float().cpu()
        height, width = image.shape[1:]
        factor = min(1.0, MAX_SIDE / max(height, width))
        small = resize(image[None], (max(1, round(height * factor)), max(1, round(width * factor))))
        stretch = torch.tensor([width / small.shape[3], height / small.shape[2]])
        candidates = [
            (average(group) * stretch, float(group.scores[0])) for group in group_sightings(self._look(small))
        ]
        faces = [face for points, score in candidates if (face := self._confirm(image, points, score))]
        return sorted(faces, key=lambda face: float(face.box[0] + face.box[2]))

    @torch.no_grad()
    def mesh(self, image: Tensor, face: Face) -> Tensor:
        """image [3,H,W] 0..1, a face in it -> FaceMesh's landmarks [468,2] in its pixels."""
        eyes = torch.tensor([(0.0, 0.0), (1.0, 0.0)]) if face.landmarks is None else face.landmarks[:2]
        return self._place_mesh(image.float().cpu(), face.box, eyes)[0]

    def _look(self, images: Tensor) -> Sightings:
        """images [1,3,H,W] -> what both networks see in the whole, and the short-range one in overlapping tiles."""
        height, width = images.shape[2:]
        sightings = [self._run(net, images, [(0, 0)]) for net in (self.short_range, self.full_range)]
        tiles = {max(MIN_TILE, min(height, width) // parts) for parts in (1, 2, 3)}
        for tile in (tile for tile in tiles if tile < max(height, width)):
            corners = [(x, y) for y in tile_starts(height, tile) for x in tile_starts(width, tile)]
            crops = torch.cat([images[:, :, y : y + tile, x : x + tile] for x, y in corners])
            sightings.append(self._run(self.short_range, crops, corners))
        return Sightings(
            points=torch.cat([seen.points for seen in sightings]), scores=torch.cat([seen.scores for seen in sightings])
        )

    def _run(self, net: FaceNet, images: Tensor, corners: Sequence[tuple[int, int]]) -> Sightings:
        """images [B,3,h,w], cut out at B corners (x, y) -> what one network sees, in pixels of the whole."""
        height, width = images.shape[2:]
        size, anchors = net.size, self.anchors[net]
        factor = size / max(height, width)
        new_height, new_width = max(1, round(height * factor)), max(1, round(width * factor))
        top, left = (size - new_height) // 2, (size - new_width) // 2  # black bars, so that nothing is stretched
        small = resize(images, (new_height, new_width)) * 2 - 1
        small = F.pad(small, (left, size - new_width - left, top, size - new_height - top), value=-1.0)
        raw, logits = net(small.permute(0, 2, 3, 1))
        scores = logits[..., 0].sigmoid()
        crop, anchor = (scores > THRESHOLD).nonzero(as_tuple=True)
        numbers = raw[crop, anchor].reshape(-1, 8, 2) / size  # centre and sides of the box, then six points
        centres, halves = numbers[:, 0] + anchors[anchor], numbers[:, 1] / 2
        keypoints = numbers[:, 2:] + anchors[anchor][:, None]
        points = torch.cat([torch.stack([centres - halves, centres + halves], 1), keypoints], 1)
        points = (points * size - torch.tensor([left, top])) * torch.tensor([width / new_width, height / new_height])
        points = points + torch.tensor(corners)[crop][:, None]
        return Sightings(points=points, scores=scores[crop, anchor])

    def _confirm(self, image: Tensor, points: Tensor, score: float) -> Face | None:
        """The face at these points [8,2] of the picture, if it is one."""
        box, eyes = points[:2].flatten(), points[2:4]
        landmarks, confidence = self._place_mesh(image, box, eyes)
        agreed = score >= FIRST_LOOK and confidence > 0.5
        if not agreed and self._look_again(image, box, eyes) < SECOND_LOOK:
            return None
        return Face(box=box, landmarks=five_points(landmarks), score=score)

    def _look_again(self, image: Tensor, box: Tensor, eyes: Tensor) -> float:
        """The full-range network's score for a face in the middle of what surrounds the box, 0 where it sees none."""
        size = self.full_range.size
        crop, _ = upright_crop(image, box, eyes, size, SECOND_LOOK_SCALE)
        seen = self._run(self.full_range, crop, [(0, 0)])
        distance = (seen.points[:, :2].mean(1) - size / 2).norm(dim=1)
        return max(seen.scores[distance < size / SECOND_LOOK_SCALE / 2].tolist(), default=0.0)

    def _place_mesh(self, image: Tensor, box: Tensor, eyes: Tensor) -> tuple[Tensor, float]:
        """Landmarks [468,2] in the picture, and the network's confidence that this is a face. eyes [2,2]: upright."""
        crop, matrix = upright_crop(image, box, eyes, self.mesh_net.size, MESH_SCALE)
        points, logit = self.mesh_net(crop.permute(0, 2, 3, 1))
        landmarks = points.reshape(NUM_LANDMARKS, 3)[:, :2]
        return transform(landmarks, invert(matrix)), float(logit.sigmoid())


def upright_crop(image: Tensor, box: Tensor, eyes: Tensor, size: int, scale: float) -> tuple[Tensor, Tensor]:
    """image [3,H,W] -> the face box enlarged by `scale`, turned until the eyes [2,2] are level: [1,3,size,size], and
    the matrix [2,3] from the picture's pixels to its pixels."""
    side = float((box[2:] - box[:2]).max()) * scale
    across = (eyes[1] - eyes[0]) / (eyes[1] - eyes[0]).norm().clamp(min=1e-6) * (size / side)
    linear = torch.stack([across, torch.stack([-across[1], across[0]])])
    centre = (box[:2] + box[2:]) / 2
    matrix = torch.cat([linear, (size / 2 - linear @ centre)[:, None]], 1)
    return warp(image[None], matrix[None], size, shrink=max(1, int(side // size))), matrix


def make_anchors(size: int, levels: Sequence[tuple[int, int]]) -> Tensor:
    """Levels of (stride, anchors per cell) -> [N,2]: cell centres in 0..1, each as often as its cell has anchors."""
    centres = []
    for stride, per_cell in levels:
        steps = (torch.arange(size // stride) + 0.5) / (size // stride)
        grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
        centres.append(grid.reshape(-1, 2).repeat_interleave(per_cell, 0))
    return torch.cat(centres)


def tile_starts(length: int, tile: int) -> list[int]:
    """Where tiles begin that overlap by half and end with the picture."""
    last = max(length - tile, 0)
    return sorted({*range(0, last + 1, tile // 2), last})


def group_sightings(sightings: Sightings) -> list[Sightings]:
    """One group per face, best first: whatever overlaps its best sighting, or lies mostly inside that."""
    groups: list[Sightings] = []
    left = sightings.where(sightings.scores.argsort(descending=True))
    while len(left):
        low, high = left.points[:, 0], left.points[:, 1]
        overlap = (torch.minimum(high, high[0]) - torch.maximum(low, low[0])).clamp(min=0).prod(1)
        area = (high - low).prod(1)
        same = (overlap / (area + area[0] - overlap) > SAME_FACE) | (overlap / area.clamp(max=area[0]) > INSIDE_FACE)
        same[0] = True  # also where the box has no area
        groups.append(left.where(same))
        left = left.where(~same)
    return groups


def average(group: Sightings) -> Tensor:
    """The points [8,2] of a face: the mean of its sightings by their scores."""
    return (group.points * group.scores[:, None, None]).sum(0) / group.scores.sum()


def five_points(landmarks: Tensor) -> Tensor:
    """FaceMesh's [468,2] -> eye, eye, nose tip, mouth corner, mouth corner [5,2]."""
    return torch.stack([landmarks[list(indices)].mean(0) for indices in FIVE_POINTS])


def choose_face(faces: Sequence[Face], height: int, width: int, index: int | None = None) -> int:
    """The face that a picture of `height` x `width` is about: the largest x most central one, or the one asked for.

    Raises MagiCaptureError when there is no face `index`.
    """
    if index is not None:
        if index >= len(faces):
            raise MagiCaptureError(
                f"there is no face {index}: found {len(faces)}, counted from 0 from the left; change face_index"
            )
        return index
    centre, reach = torch.tensor([width / 2, height / 2]), math.hypot(width, height) / 2

    def prominence(face: Face) -> float:
        distance = ((face.box[:2] + face.box[2:]) / 2 - centre).norm()
        return float((face.box[2:] - face.box[:2]).prod() * (1 - distance / reach))

    return max(range(len(faces)), key=lambda place: prominence(faces[place]))


def similarity_transform(source: Tensor, target: Tensor) -> Tensor:
    """source, target [n,2] -> [2,3], the turn, scale and shift that bring source closest to target (Umeyama, 1991).

    In the plane, without mirroring, least squares has a closed form: with centred points as complex numbers, the turn
    and scale are sum(conj(s) t) / sum(|s|^2).
    """
    source_mean, target_mean = source.mean(0), target.mean(0)
    s, t = source - source_mean, target - target_mean
    real = (s * t).sum()
    imaginary = (s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]).sum()
    rows = torch.stack([torch.stack([real, -imaginary]), torch.stack([imaginary, real])])
    linear = rows / s.square().sum()
    return torch.cat([linear, (target_mean - linear @ source_mean)[:, None]], 1)


def warp(images: Tensor, matrix: Tensor, size: int, *, shrink: int = 1, padding: str = "border") -> Tensor:
    """images [B,C,H,W], matrix [B,2,3] from their pixels to those of the result -> [B,C,size,size]. Differentiable.

    shrink: average shrink x shrink pixels first, against aliasing where the result is that much smaller.
    padding: beyond the picture, "border" repeats its edge and "zeros" is black.
    """
    height, width = images.shape[2] // shrink * shrink, images.shape[3] // shrink * shrink
    if shrink > 1:
        images = F.avg_pool2d(images, shrink)
    steps = torch.arange(size, device=images.device, dtype=images.dtype) + 0.5
    centres = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(1, -1, 2)
    # inverted where it is, mostly on the CPU: a device would wait for all that was asked of it before
    across = invert(matrix) / matrix.new_tensor([[width], [height]])  # to shares of the picture
    grid = transform(centres, across.to(images, non_blocking=True)) * 2 - 1
    grid = grid.reshape(len(images), size, size, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def transform(points: Tensor, matrix: Tensor) -> Tensor:
    """points [...,n,2] moved by matrix [...,2,3]."""
    return points @ matrix[..., :2].mT + matrix[..., None, :, 2]


def invert(matrix: Tensor) -> Tensor:
    """matrix [...,2,3] -> the one that undoes it."""
    linear = torch.linalg.inv(matrix[..., :2])
    return torch.cat([linear, -linear @ matrix[..., 2:]], -1)
