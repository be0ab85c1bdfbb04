"""Face recognition networks as they are shared -> a Recogniser. Only data is read: nothing in a file is run."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .files import read_state_dict
from .identity import ARCFACE_SIZE, Recogniser
from .iresnet import load_iresnet
from .onnx_graph import Graph, read_graph
from .onnx_module import OnnxModule
from .small_recognisers import load_small_recogniser, read_world
from .types import MagiCaptureError

FACE = [3, ARCFACE_SIZE, ARCFACE_SIZE]
SUFFIXES = (".onnx", ".pth", ".pt", ".safetensors")
START = 8  # nodes in which insightface looks for a normalisation


def load_recogniser(path: Path) -> Recogniser:
    """A file of insightface (.onnx), of arcface_torch (.pth, .pt, .safetensors) or of PortraitBench (.safetensors, by
    the world that it names) -> the network on the CPU in fp32.

    Raises MagiCaptureError for a missing or broken file and for another kind of network.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise MagiCaptureError(f"{path.name}: face recognisers end in .onnx, .pth, .pt or .safetensors; choose another")
    if not path.is_file():
        raise MagiCaptureError(f"{path}: there is no such file")
    if suffix == ".onnx":
        return OnnxRecogniser(read_graph(path), path.name)
    weights = read_state_dict(path)
    if world := read_world(path):
        return load_small_recogniser(weights, world, path.name)
    return load_iresnet(weights, path.name)


class OnnxRecogniser(Recogniser):
    """An exported network: w600k_r50.onnx of buffalo_l, glintr100.onnx of antelopev2, and others built like these."""

    input_size = ARCFACE_SIZE

    def __init__(self, graph: Graph, name: str) -> None:
        """Raises MagiCaptureError when the graph is no face recogniser or has operators that are not known here."""
        super().__init__()
        shapes = [port.shape for port in graph.inputs]
        if len(graph.outputs) != 1 or shapes not in ([[None, *FACE]], [[1, *FACE]]):
            raise _other_kind(name, f"takes {shapes} and has {len(graph.outputs)} outputs")
        self.has_normalisation = _has_normalisation(graph)
        self.network = OnnxModule(graph, name)
        output = self.network.output_shape(1, *FACE)
        if len(output) != 2 or output[0] != 1:
            raise _other_kind(name, f"makes {list(output)} of 1 face")
        self.one_by_one = not self._takes_two(output[1])
        self.eval()

    def forward(self, faces: Tensor) -> Tensor:
        pixels = faces * 127.5 + 127.5 if self.has_normalisation else faces
        parts = pixels.split(1) if self.one_by_one else [pixels]
        return F.normalize(torch.cat([self.network(part) for part in parts]), dim=1)

    def _takes_two(self, num_features: int) -> bool:
        """Some exports have a batch of one written into a Reshape. What they declare is no guide: both are common."""
        try:
            return self.network.output_shape(2, *FACE) == (2, num_features)
        except MagiCaptureError:
            return False


def _has_normalisation(graph: Graph) -> bool:
    """Whether the network wants 0..255 and brings it to -1..1 itself, as those out of MXNet do.

    insightface's rule (model_zoo/arcface_onnx.py, and arcface_torch/onnx_helper.py for the division): a subtraction and
    a multiplication among the first eight nodes. It goes by the nodes' names, which exporters take from the operators.
    All other networks it feeds (pixel - 127.5) / 127.5. The channels are RGB in both.
    """
    kinds = {node.kind for node in graph.nodes[:START]}
    return "Sub" in kinds and not kinds.isdisjoint(("Mul", "Div"))


def _other_kind(name: str, fact: str) -> MagiCaptureError:
    return MagiCaptureError(
        f"{name}: {fact}; a face recogniser makes [N,D] of [N,3,112,112]: take w600k_r50.onnx or glintr100.onnx"
    )
