"""The converter, on files written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from magicapture_core import tflite
from magicapture_core.face_nets import FaceNet
from magicapture_core.types import MagiCaptureError

from .flatbuffer import flatbuffer, model, operator, small_network, tensor


def test_a_file_becomes_a_network(tmp_path: Path) -> None:
    data, weight, bias = small_network()
    tflite.write_npz(data, tmp_path / "small.npz")
    images = torch.randn(2, 4, 5, 2)
    (found,) = FaceNet(tmp_path / "small.npz")(images)
    # SAME at stride 2: height 4 -> 2 needs one row, which goes below; width 5 -> 3 needs two columns, one on each side
    padded = F.pad(images.permute(0, 3, 1, 2), (1, 1, 0, 1))
    expected = F.conv2d(padded, torch.from_numpy(weight).permute(0, 3, 1, 2), torch.from_numpy(bias), stride=2).relu()
    torch.testing.assert_close(found.permute(0, 3, 1, 2), expected)


def test_half_precision_weights_are_unpacked() -> None:
    slope = np.array([0.25, 0.5], np.float16)
    tensors = [tensor((1, 1, 1, 2)), tensor((2,), dtype=1, buffer=1), tensor((2,)), tensor((1, 1, 1, 2))]
    operators = [operator(0, [1], 2), operator(1, [0, 2], 3)]
    graph, weights = tflite.convert(model([6, 54], tensors, operators, [slope], 3), "net")
    assert graph["operators"] == [["PRELU", ["t0", "c1"], ["t3"], {}]]
    np.testing.assert_array_equal(weights["c1"], slope)


@pytest.mark.parametrize("as_input", [True, False])
def test_a_reshape_may_hold_its_shape_in_either_place(as_input: bool) -> None:
    shape = np.array([1, -1, 2], np.int32)
    tensors = [tensor((1, 2, 2, 2)), tensor((3,), dtype=2, buffer=1), tensor((1, 4, 2))]
    reshape = operator(0, [0, 1], 2) if as_input else operator(0, [0], 2, {0: shape})
    graph, weights = tflite.convert(model([22], tensors, [reshape], [shape], 2), "net")
    assert graph["operators"] == [["RESHAPE", ["t0"], ["t2"], {"shape": [1, -1, 2]}]]
    assert not weights


def test_densify_csr() -> None:
    """The matrix [[0,5,0],[0,0,0],[7,0,9]] as CSR."""
    levels = [tflite.Level(size=3), tflite.Level(size=0, segments=np.array([0, 1, 1, 3]), indices=np.array([1, 0, 2]))]
    dense = tflite.densify(np.array([5.0, 7.0, 9.0]), (3, 3), (0, 1), (), levels)
    assert dense.tolist() == [[0, 5, 0], [0, 0, 0], [7, 0, 9]]


def test_densify_blocks() -> None:
    """A 2x4 matrix whose columns go in blocks of two; only block 1 of row 0 and block 0 of row 1 are kept."""
    levels = [
        tflite.Level(size=2),
        tflite.Level(size=0, segments=np.array([0, 1, 2]), indices=np.array([1, 0])),
        tflite.Level(size=2),
    ]
    dense = tflite.densify(np.array([1.0, 2.0, 3.0, 4.0]), (2, 4), (0, 1, 2), (1,), levels)
    assert dense.tolist() == [[0, 0, 1, 2], [3, 4, 0, 0]]


def test_a_sparse_weight_is_read() -> None:
    segments, indices = {0: np.array([0, 1, 1, 3], np.int32)}, {0: np.array([1, 0, 2], np.uint8)}
    levels = [{0: 0, 1: 3}, {0: 1, 2: 1, 3: segments, 4: 3, 5: indices}]
    sparsity = {0: np.array([0, 1], np.int32), 2: levels}
    tensors = [tensor((3, 3)), tensor((3, 3), buffer=1, sparsity=sparsity), tensor((3, 3)), tensor((3, 3))]
    data = model([124, 0], tensors, [operator(0, [1], 2), operator(1, [0, 2], 3)], [np.array([5, 7, 9], np.float32)], 3)
    graph, weights = tflite.convert(data, "net")
    assert graph["operators"] == [["ADD", ["t0", "c1"], ["t3"], {"activation": 0}]]
    assert weights["c1"].tolist() == [[0, 5, 0], [0, 0, 0], [7, 0, 9]]


def test_bad_files_are_refused_in_one_line() -> None:
    data = small_network()[0]
    with pytest.raises(MagiCaptureError, match="net is not a TFLite file"):
        tflite.convert(b"PK\3\4 something else", "net")
    for length in (8, 40, len(data) // 2, len(data) - 1):
        with pytest.raises(MagiCaptureError, match="net is truncated or broken") as caught:
            tflite.convert(data[:length], "net")
        assert "\n" not in str(caught.value)
    with pytest.raises(MagiCaptureError, match="operator 77 is not known"):
        tflite.convert(flatbuffer({1: [{0: 77}], 2: [{0: []}], 4: []}), "net")
    tensors = [tensor((1, 2, 2, 1)), tensor((2,), dtype=2, buffer=1), tensor((1, 4, 4, 1))]
    resize = model([23], tensors, [operator(0, [0, 1], 2)], [np.array([4, 4], np.int32)], 2)
    with pytest.raises(MagiCaptureError, match="without half_pixel_centers"):
        tflite.convert(resize, "net")
