"""Shows that install.py moves no package of an older or a newer ComfyUI: `make environments`, outside `make test`.

Environments are built with real packages, as ComfyUI and other packs bring them; torch and torchvision stand in as
metadata alone, which is all that pip reads of them. In each, install.py's own command runs as pip's dry run, and what
pip would install is compared with what is there. A control leaves the constraints out, and must be seen to move
something.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

PACK = Path(__file__).resolve().parents[1]
Versions = dict[str, str]

STAND_INS = {"torch": "2.14.1", "torchvision": "0.29.1"}
ENVIRONMENTS = {
    "older (transformers 4)": [
        "transformers==4.57.6",
        "huggingface_hub==0.36.2",
        'numpy==1.26.4; python_version < "3.13"',
        'numpy==2.1.3; python_version >= "3.13"',
        "protobuf==4.25.8",
        "pillow==11.3.0",
        "opencv-python-headless==4.11.0.86",
        "pydantic~=2.0",
        "spandrel==0.4.1",
    ],
    "newer (transformers 5)": [
        "transformers==5.23.0",
        "huggingface_hub==2.4.0",
        "numpy==2.4.6",
        "protobuf==7.34.0",
        "pillow==13.0.0",
        "pydantic~=2.0",
        "spandrel==0.4.2",
    ],
    "another pack's (diffusers, accelerate)": [
        "transformers==4.57.6",
        "huggingface_hub==0.36.2",
        "safetensors==0.4.5",
        "pillow==11.3.0",
        "diffusers==0.35.2",
        "accelerate==0.34.2",
        "requests==2.32.3",
        "filelock==3.16.1",
    ],
}
INSTALL_PY = "import sys; sys.path.insert(0, sys.argv[1]); import install; sys.exit(install.install_packages())"


def run(*command: str | Path, **environ: str) -> None:
    """Runs a command quietly; raises with its output when it fails."""
    result = subprocess.run(
        list(map(str, command)), env=os.environ | environ, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")


def normalised(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def build(folder: Path, requirements: list[str]) -> Path:
    """A fresh environment with `requirements` and the stand-ins. Returns its Python."""
    run(sys.executable, "-m", "venv", folder)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site_packages = next(folder.rglob("site-packages"))
    for name, version in STAND_INS.items():
        metadata = site_packages / f"{name}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    run(python, "-m", "pip", "install", "--quiet", *requirements)
    return python


def installed(python: Path) -> Versions:
    folder = next(python.parents[1].rglob("site-packages"))
    return {normalised(d.metadata["Name"]): d.version for d in distributions(path=[str(folder)])}


def planned(python: Path, *arguments: str | Path) -> Versions:
    """What pip would install when `python` is run with `arguments`, which call pip in the end."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        run(python, *arguments, PIP_DRY_RUN="1", PIP_REPORT=str(report))
        entries = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {normalised(entry["metadata"]["name"]): entry["metadata"]["version"] for entry in entries}


def moved(before: Versions, plan: Versions) -> list[str]:
    return [f"{name} {before[name]} -> {plan[name]}" for name in sorted(before.keys() & plan.keys())]


def check(name: str, requirements: list[str]) -> tuple[bool, bool]:
    """Builds one environment and prints what install.py and a plain pip install would do to it.

    Returns whether diffusers and peft are there after install.py and nothing moved, and whether the control moves
    something.
    """
    with tempfile.TemporaryDirectory() as folder:
        python = build(Path(folder) / "venv", requirements)
        before = installed(python)
        plan = planned(python, "-c", INSTALL_PY, PACK)
        control = moved(before, planned(python, "-m", "pip", "install", "diffusers", "peft"))
    added = ", ".join(f"{key} {plan[key]}" for key in sorted(plan.keys() - before.keys()))
    print(f"{name}: install.py adds {added}")
    print(f"  moves: {', '.join(moved(before, plan)) or 'nothing'}")
    print(f"  without its constraints pip would move: {', '.join(control) or 'nothing'}")
    return {"diffusers", "peft"} <= before.keys() | plan.keys() and not moved(before, plan), bool(control)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "packaging")
        except RuntimeError:
            print("environments: skipped, no package index can be reached")
            return 0
    kept, controls = zip(*(check(name, requirements) for name, requirements in ENVIRONMENTS.items()), strict=True)
    if not any(controls):
        print("environments: the control moved nothing anywhere, so this check would not see a package move")
    return 0 if all(kept) and any(controls) else 1


if __name__ == "__main__":
    sys.exit(main())
