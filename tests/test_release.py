"""What is published: a version that is told, metadata that the Comfy registry takes, an archive of what users need."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

PACK = Path(__file__).absolute().parents[1]
WORKFLOWS = PACK / ".github" / "workflows"
MAX_ARCHIVE, MAX_FILE = 15e6, 6e6  # bytes


def project() -> dict[str, Any]:
    return tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))


def tracked(*options: str) -> set[str]:
    command = ["git", "-C", str(PACK), "ls-files", *options]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")) - {""}


def archive() -> set[str]:
    """What comfy-cli packs: the files that git knows, but those of .comfyignore."""
    return tracked() - tracked("--cached", "--ignored", "--exclude-from=.comfyignore")


def test_the_registry_takes_the_metadata() -> None:
    """Its rules: https://docs.comfy.org/registry/specifications."""
    about, comfy = project()["project"], project()["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9_-]{0,98}[a-z0-9]", about["name"])
    assert not about["name"].startswith("comfyui")
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["version"])
    assert (PACK / about["license"]["file"]).is_file()
    assert about["description"]
    assert comfy["DisplayName"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])
    fixed = ("Operating System :: ", "Environment :: GPU :: ", "Programming Language :: ", "License :: ", "Topic :: ")
    assert all(kind.startswith(fixed) for kind in about["classifiers"])
    assert about["dependencies"] == (PACK / "requirements.txt").read_text(encoding="utf-8").split()


def test_nothing_is_published_before_the_owner_has_filled_in_the_metadata(tmp_path: Path) -> None:
    steps = yaml.safe_load((WORKFLOWS / "publish.yml").read_text(encoding="utf-8"))["jobs"]["publish"]["steps"]
    (place,) = (index for index, step in enumerate(steps) if step.get("shell") == "python")
    assert "publish-node-action" not in str(steps[:place])

    def answer(publisher: str, urls: str) -> str:
        text = f'[project]\n{urls}\n[tool.comfy]\nPublisherId = "{publisher}"\n'
        (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
        command = [sys.executable, "-c", steps[place]["run"]]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stderr

    address = '[project.urls]\nRepository = "https://example.org"'
    for text in (
        answer("", address),
        answer("somebody", ""),
        answer("somebody", address.replace("https://example.org", "")),
    ):
        assert text.startswith("pyproject.toml: fill in PublisherId")
        assert len(text.splitlines()) == 1
    assert answer("somebody", address) == ""


def test_the_version_is_the_changelogs_first() -> None:
    first = re.search(r"^## (\S+)", (PACK / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert first
    assert first[1] == project()["project"]["version"]


@pytest.mark.skipif(not (PACK / ".git").exists(), reason="not a clone: git cannot say what belongs to it")
def test_the_archive_is_small_and_whole() -> None:
    files = archive()
    unwanted = ("tests/", "benchmarks/", "portraitbench/", "scripts/", ".ci/", ".github/")
    assert not [name for name in files if name.startswith(unwanted)]
    needed = {"__init__.py", "install.py", "requirements.txt", "pyproject.toml", "LICENSE", "NOTICE", "README.md"}
    needed |= {name for name in tracked() if name.startswith(("nodes/", "magicapture_core/", "workflows/", "web/"))}
    needed |= {name for name in tracked() if name.startswith("locales/")}
    assert needed <= files
    sizes = {name: (PACK / name).stat().st_size for name in files}
    assert sum(sizes.values()) < MAX_ARCHIVE
    assert max(sizes.values()) < MAX_FILE, max(sizes, key=lambda name: sizes[name])


def test_publishing_waits_for_both_tiers() -> None:
    steps = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in WORKFLOWS.glob("*.yml")}
    jobs = steps["publish"]["jobs"]
    assert jobs["publish"]["needs"] == ["check", "comfy"]
    for name in jobs["publish"]["needs"]:
        assert jobs[name]["uses"] == f"./.github/workflows/{name}.yml"
        assert "workflow_call" in steps[name][True]  # YAML reads the key `on` as a yes
    pythons = {entry["python"] for entry in steps["check"]["jobs"]["test"]["strategy"]["matrix"]["include"]}
    told = [kind.rsplit(" ", 1)[1] for kind in project()["project"]["classifiers"] if "Python :: 3." in kind]
    assert pythons == set(told)
