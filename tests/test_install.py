"""install.py in an environment of its own, with pip as it is and a folder of empty wheels for a package index."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

import install

PACK = Path(install.__file__).parent
CALL = "import sys, install; sys.exit(install.install_packages(set(sys.argv[1:])))"


def metadata(name: str, version: str, *needs: str) -> str:
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    return about + "".join(f"Requires-Dist: {need}\n" for need in needs)


def put(folder: Path, name: str, version: str, *needs: str, stem: str = "") -> None:
    """Installs a package as far as pip sees it. stem: of the folder, where it is not the package's own."""
    about = folder / f"{stem or f'{name}-{version}'}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(metadata(name, version, *needs), encoding="utf-8")


def offer(folder: Path, name: str, version: str, *needs: str) -> None:
    """Lays an empty wheel into the folder that is pip's index."""
    folder.mkdir(exist_ok=True)
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{about}/METADATA", metadata(name, version, *needs))
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with pip alone."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=True)
    return folder


@pytest.fixture
def environment(bare: Path, tmp_path: Path) -> Path:
    """`venv`, `wheels`, and `first`, which comes before the site-packages on the path.

    The newest diffusers and peft want a newer filelock and accelerate than those that are there.
    """
    shutil.copytree(bare, tmp_path / "venv", symlinks=True)
    wheels, site_packages = tmp_path / "wheels", site_packages_of(tmp_path)
    offer(wheels, "diffusers", "0.35.2", "numpy", "filelock>=3.0")
    offer(wheels, "diffusers", "0.42.1", "numpy", "filelock>=3.20")
    offer(wheels, "peft", "0.17.0", "torch>=2", "accelerate>=0.21", "edited")
    offer(wheels, "peft", "0.21.2", "torch>=2", "accelerate>=1.0", "edited")
    for name, version in (("numpy", "2.4.6"), ("filelock", "3.20.0"), ("accelerate", "1.15.0"), ("edited", "9.0")):
        offer(wheels, name, version)
    for name, version in (
        ("torch", "2.9.1+cu128"),
        ("numpy", "1.26.4"),
        ("filelock", "3.16.1"),
        ("accelerate", "0.34"),
    ):
        put(site_packages, name, version)
    put(site_packages, "edited", "1.0")
    origin = json.dumps({"url": tmp_path.as_uri(), "dir_info": {"editable": True}})
    (site_packages / "edited-1.0.dist-info" / "direct_url.json").write_text(origin, encoding="utf-8")
    return tmp_path


def site_packages_of(environment: Path) -> Path:
    return next((environment / "venv").rglob("site-packages"))


def planned(environment: Path, *movable: str) -> tuple[dict[str, str], str]:
    """What pip would install, and what was told. An empty plan where install_packages failed."""
    python = environment / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    report = environment / "report.json"
    settings = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(environment / "wheels"),
        "PIP_DRY_RUN": "1",
        "PIP_REPORT": str(report),
        "PIP_CONFIG_FILE": os.devnull,
        "PYTHONPATH": os.pathsep.join([str(environment / "first"), str(PACK)]),
    }
    done = subprocess.run(
        [python, "-c", CALL, *movable],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=environment,
        check=False,
    )
    assert (done.returncode == 0) == report.is_file(), done.stdout
    plan = json.loads(report.read_text(encoding="utf-8"))["install"] if report.is_file() else []
    return {entry["metadata"]["name"]: entry["metadata"]["version"] for entry in plan}, done.stdout


def test_packages_are_added_and_none_is_moved(environment: Path) -> None:
    """Not even those that ComfyUI does not bring, one from a folder, or one with a local version."""
    plan, told = planned(environment)
    assert plan == {"diffusers": "0.35.2", "peft": "0.17.0"}, told


def test_shadowed_packages_and_foreign_versions_stop_nothing(environment: Path) -> None:
    put(environment / "first", "filelock", "3.12.0")
    put(site_packages_of(environment), "python-apt", "2.4.0;build1")  # no version of PEP 440's
    plan, told = planned(environment)
    assert plan == {"diffusers": "0.35.2", "peft": "0.17.0"}, told


def test_what_a_failed_removal_leaves_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "leftovers", "numpy", "1.24.0", stem="~umpy-1.24.0")
    (tmp_path / "leftovers" / "nothing-1.0.dist-info").mkdir()
    put(tmp_path / "packages", "Num_Py.Typing", "1.26.4")
    put(tmp_path / "packages", "numpy", "1.26.4")
    monkeypatch.setattr("sys.path", [str(tmp_path / "leftovers"), str(tmp_path / "packages")])
    assert install.installed_versions() == {"num-py-typing": "1.26.4", "numpy": "1.26.4"}


def test_a_package_that_is_too_old_is_named_and_left_until_the_user_says_so(environment: Path) -> None:
    put(site_packages_of(environment), "diffusers", "0.31.0")
    plan, told = planned(environment)
    assert plan == {}
    (line,) = told.splitlines()
    assert "diffusers 0.31.0 is too old" in line
    assert line.endswith("install.py diffusers")
    assert planned(environment, "diffusers")[0] == {"diffusers": "0.35.2", "peft": "0.17.0"}


def test_what_stands_in_the_way_moves_by_its_name_alone(environment: Path) -> None:
    shutil.rmtree(site_packages_of(environment) / "accelerate-0.34.dist-info")
    put(site_packages_of(environment), "accelerate", "0.20")
    plan, told = planned(environment)
    assert plan == {}
    assert "accelerate" in told
    assert told.splitlines()[-1].endswith("install.py NAME")
    assert planned(environment, "Accelerate")[0] == {"diffusers": "0.35.2", "peft": "0.21.2", "accelerate": "1.15.0"}


def test_the_models_are_fetched_where_the_packages_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[bool] = []
    monkeypatch.setattr(install, "install_packages", lambda *_: 1)
    monkeypatch.setattr(install, "fetch_models", lambda: fetched.append(True))
    assert install.main() == 1
    assert fetched
