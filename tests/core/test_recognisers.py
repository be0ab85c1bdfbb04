"""Face recognition networks out of files: ONNX written by hand against the network it was written from."""

from __future__ import annotations

import io
import os
import random
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from magicapture_core.identity import Recogniser
from magicapture_core.iresnet import BLOCKS, IResNet
from magicapture_core.onnx_graph import read_graph
from magicapture_core.onnx_module import OPERATORS
from magicapture_core.recognisers import load_recogniser
from magicapture_core.types import MagiCaptureError
from tests import onnx_files
from tests.onnx_files import FACES, Network, attribute, field, message, model, node, port, small_network, tensor, varint


def random_iresnet(depth: int, width: int = 8) -> IResNet:
    """Every weight and statistic is drawn, so that none can be left out or taken for another."""
    torch.manual_seed(depth)
    net = IResNet(BLOCKS[depth], width, num_features=16).eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.PReLU):
            module.weight.uniform_(0, 0.5)
    return net


def faces(count: int = 1) -> Tensor:
    return torch.rand(count, 3, 112, 112, generator=torch.Generator().manual_seed(1)) * 2 - 1


def load(folder: Path, data: bytes, name: str = "net.onnx") -> Recogniser:
    (folder / name).write_bytes(data)
    return load_recogniser(folder / name)


def answer(net: Recogniser) -> tuple[Tensor, Tensor]:
    """In float64: the embedding [1,D] of a face, and the gradient of a mix of its numbers to the face."""
    pixel_values = faces().double().requires_grad_()
    embeds = net.double()(pixel_values)
    mix = torch.linspace(-1, 1, embeds.shape[1], dtype=torch.float64)
    [gradient] = torch.autograd.grad((embeds * mix).sum(), pixel_values)
    return embeds.detach(), gradient


def assert_same(found: Recogniser, expected: Recogniser, rtol: float = 1e-6) -> None:
    """rtol: of the largest number."""
    for left, right in zip(answer(found), answer(expected), strict=True):
        assert right.abs().max() > 0
        torch.testing.assert_close(left, right, rtol=0, atol=rtol * float(right.abs().max()))


# -- ONNX --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "width"), [(18, 32), (50, 8), (100, 8)])
def test_an_exported_network_is_the_network(tmp_path: Path, depth: int, width: int) -> None:
    net = random_iresnet(depth, width)
    found = load(tmp_path, onnx_files.iresnet(net.state_dict()))
    assert_same(found, net)


def test_batch_norms_may_be_folded_into_convolutions(tmp_path: Path) -> None:
    """The folded weights are rounded to fp32, hence the coarser comparison."""
    net = random_iresnet(18)
    found = load(tmp_path, onnx_files.iresnet(net.state_dict(), "folded"))
    assert len(found.state_dict()) < len(net.state_dict()) / 2
    assert_same(found, net, rtol=1e-5)


def test_a_network_that_normalises_itself_is_given_pixels(tmp_path: Path) -> None:
    """MXNet's export: 0..255 in, weights among the inputs, slopes through a Reshape, Dropout, one face at a time."""
    net = random_iresnet(18)
    found = load(tmp_path, onnx_files.iresnet(net.state_dict(), "mxnet"))
    # 0.0078125 = 1/128 is what these networks multiply by, not 1/127.5
    net.conv1.weight *= 127.5 / 128
    assert_same(found, net)
    assert found(faces(3).double()).shape == (3, 16)


@pytest.mark.parametrize("second", ["Mul", "Div"])
def test_the_normalisation_may_divide(tmp_path: Path, second: str) -> None:
    network = Network()
    x = network.node("Sub", "faces", network.weight("mean", 127.5))
    x = network.node(second, x, network.weight("std", 1 / 127.5 if second == "Mul" else 127.5))
    output = network.node("Flatten", network.node("GlobalAveragePool", x))
    found = load(tmp_path, network.file(output))
    torch.testing.assert_close(found(faces(2)), F.normalize(faces(2).mean((2, 3)), dim=1), rtol=1e-4, atol=1e-5)


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    net = random_iresnet(18).half().float()
    found = load(tmp_path, onnx_files.iresnet(net.state_dict(), dtype=np.float16))
    assert {value.dtype for value in found.state_dict().values()} == {torch.float32}
    assert_same(found, net)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("store", ["packed", "single"])
def test_weights_may_be_stored_in_each_way_of_protobuf(tmp_path: Path, dtype: Any, store: str) -> None:
    network, output = small_network(dtype=dtype)
    expected = load(tmp_path, network.file(output))
    network.store = store
    found = load(tmp_path, network.file(output))
    assert all(map(torch.equal, found.state_dict().values(), expected.state_dict().values()))
    torch.testing.assert_close(found(faces()), expected(faces()), rtol=0, atol=0)


def test_each_operator_does_what_onnx_says(tmp_path: Path) -> None:
    """What no IResNet of today has: a network of all that older exporters write, against torch."""
    generator = np.random.default_rng(2)
    sizes = ((6, 1, 4, 4), (14, 4), (6 * 15 * 4, 5), (5, 5), 5)
    kernel, rows, matrix, mix, bias = (generator.normal(size=size) / 10 for size in sizes)
    network = Network()
    x = network.node("Identity", "faces")
    kernel_name = network.weight("kernel", kernel)
    x = network.node("Conv", x, kernel_name, "", strides=[8, 8], pads=[0, 1, 7, 2], dilations=[2, 1], group=3)
    x = network.node("Relu", x)
    factors = network.node("Constant", value=np.arange(6, dtype=np.float32))
    x = network.node("Mul", x, network.node("Unsqueeze", factors, axes=[2, 1]))
    x = network.node("Div", x, network.node("Constant", value_float=4.0))
    x = network.node("Dropout", x)
    x = network.node("MatMul", network.node("Flatten", x, axis=-1), network.weight("rows", rows))
    x = network.node("Reshape", x, network.node("Constant", value_ints=[-1, 6, 15 * 4]))
    x = network.node("Reshape", x, network.weight("sizes", [0, 6 * 15 * 4]))
    x = network.node("MatMul", x, network.weight("matrix", matrix))
    x = network.node("Gemm", x, network.weight("mix", mix), network.weight("bias", bias), alpha=0.5, beta=3.0)
    minus, axes = network.weight("minus", np.ones(5)), network.weight("axes", [0])
    x = network.node("Sub", x, network.node("Unsqueeze", minus, axes))
    found = load(tmp_path, network.file(x)).double()

    y = F.pad(faces(2).double(), (1, 2, 0, 7))
    y = F.conv2d(y, torch.from_numpy(kernel), stride=8, dilation=(2, 1), groups=3).relu()
    y = (y * torch.arange(6)[:, None, None] / 4) @ torch.from_numpy(rows)
    y = y.flatten(1) @ torch.from_numpy(matrix) @ torch.from_numpy(mix) / 2 + 3 * torch.from_numpy(bias) - 1
    torch.testing.assert_close(found(faces(2).double()), F.normalize(y, dim=1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [FACES, (1, *FACES[1:])])
def test_a_reshape_may_be_written_for_one_face(tmp_path: Path, shape: tuple[int | str, ...]) -> None:
    """Also where the declared shape has an open batch: faces then go through one by one."""
    network, _ = small_network()
    expected = load(tmp_path, network.file(network.node("Flatten", "Conv_0")))
    found = load(tmp_path, network.file(network.node("Reshape", "Conv_0", network.weight("sizes", [1, -1])), shape))
    torch.testing.assert_close(found(faces(3)), expected(faces(3)))


def test_a_reshape_may_compute_its_sizes(tmp_path: Path) -> None:
    """How torch exports x.view(x.size(0), -1) for an open batch."""
    network, _ = small_network()
    expected = load(tmp_path, network.file(network.node("Flatten", "Conv_0")))
    count = network.node("Gather", network.node("Shape", "Conv_0"), network.weight("first", np.array(0)), axis=0)
    sizes = [network.node("Unsqueeze", count, axes=[0]), network.node("Constant", value=np.array([-1]))]
    x = network.node("Reshape", "Conv_0", network.node("Concat", *sizes, axis=0))
    found = load(tmp_path, network.file(x))
    torch.testing.assert_close(found(faces(3)), expected(faces(3)))


@pytest.mark.parametrize("shape", [(4,), (1,), (4, 1, 1), (1, 4, 1, 1)])
def test_slopes_are_one_per_channel_or_one(tmp_path: Path, shape: tuple[int, ...]) -> None:
    network, _ = small_network()
    slopes = np.linspace(0.1, 0.4, 4)[: max(shape)].reshape(shape)
    x = network.node("PRelu", "Conv_0", network.weight("slopes", slopes))
    found = load(tmp_path, network.file(network.node("Flatten", x))).double()
    kernel = torch.from_numpy(network.weights["layer.0.weight"]).double()
    grid = F.conv2d(faces().double(), kernel, stride=16, padding=4)
    expected = torch.where(grid > 0, grid, grid * torch.from_numpy(slopes).flatten()[:, None, None])
    torch.testing.assert_close(found(faces().double()), F.normalize(expected.flatten(1), dim=1), rtol=1e-6, atol=1e-6)


def test_a_network_is_frozen_and_its_state_is_its_weights(tmp_path: Path) -> None:
    network, output = small_network()
    network.weight("nobody reads this", [1.0])
    found = load(tmp_path, network.file(output))
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    state = {tuple(value.flatten().tolist()) for value in found.state_dict().values()}
    assert state == {tuple(v.flatten().tolist()) for k, v in network.weights.items() if k != "nobody reads this"}
    assert found.input_size == 112


def test_embeddings_are_unit_length_and_faces_do_not_mix(tmp_path: Path) -> None:
    network, output = small_network()
    found = load(tmp_path, network.file(output))
    both = found(faces(2))
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(both, torch.cat([found(face[None]) for face in faces(2)]))


def test_activations_are_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a chain of operators no more than one input and one output are alive."""
    outputs: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def relu(x: Tensor) -> Tensor:
        alive.append(sum(output() is not None for output in outputs))
        y = x.relu()
        outputs.append(weakref.ref(y))
        return y

    monkeypatch.setitem(OPERATORS, "Relu", relu)
    network, output = small_network()
    for _ in range(5):
        output = network.node("Relu", output)
    found = load(tmp_path, network.file(output))
    outputs, alive = [], []
    found(faces())
    assert alive == [0, 1, 1, 1, 1]


def test_the_output_may_be_read_by_others(tmp_path: Path) -> None:
    network, output = small_network()
    expected = load(tmp_path, network.file(output))
    network.node("Relu", output)
    torch.testing.assert_close(load(tmp_path, network.file(output))(faces()), expected(faces()))


# -- ONNX files that are refused ---------------------------------------------------------------------------------------


def refused(folder: Path, data: bytes, reason: str, name: str = "net.onnx") -> None:
    with pytest.raises(MagiCaptureError, match=reason) as caught:
        load(folder, data, name)
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)  # the remedy


def with_node(kind: str, *inputs: str, **attributes: Any) -> bytes:
    """The small network with one operator more at the end, which reads its output [N,8] first."""
    network, output = small_network()
    return network.file(network.node(kind, output, *inputs, **attributes))


def test_unknown_operators_are_named(tmp_path: Path) -> None:
    refused(tmp_path, with_node("Softmax", axis=1), "operator 'Softmax' is not known")
    network, output = small_network()
    network.nodes.append(node("Gelu", [output], ["y"], domain="com.microsoft"))
    refused(tmp_path, network.file("y"), r"operator 'com\.microsoft\.Gelu' is not known")
    network.nodes[-1] = node("If", [output], ["y"], message((1, "then_branch"), (20, 5), (6, b"")))
    refused(tmp_path, network.file("y"), "operator 'If' is not known")
    network.nodes[-1] = node("two\nlines", [output], ["y"])
    refused(tmp_path, network.file("y"), "is not known")


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "reason"),
    [
        ("Relu", [], {"alpha": 1.0}, "operator 'Relu' has an unknown form .*alpha"),
        ("Relu", ["matrix"], {}, "operator 'Relu' has an unknown form"),
        ("Add", ["nowhere"], {}, "operator 'Add' reads a value that nothing makes"),
        ("Add", ["Add_5"], {}, "operator 'Add' reads a value that nothing makes"),
        ("MatMul", ["scale"], {}, "do not fit together"),
        ("Reshape", ["slope"], {}, "do not fit together"),
        ("Conv", ["layer.0.weight"], {}, "do not fit together"),
        ("Conv", ["layer.0.weight"], {"auto_pad": "SAME_UPPER"}, "do not fit together .*auto_pad SAME_UPPER"),
        ("PRelu", ["matrix"], {}, "do not fit together .*slopes"),
        ("BatchNormalization", ["bias"] * 4, {"training_mode": 1}, "do not fit together .*training mode"),
        ("GlobalAveragePool", [], {}, "do not fit together"),
        ("Gather", ["bias"], {"axis": 1}, "do not fit together .*Gather"),
        ("Concat", ["bias"], {"axis": 1}, "do not fit together .*Concat"),
        ("Shape", [], {}, "do not fit together"),
        ("Unsqueeze", [], {"axes": [0]}, r"makes \[1, 1, 8\] of 1 face;"),
    ],
)
def test_operators_that_make_no_sense_are_refused(
    tmp_path: Path, kind: str, inputs: list[str], attributes: dict[str, Any], reason: str
) -> None:
    refused(tmp_path, with_node(kind, *inputs, **attributes), reason)


def test_a_value_is_made_once_and_the_output_by_a_node(tmp_path: Path) -> None:
    network, output = small_network()
    refused(tmp_path, network.file("elsewhere"), "nothing makes its output 'elsewhere'")
    network.nodes.append(node("Relu", [output], [output]))
    refused(tmp_path, network.file(output), "makes one twice")
    network.nodes[-1] = node("Relu", [output], [])
    refused(tmp_path, network.file(output), "makes one twice")


@pytest.mark.parametrize("shape", [("N", 3, 96, 96), ("N", 3, "H", "W"), (8, 3, 112, 112), ("N", 1, 112, 112), ()])
def test_other_sizes_are_another_kind_of_network(tmp_path: Path, shape: tuple[int | str, ...]) -> None:
    network, output = small_network()
    refused(tmp_path, network.file(output, shape or (1,)), r"a face recogniser makes \[N,D\] of \[N,3,112,112\]")


def test_several_inputs_or_outputs_are_another_kind_of_network(tmp_path: Path) -> None:
    network, output = small_network()
    weights = [tensor(name, values) for name, values in network.weights.items()]
    face, embeds = port("faces", FACES), port(output, ("N", 8))
    assert model(network.nodes, weights, [face], [embeds])
    for inputs, outputs in (([face, face], [embeds]), ([], [embeds]), ([face], [embeds, embeds]), ([face], [])):
        refused(tmp_path, model(network.nodes, weights, inputs, outputs), r"a face recogniser makes \[N,D\]")


def with_weight(data: bytes) -> bytes:
    network, output = small_network()
    weights = [tensor(name, values) for name, values in network.weights.items()]
    return model(network.nodes, [*weights, data], [port("faces", FACES)], [port(output, ("N", 8))])


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (message((1, 4), (2, 1), (8, "w"), (13, message((1, "location"), (2, "w.bin")))), "lie in a second file"),
        (message((1, 4), (2, 1), (8, "w"), (14, 1)), "lie in a second file"),
        (message((1, 4), (2, 3), (8, "w"), (9, b"\0" * 4)), "ONNX data type 3"),
        (message((1, 4), (2, 1), (8, "w"), (9, b"\0" * 12)), r"3 values for a tensor of \[4\]"),
        (message((1, 1 << 40), (2, 1), (8, "w"), (9, b"\0" * 12)), r"3 values for a tensor of \[1099511627776\]"),
        (message((1, -1), (1, -3), (2, 1), (8, "w"), (9, b"\0" * 12)), r"3 values for a tensor of \[-1, -3\]"),
        (message((1, 3), (2, 1), (8, "w"), (9, b"\0" * 11)), "damaged"),
        (message((1, 3), (2, 1), (8, b"\xff"), (9, b"\0" * 12)), "damaged"),
        (message((1, 3), (2, 1), (8, 5), (9, b"\0" * 12)), r"damaged.*\(field 8 is a number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_are_elsewhere_or_damaged_are_refused(tmp_path: Path, weight: bytes, reason: str) -> None:
    refused(tmp_path, with_weight(weight), reason)


@pytest.mark.parametrize(
    "data",
    [b"", b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html><html>", b"\xff" * 100, b"PK\x03\x04" * 9],
)
def test_other_files_are_no_onnx(tmp_path: Path, data: bytes) -> None:
    refused(tmp_path, data, "damaged, cut off or no ONNX file")


def test_a_length_that_lies_costs_no_memory(tmp_path: Path) -> None:
    graph = varint(7 << 3 | 2) + varint(1 << 62)
    refused(tmp_path, field(1, 6) + graph + b"\0" * 50, "4611686018427387904 bytes are announced where 50 are left")
    huge = message((1, 1 << 31), (1, 1 << 31), (2, 1), (8, "w"), (4, b"\0" * 8))
    tracemalloc.start()
    try:
        refused(tmp_path, with_weight(huge), "2 values for a tensor")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    network, output = small_network()
    data = network.file(output)
    places = random.Random(0)
    for size in {*range(40), *range(len(data) - 40, len(data)), *(places.randrange(len(data)) for _ in range(300))}:
        refused(tmp_path, data[:size], "damaged, cut off or no ONNX file")


def test_a_damaged_file_is_refused_or_read(tmp_path: Path) -> None:
    """One byte changed, where the names and numbers stand and not the weights: never anything but our own error."""
    network, output = small_network()
    data, places = bytearray(network.file(output)), random.Random(1)
    layout = [at for at in range(len(data)) if at < 600 or at > len(data) - 400]
    outcomes: dict[bool, int] = {True: 0, False: 0}
    for _ in range(250):
        at, value = places.choice(layout), places.randrange(256)
        before, data[at] = data[at], value
        try:
            load(tmp_path, bytes(data))
            outcomes[True] += 1
        except MagiCaptureError:
            outcomes[False] += 1
        data[at] = before
    assert min(outcomes.values()) > 30


# -- arcface_torch -----------------------------------------------------------------------------------------------------


def saved(folder: Path, content: Any, name: str = "backbone.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


@pytest.mark.parametrize("depth", BLOCKS)
def test_the_depth_is_found_in_a_state_dict(tmp_path: Path, depth: int) -> None:
    net = random_iresnet(depth, width=4)
    found = load_recogniser(saved(tmp_path, net.state_dict()))
    assert isinstance(found, IResNet)
    assert found.state_dict().keys() == net.state_dict().keys()
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    torch.testing.assert_close(found(faces(2)), net(faces(2)))


def test_the_names_are_those_of_arcface_torch() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in IResNet(BLOCKS[50]).state_dict().items()}
    assert len(shapes) == 53 + 79 * 5 + 25 + 2  # convolutions, batch norms, slopes, the matrix and its bias
    assert shapes["conv1.weight"] == (64, 3, 3, 3)
    assert shapes["prelu.weight"] == shapes["layer1.0.prelu.weight"] == (64,)
    assert shapes["layer2.0.bn1.running_var"] == (64,)
    assert shapes["layer2.0.conv1.weight"] == (128, 64, 3, 3)
    assert shapes["layer2.0.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["layer4.0.downsample.0.weight"] == (512, 256, 1, 1)
    assert shapes["layer3.13.bn3.num_batches_tracked"] == ()
    assert shapes["fc.weight"] == (512, 25088)
    assert shapes["features.running_mean"] == (512,)


def test_a_state_dict_may_be_halved_and_lack_its_counters(tmp_path: Path) -> None:
    net = random_iresnet(18).half().float()
    state = {key: value.half() for key, value in net.state_dict().items() if value.is_floating_point()}
    save_file(state, tmp_path / "backbone.safetensors")
    found = load_recogniser(tmp_path / "backbone.safetensors")
    assert found.state_dict().keys() == net.state_dict().keys()
    torch.testing.assert_close(found(faces()), net(faces()))


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    path = saved(tmp_path, {"conv1.weight": Trap(tmp_path / "sprung")})
    with pytest.raises(MagiCaptureError, match="more than tensors, which is not opened here"):
        load_recogniser(path)
    assert not (tmp_path / "sprung").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "sprung").exists()  # the trap works


def pth(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"state_dict_backbone": {}, "epoch": 3}, "no plain state dict"),
        ({1: torch.zeros(3)}, "no plain state dict"),
        (torch.zeros(3), "no plain state dict"),
        (nn.Linear(2, 2), "more than tensors"),
        ({}, r"stages of \(0, 0, 0, 0\) blocks are not those of IResNet 18, 34, 50, 100"),
        (IResNet((1, 2, 2, 2), 4, 16).state_dict(), r"stages of \(1, 2, 2, 2\) blocks"),
    ],
)
def test_what_is_no_backbone_is_refused(tmp_path: Path, content: Any, reason: str) -> None:
    refused(tmp_path, pth(content), reason, "backbone.pth")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("bn2.bias", None, r"bn2\.bias should be \(32,\) and is nothing \(1 such\)"),
        ("conv1.weight", None, r"conv1\.weight should be \(64, 3, 3, 3\) and is nothing"),
        ("conv1.weight", torch.tensor(1.0), r"conv1\.weight should be \(64, 3, 3, 3\) and is \(\)"),
        ("fc.weight", torch.zeros(16, 4), r"fc\.weight should be \(16, 1568\) and is \(16, 4\)"),
        ("prelu.weight", torch.zeros(4, dtype=torch.int8), r"prelu\.weight should be \(4,\) and is nothing"),
        ("head.weight", torch.zeros(3), r"head\.weight should be nothing and is \(3,\)"),
    ],
)
def test_a_weight_that_does_not_fit_is_named(tmp_path: Path, key: str, value: Tensor | None, reason: str) -> None:
    state = dict(random_iresnet(18, width=4).state_dict())
    state.pop(key, None)
    refused(tmp_path, pth(state if value is None else state | {key: value}), reason, "backbone.pth")


def test_a_state_dict_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    data, places = pth(random_iresnet(18, width=4).state_dict()), random.Random(0)
    for size in (0, 1, 100, len(data) - 1, *(places.randrange(len(data)) for _ in range(20))):
        refused(tmp_path, data[:size], "damaged, cut off", "backbone.pth")
    refused(tmp_path, b"<!DOCTYPE html><html>", "damaged, cut off", "backbone.pth")


def test_a_safetensors_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(4)}, tmp_path / "whole.safetensors")
    refused(tmp_path, (tmp_path / "whole.safetensors").read_bytes()[:-1], "damaged", "cut.safetensors")


def test_the_file_must_be_there_and_of_a_known_kind(tmp_path: Path) -> None:
    with pytest.raises(MagiCaptureError, match="there is no such file"):
        load_recogniser(tmp_path / "missing.onnx")
    refused(tmp_path, b"", r"end in \.onnx, \.pth, \.pt or \.safetensors", "net.tflite")
    network, output = small_network()
    assert load(tmp_path, network.file(output), "NET.ONNX").input_size == 112


def test_the_graph_is_plain_data(tmp_path: Path) -> None:
    """Attributes of every kind, and a zero that is not written."""
    attributes = [attribute("floats", [1.5, -2.0]), attribute("text", "VALID"), attribute("ints", [3, -1])]
    attributes += [attribute("array", np.array([[7]], np.int64)), message((1, "zero"), (20, 2))]
    attributes += [message((1, "packed"), (20, 7), (8, varint(5) + varint(-5)))]
    (tmp_path / "net.onnx").write_bytes(model([node("Any", ["x", ""], ["y"], *attributes)], [], [port("x", FACES)], []))
    graph = read_graph(tmp_path / "net.onnx")
    [found] = graph.nodes
    assert (found.kind, found.inputs, found.outputs) == ("Any", ["x", ""], ["y"])
    array = found.attributes.pop("array")
    assert array.tolist() == [[7]]
    assert found.attributes == {"floats": [1.5, -2.0], "text": "VALID", "ints": [3, -1], "zero": 0, "packed": [5, -5]}
    assert [(entry.name, entry.shape) for entry in graph.inputs] == [("x", [None, 3, 112, 112])]
