"""A custom node of one file, for the servers of the tests: looks of one step, and faces redrawn at 128 pixels.

A look takes three pictures of 20 steps, and dozens of trainings of two or three steps end with one. A face of 512
pixels takes over a minute of one core.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from typing import Any

from server import PromptServer  # pyright: ignore[reportAttributeAccessIssue]

NODE_CLASS_MAPPINGS = {}
FACE = 128


def quicken(prompt: dict[str, Any]) -> dict[str, Any]:
    """Before each prompt, since packs are imported in any order."""
    pack: Any = next(name for name in list(sys.modules) if name.endswith("ComfyUI-MagiCapture"))
    watch: Any = import_module(f"{pack}.magicapture_core.watch")
    redrawing: Any = import_module(f"{pack}.nodes.redrawing")
    watch.NUM_STEPS = 1
    redrawing.open_drawing = partial(redrawing.open_drawing, size=FACE)
    return prompt


PromptServer.instance.add_on_prompt_handler(quicken)
