"""Floating-point operations and peak memory of what this process does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils import flop_counter

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # of proc(5): the highest resident size starts anew


def counted_flops(step: Callable[[], object]) -> int:
    """Multiplications and additions of one step, forward and backward, recomputation included."""
    aten = torch.ops.aten
    on_cpu = {  # PyTorch counts attention on a card only
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    with flop_counter.FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        step()
    return counter.get_total_flops()


def _attention(query: Any, key: Any, value: Any, *_rest: Any, **_more: Any) -> int:
    return flop_counter.sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_rest: Any, **_more: Any) -> int:
    return flop_counter.sdpa_backward_flop_count(grad, query, key, value)


def reset_peak(device: str) -> None:
    """What a step takes counts, not what loading took."""
    if device == "cpu":
        RESET.write_text(RESET_PEAK)
    else:
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: str) -> int:
    """The highest since the reset: on a CPU of resident memory, on a card of memory allocated by PyTorch."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
