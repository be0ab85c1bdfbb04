"""ONNX files that no exporter writes: operators in any order on any values, among them sizes that grow and cycles."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np

from magicapture_core.onnx_module import OPERATORS
from tests.fuzz.mutate import NUMBERS
from tests.onnx_files import FACES, attribute, model, node, port, small_network, tensor, varint

ATTRIBUTES = ("axis", "axes", "pads", "strides", "dilations", "group", "epsilon", "alpha", "transB", "auto_pad")


def onnx_files() -> list[dict[str, bytes]]:
    networks = [small_network(), small_network(store="typed"), small_network(dtype=np.float16)]
    return [{"a.onnx": network.file(output)} for network, output in networks]


def any_graph(random: Random) -> bytes:
    weights = {
        "scalar": np.array(random.choice([0, 1, 7, 2**40]), np.int64),
        "sizes": np.array([random.choice([-1, 0, 1, 3, 2**31]) for _ in range(random.randint(0, 5))], np.int64),
        "matrix": np.ones((random.randint(1, 4), random.randint(1, 4)), np.float32),
        "kernel": np.ones((2, 3, 3, 3), np.float16),
    }
    values, nodes = ["faces", *weights], []
    for index in range(random.choice([1, 3, 10, 60])):
        kind = random.choice([*OPERATORS, "Constant"])
        repeated = random.choice([values[-1:], values, values, [*values, "", f"v{index + 1}"]])
        inputs = [random.choice(repeated) for _ in range(random.choice([1, 1, 2, 2, 3, 5]))]
        chosen = random.sample(ATTRIBUTES, random.choice([0, 0, 1, 2]))
        nodes.append(node(kind, inputs, [f"v{index}"], *(attribute(name, _value(random)) for name in chosen)))
        values.append(f"v{index}")
    initializers = [tensor(name, array) for name, array in weights.items()]
    return model(nodes, initializers, [port("faces", FACES)], [port(random.choice(values), (1, 512))])


def doubling(kind: str, start: str, times: int = 62) -> bytes:
    """A value that is put to itself again and again."""
    nodes = [node("Shape", ["faces"], ["shape"]), node("Gather", ["shape", "three"], ["side"])]
    nodes += [node(kind, [name, name], [f"v{index}"], *([attribute("axis", 0)] if kind == "Concat" else []))
              for index, name in enumerate([start, *(f"v{index}" for index in range(times - 1))])]  # fmt: skip
    three = tensor("three", np.array(3, np.int64))
    return model(nodes, [three], [port("faces", FACES)], [port(f"v{times - 1}", (1, 512))])


def many_sizes(count: int) -> bytes:
    """A weight of so many dimensions, each as large as can be."""
    shape = b"".join(b"\x08" + varint(2**62) for _ in range(count))
    weight = shape + tensor("w", np.zeros(0, np.float32))
    return model([node("Identity", ["faces"], ["out"])], [weight], [port("faces", FACES)], [port("out", (1, 512))])


def _value(random: Random) -> Any:
    number = random.choice([n for n in NUMBERS if -(2**63) <= n < 2**63])
    return random.choice([number, 0.5, float("nan"), "SAME_UPPER", [number] * random.choice([1, 2, 4]), [0.5]])
