"""One stage of pretraining: AdamW over a counted stream of batches, an average of the weights, a state to resume from.

A batch depends on (stage, step) alone, so an interrupted stage goes on as if it had never stopped.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import trange

from magicapture_core.files import write_atomic

from ..pictures import CACHE
from ..world import WORLD_VERSION

LOGS = Path(__file__).parent / "logs"
SAVE_SECONDS = 120
LOG_STEPS = 250

Model = TypeVar("Model", bound=nn.Module)
Draw = Callable[[np.random.Generator], Sequence[Tensor]]
Loss = Callable[..., Tensor]
Score = Callable[[Any], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What to train for how long, on what earlier stages wrote. The learning rate warms up, then falls to zero along a
    cosine. A state belongs to one recipe: with other numbers, or after other weights, the stage begins anew."""

    name: str
    num_steps: int
    learning_rate: float
    warmup_steps: int = 300
    weight_decay: float = 0.01
    average: float = 0.999  # of the weights, per step
    seed: int = 0
    learns_from: tuple[Path, ...] = ()

    def learning_rate_at(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / self.num_steps))

    def generator(self, step: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *self.name.encode(), step])

    @property
    def state_file(self) -> Path:
        numbers = {name: value for name, value in vars(self).items() if name != "learns_from"}
        digest = hashlib.sha256(json.dumps(numbers).encode())
        for path in self.learns_from:
            digest.update(path.read_bytes())
        return CACHE / f"world-{WORLD_VERSION}" / "states" / f"{self.name}-{digest.hexdigest()[:8]}.safetensors"


def run(stage: Stage, model: Model, draw: Draw, loss: Loss, score: Score) -> Model:
    """Train `model` on `loss(model, *draw(generator))`; return it with the averaged weights, in eval mode.

    Batches are drawn on the CPU and go to the graphics card where there is one. Every LOG_STEPS steps `score` looks at
    a copy of the averaged model on the CPU; its figures stand in the stage's log beside the loss.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.train().to(device).to(memory_format=torch.channels_last)  # convolutions run a fifth faster on CPUs
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(stage.average))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=stage.weight_decay)
    first = _resume(stage, model, averaged, optimizer)
    saved, since, losses = time.monotonic(), time.monotonic(), []
    for step in (bar := trange(first, stage.num_steps, initial=first, total=stage.num_steps, desc=stage.name)):
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate_at(step)
        value = loss(model, *(tensor.to(device) for tensor in draw(stage.generator(step))))
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        averaged.update_parameters(model)
        losses.append(value.detach())
        if (step + 1) % LOG_STEPS == 0 or step + 1 == stage.num_steps:
            figures = {"loss": float(torch.stack(losses).mean()), **score(_copy(averaged))}
            _log(stage, step + 1, time.monotonic() - since, figures)
            bar.set_postfix({name: f"{figure:.4g}" for name, figure in figures.items()})
            since, losses = time.monotonic(), []
        if time.monotonic() - saved > SAVE_SECONDS or step + 1 == stage.num_steps:
            _save(stage, step + 1, model, averaged, optimizer)
            saved = time.monotonic()
    return cast(Model, _copy(averaged))


def _copy(averaged: AveragedModel) -> nn.Module:
    return copy.deepcopy(averaged.module).cpu().eval()


def _log(stage: Stage, step: int, seconds: float, figures: dict[str, float]) -> None:
    LOGS.mkdir(exist_ok=True)
    line = {"step": step, "seconds": round(seconds, 1)} | {name: round(value, 5) for name, value in figures.items()}
    with (LOGS / f"{stage.name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _save(stage: Stage, step: int, model: nn.Module, averaged: AveragedModel, optimizer: torch.optim.Optimizer) -> None:
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    state |= {f"averaged.{name}": value for name, value in averaged.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    state = {name: value.to("cpu", copy=True, memory_format=torch.contiguous_format) for name, value in state.items()}
    write_atomic(stage.state_file, lambda path: save_file(state, path, {"step": str(step)}))


def _resume(stage: Stage, model: nn.Module, averaged: AveragedModel, optimizer: torch.optim.Optimizer) -> int:
    """Load the stage's state where there is one. Returns the step to go on with."""
    if not stage.state_file.exists():
        (LOGS / f"{stage.name}.jsonl").unlink(missing_ok=True)
        return 0
    state = load_file(stage.state_file)

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    model.load_state_dict(part("model."))
    averaged.load_state_dict(part("averaged."))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in part("optimizer.").items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(next(iter(moments.values()))["step"])
