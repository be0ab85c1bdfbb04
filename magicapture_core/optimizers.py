"""The optimizer of a phase, and what it remembers. Two of the three are packages of the user's, imported when chosen.

In: groups of parameters. Out: a torch optimizer, and its memory as flat tensors that give back every bit. Knows nothing
of phases.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .config import OptimizerName
from .types import MagiCaptureError

STATE_BYTES: dict[OptimizerName, int] = {"adamw": 8, "adamw8bit": 2, "prodigy": 16}  # kept for each trained number
ADAPTED = ("d", "d_max", "d_numerator", "k")  # what Prodigy remembers in its groups; the others remember nothing there
NUMBERS = (torch.float64, torch.int64)  # how Python's numbers are kept; an optimizer's tensors have fewer bits


def build(name: OptimizerName, groups: list[dict[str, Any]], weight_decay: float) -> Optimizer:
    """groups: their `params`, and as `base` the learning rate that `lr` is a share of at each step.

    Prodigy finds the rate by itself: there a base becomes 1, and that of frozen parameters stays 0. Raises
    MagiCaptureError with the command that installs a package that is missing.
    """
    # not as a default: Prodigy would print that it was given one
    groups = [{**group, "weight_decay": weight_decay} for group in groups]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=1.0, fused=True)  # on a CPU too: ten times as fast for 31 million numbers
    if name == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise _missing(name, "bitsandbytes") from error
        return AdamW8bit(groups, lr=1.0)
    try:
        from prodigyopt import Prodigy  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise _missing(name, "prodigyopt") from error
    groups = [{**group, "base": float(group["base"] > 0)} for group in groups]
    return Prodigy(groups)  # without its safeguard for a warm-up, which there is none of: it keeps the rate near zero


def _missing(name: OptimizerName, package: str) -> MagiCaptureError:
    command = subprocess.list2cmdline([sys.executable, "-m", "pip", "install", package])
    return MagiCaptureError(
        f"optimizer {name} needs the package {package}, which is not installed; run: {command} or take adamw"
    )


def state(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """NAME.KEY of every parameter that has a memory, group.INDEX.KEY of every group that has one. No copies.

    parameters: by name, in the order of the groups.
    """
    memories = {name: optimizer.state.get(parameter, {}) for name, parameter in parameters.items()}
    for index, group in enumerate(optimizer.param_groups):
        memories[f"group.{index}"] = {key: group[key] for key in ADAPTED if key in group}
    return {f"{name}.{key}": _to_tensor(value) for name, memory in memories.items() for key, value in memory.items()}


def load(optimizer: Optimizer, names: Iterable[str], saved: Mapping[str, Tensor]) -> None:
    """The inverse, into an optimizer that was built alike. names: of the parameters, in the order of the groups."""
    memories = {index: memory for index, name in enumerate(names) if (memory := _below(saved, name))}
    groups = optimizer.state_dict()["param_groups"]
    groups = [{**group, **_below(saved, f"group.{index}")} for index, group in enumerate(groups)]
    optimizer.load_state_dict({"state": memories, "param_groups": groups})


def _below(saved: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    prefix = f"{name}."
    found = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
    return {key: value.item() if value.dtype in NUMBERS else value for key, value in found.items()}


def _to_tensor(value: Tensor | float | int) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
