"""Installs what ComfyUI lacks, and moves nothing that is there. ComfyUI-Manager runs it; by hand: `python install.py`.

diffusers and peft are installed under a constraint file that holds every package already present at its version, so pip
picks the releases that fit this environment and can only add. `python install.py NAME` lets the package NAME move.
Then the face networks and the tokenizer's vocabulary are fetched once into the models folder. Needs the standard
library alone.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Set
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

PACK = Path(__file__).absolute().parent  # a linked pack still stands in custom_nodes
REQUIREMENTS = {"diffusers": "0.35.2", "peft": "0.17"}  # package -> the least that will do
# What pip can read, by PEP 508 and 440. Systems' own packages may have other versions, such as 2.4.0build1.
CONSTRAINT = re.compile(
    r"[a-z0-9]+(-[a-z0-9]+)*=="
    r"v?(\d+!)?\d+(\.\d+)*([-_.]?(a|b|c|rc|alpha|beta|pre|preview)[-_.]?\d*)?"
    r"(-\d+|[-_.]?(post|rev|r)[-_.]?\d*)?([-_.]?dev[-_.]?\d*)?(\+[a-z0-9]+([-_.][a-z0-9]+)*)?",
    re.IGNORECASE,
)


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_versions() -> dict[str, str]:
    """Normalised name -> version of every installed package as pip sees it: the first of a name on the path counts."""
    versions: dict[str, str] = {}
    for distribution in distributions():
        about, folder = distribution.metadata, Path(str(getattr(distribution, "_path", "")))
        if "Name" in about and "Version" in about and not folder.name.startswith("~"):  # what a failed removal leaves
            versions.setdefault(normalised(about["Name"]), about["Version"])
    return versions


def numbers(version: str) -> list[int]:
    return list(map(int, re.findall(r"\d+", version)))


def too_old(versions: Mapping[str, str]) -> list[str]:
    """Which of REQUIREMENTS are there, but older than will do."""
    there = REQUIREMENTS.keys() & versions.keys()
    return sorted(name for name in there if numbers(versions[name]) < numbers(REQUIREMENTS[name]))


def this_command(*movable: str) -> str:
    """What runs this file with this Python."""
    return subprocess.list2cmdline([sys.executable, str(PACK / "install.py"), *movable])


def installer() -> list[str]:
    """The command that installs into this very Python; uv's environments have no pip."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install"]
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
    return [shutil.which("uv") or "uv", "pip", "install", "--python", sys.executable]


def install_packages(movable: Set[str] = frozenset()) -> int:
    """Installs REQUIREMENTS; of what is installed only `movable` may move. Returns the exit code.

    A failure tells what to run, and how to let a package move that stands in the way.
    """
    kept = installed_versions()
    for name in map(normalised, movable):
        kept.pop(name, None)
    if old := too_old(kept):
        told = ", ".join(f"{name} {kept[name]} is too old ({REQUIREMENTS[name]} is needed)" for name in old)
        command = this_command(*sorted({*movable, *old}))
        print(f"MagiCapture: {told} and was left alone. To upgrade it, run: {command}")
        return 1
    constraints = [line for line in map("==".join, kept.items()) if CONSTRAINT.fullmatch(line)]
    with tempfile.TemporaryDirectory() as folder:
        constraint_file = Path(folder) / "constraints.txt"
        constraint_file.write_text("\n".join(constraints) + "\n", encoding="utf-8")
        wanted = map(">=".join, REQUIREMENTS.items())
        try:
            code = subprocess.call([*installer(), *wanted, "--constraint", str(constraint_file)])
        except FileNotFoundError:
            print(f"MagiCapture: neither pip nor uv. Run: {sys.executable} -m ensurepip, then: {this_command()}")
            return 1
    if code:
        print(f"MagiCapture: not installed, see above. Run again: {this_command()}")
        print(f"MagiCapture: to let an installed package move that stands in the way: {this_command('NAME')}")
    return code


def fetch_models() -> None:
    """Fetches the face networks and the vocabulary. The pack works with hand-made masks until then: told, not fatal."""
    for name in ("faces", "tokenizer"):
        command = [sys.executable, str(PACK / "cli.py"), "models", "get", name]
        if subprocess.call(command):
            print(f"MagiCapture: {name} not fetched. Run: {subprocess.list2cmdline(command)}")


def report() -> None:
    """One line per package that the pack stands on."""
    for name in ("torch", "transformers", "huggingface_hub", "diffusers", "peft"):
        try:
            print(f"MagiCapture: {name} {version(name)}")
        except PackageNotFoundError:
            print(f"MagiCapture: {name} is missing")


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036  a user's ComfyUI may run on 3.10
        print(f"MagiCapture needs Python 3.11 or newer; this ComfyUI runs on {sys.version.split()[0]}")
        return 1
    code = install_packages(set(sys.argv[1:]))
    fetch_models()
    report()
    return code


if __name__ == "__main__":
    sys.exit(main())
