"""How far all jobs are, on a terminal in place, else a line for whatever happens."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from .scheduler import Row

SHOWN = 20  # running jobs at a time
SILENT = 20.0  # seconds without a word, after which that is said: a long step, or a lost worker whose job waits


class Table:
    """names: of the jobs that are still to be done. before: how many were finished already."""

    def __init__(self, names: Sequence[str], before: int, stream: TextIO) -> None:
        self.names, self.before, self.stream = list(names), before, stream
        self.done, self.failed = 0, 0
        self._rows: Mapping[str, Row] = {}
        self._ended: set[str] = set()
        self._height = 0
        self._started = time.monotonic()

    def look(self, rows: Mapping[str, Row]) -> None:
        for name, row in rows.items():
            known = self._rows.get(name)
            if known is None or known.attempt < row.attempt:
                again = f", attempt {row.attempt}" if row.attempt > 1 else ""
                self._say(f"{name}: starts on {row.where}{again}")
        self._rows = dict(rows)
        self._draw()

    def end(self, name: str, failure: str = "") -> None:
        """failure: why it is not done."""
        self._ended.add(name)
        self.done, self.failed = self.done + (not failure), self.failed + bool(failure)
        self._say(f"{name}: {failure or 'done'}")

    def summary(self) -> str:
        total, ended = self.before + len(self.names), len(self._ended)
        running = len(self._running())
        counts = {"failed": self.failed, "running": running, "waiting": len(self.names) - ended - running}
        parts = [f"{self.before + self.done} of {total} done", *(f"{n} {what}" for what, n in counts.items() if n)]
        rate = self.done / (time.monotonic() - self._started) * 3600
        if self.done and ended < len(self.names):
            parts.append(f"{rate:.3g} jobs an hour, {_hours((len(self.names) - ended) / rate)} to go")
        return ", ".join(parts)

    def _running(self) -> dict[str, Row]:
        return {name: row for name, row in self._rows.items() if name not in self._ended}

    def _say(self, line: str) -> None:
        """Something happened: it stays, above the rows."""
        self._wipe()
        self.stream.write(f"{line}\n")
        self.stream.flush()

    def _draw(self) -> None:
        if not self.stream.isatty():
            return
        self._wipe()
        running = list(self._running().items())[:SHOWN]
        lines = [f"  {name}: {_words(row)}" for name, row in running]
        lines.append(self.summary())
        self.stream.write("".join(f"{line}\n" for line in lines))
        self.stream.flush()
        self._height = len(lines)

    def _wipe(self) -> None:
        if self._height:
            self.stream.write(f"\x1b[{self._height}F\x1b[J")
            self._height = 0


def _words(row: Row) -> str:
    silent = f", no word for {row.silent:.0f} s" if row.silent > SILENT else ""
    return f"{row.stage} {row.step} of {row.num_steps}{silent}"


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
