"""The machine that figures come from, without its name."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import torch

from .workload import Conditions


def describe(conditions: Conditions) -> dict[str, str]:
    """What a reader has to know to judge seconds."""
    facts = {
        "date": datetime.date.today().isoformat(),
        "processor": f"{cpu_model(Path('/proc/cpuinfo'))}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "software": f"Python {platform.python_version()}, torch {torch.__version__}, {platform.system()}",
        "device": f"{conditions.device}, {conditions.threads} threads",
    }
    if conditions.device != "cpu":
        card = torch.cuda.get_device_properties(conditions.device)
        facts["card"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    return facts


def cpu_model(cpuinfo: Path) -> str:
    """Out of /proc/cpuinfo; the architecture where it does not say."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
