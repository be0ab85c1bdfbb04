"""Runs a graph read by onnx_graph.py as a torch module: one tensor in, one out. Gradients reach the input.

Knows the operators of face recognition networks, as their exporters write them (opset 7 and later), and no others;
knows nothing of faces.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .onnx_graph import MAX_DIMENSIONS, Array, Graph, Node
from .types import MagiCaptureError

MAX_VALUES = 1 << 26  # of one activation of one face; IResNet's largest has 800 thousand


@dataclass(frozen=True, kw_only=True)
class Step:
    """One node, ready to run. spent: values that no later step reads."""

    run: Callable[..., Any]
    inputs: list[str]
    output: str
    attributes: dict[str, Any]
    spent: set[str]


class OnnxModule(nn.Module):
    """Float constants are `weights`, in fp32 and frozen; integers are sizes and no part of the state."""

    def __init__(self, graph: Graph, name: str) -> None:
        """graph: with one input and one output. name: the file's, for the message.

        Raises MagiCaptureError for an operator that is not known here, and when a value comes from nowhere.
        """
        super().__init__()
        self.name = name
        [self.input_name] = [port.name for port in graph.inputs]
        [self.output_name] = [port.name for port in graph.outputs]
        constants = _constants(graph)
        self.steps = self._steps(graph, {"", self.input_name, *constants})
        read = {name for step in self.steps for name in step.inputs}
        weights = {name: array for name, array in constants.items() if name in read and array.dtype.kind == "f"}
        self.weight_names = list(weights)
        self.weights = nn.ParameterList(_frozen(array) for array in weights.values())
        self.sizes = {
            name: array.tolist()
            for name, array in constants.items()
            if array.dtype.kind == "i" and array.size <= MAX_DIMENSIONS
        }
        if lost := [name for name in read - weights.keys() if name in constants and name not in self.sizes]:
            raise MagiCaptureError(f"{name}: {lost[0]} holds more numbers than a shape has; fetch it again")

    def forward(self, x: Tensor) -> Tensor:
        weights = dict(zip(self.weight_names, self.weights, strict=True))
        values: dict[str, Any] = {"": None, self.input_name: x, **self.sizes, **weights}
        for step in self.steps:
            value = step.run(*(values[name] for name in step.inputs), **step.attributes)
            values[step.output] = _bounded(value, len(x))
            for name in step.spent:  # without this a batch would keep every activation until the end
                del values[name]
        return values[self.output_name]

    @torch.no_grad()
    def output_shape(self, *shape: int) -> torch.Size:
        """The shape that an input of `shape` leads to, found on the meta device: nothing is computed or stored.

        Raises MagiCaptureError when the nodes do not fit together.
        """
        weights = {name: weight.to("meta") for name, weight in self.named_parameters()}
        try:
            return torch.func.functional_call(self, weights, torch.empty(shape, device="meta")).shape
        except Exception as error:  # torch has several kinds for sizes and settings that do not fit
            reason = str(error).strip().split("\n")[0]
            raise MagiCaptureError(
                f"{self.name}: its operators do not fit together ({reason}); fetch it again"
            ) from error

    def _steps(self, graph: Graph, known: set[str]) -> list[Step]:
        """known: values that are there from the start, "" for an input that is left out."""
        nodes = [node for node in graph.nodes if node.kind != "Constant"]
        last_reader = {name: index for index, node in enumerate(nodes) for name in node.inputs}
        last_reader[self.output_name] = len(nodes)
        steps: list[Step] = []
        for index, node in enumerate(nodes):
            self._check(node, known)
            output = node.outputs[0]  # the others are statistics for training
            known.add(output)
            spent = {name for name in node.inputs if last_reader[name] == index}
            run = OPERATORS[node.kind]
            steps.append(Step(run=run, inputs=node.inputs, output=output, attributes=node.attributes, spent=spent))
        if self.output_name not in known:
            raise MagiCaptureError(f"{self.name}: nothing makes its output {self.output_name!r}; fetch it again")
        return steps

    def _check(self, node: Node, known: set[str]) -> None:
        if node.kind not in OPERATORS:
            raise MagiCaptureError(
                f"{self.name}: operator {node.kind!r} is not known here; take a recogniser of the IResNet family, "
                "such as w600k_r50.onnx or glintr100.onnx"
            )
        try:
            inspect.signature(OPERATORS[node.kind]).bind(*node.inputs, **node.attributes)
        except TypeError as error:
            raise MagiCaptureError(
                f"{self.name}: operator {node.kind!r} has an unknown form ({error}); export it again, opset 7 or later"
            ) from error
        if not node.outputs or node.outputs[0] in known or not known.issuperset(node.inputs):
            raise MagiCaptureError(
                f"{self.name}: operator {node.kind!r} reads a value that nothing makes, or makes one twice; fetch "
                "it again"
            )


def _bounded(value: Any, batch: int) -> Any:
    """The same value. Raises ValueError for sizes and activations that no network has: a file of a kilobyte can double
    them sixty times."""
    is_list = isinstance(value, list)
    sizes = value if is_list else [value] if isinstance(value, int | float) else []
    is_wide = isinstance(value, Tensor) and (value.numel() > batch * MAX_VALUES or value.ndim > MAX_DIMENSIONS)
    if is_wide or (is_list and len(value) > MAX_DIMENSIONS) or any(abs(size) >= 1 << 63 for size in sizes):
        raise ValueError("a value is larger than those of any face recogniser")
    return value


def _constants(graph: Graph) -> dict[str, Array]:
    """Initializers, and what Constant nodes hold: numbers, or a tensor."""
    nodes = [node for node in graph.nodes if node.kind == "Constant" and node.outputs and len(node.attributes) == 1]
    held = {node.outputs[0]: np.asarray(*node.attributes.values()) for node in nodes}
    return graph.initializers | {name: array for name, array in held.items() if array.dtype.kind in "fi"}


def _frozen(array: Array) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(array.astype(np.float32)), requires_grad=False)


# Attributes are keyword arguments under the names that ONNX gives them, with its defaults: the signature is the schema.


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    kernel_shape: Sequence[int] = (),  # the weight's own
    auto_pad: str = "NOTSET",
) -> Tensor:
    """pads: top, left, bottom, right."""
    if auto_pad != "NOTSET":
        raise ValueError(f"auto_pad {auto_pad} is not known here")
    top, left, bottom, right = pads
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    return F.conv2d(x, weight, bias, tuple(strides), (top, left), tuple(dilations), group)


def _batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,  # MXNet writes 0 and means 1: its statistics are one per channel all the same
    training_mode: int = 0,
) -> Tensor:
    if training_mode:
        raise ValueError("BatchNormalization in training mode")
    return F.batch_norm(x, mean, var, scale, bias, eps=epsilon)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    """slope: one, or one per channel, as [C], [C,1,1] or [1,C,1,1]."""
    if slope.ndim > 1 and slope.shape[-2:] != (1, 1):
        raise ValueError(f"PRelu with slopes of {tuple(slope.shape)}")
    return F.prelu(x, slope.flatten())


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _reshape(x: Tensor, shape: list[int], *, allowzero: int = 0) -> Tensor:
    """A zero keeps the size that is there, unless it is allowed to be one."""
    return x.reshape([size if size or allowzero else x.shape[index] for index, size in enumerate(shape)])


# Sizes are integers of Python, also where a graph computes them: what Reshape reads must not wait for a graphics card.


def _gather(sizes: list[int], index: int, *, axis: int = 0) -> int:
    if not isinstance(sizes, list):
        raise ValueError("Gather from something other than sizes")
    return sizes[index]


def _concat(*sizes: list[int], axis: int) -> list[int]:
    if not all(isinstance(part, list) for part in sizes):
        raise ValueError("Concat of something other than sizes")
    return [size for part in sizes for size in part]


def _unsqueeze(x: Tensor | int, given: list[int] | None = None, *, axes: Sequence[int] = ()) -> Tensor | list[int]:
    """axes: where the new ones are in the result; an input since opset 13."""
    if isinstance(x, int):
        return [x]
    places = axes if given is None else given
    if len(places) > MAX_DIMENSIONS:
        raise ValueError(f"Unsqueeze by {len(places)} axes")
    for place in sorted(place % (x.ndim + len(places)) for place in places):
        x = x.unsqueeze(place)
    return x


def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    product = (a.T if transA else a) @ (b.T if transB else b) * alpha
    return product if c is None else product + c * beta


def _dropout(x: Tensor, *_: Tensor, ratio: float = 0.5, seed: int = 0) -> Tensor:
    """Nothing is dropped outside of training."""
    return x


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Conv": _conv,
    "Div": operator.truediv,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "Identity": lambda x: x,
    "MatMul": operator.matmul,
    "Mul": operator.mul,
    "PRelu": _prelu,
    "Relu": lambda x: F.relu(x),
    "Reshape": _reshape,
    "Shape": lambda x: list(x.shape),
    "Sub": operator.sub,
    "Unsqueeze": _unsqueeze,
}
