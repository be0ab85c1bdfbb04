"""Packages that users may have beside ours, on random weights: insightface agrees on whose face it is and where.

facexlib's parser is in test_parsing.py; GFPGAN's and Real-ESRGAN's files are in test_restore.py and test_upscale.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicapture_core.identity import recognition_frame
from magicapture_core.iresnet import BLOCKS, IResNet
from magicapture_core.likeness import embed
from magicapture_core.recognisers import load_recogniser
from magicapture_core.restore import align_face
from magicapture_core.types import Face
from tests import onnx_files
from tests.onnx_files import attribute, model, node, port, tensor

SIZE = 128
STRIDES = (8, 16, 32)
POINTS = [(-1, -0.8), (1, -0.8), (0, 0), (-0.7, 0.9), (0.7, 0.9)]  # of a face, in strides around its middle


@pytest.fixture(scope="module")
def recognition_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An IResNet with random weights and statistics, as insightface shares its recognisers."""
    torch.manual_seed(0)
    net = IResNet(BLOCKS[18], 8, num_features=16).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    path = tmp_path_factory.mktemp("insightface") / "w600k_r18.onnx"
    path.write_bytes(onnx_files.iresnet(net.state_dict()))
    return path


@pytest.fixture(scope="module")
def insightface_recogniser(recognition_file: Path) -> Any:
    """By insightface's own class, run by onnxruntime."""
    arcface = pytest.importorskip("insightface.model_zoo.arcface_onnx", reason="insightface is not installed")
    recogniser = arcface.ArcFaceONNX(str(recognition_file))
    recogniser.prepare(ctx_id=-1)
    return recogniser


def smooth_picture(size: int) -> Tensor:
    """[3,size,size] of whole 255ths."""
    noise = torch.rand(1, 3, size // 16, size // 16, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(noise, size=(size, size), mode="bicubic").clamp(0, 1)[0]
    return (large * 255).round() / 255


def to_opencv(image: Tensor) -> np.ndarray:
    """[3,H,W] 0..1 RGB -> [H,W,3] bytes, blue first."""
    return np.ascontiguousarray((image * 255).round().byte().permute(1, 2, 0).flip(2).numpy())


def test_our_reader_gives_what_insightface_and_onnxruntime_give(
    insightface_recogniser: Any, recognition_file: Path
) -> None:
    faces = smooth_picture(336).unfold(1, 112, 112).unfold(2, 112, 112).reshape(3, 9, 112, 112).transpose(0, 1)
    theirs = torch.from_numpy(insightface_recogniser.get_feat([to_opencv(face) for face in faces]))
    ours = load_recogniser(recognition_file)(faces * 2 - 1)
    assert ours.shape == (9, 16)
    assert (ours[1:] - ours[0]).abs().amax(1).min() > 1e-2  # the nine are told apart
    torch.testing.assert_close(ours, F.normalize(theirs, dim=1), rtol=0, atol=1e-5)


def write_detector(path: Path) -> Path:
    """A file of SCRFD's form with random weights: scores, boxes and five points at three strides."""
    random = np.random.default_rng(0)
    nodes, weights, outputs = [], [], []
    sides = np.array([1.5, 1.8, 1.5, 1.8])  # left, top, right, bottom of the box
    for name, width, bias in (("score", 1, np.zeros(1)), ("box", 4, sides), ("points", 10, np.ravel(POINTS))):
        weights.append(tensor(f"{name}_shape", np.array([-1, width], dtype=np.int64)))
        for stride in STRIDES:
            own = f"{name}_{stride}"
            kernel = random.normal(size=(2 * width, 3, stride, stride)) / stride
            weights.append(tensor(f"{own}_weight", (kernel * 0.1).astype(np.float32)))
            weights.append(tensor(f"{own}_bias", np.tile(bias, 2).astype(np.float32)))
            given = ["faces", f"{own}_weight", f"{own}_bias"]
            nodes.append(node("Conv", given, [f"{own}_map"], attribute("strides", [stride, stride])))
            nodes.append(node("Transpose", [f"{own}_map"], [f"{own}_last"], attribute("perm", [0, 2, 3, 1])))
            last = f"{own}_rows" if name == "score" else own
            nodes.append(node("Reshape", [f"{own}_last", f"{name}_shape"], [last]))
            if name == "score":
                nodes.append(node("Sigmoid", [last], [own]))
            outputs.append(port(own, [2 * (SIZE // stride) ** 2, width]))
    path.write_bytes(model(nodes, weights, [port("faces", [1, 3, SIZE, SIZE])], outputs))
    return path


@pytest.mark.filterwarnings("ignore:`estimate` is deprecated:FutureWarning")  # insightface asks scikit-image so
def test_what_insightface_detects_is_a_face_of_ours(
    tmp_path: Path, insightface_recogniser: Any, recognition_file: Path
) -> None:
    """Its box and five points as they are, half a pixel on: it counts from the middle of the first pixel."""
    zoo = pytest.importorskip("insightface.model_zoo", reason="insightface is not installed")
    common = pytest.importorskip("insightface.app.common", reason="insightface is not installed")
    align = pytest.importorskip("insightface.utils.face_align", reason="insightface is not installed")
    detector = zoo.get_model(str(write_detector(tmp_path / "det_10g.onnx")), providers=["CPUExecutionProvider"])
    detector.prepare(ctx_id=-1, input_size=(SIZE, SIZE))
    image = smooth_picture(SIZE)
    boxes, points = detector.detect(to_opencv(image))
    found = [index for index, box in enumerate(boxes) if box[:2].min() > 0 and box[2:4].max() < SIZE][:3]
    assert len(found) == 3
    recogniser = load_recogniser(recognition_file)
    for index in found:
        face = Face(
            box=torch.from_numpy(boxes[index, :4]) + 0.5,
            landmarks=torch.from_numpy(points[index]) + 0.5,
            score=float(boxes[index, 4]),
        )
        assert face.landmarks is not None
        frame = recognition_frame(face.landmarks - 0.5, 112)
        torch.testing.assert_close(
            frame, torch.from_numpy(align.estimate_norm(points[index])).float(), rtol=1e-3, atol=2e-3
        )
        theirs = insightface_recogniser.get(to_opencv(image), common.Face(kps=points[index]))
        theirs = F.normalize(torch.from_numpy(theirs), dim=0)
        ours, other = (embed(recogniser, picture, face)[0] for picture in (image, image.flip(0)))
        # not closer: its frame of 112 pixels lies half a pixel beside ours, and OpenCV samples another way
        assert (ours - theirs).norm() < 0.05 * (ours - other).norm()
        assert align_face(image, face)[0].shape == (1, 3, 512, 512)
