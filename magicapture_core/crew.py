"""The processes that train one run together, one for each card, as `accelerate launch` starts them.

Each computes the gradient of its share of a step's items; their sum is the same everywhere, so all hold the same
weights. The first one alone writes, looks and decides; the others do each step with it. A run by one process has a crew
of one, `ALONE`, in which nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn, TypeVar

import torch
from torch import Tensor, distributed, nn

from .types import Dismissed, MagiCaptureError

if TYPE_CHECKING:
    from .run import AnyRun, TrainStep

PATIENCE = timedelta(days=1)  # the others wait while the first makes pictures
Item = TypeVar("Item")


@dataclass(frozen=True)
class Crew:
    """rank: of this process, 0 = the first. device: where its part of the run lies."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """What this process does of them; may be none."""
        return items[self.rank :: self.size]

    def add_up(self, sums: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """`sums` and the parameters' gradients become those of all processes together.

        A parameter that no process has a gradient for keeps none: an optimizer passes over it, as it would in a run by
        one process.
        """
        if self.size == 1:
            return
        has_gradient = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        parts = [sums, has_gradient, *gradients]
        whole = torch.cat([part.detach().flatten().float() for part in parts])
        distributed.all_reduce(whole)
        summed = whole.split([part.numel() for part in parts])
        sums.copy_(summed[0])
        for parameter, count, gradient in zip(parameters, summed[1].tolist(), summed[2:], strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if count else None

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails in one process inside the block fails in all at its end, so that none waits for ever.

        It does so for want of memory in the others, which is what a failure of one alone is: `within_memory` then takes
        the same way out in all.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
        except Exception:  # of whatever kind: it goes on to the caller, once the others know
            self._sum(1)
            raise
        if self._sum(0):
            raise MemoryError("another process of the run is out of memory")

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first process does the block alone, so that the others find on the disk what it has made."""
        if not self.is_first:
            self._sum(0)
        try:
            yield
        finally:
            if self.is_first and self.size > 1:
                self._sum(0)

    def check_alike(self, number: int) -> None:
        """Raises MagiCaptureError where the processes do not have the same number, which they read from a file."""
        if self.size > 1 and self._sum(number) != number * self.size:
            raise MagiCaptureError(
                "--output: the processes of the run read different states there; give a folder that all of them share"
            )

    def led(self, steps: Iterator[TrainStep[AnyRun]]) -> Generator[TrainStep[AnyRun]]:
        """In the first process: the same steps, which the others do as well until the caller stops, however it does."""
        while self._first_says(goes_on=True) and (step := next(steps, None)):  # what fails in a step fails in all
            try:
                yield step
            except GeneratorExit:
                self._first_says(goes_on=False)
                raise

    def follow(self, steps: Iterator[TrainStep[AnyRun]]) -> NoReturn:
        """In the others: the steps, as long as the first has it so. Raises Dismissed at the end."""
        while self._first_says():
            try:
                next(steps)
            except MagiCaptureError as error:  # a loss that is not a number is so in all; one of them says it
                raise Dismissed from error
        raise Dismissed

    def dismiss(self) -> None:
        """The first process needs no step at all."""
        self._first_says(goes_on=False)

    def _first_says(self, goes_on: bool = False) -> bool:
        return self.size == 1 or bool(self._sum(int(goes_on and self.is_first)))

    def _sum(self, number: int) -> int:
        whole = torch.tensor(number, device=self.device)
        distributed.all_reduce(whole)
        return int(whole)


ALONE = Crew()


def join_crew(device: str | None) -> Crew:
    """Finds the other processes of a launched run. device: None for a card of its own, or "cpu".

    Raises MagiCaptureError for another device, and where there are fewer cards than processes.
    """
    from accelerate import PartialState

    if device not in (None, "cpu"):
        raise MagiCaptureError(f"--device {device}: each process of a launched run has a card of its own; leave it out")
    if device is None and torch.cuda.is_available():
        cards, wanted = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if cards < wanted:
            raise MagiCaptureError(f"{wanted} processes, and cards for {cards}: launch as many, or give --device cpu")
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=PATIENCE)
    assert state.device is not None
    return Crew(rank=state.process_index, size=state.num_processes, device=state.device)


def is_launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
