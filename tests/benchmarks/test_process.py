"""The real way of a row at a small UNet: every feature makes its step, and two processes take turns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import ours, sefi, step
from benchmarks.checkpoint import SD15, write_checkpoint
from benchmarks.counting import counted_flops
from benchmarks.process import METHODS, Hello, Process
from benchmarks.rows import KINDS, parse_row
from benchmarks.step import check_alike, report
from benchmarks.workload import NUM_PARAMETERS, Conditions, Method, Workload
from magicapture_core import lora
from magicapture_core.types import MagiCaptureError

SMALL = {"block_out_channels": (32, 64, 64, 64), "layers_per_block": 1, "cross_attention_dim": 768}


@pytest.fixture(scope="module")
def conditions(tmp_path_factory: pytest.TempPathFactory) -> Conditions:
    folder: Path = tmp_path_factory.mktemp("unet")
    write_checkpoint(folder, SMALL)
    return Conditions(checkpoint=str(folder))


def second_step(conditions: Conditions, *features: str, **changes: Any) -> tuple[Any, int]:
    """The losses of the second step, and how many numbers learn."""
    workload = Workload(pixels=64, features=features, **changes)
    torch.manual_seed(0)
    with ours.opened(workload, conditions) as contender:
        contender.step()
        assert contender.num_parameters
        return contender.step(), contender.num_parameters


def test_w0_is_128_modules_and_797_184_numbers():
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    settings = ours.settings(Workload(pixels=64)).lora
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
    with lora.injected(unet, settings, settings.targets, torch.Generator()) as parameters:
        assert len(parameters) == 2 * 128
        assert sum(parameter.numel() for parameter in parameters) == NUM_PARAMETERS


def test_the_features_switch_on_what_they_say(conditions):
    plain, count = second_step(conditions)
    assert plain.reconstruction > 0
    assert (plain.attention, plain.identity, plain.prior, plain.num_identity) == (0, 0, 0, 0)
    masked, _ = second_step(conditions, "mask")
    assert masked.reconstruction != plain.reconstruction
    assert second_step(conditions, "refocusing")[0].attention > 0
    assert second_step(conditions, "mask", "prior")[0].prior > 0
    assert second_step(conditions, "words")[1] == count + 2 * 768
    assert second_step(conditions, "text encoder")[1] == count + 12 * 4 * 2 * 4 * 768  # layers, q k v out, A B, rank
    assert second_step(conditions, "split")[1] == 2 * count
    assert second_step(conditions, "cross-attention")[1] < count
    batch, _ = second_step(conditions, batch=2)
    assert batch.reconstruction != plain.reconstruction
    assert second_step(conditions, checkpointing=True)[0].total == pytest.approx(plain.total, rel=1e-4)


def test_the_identity_loss_decodes_a_face_and_fires(conditions):
    fired, _ = second_step(conditions, "composed", "identity always")
    assert fired.num_identity == 1
    assert fired.identity > 0


def test_sefis_step_has_the_attention_loss_and_textual_inversions_one_word(conditions):
    """Eight steps: the attention loss is zero until a stage comes again that has moved."""

    def eight(method: Method) -> tuple[list[float], int | None]:
        with sefi.opened(Workload(pixels=64, method=method), conditions) as contender:
            return [contender.step().attention for _ in range(8)], contender.num_parameters

    (full, block), (plain, word) = eight("sefi"), eight("textual-inversion")
    assert max(full) > 0 == max(plain)
    assert word == 768
    assert block is not None
    assert block > 10_000_000


def test_a_matrix_product_and_attention_are_counted():
    query = torch.randn(1, 2, 16, 8, requires_grad=True)
    forward = 2 * (2 * 2 * 16 * 16 * 8)  # two products of 2 heads, 16 x 16 x 8 multiplications and additions each
    assert counted_flops(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5
    with torch.no_grad():
        attention = torch.nn.functional.scaled_dot_product_attention
        assert counted_flops(lambda: attention(query, query, query)) == forward
    assert counted_flops(lambda: attention(query, query, query).sum().backward()) > 2 * forward


def test_two_processes_take_turns_and_predict_the_same(conditions, monkeypatch, tmp_path):
    """Ours against diffusers: but for the number of parameters, which is SD1.5's, all as in a real run.

    The row before it has a peer that cannot be run, which says why and does not hold up the next.
    """
    monkeypatch.setattr("benchmarks.step.NUM_PARAMETERS", second_step(conditions)[1])
    rows = [parse_row("comfyui:64:2"), parse_row("diffusers:64:2")]
    *_, failed, table, about = report(rows, replace(conditions, trees={"comfyui": str(tmp_path)}), None)
    assert "| 64 | not run: comfyui ended with 1: ModuleNotFoundError: No module named 'comfy" in failed
    assert failed.count("|") == table.count("|")
    cells = [cell.strip() for cell in table.strip("| ").split(" | ")]
    assert cells[0] == "W0, ours / diffusers DreamBooth-LoRA, fp32"
    assert cells[6] == "2"
    ours_flops, theirs_flops = cells[8].split(" / ")
    assert float(ours_flops) == pytest.approx(float(theirs_flops), rel=0.1)
    assert "MagiCapture" in about
    assert "diffusers" in about


def hello(*prediction: float, count: int = NUM_PARAMETERS) -> Hello:
    return Hello(about="", torch="", num_parameters=count, prediction=list(prediction), flops=0)


def test_other_weights_or_another_number_of_parameters_are_no_comparison():
    row = parse_row("kohya:64:2")
    check_alike(row, hello(1.0, -2.0), hello(1.0001, -2.0))
    with pytest.raises(MagiCaptureError, match="not the same"):
        check_alike(row, hello(1.0, -2.0), hello(1.001, -2.0))
    with pytest.raises(MagiCaptureError, match="numbers learn"):
        check_alike(row, hello(1.0), hello(1.0, count=1))


def test_a_process_that_dies_says_why(conditions):
    process = Process(Workload(method="kohya", pixels=64), conditions)  # no tree
    with pytest.raises(MagiCaptureError, match=r"(?s)kohya ended with 1: .*KeyError: 'kohya'"):
        _ = process.hello
    with pytest.raises(MagiCaptureError, match="kohya ended with 1"):  # not that its pipe is broken
        process.step()
    process.close()


def test_our_own_death_is_no_row_but_the_end(conditions):
    conditions = replace(conditions, checkpoint="nowhere")
    with pytest.raises(MagiCaptureError, match=r"(?s)ours ended with 1: .*nowhere"):
        list(report([parse_row("mask:64:1")], conditions, None))


@pytest.mark.parametrize("device", ["mps", "cuda:99", "toaster"])
def test_a_device_that_is_none_is_one_line(device, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks.step", "--device", device, "mask:64:1"])
    assert step.main() == 2
    told = capsys.readouterr().err
    assert told.startswith(f"--device {device}: ")
    assert told.count("\n") == 1


def test_every_method_and_kind_is_known():
    sides = [side(Workload(pixels=64)) for kind in KINDS.values() for side in (kind.first, kind.second)]
    assert {workload.method for workload in sides} == METHODS.keys()
