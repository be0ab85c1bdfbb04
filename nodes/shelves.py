"""Files that this pack writes and its widgets offer: of a kind of ComfyUI's folders by name, or the newest of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths

from ..magicapture_core.metadata import read_kind
from ..magicapture_core.types import MagiCaptureError
from .folders import digest

NEWEST = "newest"


@dataclass(frozen=True)
class Shelf:
    """folders: a kind of ComfyUI's, such as loras. none_yet: what to tell when none of ours lies there. kind: what
    those of ours say that they hold, a LoRA where it is empty."""

    folders: str
    none_yet: str
    kind: str = ""

    def choices(self) -> list[str]:
        """What a file widget offers: the newest of ours, or any file of the folders."""
        return [NEWEST, *self._names()]

    def find(self, name: str) -> Path:
        """The chosen file; `newest` is the last one that this pack has written."""
        if name != NEWEST:
            return Path(folder_paths.get_full_path_or_raise(self.folders, name))
        found = (folder_paths.get_full_path(self.folders, name) for name in self._names())
        paths = [Path(path) for path in found if path]  # none for a link whose file is gone, which is on the list too
        by_age = sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)
        newest = next((path for path in by_age if kind_of(path) == self.kind), None)
        if newest is None:
            raise MagiCaptureError(self.none_yet)
        return newest

    def fingerprint(self, name: str) -> list[Any]:
        """Changes when the chosen file does, or when a newer one appears."""
        path = self.find(name)
        return [digest(str(path), path.stat().st_mtime_ns)]

    def _names(self) -> list[str]:
        return [name for name in folder_paths.get_filename_list(self.folders) if name.endswith(".safetensors")]


def kind_of(path: Path) -> str | None:
    """What a file says that this pack wrote into it, as `read_kind`; nothing where it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return read_kind(file.metadata() or {})
    except (SafetensorError, OSError):
        return None
