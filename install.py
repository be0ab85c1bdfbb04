"""Installs what ComfyUI lacks, and moves nothing that is there. ComfyUI-Manager runs it; by hand: `python install.py`.

diffusers and peft are installed under a constraint file that holds the versions already present, so pip picks the
releases that fit this environment. Then the face networks and the tokenizer's vocabulary are fetched once into the
models folder. Needs the standard library alone.
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

PACK = Path(__file__).absolute().parent  # a linked pack still stands in custom_nodes
REQUIREMENTS = ("diffusers>=0.35.2", "peft>=0.17")
KEPT = {
    "huggingface-hub",
    "transformers",
    "tokenizers",
    "numpy",
    "torch",
    "torchvision",
    "pillow",
    "safetensors",
    "protobuf",
}


def installed_constraints() -> list[str]:
    """`name==version` of every installed package that must stay as it is."""
    constraints = set()
    for distribution in distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name in KEPT or name.startswith("opencv"):
            constraints.add(f"{name}=={distribution.version}")
    return sorted(constraints)


def installer() -> list[str]:
    """The command that installs into this very Python; uv's environments have no pip."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install"]
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
    return [shutil.which("uv") or "uv", "pip", "install", "--python", sys.executable]


def install_packages() -> int:
    """Installs REQUIREMENTS under the constraints. Returns the exit code; a failure prints the one command to run."""
    constraints = installed_constraints()
    with tempfile.TemporaryDirectory() as folder:
        constraint_file = Path(folder) / "constraints.txt"
        constraint_file.write_text("\n".join(constraints) + "\n", encoding="utf-8")
        try:
            code = subprocess.call([*installer(), *REQUIREMENTS, "--constraint", str(constraint_file)])
        except FileNotFoundError:  # neither pip nor uv
            code = 1
    if code:
        wanted = " ".join(f'"{requirement}"' for requirement in (*REQUIREMENTS, *constraints))
        print(f"MagiCapture: not installed. Run: {subprocess.list2cmdline(installer())} {wanted}")
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
    if install_packages():
        return 1
    fetch_models()
    report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
