"""Files that this pack writes and its widgets offer: of a kind of ComfyUI's folders by name, or the newest of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths

from ..magicapture_core.types import MagiCaptureError
from .folders import digest

NEWEST = "newest"


@dataclass(frozen=True)
class Shelf:
    """kind: of ComfyUI's folders, such as loras. none_yet: what to tell when none of ours lies there."""

    kind: str
    none_yet: str

    def choices(self) -> list[str]:
        """What a file widget offers: the newest of ours, or any file of the folders."""
        return [NEWEST, *self._names()]

    def find(self, name: str) -> Path:
        """The chosen file; `newest` is the last one that this pack has written."""
        if name != NEWEST:
            return self._path(name)
        by_age = sorted(map(self._path, self._names()), key=lambda path: path.stat().st_mtime, reverse=True)
        newest = next(filter(is_ours, by_age), None)
        if newest is None:
            raise MagiCaptureError(self.none_yet)
        return newest

    def fingerprint(self, name: str) -> list[Any]:
        """Changes when the chosen file does, or when a newer one appears."""
        path = self.find(name)
        return [digest(str(path), path.stat().st_mtime_ns)]

    def _names(self) -> list[str]:
        return [name for name in folder_paths.get_filename_list(self.kind) if name.endswith(".safetensors")]

    def _path(self, name: str) -> Path:
        return Path(folder_paths.get_full_path_or_raise(self.kind, name))


def is_ours(path: Path) -> bool:
    """Whether a file says that this pack wrote it; a damaged one, whoever wrote it, does not."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return "magicapture.format" in (file.metadata() or {})
    except SafetensorError:
        return False
