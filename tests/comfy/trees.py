"""Finds the ComfyUIs of this machine, and for each the Python that runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACK = Path(__file__).absolute().parents[2]
NEEDED = ("torch", "aiohttp", "torchsde", "av", "diffusers", "peft")  # ComfyUI's own, and what install.py adds
TOLD = ("torch", "transformers", "diffusers", "peft")
PROBE = f"import importlib.util as u; print(*(n for n in {NEEDED} if u.find_spec(n) is None))"
VERSIONS = f"from importlib.metadata import version as v; print(', '.join(f'{{n}} {{v(n)}}' for n in {TOLD}))"


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One ComfyUI that can be started."""

    folder: Path
    python: Path
    version: str


def candidate_folders() -> list[Path]:
    """$COMFYUI_PATH (several, separated as in PATH) alone when it is set, else what stands at the customary places."""
    if given := os.environ.get("COMFYUI_PATH"):
        return [Path(part).expanduser() for part in given.split(os.pathsep) if part]
    guesses = [*sorted((Path.home() / "comfy").glob("ComfyUI*")), PACK.parents[1]]
    return [folder for folder in guesses if (folder / "main.py").exists()]


def versions(tree: Tree) -> str:
    """Of the packages that change what we build on, as its Python finds them."""
    return subprocess.run([tree.python, "-c", VERSIONS], capture_output=True, text=True, check=True).stdout.strip()


def missing_packages(python: Path) -> list[str]:
    result = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=False)
    return result.stdout.split() if result.returncode == 0 else list(NEEDED)


def own_python(folder: Path) -> Path:
    """The tree's virtual environment, the portable Python of Windows, else the one that runs the tests."""
    places = [folder / venv / name for venv in (".venv", "venv") for name in ("bin/python", "Scripts/python.exe")]
    places.append(folder.parent / "python_embeded" / "python.exe")
    return next((place for place in places if place.exists()), Path(sys.executable))


def read_tree(folder: Path) -> Tree | str:
    """The tree, or in one line why it cannot be used."""
    version_file = folder / "comfyui_version.py"
    if not (folder / "main.py").exists() or not version_file.exists():
        return f"{folder} is no ComfyUI"
    python = own_python(folder)
    if missing := missing_packages(python):
        return (
            f"{folder}: {python} lacks {', '.join(missing)}; install ComfyUI's requirements there, then run install.py"
        )
    found = re.search(r'__version__ = "(.+)"', version_file.read_text(encoding="utf-8"))
    return Tree(folder=folder, python=python, version=found[1] if found else "unknown")


@cache
def find_trees() -> tuple[list[Tree], str]:
    """Every tree that can be started; and why there is none, when there is none."""
    found = [read_tree(folder) for folder in candidate_folders()]
    trees = [entry for entry in found if isinstance(entry, Tree)]
    reasons = [entry for entry in found if isinstance(entry, str)]
    nowhere = "no ComfyUI at $COMFYUI_PATH, ~/comfy/ComfyUI or two folders up"
    return trees, "" if trees else "; ".join(reasons) or nowhere


def newest_version() -> str:
    """Of all trees; empty without one. What costs minutes is tested there alone."""
    return max((tree.version for tree in find_trees()[0]), default="", key=_numbers)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
