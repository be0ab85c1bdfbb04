"""One example: a file is written, read, and what came of it is told apart. Shared by the tests and the long run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Literal

from magicapture_core.types import MagiCaptureError
from tests.fuzz.mutate import mutated
from tests.fuzz.readers import KINDS, Files, Kind

MAX_MESSAGE = 4_000  # characters of a line that a person is to read
Outcome = Literal["read", "refused"]


class Target:
    """The sound files of a kind in folders of their own, where one at a time is replaced."""

    def __init__(self, name: str, folder: Path) -> None:
        self.kind: Kind = KINDS[name]
        self.seeds: list[Files] = self.kind.seeds()
        self.folders = [folder / str(index) for index in range(len(self.seeds))]
        for place, files in zip(self.folders, self.seeds, strict=True):
            for name, data in files.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(data)

    def drawn(self, random: Random) -> tuple[int, str, bytes]:
        """Which seed, which of its files, and what is in that file instead."""
        index = random.randrange(len(self.seeds))
        files = self.seeds[index]
        name = random.choice([name for name in files if name.endswith(self.kind.edited)])
        if self.kind.draw is not None and random.random() < 0.5:
            return index, name, self.kind.draw(random)
        return index, name, mutated(files[name], random)

    def read(self, index: int, name: str, data: bytes) -> Outcome:
        """Raises whatever breaks the contract."""
        place = self.folders[index]
        (place / name).write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Pillow and torch: a terminal may show them
                self.kind.read(place / next(iter(self.seeds[index])))
        except MagiCaptureError as error:
            check_message(str(error))
            return "refused"
        except OSError:
            return "refused"
        finally:
            (place / name).write_bytes(self.seeds[index][name])
        return "read"


def check_message(message: str) -> None:
    assert message, "a refusal without a word"
    assert message.isprintable(), f"a refusal of several lines or with control characters: {message[:200]!r}"
    assert len(message) <= MAX_MESSAGE, f"a refusal of {len(message)} characters: {message[:200]!r}"


@contextmanager
def target(name: str) -> Iterator[Target]:
    with TemporaryDirectory() as folder:
        yield Target(name, Path(folder))
