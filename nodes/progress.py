"""What the user sees while a training runs, and how Cancel reaches it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..magicapture_core.estimate import Estimate
    from ..magicapture_core.run import RunConfig, TrainStep
    from ..magicapture_core.watch import Look

SHEET_WIDTH = 1536  # pixels of what the node shows while it trains
TEXT_EVERY = 0.5  # seconds between two lines of text on the node


class Progress:
    """What the user sees while it trains: bar, sample pictures, a line of text; and what stops it: Cancel."""

    def __init__(self, node_id: str | None, config: RunConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.key = ""  # of this training's inputs
        self.lines: list[str] = []
        self._node_id = node_id
        self._bar: Any = None
        self._picture: tuple[str, Any, int] | None = None  # format, picture, longest side
        self._spoke_at = 0.0
        self._seconds = 0.0  # a step, smoothed

    def say(self, text: str) -> None:
        """A line for the report, shown at once."""
        self.lines.append(text)
        self._show(text)

    def estimated(self, estimate: Estimate) -> None:
        self.say(f"Estimated before the start: {estimate}.")

    def looked(self, look: Look) -> None:
        """The bar's next picture: what each kind of prompt gives, and where the words look."""
        from ..magicapture_core.images import to_pil

        self._picture = "JPEG", to_pil(look.sheet), SHEET_WIDTH

    def sampling(self, step: int, num_steps: int) -> None:
        """Called while pictures are sampled. Raises ComfyUI's interrupt when the user has pressed Cancel."""
        from comfy.model_management import throw_exception_if_processing_interrupted

        throw_exception_if_processing_interrupted()
        if time.monotonic() - self._spoke_at > TEXT_EVERY:
            self._spoke_at = time.monotonic()
            self._show(f"sample pictures, step {step} of {num_steps}")

    def stepped(self, step: TrainStep[Any]) -> None:
        """Called after every step. Raises ComfyUI's interrupt when the user has pressed Cancel."""
        from comfy import model_management, utils

        model_management.throw_exception_if_processing_interrupted()  # pressed during the step
        self._bar = self._bar or utils.ProgressBar(step.num_steps)
        self._bar.update_absolute(step.step, step.num_steps, self._picture)
        self._picture = None
        self._seconds = 0.9 * self._seconds + 0.1 * step.seconds if self._seconds else step.seconds
        if time.monotonic() - self._spoke_at > TEXT_EVERY or step.step == step.num_steps:
            self._spoke_at = time.monotonic()
            left = (step.num_steps - step.step) * self._seconds / 60
            self._show(
                f"{step.phase}, step {step.step} of {step.num_steps}\n"  # the page breaks long lines inside numbers
                f"loss {step.losses.reconstruction:.4f}, attention {step.attention_share:.1%} of it\n"
                f"{self._seconds:.2f} s a step, {left:.1f} minutes left"
            )
        model_management.throw_exception_if_processing_interrupted()  # pressed meanwhile

    def samples(self) -> Tensor:
        """The sample pictures of a training [N,3,H,W], from the disk; a black one where they were deleted."""
        from ..magicapture_core.images import load_photo
        from ..magicapture_core.kept import Kept

        pictures = [load_photo(path) for path in sorted(Kept(self.folder, self.key).samples.glob("*.png"))]
        side = self.config.resolution
        return torch.stack(pictures) if pictures else torch.zeros(1, 3, side, side)

    def _show(self, text: str) -> None:
        """A line of text on the running node, where a page is there to show it."""
        if self._node_id is None:
            return
        from server import PromptServer

        server = getattr(PromptServer, "instance", None)
        if server is not None:
            server.send_progress_text(text, self._node_id)
