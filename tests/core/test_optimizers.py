"""Three optimizers: what each does, what it remembers, and that it goes on as if it had never stopped."""

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from magicapture_core import optimizers
from magicapture_core.backbone import tiny
from magicapture_core.dataset import encode
from magicapture_core.estimate import estimate
from magicapture_core.trainer import open_run, train
from magicapture_core.types import MagiCaptureError
from tests.small import portraits, same, small_config

PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}
NAMES = ("adamw", *PACKAGES)


@pytest.fixture(scope="module")
def backbone():
    return tiny()


@pytest.fixture(scope="module")
def dataset(backbone):
    return encode(backbone, {"subject": portraits(3), "style": portraits(4, seed=1)}, small_config())


@pytest.fixture(params=NAMES)
def name(request):
    """Each optimizer in turn; skipped by name where its package is missing."""
    if request.param in PACKAGES:
        pytest.importorskip(PACKAGES[request.param])
    return request.param


class Problem:
    """Two groups that are drawn to 3 and to -1; the second is large enough for 8 bits."""

    def __init__(self, name, bases=(1e-2, 1e-3), weight_decay=0.01):
        generator = torch.Generator().manual_seed(0)
        self.parameters = {
            "token.0": nn.Parameter(torch.randn(2, 3, generator=generator)),
            "lora.0": nn.Parameter(torch.zeros(64, 64)),
            "lora.1": nn.Parameter(torch.randn(5, generator=generator)),
        }
        token, *lora = self.parameters.values()
        token.requires_grad_(bases[0] > 0)
        groups = [{"params": [token], "base": bases[0]}, {"params": lora, "base": bases[1]}]
        self.optimizer = optimizers.build(name, groups, weight_decay)

    def go(self, first, last):
        for step in range(first, last):
            for group in self.optimizer.param_groups:
                group["lr"] = group["base"] * (1 - step / 10)
            token, *lora = self.parameters.values()
            loss = (token - 3).square().sum() + sum((parameter + 1).square().sum() for parameter in lora)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    def values(self):
        return {key: value.detach().clone() for key, value in self.parameters.items()}


@pytest.mark.parametrize("stop_after", [1, 4, 9])
def test_a_saved_optimizer_goes_on_bit_for_bit(name, stop_after, tmp_path):
    whole, first, second = Problem(name).go(0, 10), Problem(name).go(0, stop_after), Problem(name)
    state = optimizers.state(first.optimizer, first.parameters)
    save_file({key: value.clone() for key, value in state.items()}, tmp_path / "state.safetensors")
    for key, value in first.values().items():
        second.parameters[key].data.copy_(value)
    optimizers.load(second.optimizer, second.parameters, load_file(tmp_path / "state.safetensors"))
    second.go(stop_after, 10)
    assert same(second.values(), whole.values())
    ends = [optimizers.state(problem.optimizer, problem.parameters) for problem in (second, whole)]
    assert same(*ends)


def test_the_default_is_torchs_adamw_and_so_is_its_state():
    ours = Problem("adamw").go(0, 10)
    theirs = Problem("adamw")
    token, *lora = theirs.parameters.values()
    groups = [{"params": [token], "base": 1e-2}, {"params": lora, "base": 1e-3}]
    theirs.optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=0.01)
    torch.testing.assert_close(theirs.go(0, 10).values(), ours.values())  # in one kernel: not to the last bit
    keys = {f"{name}.{key}" for name in ours.parameters for key in ("step", "exp_avg", "exp_avg_sq")}
    assert optimizers.state(ours.optimizer, ours.parameters).keys() == keys


def test_eight_bits_take_a_quarter_of_the_memory():
    """Of the 4096 numbers: two moments of a byte each, and a scale for every 256; the few others stay in fp32."""
    pytest.importorskip("bitsandbytes")
    problem = Problem("adamw8bit").go(0, 1)
    state = optimizers.state(problem.optimizer, problem.parameters)
    assert {state[f"lora.0.state{i}"].dtype for i in (1, 2)} == {torch.uint8}
    assert {state[f"lora.1.state{i}"].dtype for i in (1, 2)} == {torch.float32}


def test_prodigy_finds_the_rate_and_heeds_a_zero(capsys):
    pytest.importorskip("prodigyopt")
    problem = Problem("prodigy", bases=(0.0, 1e-3))
    before = problem.values()
    rates = [problem.go(step, step + 1).optimizer.param_groups[1]["d"] for step in range(10)]
    after = problem.values()
    assert rates == sorted(rates)
    assert rates[-1] > 100 * rates[0] > 0
    assert torch.equal(after["token.0"], before["token.0"])
    assert not torch.equal(after["lora.1"], before["lora.1"])
    assert capsys.readouterr().out == ""


def test_prodigy_does_not_ask_how_large_a_rate_is():
    pytest.importorskip("prodigyopt")
    assert same(Problem("prodigy").go(0, 10).values(), Problem("prodigy", bases=(0.1, 1e-6)).go(0, 10).values())


def test_a_number_is_kept_to_the_last_bit():
    pytest.importorskip("prodigyopt")
    problem, again = Problem("prodigy").go(0, 3), Problem("prodigy")
    problem.optimizer.param_groups[0]["d_numerator"] = 1 / 3
    optimizers.load(again.optimizer, again.parameters, optimizers.state(problem.optimizer, problem.parameters))
    group = again.optimizer.param_groups[0]
    assert (group["d_numerator"], group["k"]) == (1 / 3, 3)
    assert (type(group["d_numerator"]), type(group["k"])) == (float, int)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_named_with_the_command_that_gets_it(name, monkeypatch):
    for module in (PACKAGES[name], f"{PACKAGES[name]}.optim"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MagiCaptureError, match=rf"^optimizer {name} needs [^\n]* pip install {PACKAGES[name]}[^\n]*$"):
        Problem(name)


@pytest.mark.parametrize("stop_after", [2, 3, 5])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(backbone, dataset, name, stop_after):
    config = small_config(optimizer=name, lora={"text_encoder": True, "lora_rank": 16})
    whole = [step.state() for step in train(backbone, dataset, config)]
    resumed = [step.state() for step in train(backbone, dataset, config, whole[stop_after - 1])]
    assert len(resumed) == 6 - stop_after
    assert same(resumed[-1], whole[-1])
    assert not same(whole[-1], whole[-2])


def test_an_estimate_counts_what_the_optimizer_keeps(backbone, dataset):
    pytest.importorskip("prodigyopt")
    config = small_config()
    ours = estimate(open_run(backbone, dataset, config)).peak_bytes
    larger = estimate(open_run(backbone, dataset, small_config(optimizer="prodigy"))).peak_bytes
    with open_run(backbone, dataset, config) as run:
        run.begin("tuning", {}, midway=False)
        trainable = sum(parameter.numel() for parameter in run.trainable())
    assert larger - ours == 8 * trainable
