"""Writes just enough of a flatbuffer to make small TFLite files for the tests."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np


def flatbuffer(root: dict[int, Any], identifier: bytes = b"TFL3") -> bytes:
    """A table is {field number: value}; a value is an int, an array, a table, or a list of tables."""
    data = bytearray(4) + identifier
    struct.pack_into("<I", data, 0, _write(data, root))
    return bytes(data)


def _write(data: bytearray, value: Any) -> int:
    """Appends a value that is reached by an offset; returns its position."""
    if isinstance(value, dict):
        return _write_table(data, value)
    at = len(data)
    data += struct.pack("<I", len(value))
    if isinstance(value, np.ndarray):
        data += value.tobytes()
        return at
    slots = len(data)
    data += bytes(4 * len(value))
    for index, table in enumerate(value):
        _point(data, slots + 4 * index, _write(data, table))
    return at


def _write_table(data: bytearray, fields: dict[int, Any]) -> int:
    count = max(fields, default=-1) + 1
    offsets = [0] * count
    for place, number in enumerate(fields):
        offsets[number] = 4 + 4 * place
    vtable = len(data)
    data += struct.pack(f"<HH{count}H", 4 + 2 * count, 4 + 4 * len(fields), *offsets)
    at = len(data)
    data += struct.pack("<i", at - vtable) + bytes(4 * len(fields))
    for number, value in fields.items():
        slot = at + offsets[number]
        if isinstance(value, int):
            struct.pack_into("<i", data, slot, value)
        else:
            _point(data, slot, _write(data, value))
    return at


def _point(data: bytearray, slot: int, target: int) -> None:
    struct.pack_into("<I", data, slot, target - slot)


def tensor(shape: tuple[int, ...], dtype: int = 0, buffer: int = 0, **sparsity: Any) -> dict[int, Any]:
    fields: dict[int, Any] = {0: np.array(shape, np.int32), 1: dtype, 2: buffer}
    return fields | ({6: sparsity["sparsity"]} if sparsity else {})


def operator(code: int, inputs: list[int], output: int, options: dict[int, Any] | None = None) -> dict[int, Any]:
    fields: dict[int, Any] = {0: code, 1: np.array(inputs, np.int32), 2: np.array([output], np.int32)}
    return fields | ({} if options is None else {4: options})


def model(
    codes: list[int],
    tensors: list[dict[int, Any]],
    operators: list[dict[int, Any]],
    buffers: list[np.ndarray],
    output: int,
) -> bytes:
    """A TFLite file with one graph whose input is tensor 0. Buffer 0 is the empty one."""
    graph = {0: tensors, 1: np.array([0], np.int32), 2: np.array([output], np.int32), 3: operators}
    stored: list[dict[int, Any]] = [{}, *({0: values.view(np.uint8).reshape(-1)} for values in buffers)]
    return flatbuffer({1: [{0: min(code, 127), 3: code} for code in codes], 2: [graph], 4: stored})


def small_network() -> tuple[bytes, np.ndarray, np.ndarray]:
    """A file with one 3x3 convolution, stride 2, SAME, ReLU: 4x5x2 -> 2x3x3; and its weight [3,3,3,2] and bias [3]."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(3, 3, 3, 2)).astype(np.float16).astype(np.float32)
    bias = random.normal(size=3).astype(np.float16).astype(np.float32)
    tensors = [tensor((1, 4, 5, 2)), tensor((3, 3, 3, 2), buffer=1), tensor((3,), buffer=2), tensor((1, 2, 3, 3))]
    convolution = operator(0, [0, 1, 2], 3, {1: 2, 2: 2, 3: 1})
    return model([3], tensors, [convolution], [weight, bias], 3), weight, bias
