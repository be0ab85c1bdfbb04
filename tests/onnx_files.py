"""Writes ONNX files for the tests: protobuf by hand, and IResNets in the forms that exporters give them.

Knows nothing of the reader, nor of our own IResNet but the names of its weights.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

FLOAT, INT64, FLOAT16 = 1, 7, 10
TYPES = {"float32": FLOAT, "int64": INT64, "float16": FLOAT16}
FACES = ("N", 3, 112, 112)
Field = tuple[int, Any]


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    if value < 128:
        return bytes([value])
    return bytes([value & 127 | 128]) + varint(value >> 7)


def field(number: int, value: int | float | str | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def message(*fields: Field) -> bytes:
    return b"".join(field(number, value) for number, value in fields)


def tensor(name: str, values: np.ndarray, store: str = "raw") -> bytes:
    """store: raw bytes, values packed in the field of their type, or one field for each."""
    head = message(*((1, size) for size in values.shape), (2, TYPES[values.dtype.name]), (8, name))
    if store == "raw":
        return head + field(9, values.tobytes())
    number = {FLOAT: 4, INT64: 7, FLOAT16: 5}[TYPES[values.dtype.name]]
    bits = values.view(np.uint16) if values.dtype == np.float16 else values
    if store == "single":
        return head + message(*((number, value) for value in bits.flatten().tolist()))
    return head + field(number, bits.tobytes() if number == 4 else b"".join(map(varint, bits.flatten().tolist())))


def attribute(name: str, value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return message((1, name), (20, 4), (5, tensor("", value)))
    if isinstance(value, list):
        number, kind = (8, 7) if isinstance(value[0], int) else (7, 6)
        return message((1, name), (20, kind), *((number, item) for item in value))
    number, kind = {float: (2, 1), int: (3, 2), str: (4, 3)}[type(value)]
    return message((1, name), (20, kind), (number, value))


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], *attributes: bytes, domain: str = "") -> bytes:
    fields = [*((1, name) for name in inputs), *((2, name) for name in outputs), (4, kind), (7, domain)]
    return message(*fields, *((5, data) for data in attributes))


def port(name: str, shape: Sequence[int | str]) -> bytes:
    """A size that is a name is left open."""
    sizes = [message((1, size) if isinstance(size, int) else (2, size)) for size in shape]
    return message((1, name), (2, message((1, message((1, FLOAT), (2, message(*((1, size) for size in sizes))))))))


def model(nodes: Sequence[bytes], weights: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes]) -> bytes:
    """In the order in which protobuf writes it, the operator set last."""
    groups = ((1, nodes), (5, weights), (11, inputs), (12, outputs))
    graph = message(*((number, part) for number, parts in groups for part in parts))
    return message((1, 6), (2, "by hand"), (7, graph), (8, message((2, 11))))


class Network:
    """A file in the making. Each call of `node` adds an operator and returns the name of its output."""

    def __init__(self, dtype: Any = np.float32, store: str = "raw") -> None:
        self.nodes: list[bytes] = []
        self.weights: dict[str, np.ndarray] = {}
        self.dtype, self.store = dtype, store

    def weight(self, name: str, values: Any) -> str:
        array = np.asarray(values)
        self.weights[name] = array if array.dtype == np.int64 else array.astype(self.dtype)
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind}_{len(self.nodes)}"
        data = (attribute(name, value) for name, value in attributes.items())
        self.nodes.append(node(kind, inputs, [output], *data))
        return output

    def file(self, output: str, shape: Sequence[int | str] = FACES, *, weights_are_inputs: bool = False) -> bytes:
        inputs = [port("faces", shape)]
        if weights_are_inputs:
            inputs += [port(name, values.shape) for name, values in self.weights.items()]
        weights = [tensor(name, values, self.store) for name, values in self.weights.items()]
        return model(self.nodes, weights, inputs, [port(output, (shape[0], 512))])


def small_network(**form: Any) -> tuple[Network, str]:
    """A file of 20 kB with a convolution, a batch norm, a PRelu and a matrix, and its output of 8 numbers."""
    random, network = np.random.default_rng(0), Network(**form)
    names = [network.weight(name, random.uniform(0.5, 1.5, 4)) for name in ("scale", "bias", "mean", "var")]
    kernel = network.weight("layer.0.weight", random.normal(size=(4, 3, 9, 9)) / 10)
    x = network.node("Conv", "faces", kernel, kernel_shape=[9, 9], strides=[16, 16], pads=[4, 4, 4, 4])
    x = network.node("BatchNormalization", x, *names, epsilon=1e-5)
    x = network.node("PRelu", x, network.weight("slope", random.uniform(0, 0.5, (4, 1, 1))))
    matrix = network.weight("matrix", random.normal(size=(8, 4 * 7 * 7)) / 10)
    return network, network.node("Gemm", network.node("Flatten", x, axis=1), matrix, transB=1)


def iresnet(state: Mapping[str, Tensor], form: str = "plain", **kind: Any) -> bytes:
    """An IResNet's weights by arcface_torch's names -> the file.

    form: plain, each layer one operator; folded, a batch norm behind a convolution is part of it, as in w600k_r50.onnx;
    mxnet, with the normalisation in front and what else MXNet writes, for one face.
    """
    writer = _IResNet(state, form, Network(**kind))
    output = writer.write()
    if form == "mxnet":
        return writer.network.file(output, (1, *FACES[1:]), weights_are_inputs=True)
    return writer.network.file(output)


class _IResNet:
    def __init__(self, state: Mapping[str, Tensor], form: str, network: Network) -> None:
        self.state = {name: value.double().numpy() for name, value in state.items()}
        self.form, self.network = form, network

    def write(self) -> str:
        x = self.normalised("faces") if self.form == "mxnet" else "faces"
        x = self.prelu(self.convolution(x, "conv1", "bn1", 1), "prelu")
        for stage in range(1, 5):
            for index in range(len({name.split(".")[1] for name in self.state if name.startswith(f"layer{stage}.")})):
                x = self.block(x, f"layer{stage}.{index}", 2 if index == 0 else 1)
        x = self.batch_norm(x, "bn2")
        x = self.network.node("Dropout", x, ratio=0.4) if self.form == "mxnet" else x
        matrix, bias = self.weight("fc.weight"), self.weight("fc.bias")
        x = self.network.node("Gemm", self.network.node("Flatten", x), matrix, bias, alpha=1.0, beta=1.0, transB=1)
        return self.batch_norm(x, "features")

    def normalised(self, x: str) -> str:
        x = self.network.node("Sub", self.network.node("Identity", x), self.network.weight("minus", [127.5]))
        return self.network.node("Mul", x, self.network.weight("times", [0.0078125]))

    def block(self, x: str, name: str, stride: int) -> str:
        inner = self.batch_norm(x, f"{name}.bn1")
        inner = self.prelu(self.convolution(inner, f"{name}.conv1", f"{name}.bn2", 1), f"{name}.prelu")
        inner = self.convolution(inner, f"{name}.conv2", f"{name}.bn3", stride)
        if stride > 1:
            x = self.convolution(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
        return self.network.node("Add", inner, x)

    def convolution(self, x: str, name: str, norm: str, stride: int) -> str:
        """And the batch norm behind it."""
        kernel = self.state[f"{name}.weight"]
        side = kernel.shape[-1]
        settings = {"kernel_shape": [side] * 2, "strides": [stride] * 2, "pads": [side // 2] * 4, "dilations": [1, 1]}
        if self.form != "folded":
            x = self.network.node("Conv", x, self.weight(f"{name}.weight"), **settings, group=1)
            return self.batch_norm(x, norm)
        scale, bias, mean, var = self.statistics(norm)
        gain = scale / np.sqrt(var + 1e-5)
        kernel = self.network.weight(f"{name}.weight", kernel * gain[:, None, None, None])
        return self.network.node("Conv", x, kernel, self.network.weight(f"{name}.bias", bias - mean * gain), **settings)

    def batch_norm(self, x: str, name: str) -> str:
        parts = zip(("weight", "bias", "running_mean", "running_var"), self.statistics(name), strict=True)
        names = [self.network.weight(f"{name}.{part}", values) for part, values in parts]
        spatial = {"spatial": 0} if self.form == "mxnet" else {}
        return self.network.node("BatchNormalization", x, *names, epsilon=1e-5, momentum=0.9, **spatial)

    def prelu(self, x: str, name: str) -> str:
        slope = self.state[f"{name}.weight"]
        if self.form != "mxnet":
            return self.network.node("PRelu", x, self.network.weight(f"{name}.weight", slope[:, None, None]))
        shape = self.network.weight(f"{name}.shape", np.array([1, -1, 1, 1], np.int64))
        return self.network.node("PRelu", x, self.network.node("Reshape", self.weight(f"{name}.weight"), shape))

    def weight(self, name: str) -> str:
        return self.network.weight(name, self.state[name])

    def statistics(self, name: str) -> list[np.ndarray]:
        return [self.state[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]
