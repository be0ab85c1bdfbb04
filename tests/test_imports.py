"""Holds the import rule: `nodes -> magicapture_core` and `portraitbench -> magicapture_core`, never back.

The core reaches its own files by dots and knows nothing of ComfyUI; heavy libraries wait inside functions; the
pack itself imports nothing until it is asked for its nodes.
"""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACK = Path(__file__).absolute().parents[1]
OWN = {"magicapture_core", "nodes", "portraitbench", "benchmarks", "tests"}
HOST = {"comfy", "comfy_api", "comfy_api_nodes", "comfy_execution", "comfy_extras", "folder_paths", "execution"}
HOST |= {"server", "nodes", "node_helpers", "latent_preview"}
HEAVY = {"diffusers", "transformers", "peft", "accelerate", "spandrel", "torchvision", "facexlib", "matplotlib"}


def sources(folder: str) -> list[Path]:
    return sorted((PACK / folder).rglob("*.py"))


def imports(source: str) -> Iterator[tuple[int, str]]:
    """(dots, module) of every import statement, wherever it stands; `from . import x` gives (1, "x")."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.level, node.module
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, alias.name) for alias in node.names)


def core_faults(source: str, depth: int = 1) -> list[str]:
    """Imports that may not stand in the core: of the host, of our own folders by name, or with dots that leave it.

    depth: 1 for a file of magicapture_core itself, one more for each folder below.
    """
    return [
        "." * dots + module
        for dots, module in imports(source)
        if dots > depth or (dots == 0 and module.split(".")[0] in HOST | OWN)
    ]


def bench_faults(source: str) -> list[str]:
    """Imports that may not stand outside the nodes: of the host or of the nodes."""
    return [module for dots, module in imports(source) if dots == 0 and module.split(".")[0] in HOST]


def node_faults(source: str) -> list[str]:
    """Our own folders are reached by dots alone: ComfyUI names the pack by its path, and `nodes` is the host's."""
    return [
        "." * dots + module
        for dots, module in imports(source)
        if (dots == 0 and module.split(".")[0] in OWN - {"nodes"})
        or dots > 2
        or (dots == 2 and module.split(".")[0] != "magicapture_core")
    ]


def loaded(code: str, names: set[str]) -> set[str]:
    """Which of `names` a fresh Python has imported after running `code` in the pack's folder."""
    tail = f"\nimport sys; print(*({names!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code + tail], cwd=PACK, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize("path", sources("magicapture_core"), ids=lambda path: path.name)
def test_the_core_imports_only_itself(path: Path) -> None:
    depth = len(path.relative_to(PACK / "magicapture_core").parts)
    assert core_faults(path.read_text("ascii"), depth) == []


@pytest.mark.parametrize(
    "path", [*sources("portraitbench"), *sources("benchmarks"), *sources("scripts")], ids=lambda path: path.name
)
def test_the_bench_knows_no_comfyui(path: Path) -> None:
    assert bench_faults(path.read_text("ascii")) == []


@pytest.mark.parametrize("path", sources("nodes"), ids=lambda path: path.name)
def test_the_nodes_reach_the_core_by_dots(path: Path) -> None:
    assert node_faults(path.read_text("ascii")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import comfy.utils",
        "from comfy_api.latest import io",
        "import folder_paths",
        "def late():\n    from server import PromptServer",
        "from ..nodes import sockets",
        "from .. import nodes",
        "from magicapture_core import types",
        "import portraitbench.world",
    ],
)
def test_the_rule_sees_a_fault_in_the_core(line: str) -> None:
    assert core_faults(line)


@pytest.mark.parametrize("line", ["from magicapture_core import types", "from ..portraitbench import world"])
def test_the_rule_sees_a_fault_in_the_nodes(line: str) -> None:
    assert node_faults(line)


def test_the_core_loads_without_heavy_libraries_and_without_comfyui() -> None:
    modules = [module.name for module in pkgutil.iter_modules([str(PACK / "magicapture_core")])]
    assert {"config", "trainer", "__main__"} <= set(modules)
    code = "\n".join(f"import magicapture_core.{name}" for name in modules)
    assert loaded(code, HEAVY | HOST) == set()


def test_the_pack_imports_nothing_of_its_own() -> None:
    code = "import importlib.util as u; s = u.spec_from_file_location('pack', '__init__.py')\n"
    code += "m = u.module_from_spec(s); s.loader.exec_module(m); assert m.WEB_DIRECTORY and m.comfy_entrypoint"
    assert loaded(code, {"torch", "numpy", "pydantic", "magicapture_core", "nodes"}) == set()


def test_a_loaded_module_is_seen() -> None:
    assert loaded("import wave", {"wave", "colorsys"}) == {"wave"}
