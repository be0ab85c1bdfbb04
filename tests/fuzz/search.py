"""The same examples, chosen by atheris: those that reach new lines of ours are edited further."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from random import Random

import atheris  # pyright: ignore[reportMissingImports]

with atheris.instrument_imports(include=["magicapture_core"]):  # pyright: ignore[reportAttributeAccessIssue]
    from tests.fuzz.__main__ import Account, arguments_of
    from tests.fuzz.examples import Target, target
    from tests.fuzz.mutate import mutated

MAX_BYTES = 1_000_000


def search(files: Target, seconds: float, seed: int, found: Path) -> None:
    """The first byte of an example chooses which file the others are."""
    account, corpus = Account(files, found), found / "corpus"
    account.tell()
    corpus.mkdir(exist_ok=True)
    choices = [(index, name) for index, seeds in enumerate(files.seeds) for name in seeds]
    choices = [(index, name) for index, name in choices if name.endswith(files.kind.edited)]
    for number, (index, name) in enumerate(choices):
        (corpus / f"seed-{number}").write_bytes(bytes([number]) + files.seeds[index][name])

    def one(data: bytes) -> None:
        if data:
            account.example(*choices[data[0] % len(choices)], data[1:])
        if account.seconds > seconds:
            account.tell()
            os._exit(0)  # libFuzzer counts by the clock alone

    def edited(data: bytes, limit: int, number: int) -> bytes:
        return (data[:1] + mutated(data[1:], Random(number)))[:limit]

    options = [f"-seed={seed + 1}", "-rss_limit_mb=0", f"-max_len={MAX_BYTES}"]  # 0 would be a seed of its own choice
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=edited)
    atheris.Fuzz()


if __name__ == "__main__":
    given = arguments_of()
    with target(given.readers[0]) as files:
        search(files, given.minutes * 60, given.child, given.found)
