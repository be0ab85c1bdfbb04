"""Where results lie, and where a job works on them: a folder of this machine, or any address that fsspec knows.

A job is finished once its `result.json` is there, which is written last. On a file system a job works in its place; for
any other address it works in a scratch folder, whose files are brought there as they come, a state after what it needs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import write_atomic
from ..types import MagiCaptureError

RESULT, LOCK = "result.json", ".lock"
LATE = ("state-", "result-")  # what `kept` writes once all that it speaks of is there


class Place:
    """One job's folder in the results, as `folder`, and where its files are worked on, as `work`.

    Raises MagiCaptureError for an address that fsspec cannot open.
    """

    def __init__(self, results: str, folder: str = "") -> None:
        self.fs, root = open_address(results)
        self.is_local = is_local(self.fs)
        self.folder = f"{root.rstrip('/')}/{folder}".rstrip("/")
        self.work = Path(self.folder) if self.is_local else scratch(results) / folder
        self._kept: dict[Path, tuple[int, int]] = {}

    def read_result(self, key: str) -> dict[str, Any] | None:
        """None while the job of this key is not finished; half a file is none, which some file systems leave."""
        try:
            told = json.loads(self.fs.cat_file(f"{self.folder}/{RESULT}"))
        except (FileNotFoundError, ValueError):
            return None
        return told if told["key"] == key else None

    def fetch(self) -> None:
        """What an earlier attempt, on whatever machine, has brought there."""
        self.work.mkdir(parents=True, exist_ok=True)
        if self.is_local:
            return
        for path in self.work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        self.fs.invalidate_cache()  # other machines have written there
        for file in self.fs.find(self.folder):
            path = self.work / file.removeprefix(f"{self.folder}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            self.fs.get_file(file, str(path))
            self._kept[path] = stamp(path)

    def keep(self) -> None:
        """Brings there what has changed, and takes away there what has gone."""
        if self.is_local:
            return
        files = [path for path in self.work.rglob("*") if path.is_file() and not path.name.startswith(".")]
        for path in sorted(files, key=lambda path: (path.name.startswith(LATE), path)):
            if self._kept.get(path) != stamp(path):
                self._kept[path] = stamp(path)
                self.fs.makedirs(self._there(path).rpartition("/")[0], exist_ok=True)
                self.fs.put_file(str(path), self._there(path))
        for path in set(self._kept).difference(files):
            del self._kept[path]
            self.fs.rm_file(self._there(path))

    def finish(self, result: dict[str, Any]) -> None:
        """All files, then the mark that the job is finished. What earlier attempts left half written, hidden, goes."""
        for path in self.work.rglob(".*"):
            if path.is_file() and path.name != LOCK:
                path.unlink()
        self.keep()
        text = json.dumps(result, indent=1)
        if self.is_local:
            write_atomic(self.work / RESULT, lambda file: file.write_text(text, encoding="utf-8"))
        else:
            self.fs.pipe_file(f"{self.folder}/{RESULT}", text.encode())
            shutil.rmtree(self.work, ignore_errors=True)

    def _there(self, path: Path) -> str:
        return f"{self.folder}/{path.relative_to(self.work).as_posix()}"


def open_address(results: str) -> tuple[Any, str]:
    """The file system and the path in it. Raises MagiCaptureError for what is none, or needs a package."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(results)
    except (ValueError, ImportError) as error:
        raise MagiCaptureError(f"results {results}: {error}") from error


def is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def scratch(results: str) -> Path:
    """Of an address, the same on every machine, since what a training tells of its files are whole paths."""
    name = hashlib.blake2b(results.encode(), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / "magicapture-fleet" / name


def stamp(path: Path) -> tuple[int, int]:
    told = path.stat()
    return told.st_mtime_ns, told.st_size


@contextmanager
def locked(folder: Path, wait: float, message: str) -> Iterator[None]:
    """One process alone is inside of the block; the lock of one that was killed is free. wait: seconds.

    Raises MagiCaptureError with the message where another one stays.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=wait)
    except Timeout as error:
        raise MagiCaptureError(message) from error
    try:
        yield
    finally:
        lock.release()


def lock_folder(results: str) -> Path:
    """Of all the results: beside them, or for an address on this machine alone."""
    fs, root = open_address(results)
    return Path(root) if is_local(fs) else scratch(results)
