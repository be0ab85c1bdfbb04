"""What the page and saved workflows rely on, for every node of the pack."""

import asyncio
import inspect
import json
import subprocess
import sys
from pathlib import Path

ORDER = Path(__file__).parents[1] / "widget_order.json"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def nodes(pack):
    extension = asyncio.run(pack.comfy_entrypoint())
    return asyncio.run(extension.get_node_list())


def sockets(info):
    return {name: spec for group in ("required", "optional") for name, spec in info["input"].get(group, {}).items()}


def widgets(info):
    return [name for name, (kind, *_) in sockets(info).items() if isinstance(kind, list) or kind in WIDGETS]


def check_names(pack):
    """The id holds MagiCapture, the title ends in (MagiCapture), the category is ours, the class is documented."""
    for node in nodes(pack):
        info = node.GET_NODE_INFO_V1()
        wanted = node.__name__ if "MagiCapture" in node.__name__ else f"MagiCapture{node.__name__}"
        assert info["name"] == wanted
        assert info["display_name"].endswith(" (MagiCapture)")
        assert info["category"] == "MagiCapture"
        assert len(info["description"]) > 30


def check_every_socket_has_a_tooltip(pack):
    for node in nodes(pack):
        info = node.GET_NODE_INFO_V1()
        for name, (_, *options) in sockets(info).items():
            assert options, (info["name"], name)
            assert len(options[0].get("tooltip", "")) > 5, (info["name"], name)
        assert all(info["output_tooltips"]), info["name"]
        assert len(info["output_tooltips"]) == len(info["output"])


def check_labels_have_spaces(pack):
    """Ids keep their underscores, for saved workflows; what the page writes beside them has none."""
    for node in nodes(pack):
        info = node.GET_NODE_INFO_V1()
        labels = {name: spec[1]["display_name"] for name, spec in sockets(info).items()}
        assert labels == {name: name.replace("_", " ") for name in labels}, info["name"]


def check_widget_order(pack):
    """Saved workflows hold values by position: a new widget goes to the end of the node and of the file."""
    committed = json.loads(ORDER.read_text(encoding="utf-8"))
    assert {node.GET_NODE_INFO_V1()["name"]: widgets(node.GET_NODE_INFO_V1()) for node in nodes(pack)} == committed


def check_execute_takes_every_input(pack):
    """By keyword; whatever is left over goes into ** where there is one."""
    for node in nodes(pack):
        parameters = inspect.signature(node.execute).parameters
        takes_rest = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        named = {name for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
        given = set(sockets(node.GET_NODE_INFO_V1()))
        assert named <= given, node.__name__
        assert takes_rest or named == given, node.__name__


IMPORT_SCRIPT = """
import asyncio, importlib.util, os, sys
tree, file = sys.argv[1:]
sys.path.insert(0, tree)
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import comfy_api.latest, nodes
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("pack", file, submodule_search_locations=[os.path.dirname(file)])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert "pack" in new
heavy = new & {"diffusers", "peft", "accelerate", "spandrel", "skimage", "matplotlib", "facexlib"}
assert not heavy, heavy
"""


def check_nothing_heavy_is_imported(pack):
    """Importing the pack and asking for its nodes leaves these to the first run of a node."""
    import folder_paths

    tree = str(Path(str(folder_paths.__file__)).parent)  # sys.path may begin with what nodes.py puts there
    command = [sys.executable, "-c", IMPORT_SCRIPT, tree, pack.__file__]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
