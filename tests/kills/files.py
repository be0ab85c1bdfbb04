"""Files that have to be whole whenever somebody looks."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file


def read_all(folder: Path) -> int:
    """How many files there are under a real name, each of which is whole."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    for path in files:
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
    return len(files)
