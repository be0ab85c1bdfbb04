"""An .onnx file -> its graph as plain data: nodes, weights, inputs, outputs. numpy alone.

In: a ModelProto of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, whose field numbers stand below, in
protobuf's wire format (https://protobuf.dev/programming-guides/encoding). Out: a Graph. Nothing is allocated by a
length that the file states: a damaged file costs memory in proportion to its own size. Knows no operator;
onnx_module.py does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .types import MagiCaptureError

Array = np.ndarray[Any, Any]

VARINT, EIGHT_BYTES, COUNTED, FOUR_BYTES = 0, 1, 2, 5  # wire types; 3 and 4 have been out of use since before ONNX
WIDTHS = {EIGHT_BYTES: 8, FOUR_BYTES: 4}
DTYPES: dict[int, str] = {1: "<f4", 7: "<i8", 10: "<f2"}

MAX_DIMENSIONS = 8


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator. kind: its name, behind its domain where that is not ONNX's own. An input that is left out is "".

    attributes: float, int, str, an array, or a list of floats or ints; None for anything else.
    """

    kind: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Port:
    """Where a value enters or leaves the graph. shape: None for a size that is left open."""

    name: str
    shape: list[int | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """Nodes in the order they run. inputs: without those that initializers fill. initializers: fp32, fp16 or int64."""

    nodes: list[Node]
    initializers: dict[str, Array]
    inputs: list[Port]
    outputs: list[Port]


class _Unsupported(Exception):
    """A sound file that is not read here; the text says what to do."""


def read_graph(path: Path) -> Graph:
    """Raises MagiCaptureError for a file that is damaged, cut off or no ONNX, and for weights that are not in it or in
    another format than fp32, fp16 and int64."""
    try:
        return _graph(Message(memoryview(path.read_bytes())))
    except _Unsupported as error:
        raise MagiCaptureError(f"{path.name}: {error}") from error
    except (OSError, ValueError) as error:
        raise MagiCaptureError(f"{path.name} is damaged, cut off or no ONNX file ({error}); fetch it again") from error


class Message:
    """A protobuf message: its fields are looked up by number. Raises ValueError where the bytes are none.

    A repeated number may be packed into one field or not; both are read, whatever onnx.proto says, as protobuf does.
    """

    def __init__(self, data: memoryview) -> None:
        self.fields: dict[int, list[int | memoryview]] = {}
        for number, value in _split(data):
            self.fields.setdefault(number, []).append(value)

    def __contains__(self, number: int) -> bool:
        return number in self.fields

    def parts(self, number: int) -> list[memoryview]:
        """The bytes of each field of this number."""
        values = self.fields.get(number, [])
        parts = [value for value in values if isinstance(value, memoryview)]
        if len(parts) < len(values):
            raise ValueError(f"field {number} is a number")
        return parts

    def messages(self, number: int) -> list[Message]:
        return [Message(part) for part in self.parts(number)]

    def message(self, number: int) -> Message:
        """The last one, as protobuf has it; an empty one where there is none."""
        return (self.messages(number) or [Message(memoryview(b""))])[-1]

    def texts(self, number: int) -> list[str]:
        return [str(part, "utf-8") for part in self.parts(number)]

    def text(self, number: int) -> str:
        return (self.texts(number) or [""])[-1]

    def integers(self, number: int) -> list[int]:
        """Signed, of 64 bits."""
        values: list[int] = []
        for field in self.fields.get(number, []):
            values += [field] if isinstance(field, int) else _varints(field)
        return [value - (1 << 64) if value >> 63 else value for value in values]

    def integer(self, number: int) -> int:
        return (self.integers(number) or [0])[-1]

    def floats(self, number: int) -> Array:
        return np.frombuffer(b"".join(self.parts(number)), "<f4")


def _split(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: (number, a varint or the bytes)."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire_type == COUNTED:
            size, at = _varint(data, at)
        elif wire_type in WIDTHS:
            size = WIDTHS[wire_type]
        else:
            raise ValueError(f"wire type {wire_type}")
        if size > len(data) - at:
            raise ValueError(f"{size} bytes are announced where {len(data) - at} are left")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """-> (a number of 64 bits without sign, the position behind it)."""
    value = 0
    for place, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return value & ((1 << 64) - 1), at + place + 1
    raise ValueError("a number does not end")


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _graph(model: Message) -> Graph:
    if 7 not in model or 8 not in model:  # 8 is the operator set, which is written last and of which nothing is needed
        raise ValueError("no whole graph")
    graph = model.message(7)
    initializers = {tensor.text(8): _tensor(tensor) for tensor in graph.messages(5)}
    inputs = [_port(value) for value in graph.messages(11)]
    return Graph(
        nodes=[_node(node) for node in graph.messages(1)],
        initializers=initializers,
        inputs=[port for port in inputs if port.name not in initializers],  # before 2019 every weight was an input too
        outputs=[_port(value) for value in graph.messages(12)],
    )


def _node(node: Message) -> Node:
    domain = node.text(7)
    return Node(
        kind=node.text(4) if domain in ("", "ai.onnx") else f"{domain}.{node.text(4)}",
        inputs=node.texts(1),
        outputs=node.texts(2),
        attributes={attribute.text(1): _attribute(attribute) for attribute in node.messages(5)},
    )


def _attribute(attribute: Message) -> Any:
    kind = attribute.integer(20)
    if kind == 1:
        return float([0.0, *attribute.floats(2)][-1])  # zero is not always written
    if kind == 2:
        return attribute.integer(3)
    if kind == 3:
        return attribute.text(4)
    if kind == 4:
        return _tensor(attribute.message(5))
    if kind == 6:
        return attribute.floats(7).tolist()
    return attribute.integers(8) if kind == 7 else None


def _port(value: Message) -> Port:
    sizes = [dimension.integer(1) for dimension in value.message(2).message(1).message(2).messages(1)]
    return Port(name=value.text(1), shape=[size if size > 0 else None for size in sizes])


def _tensor(tensor: Message) -> Array:
    data_type = tensor.integer(2)
    if 13 in tensor or tensor.integer(14):
        raise _Unsupported("its weights lie in a second file; save it again as one file with everything inside")
    if data_type not in DTYPES:
        raise _Unsupported(f"has weights of ONNX data type {data_type}; take a float32 or float16 export")
    shape = tensor.integers(1)
    values = _raw(tensor, data_type) if 9 in tensor else _typed(tensor, data_type)
    if len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0 or math.prod(shape) != values.size:
        raise ValueError(f"{values.size} values for a tensor of {shape[:MAX_DIMENSIONS]}")
    return values.reshape(shape)


def _raw(tensor: Message, data_type: int) -> Array:
    return np.frombuffer(tensor.parts(9)[-1], DTYPES[data_type])


def _typed(tensor: Message, data_type: int) -> Array:
    """Values in the field of their type; fp16 stands as the numbers that its bits are."""
    if DTYPES[data_type] == "<f4":
        return tensor.floats(4)
    if DTYPES[data_type] == "<i8":
        return np.array(tensor.integers(7), "<i8")
    return np.array(tensor.integers(5), "<i8").astype("<u2").view("<f2")
