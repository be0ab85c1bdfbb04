"""Runs the checks of tests/nodes/checks inside a ComfyUI process, with that tree's own Python, and writes what failed.

    <tree>/.venv/bin/python inside.py TREE RESULTS.json FOLDER CHECKPOINT newest|older [check_FILE]

Every function `check_*` of the check files is called with its arguments by name out of: `pack` (the pack as ComfyUI
imports it), `checkpoint` (path), `loaded` (MODEL, CLIP, VAE of the checkpoint, under inference mode as in a node),
`tmp_path`. FOLDER holds what the checks may write. The checkpoint is read once: every check gets clones of its own.
In an older ComfyUI those that are marked `newest_alone` are left out, and are not in the results.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import sys
import traceback
from copy import deepcopy
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]


def load_module(name: str, path: Path, folder: Path | None = None) -> ModuleType:
    """By file location, as ComfyUI imports packs."""
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folder and [str(folder)])
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def start_comfy(tree: Path, folder: Path) -> None:
    sys.path.insert(0, str(tree))
    sys.argv = ["main.py", "--cpu", "--base-directory", str(folder)]
    for kind in ("models/loras", "models/embeddings", "models/checkpoints", "input", "output", "temp"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    import comfy.options

    comfy.options.enable_args_parsing()
    import folder_paths

    folder_paths.set_temp_directory(str(folder / "temp"))


def remember_texts() -> None:
    """The checks encode the same few texts again and again: each once by the same weights and learned words."""
    from comfy.sd1_clip import SD1ClipModel

    encode, known = SD1ClipModel.encode_token_weights, {}

    def remembered(model: Any, tokens: Any) -> Any:
        net = getattr(model, model.clip)
        asked = (net.layer, net.layer_idx, net.return_projected_pooled)
        key = (model.current_weight_patches_uuid, asked, frozen(tokens))
        if key not in known:
            known[key] = encode(model, tokens)
        return deepcopy(known[key])

    SD1ClipModel.encode_token_weights = remembered


def frozen(value: Any) -> Any:
    """A key for tokens, which hold vectors where a word is a learned one."""
    if isinstance(value, dict):
        return tuple((key, frozen(value[key])) for key in value)
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    return value.float().numpy().tobytes() if hasattr(value, "numpy") else value


@cache
def load_checkpoint(path: Path) -> Any:
    import comfy.sd
    import folder_paths

    embeddings = folder_paths.get_folder_paths("embeddings")
    return comfy.sd.load_checkpoint_guess_config(str(path), embedding_directory=embeddings)[:3]


def cloned(path: Path) -> Any:
    """As if the checkpoint had been loaded anew: what the check before has patched is taken off the weights."""
    import comfy.model_management

    model, clip, vae = load_checkpoint(path)
    comfy.model_management.unload_all_models()
    return model.clone(), clip.clone(), vae


def run(checkpoint: Path, folder: Path, extent: str, only: str = "check_*") -> dict[str, str]:
    """Name of each check -> empty, or its traceback."""
    import torch

    results = {}
    give_back = load_module("memory", HERE.parent / "memory.py").give_back
    remember_texts()
    sys.path.append(str(HERE / "checks"))  # they share helpers
    pack = load_module(str(PACK), PACK / "__init__.py", PACK)
    asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    look = import_module(f"{pack.__name__}.magicapture_core.watch")
    look.NUM_STEPS = 1  # pyright: ignore[reportAttributeAccessIssue]  # a training's pictures of itself: rough ones do
    for path in sorted((HERE / "checks").glob(f"{only}.py")):
        checks = inspect.getmembers(load_module(path.stem, path), inspect.isfunction)
        for name, check in checks:
            is_left_out = extent == "older" and hasattr(check, "newest_alone")
            if is_left_out or not name.startswith("check_"):
                continue
            scratch = folder / "scratch" / path.stem / name
            scratch.mkdir(parents=True)
            wanted = inspect.signature(check).parameters
            try:
                with torch.inference_mode():
                    given = {"pack": pack, "checkpoint": checkpoint, "tmp_path": scratch}
                    if "loaded" in wanted:
                        given["loaded"] = cloned(checkpoint)
                    check(**{key: given[key] for key in wanted})
                results[f"{path.stem}.{name}"] = ""
            except Exception:  # whatever a check raises is its result; the test that asked shows it and fails
                results[f"{path.stem}.{name}"] = traceback.format_exc()
            give_back()
    return results


if __name__ == "__main__":
    tree, results, folder, checkpoint = map(Path, sys.argv[1:5])
    extent_and_only = sys.argv[5:]
    start_comfy(tree, folder)
    results.write_text(json.dumps(run(checkpoint, folder, *extent_and_only)), encoding="utf-8")
