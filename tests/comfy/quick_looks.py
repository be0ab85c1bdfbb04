"""A custom node of one file, for the servers of the tests: every look at a training is sampled in one step.

A look takes three pictures of 20 steps, and dozens of trainings of two or three steps end with one.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from server import PromptServer  # pyright: ignore[reportAttributeAccessIssue]

NODE_CLASS_MAPPINGS = {}


def quicken(prompt: dict[str, Any]) -> dict[str, Any]:
    """Before each prompt, since packs are imported in any order."""
    pack = next(name for name in list(sys.modules) if name.endswith("ComfyUI-MagiCapture"))
    import_module(f"{pack}.magicapture_core.watch").NUM_STEPS = 1  # pyright: ignore[reportAttributeAccessIssue]
    return prompt


PromptServer.instance.add_on_prompt_handler(quicken)
