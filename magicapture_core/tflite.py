"""A float TFLite network -> a list of operators and weights in torch's layout, as an .npz file. numpy alone.

In: the bytes of a .tflite file (a flatbuffer, https://google.github.io/flatbuffers). Out: one .npz with the weights as
fp16 and, under "meta", the graph as JSON: `operators` [name, inputs, outputs, options], `input`, `input_shape`,
`outputs`. An input is a weight (c...), a value (t...) or absent (""). Sparse weights are made dense. The reader knows
the operators of MediaPipe's face networks and no others; face_nets.py runs the result.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .files import write_atomic
from .types import MagiCaptureError

Array = np.ndarray[Any, Any]

DTYPES: dict[int, Any] = {0: np.float32, 1: np.float16, 2: np.int32}
OPERATORS = {
    0: "ADD",
    2: "CONCATENATION",
    3: "CONV_2D",
    4: "DEPTHWISE_CONV_2D",
    5: "DEPTH_TO_SPACE",
    6: "DEQUANTIZE",
    17: "MAX_POOL_2D",
    19: "RELU",
    22: "RESHAPE",
    23: "RESIZE_BILINEAR",
    34: "PAD",
    54: "PRELU",
    124: "DENSIFY",
}
STORAGE = ("DEQUANTIZE", "DENSIFY")  # how a weight is stored; nothing is left to compute
TORCH_LAYOUT = {"CONV_2D": (0, 3, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2)}  # to [out, in / groups, height, width]

EMPTY_TABLE = struct.pack("<HHi", 4, 4, 4)  # every field absent; the table is at 4

# Option -> (field number in the schema, struct format, default).
STRIDES = {"padding": (0, "b", 0), "stride_w": (1, "i", 0), "stride_h": (2, "i", 0)}
OPTIONS: dict[str, dict[str, tuple[int, str, int]]] = {
    "ADD": {"activation": (0, "b", 0)},
    "CONCATENATION": {"axis": (0, "i", 0)},
    "CONV_2D": {**STRIDES, "activation": (3, "b", 0), "dilation_w": (4, "i", 1), "dilation_h": (5, "i", 1)},
    "DEPTHWISE_CONV_2D": {**STRIDES, "activation": (4, "b", 0), "dilation_w": (5, "i", 1), "dilation_h": (6, "i", 1)},
    "MAX_POOL_2D": {**STRIDES, "filter_w": (3, "i", 0), "filter_h": (4, "i", 0)},
    "RESIZE_BILINEAR": {"half_pixel_centers": (3, "b", 0)},
    "DEPTH_TO_SPACE": {"block_size": (0, "i", 0)},
}


def convert(data: bytes, name: str) -> tuple[dict[str, Any], dict[str, Array]]:
    """The bytes of a .tflite file -> (graph, weights). `name` is for the message.

    Raises MagiCaptureError when the file is truncated, is no TFLite file, or has an operator that is not known here.
    """
    if data[4:8] != b"TFL3":
        raise MagiCaptureError(f"{name} is not a TFLite file; fetch it again")
    try:
        return _Converter(data, name).convert()
    except (struct.error, IndexError, KeyError, ValueError, AttributeError, TypeError, MemoryError) as error:
        raise MagiCaptureError(f"{name} is truncated or broken ({error}); fetch it again") from error


def write_npz(data: bytes, path: Path) -> None:
    """Convert the bytes of a .tflite file and write them to `path`, whole or not at all."""
    graph, weights = convert(data, path.stem)
    arrays: dict[str, Any] = {"meta": np.frombuffer(json.dumps(graph).encode(), np.uint8), **weights}
    write_atomic(path, lambda beside: np.savez_compressed(beside, **arrays))


class Table:
    """A flatbuffer table at a position of the data: its fields are looked up by their number in the schema."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at
        self.vtable = at - self._read("<i", at)
        self.vtable_size = self._read("<H", self.vtable)

    def _read(self, form: str, at: int) -> int:
        return struct.unpack_from(form, self.data, at)[0]

    def _field(self, number: int) -> int:
        """Absolute position of a field, 0 where it is absent."""
        slot = 4 + 2 * number
        offset = self._read("<H", self.vtable + slot) if slot < self.vtable_size else 0
        return self.at + offset if offset else 0

    def _follow(self, at: int) -> int:
        return at + self._read("<I", at)

    def scalar(self, number: int, form: str, default: int = 0) -> int:
        at = self._field(number)
        return self._read("<" + form, at) if at else default

    def table(self, number: int) -> Table | None:
        at = self._field(number)
        return Table(self.data, self._follow(at)) if at else None

    def vector(self, number: int, dtype: Any) -> Array:
        """A vector of numbers; an absent one is empty."""
        at = self._field(number)
        if not at:
            return np.empty(0, dtype)
        start = self._follow(at)
        return np.frombuffer(self.data, dtype, self._read("<I", start), start + 4)

    def tables(self, number: int) -> list[Table]:
        at = self._field(number)
        if not at:
            return []
        start = self._follow(at)
        places = range(start + 4, start + 4 + 4 * self._read("<I", start), 4)
        return [Table(self.data, self._follow(place)) for place in places]


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level of a sparse tensor, which is a tree: dense with `size` children, or compressed as in a CSR matrix."""

    size: int
    segments: Array | None = None
    indices: Array | None = None

    @classmethod
    def read(cls, table: Table) -> Level:
        if table.scalar(0, "b") == 0:
            return cls(size=table.scalar(1, "i"))
        return cls(size=0, segments=_index_vector(table, 2), indices=_index_vector(table, 4))

    def expand(self, positions: Array) -> tuple[Array, Array, Array]:
        """Nodes of the level above [n] -> of each child: its parent's place in `positions`, its position, its index."""
        if self.segments is None or self.indices is None:
            parents = np.repeat(np.arange(len(positions)), self.size)
            index = np.tile(np.arange(self.size), len(positions))
            return parents, positions[parents] * self.size + index, index
        starts, ends = self.segments[positions], self.segments[positions + 1]
        parents = np.repeat(np.arange(len(positions)), ends - starts)
        children = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
        positions = np.concatenate(children)
        return parents, positions, self.indices[positions]


def _index_vector(level: Table, type_number: int) -> Array:
    """A vector of a sparse level: a table whose one field is a vector of int32, uint16 or uint8."""
    inner = level.table(type_number + 1)
    dtype = {1: np.int32, 2: np.uint16, 3: np.uint8}[level.scalar(type_number, "B")]
    return np.empty(0, np.int64) if inner is None else inner.vector(0, dtype).astype(np.int64)


def densify(
    values: Array, shape: Sequence[int], order: Sequence[int], blocks: Sequence[int], levels: list[Level]
) -> Array:
    """values [n] of a sparse tensor -> the tensor of `shape`, zero elsewhere.

    Level k of the tree indexes dimension order[k]: below len(shape) a dimension of the tensor, from there on the inner
    index within a block along dimension blocks[order[k] - len(shape)].
    """
    positions, coordinates = np.zeros(1, np.int64), np.zeros((0, 1), np.int64)
    for level in levels:
        parents, positions, index = level.expand(positions)
        coordinates = np.concatenate([coordinates[:, parents], index[None]])
    by_dimension = coordinates[np.argsort(order)]
    places = by_dimension[: len(shape)]
    for slot, dimension in enumerate(blocks, start=len(shape)):
        places[dimension] = places[dimension] * levels[list(order).index(slot)].size + by_dimension[slot]
    dense = np.zeros(shape, values.dtype)
    dense[tuple(places)] = values[positions]
    return dense


class _Converter:
    """Reads one model. Field numbers are those of TFLite's schema."""

    def __init__(self, data: bytes, name: str) -> None:
        model = Table(data, struct.unpack_from("<I", data, 0)[0])
        self.name = name
        self.buffers = model.tables(4)
        self.graph = model.tables(2)[0]
        self.tensors = self.graph.tables(0)
        self.codes = [self._operator_name(code) for code in model.tables(1)]
        self.stored_as: dict[int, int] = {}  # output -> input of an operator that only unpacks a weight
        self.weights: dict[str, Array] = {}

    def convert(self) -> tuple[dict[str, Any], dict[str, Array]]:
        operators = [row for row in map(self._operator, self.graph.tables(3)) if row is not None]
        first = int(self.graph.vector(1, np.int32)[0])
        outputs = self.graph.vector(2, np.int32).tolist()
        graph = {
            "operators": operators,
            "input": f"t{first}",
            "input_shape": self._shape(first),
            "outputs": [f"t{index}" for index in outputs],
        }
        return graph, self.weights

    def _operator_name(self, code: Table) -> str:
        number = max(code.scalar(0, "b"), code.scalar(3, "i"))
        if number not in OPERATORS:
            raise MagiCaptureError(f"{self.name}: TFLite operator {number} is not known here")
        return OPERATORS[number]

    def _operator(self, operator: Table) -> list[Any] | None:
        name = self.codes[operator.scalar(0, "I")]
        inputs, outputs = operator.vector(1, np.int32).tolist(), operator.vector(2, np.int32).tolist()
        if name in STORAGE:
            self.stored_as[outputs[0]] = inputs[0]
            return None
        options = self._options(name, operator)
        if name == "RESHAPE":
            options["shape"] = self._target_shape(operator, inputs[1:])
            inputs = inputs[:1]
        names = [self._input(index, name if place == 1 else "") for place, index in enumerate(inputs)]
        return [name, names, [f"t{index}" for index in outputs], options]

    def _options(self, name: str, operator: Table) -> dict[str, Any]:
        table = operator.table(4) or Table(EMPTY_TABLE, 4)
        fields = OPTIONS.get(name, {}).items()
        options = {key: table.scalar(number, form, default) for key, (number, form, default) in fields}
        if options.pop("half_pixel_centers", 1) != 1:
            raise MagiCaptureError(f"{self.name}: {name} without half_pixel_centers is not known here")
        return options

    def _target_shape(self, operator: Table, inputs: list[int]) -> list[int]:
        """Of a RESHAPE: its second input where there is one, else its option."""
        shape = self._constant(inputs[0]) if inputs else None
        if shape is None:
            shape = (operator.table(4) or Table(EMPTY_TABLE, 4)).vector(0, np.int32)
        return shape.tolist()

    def _input(self, index: int, weight_of: str) -> str:
        """The name by which an input is known; weights are collected, those of a convolution in torch's layout."""
        if index < 0:
            return ""
        for _ in range(len(self.stored_as)):  # a sparse half-precision weight is unpacked twice; and none in a circle
            index = self.stored_as.get(index, index)
        value = self._constant(index)
        if value is None:
            return f"t{index}"
        if weight_of in TORCH_LAYOUT:
            value = value.transpose(TORCH_LAYOUT[weight_of])
        self.weights[f"c{index}"] = value.astype(np.float16) if value.dtype == np.float32 else value
        return f"c{index}"

    def _shape(self, index: int) -> list[int]:
        return self.tensors[index].vector(0, np.int32).tolist()

    def _constant(self, index: int) -> Array | None:
        tensor = self.tensors[index]
        raw = self.buffers[tensor.scalar(2, "I")].vector(0, np.uint8)
        if raw.size == 0:
            return None
        values = np.frombuffer(raw.tobytes(), DTYPES[tensor.scalar(1, "b")])
        sparsity = tensor.table(6)
        if sparsity is None:
            return values.reshape(self._shape(index))
        order, blocks = sparsity.vector(0, np.int32).tolist(), sparsity.vector(1, np.int32).tolist()
        return densify(values, self._shape(index), order, blocks, [Level.read(level) for level in sparsity.tables(2)])
