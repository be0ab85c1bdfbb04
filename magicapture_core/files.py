"""Files that are whole or not there. Knows nothing of ours."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def write_atomic(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file beside `path`, sync it to the disk, then rename it to `path`.

    Whoever looks sees the old file or the new one, also after a crash. The neighbour has the suffix of `path`, since
    some libraries choose the format by it. Folders are made; a file that is there is replaced. The mode is that of any
    new file here: safetensors would leave one that its owner alone can read. Returns `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        beside.touch()
        mode = beside.stat().st_mode
        write(beside)
        beside.chmod(mode)
        with beside.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path
