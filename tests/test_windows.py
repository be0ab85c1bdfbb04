"""Windows by static checks: text has an encoding, names can be written there, nothing needs what it lacks."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

PACK = Path(__file__).absolute().parents[1]
SHIPPED = sorted([*PACK.glob("*.py"), *(PACK / "magicapture_core").rglob("*.py"), *(PACK / "nodes").rglob("*.py")])
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}
LONGEST = 120  # of the 259 characters of a whole path there, which begins somewhere in a user's custom_nodes
TEXT = {"read_text": 0, "write_text": 1}  # method -> place of its encoding
UNKNOWN = {
    "fork",
    "forkpty",
    "killpg",
    "setsid",
    "mkfifo",
    "getuid",
    "geteuid",
    "chown",
    "SIGKILL",
    "SIGALRM",
    "SIGHUP",
}
UNKNOWN_MODULES = {"fcntl", "resource", "pwd", "grp", "termios"}


def faults(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield from text_without_encoding(node)
        elif isinstance(node, ast.Attribute) and node.attr in UNKNOWN:
            yield f"line {node.lineno}: {node.attr} is not on Windows"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"line {node.lineno}: no {name} on Windows" for name in names if name in UNKNOWN_MODULES)


def text_without_encoding(call: ast.Call) -> Iterator[str]:
    """There it is the country's code page otherwise."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return
    if name in TEXT and isinstance(call.func, ast.Attribute) and len(call.args) <= TEXT[name]:
        yield f"line {call.lineno}: {name} without encoding"
    if name == "open" and isinstance(call.func, ast.Name):
        mode = call.args[1] if len(call.args) > 1 else ast.Constant("r")
        if isinstance(mode, ast.Constant) and "b" not in str(mode.value):
            yield f"line {call.lineno}: open without encoding"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(PACK).as_posix())
def test_source_runs_on_windows_too(path: Path) -> None:
    assert not list(faults(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("source", "is_fault"),
    [
        ("path.read_text()", True),
        ("path.read_text('utf-8')", False),
        ("path.write_text(text)", True),
        ("path.write_text(text, encoding='utf-8')", False),
        ("open('x')", True),
        ("open('x', 'rb')", False),
        ("import fcntl", True),
        ("os.kill(pid, signal.SIGKILL)", True),
    ],
)
def test_a_fault_is_seen(source: str, is_fault: bool) -> None:
    assert bool(list(faults(source))) == is_fault


@pytest.mark.skipif(not (PACK / ".git").exists(), reason="not a clone: git cannot say what belongs to it")
def test_every_name_can_be_written_there() -> None:
    command = ["git", "-C", str(PACK), "ls-files", "-z"]
    names = subprocess.run(command, check=True, capture_output=True).stdout.decode().strip("\0").split("\0")
    assert len({name.lower() for name in names}) == len(names), "two names differ by case alone"
    for name in names:
        assert len(name) <= LONGEST
        for part in PurePosixPath(name).parts:
            assert not set(part) & set('<>:"\\|?*'), name
            assert part.split(".")[0].lower() not in RESERVED, name
            assert part == part.rstrip(" ."), name
