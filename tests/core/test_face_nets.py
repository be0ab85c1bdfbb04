"""The runner: each operator against a case worked out by hand, and what it says of broken files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from magicapture_core.face_nets import OPERATORS, FaceNet
from magicapture_core.types import MagiCaptureError

SAME, VALID = 0, 1


def write_net(path: Path, operators: list[list[Any]], output: str, **weights: np.ndarray) -> Path:
    graph = {"operators": operators, "input": "t0", "input_shape": [1, 2, 2, 1], "outputs": [output]}
    arrays: dict[str, Any] = {"meta": np.frombuffer(json.dumps(graph).encode(), np.uint8), **weights}
    np.savez_compressed(path, **arrays)
    return path


def rows(*values: list[float]) -> Tensor:
    """[1,H,W,1]"""
    return torch.tensor(values)[None, ..., None]


def test_max_pool_same_pads_below_and_right() -> None:
    options = {"padding": SAME, "stride_w": 2, "stride_h": 2, "filter_w": 2, "filter_h": 2}
    images = -rows([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0])
    assert OPERATORS["MAX_POOL_2D"](options, images).flatten().tolist() == [-1, -3, -7, -9]
    assert OPERATORS["MAX_POOL_2D"](options | {"padding": VALID}, images).flatten().tolist() == [-1]


def test_depthwise_convolution_keeps_channels_apart() -> None:
    options = {"padding": VALID, "stride_w": 1, "stride_h": 1, "dilation_w": 1, "dilation_h": 1, "activation": 0}
    images = torch.tensor([1.0, 10.0]).expand(1, 2, 2, 2)
    weight = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert OPERATORS["DEPTHWISE_CONV_2D"](options, images, weight).flatten().tolist() == [4, 80]


def test_dilated_same_convolution_keeps_the_size() -> None:
    options = {"padding": SAME, "stride_w": 1, "stride_h": 1, "dilation_w": 2, "dilation_h": 2, "activation": 0}
    assert OPERATORS["CONV_2D"](options, torch.zeros(1, 7, 5, 1), torch.zeros(4, 1, 3, 3)).shape == (1, 7, 5, 4)


def test_depth_to_space_orders_row_column_channel() -> None:
    images = torch.arange(8.0).reshape(1, 1, 1, 8)
    found = OPERATORS["DEPTH_TO_SPACE"]({"block_size": 2}, images)
    assert found[0, ..., 0].tolist() == [[0, 2], [4, 6]]
    assert found[0, ..., 1].tolist() == [[1, 3], [5, 7]]


def test_pad_reads_pairs_per_dimension() -> None:
    pads = torch.tensor([[0, 0], [1, 0], [0, 2], [0, 1]])
    found = OPERATORS["PAD"]({}, torch.ones(1, 1, 1, 1), pads)
    assert found.shape == (1, 2, 3, 2)
    assert found[0, 1, 0, 0] == 1
    assert found.sum() == 1


def test_resize_counts_from_pixel_centres() -> None:
    found = OPERATORS["RESIZE_BILINEAR"]({}, rows([0.0, 4.0]), torch.tensor([1, 4]))
    assert found.flatten().tolist() == [0, 1, 3, 4]


def test_prelu_relu_add_concatenation_reshape() -> None:
    x = torch.tensor([-2.0, 3.0]).reshape(1, 1, 1, 2)
    assert OPERATORS["PRELU"]({}, x, torch.tensor([0.5, 0.5])).flatten().tolist() == [-1, 3]
    assert OPERATORS["RELU"]({}, x).flatten().tolist() == [0, 3]
    assert OPERATORS["ADD"]({"activation": 1}, x, x).flatten().tolist() == [0, 6]
    assert OPERATORS["ADD"]({"activation": 3}, x, 2 * x).flatten().tolist() == [0, 6]  # ReLU6
    assert OPERATORS["CONCATENATION"]({"axis": 3}, x, x).shape == (1, 1, 1, 4)
    batch = torch.arange(8.0).reshape(2, 1, 2, 2)  # the file says a batch of one
    assert OPERATORS["RESHAPE"]({"shape": [1, -1, 1]}, batch).shape == (2, 4, 1)


def test_gradients_reach_the_input(tmp_path: Path) -> None:
    steps = [["PRELU", ["t0", "c1"], ["t1"], {}], ["ADD", ["t1", "t1"], ["t2"], {"activation": 0}]]
    net = FaceNet(write_net(tmp_path / "net.npz", steps, "t2", c1=np.array([0.25], np.float16)))
    images = rows([-1.0, 1.0]).requires_grad_()
    net(images)[0].sum().backward()
    assert images.grad is not None
    assert images.grad.flatten().tolist() == [0.5, 2]


def test_broken_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = write_net(tmp_path / "net.npz", [["SOFTMAX", ["t0"], ["t1"], {}]], "t1")
    with pytest.raises(MagiCaptureError, match="operators SOFTMAX are not known"):
        FaceNet(path)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"text"):
        path.write_bytes(content)
        with pytest.raises(MagiCaptureError, match="models get faces") as caught:
            FaceNet(path)
        assert "\n" not in str(caught.value)
