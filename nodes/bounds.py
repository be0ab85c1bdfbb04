"""The bounds of sockets, also for what comes over a link.

ComfyUI looks at the bounds of what is typed into a widget alone, and not even there at NaN; over a link another pack's
arithmetic may ask for 10^9 pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from comfy_api.latest import io

from ..magicapture_core.types import MagiCaptureError


def within_bounds(execute: Callable[..., Any]) -> Callable[..., Any]:
    """A node's `execute` that looks at its numbers first."""

    @wraps(execute)
    def checked(cls: type[io.ComfyNode], *args: Any, **values: Any) -> Any:
        check_bounds(cls.define_schema(), values)
        return execute(cls, *args, **values)

    return checked


def check_bounds(schema: io.Schema, values: Mapping[str, Any]) -> None:
    """Raises MagiCaptureError for a number outside of its socket's bounds, and for one that is none."""
    for socket in schema.inputs:
        if not isinstance(socket, io.Int.Input | io.Float.Input):
            continue
        given = values.get(socket.id)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not socket.min <= value <= socket.max:
                raise MagiCaptureError(f"{socket.id}: {value} is not within {socket.min} to {socket.max}")
