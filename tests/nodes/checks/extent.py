"""How much is checked in which ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Check = Callable[..., Any]


def newest_alone(check: Check) -> Check:
    """Marks one that takes long for the training in it, and asks no more of ComfyUI than others that run in each."""
    setattr(check, "newest_alone", True)  # noqa: B010 # a function has no such attribute for pyright
    return check
