"""Runs a network written by tflite.py as a torch module. Gradients reach the input.

In: [B,H,W,3] in the range the network was trained on (BlazeFace -1..1, FaceMesh 0..1). Out: tensors in the file's
order. Values are [B,H,W,C] between operators, as in the file, since reshapes and concatenations count on it.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .models import REMEDIES
from .types import MagiCaptureError

Options = dict[str, int]

PADDING_SAME = 0
MAX_BYTES = 32 << 20  # of an unfolded file; FaceMesh, the largest, has 2 MB
ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {0: lambda x: x, 1: F.relu, 3: F.relu6}


class FaceNet(nn.Module):
    """A straight list of operators. `size` is the side of the square input in pixels."""

    def __init__(self, path: Path) -> None:
        """Raises MagiCaptureError when the file is broken or has an operator that is not known here."""
        super().__init__()
        self.operators: list[tuple[str, list[str], list[str], Options]]
        self.input_name: str
        self.output_names: list[str]
        self.size: int
        try:
            graph, weights = _read(path)
            self.operators = [(str(name), *rest) for name, *rest in graph["operators"]]
            self.input_name, self.output_names = graph["input"], graph["outputs"]
            self.size = int(graph["input_shape"][1])
            for name, weight in weights.items():
                self.register_buffer(name, weight)
        except Exception as error:  # zip, deflate, numpy and JSON have a dozen kinds for a file that is none of ours
            raise MagiCaptureError(f"{path} is broken ({error}); delete it and run: {REMEDIES['faces']}") from error
        unknown = sorted({name for name, *_ in self.operators} - OPERATORS.keys())
        if unknown:
            raise MagiCaptureError(f"{path}: operators {', '.join(unknown)} are not known here")

    def forward(self, images: Tensor) -> list[Tensor]:
        """images [B,H,W,3] -> the outputs."""
        values: dict[str, Tensor | None] = {**dict(self.named_buffers()), self.input_name: images, "": None}
        for name, inputs, outputs, options in self.operators:
            values[outputs[0]] = OPERATORS[name](options, *(values[key] for key in inputs))
        return [output for name in self.output_names if (output := values[name]) is not None]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
            raise ValueError(f"it unfolds to more than {MAX_BYTES >> 20} MB")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        graph = json.loads(archive["meta"].tobytes())
        arrays = {name: archive[name] for name in archive.files if name != "meta"}
    kinds = {name: np.float32 if array.dtype == np.float16 else np.int64 for name, array in arrays.items()}
    return graph, {name: torch.from_numpy(array.astype(kinds[name])) for name, array in arrays.items()}


def _nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _pad_same(options: Options, x: Tensor, kernel: tuple[int, int], value: float = 0.0) -> Tensor:
    """TensorFlow's SAME: outputs = ceil(inputs / stride); an odd pixel goes right and down. x [B,C,H,W]."""
    if options["padding"] != PADDING_SAME:
        return x
    pads: list[int] = []
    for size, reach, stride in (
        (x.shape[3], kernel[1], options["stride_w"]),
        (x.shape[2], kernel[0], options["stride_h"]),
    ):
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


def _convolve(options: Options, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """weight [out, in / groups, height, width]."""
    stride = (options["stride_h"], options["stride_w"])
    dilation = (options["dilation_h"], options["dilation_w"])
    kernel = tuple((side - 1) * step + 1 for side, step in zip(weight.shape[2:], dilation, strict=True))
    x = _pad_same(options, _nchw(x), (kernel[0], kernel[1]))
    x = F.conv2d(x, weight, bias, stride, dilation=dilation, groups=groups)
    return ACTIVATIONS[options["activation"]](_nhwc(x))


def _conv_2d(options: Options, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _convolve(options, x, weight, bias, groups=1)


def _depthwise_conv_2d(options: Options, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _convolve(options, x, weight, bias, groups=x.shape[3])


def _max_pool_2d(options: Options, x: Tensor) -> Tensor:
    kernel = (options["filter_h"], options["filter_w"])
    x = _pad_same(options, _nchw(x), kernel, value=float("-inf"))
    return _nhwc(F.max_pool2d(x, kernel, (options["stride_h"], options["stride_w"])))


def _add(options: Options, x: Tensor, y: Tensor) -> Tensor:
    return ACTIVATIONS[options["activation"]](x + y)


def _pad(options: Options, x: Tensor, pads: Tensor) -> Tensor:
    """pads [4,2]: before and after, per dimension."""
    return F.pad(x, [amount for pair in reversed(pads.tolist()) for amount in pair])


def _relu(options: Options, x: Tensor) -> Tensor:
    return F.relu(x)


def _prelu(options: Options, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, x * slope)


def _reshape(options: dict[str, list[int]], x: Tensor) -> Tensor:
    return x.reshape([x.shape[0], *options["shape"][1:]])


def _concatenation(options: Options, *tensors: Tensor) -> Tensor:
    return torch.cat(tensors, options["axis"])


def _depth_to_space(options: Options, x: Tensor) -> Tensor:
    """Channels are ordered row, column, channel; torch's pixel_shuffle wants the channel first."""
    batch, height, width, channels = x.shape
    block = options["block_size"]
    x = x.reshape(batch, height, width, block, block, channels // block**2).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * block, width * block, channels // block**2)


def _resize_bilinear(options: Options, x: Tensor, size: Tensor) -> Tensor:
    return _nhwc(F.interpolate(_nchw(x), size.tolist(), mode="bilinear"))


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "ADD": _add,
    "CONCATENATION": _concatenation,
    "CONV_2D": _conv_2d,
    "DEPTHWISE_CONV_2D": _depthwise_conv_2d,
    "DEPTH_TO_SPACE": _depth_to_space,
    "MAX_POOL_2D": _max_pool_2d,
    "PAD": _pad,
    "PRELU": _prelu,
    "RELU": _relu,
    "RESHAPE": _reshape,
    "RESIZE_BILINEAR": _resize_bilinear,
}
