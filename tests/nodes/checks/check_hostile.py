"""Values that a workflow of a stranger's may hold, over the API, where no widget limits them: refused in one line, and
nothing is written, least of all outside of ComfyUI's folders. What a list or a bound of the schema refuses, ComfyUI
refuses before a node sees it; here each value goes straight to the node."""

import math
import os
from importlib import import_module
from pathlib import Path

import torch

NAMES = (
    "", ".", "..", "a/..", "../up", "a/../../up", "/tmp/absolute", "C:\\up", "..\\up", "a\0b", "CON", "prn",
    "nul.safetensors", "LPT1", "dot.", "space ", "-", "a" * 300, "\u00e9", "a\nb", "a:b", "~/up", "$HOME", "%TEMP%",
    "\ud800",
)  # fmt: skip
NUMBERS = (math.nan, math.inf, -math.inf, -1, 2**31, 2**63, 10**400, -(10**30), 1e308)


def module(pack, name):
    return import_module(f"{pack.__name__}.{name}")


def tree(tmp_path):
    """Every file and folder below ComfyUI's base directory and beside it, with its size and time."""
    import folder_paths

    base = Path(folder_paths.base_path)
    places = [path for root in (base, tmp_path) for path in root.rglob("*")] + list(base.parent.iterdir())
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in places if path != base}


def outcome(call):
    """-> the line in which it was refused; None where it was not. What is neither a refusal of ours nor of the file
    system goes on; ComfyUI itself says of a name that is not on a list that there is no such file."""
    line = None
    try:
        call()
    except OSError as error:
        line = ascii(error)
    except Exception as error:
        if type(error).__name__ != "MagiCaptureError":
            raise AssertionError(f"{type(error).__name__}: {str(error)[:200]!r}") from error
        line = str(error)
    assert line is None or (line.isprintable() and 0 < len(line) < 4000), repr(line)
    return line


def check_names_reach_nothing(pack, tmp_path):
    """Files are chosen from lists; what is on none of them is refused, and nothing is made."""
    nodes = {
        name: module(pack, f"nodes.{name}") for name in ("photos", "artifact", "restore", "recognition", "objects")
    }
    sefi = module(pack, "nodes.sefi_identity")
    before, faults = tree(tmp_path), []
    calls = {
        "folder": lambda name: nodes["photos"].LoadPhotos.execute(name),
        "folder, look": lambda name: nodes["photos"].LoadPhotos.fingerprint_inputs(name),
        "lora_name": lambda name: nodes["artifact"].LoadMagiCaptureLoRA.execute(None, None, name, 1.0, 1.0),
        "restorer": lambda name: nodes["restore"].LoadFaceRestorer.execute(name),
        "recogniser": lambda name: nodes["recognition"].LoadFaceRecognition.execute(name),
        "features": lambda name: nodes["objects"].LoadObjectFeatures.execute(name),
        "identity": lambda name: sefi.LoadSeFiIdentity.execute(name),
    }
    for what, call in calls.items():
        for name in NAMES:
            try:
                told = outcome(lambda call=call, name=name: call(name))
            except AssertionError as error:
                faults.append(f"{what} {name[:20]!r}: {error}")
                continue
            if told is None and what != "folder, look":
                faults.append(f"{what} {name[:20]!r}: taken")
    assert tree(tmp_path) == before
    assert not faults, "\n".join(faults)


def check_names_of_trainings(pack, tmp_path):
    """They become files and folders: only letters, digits, - and _, and no device of Windows."""
    folders = module(pack, "nodes.folders")
    before = tree(tmp_path)
    for name in NAMES:
        assert outcome(lambda name=name: folders.runs_folder(name)), name
    assert tree(tmp_path) == before


def check_prefixes_stay_in_output(pack, tmp_path):
    """A prefix may name a folder of the output folder's, as in Save Image, and no other."""
    import folder_paths

    node = module(pack, "nodes.save").SavePortraits.PREPARE_CLASS_CLONE(None)
    node.hidden = type(node.hidden).from_dict({"PROMPT": {}, "EXTRA_PNGINFO": {}})
    output, faults = os.path.realpath(folder_paths.get_output_directory()), []
    for name in NAMES:
        before = tree(tmp_path)
        try:
            outcome(lambda name=name: node.execute(images=torch.rand(1, 8, 8, 3), filename_prefix=name, mark="none"))
        except AssertionError as error:
            faults.append(f"{name[:20]!r}: {error}")
        new = [Path(os.path.realpath(path)) for path in tree(tmp_path).keys() - before.keys()]
        faults += [f"{name[:20]!r} wrote {path}" for path in new if not path.is_relative_to(output)]
    assert not faults, "\n".join(faults)


def check_numbers_keep_within_their_sockets_bounds(pack):
    """Over a link too, where ComfyUI looks at nothing: each is refused by name before any other input is missed."""
    from check_schemas import nodes, sockets

    met = 0
    for node in nodes(pack):
        for name, (kind, *options) in sockets(node.GET_NODE_INFO_V1()).items():
            if kind not in ("INT", "FLOAT"):
                continue
            low, high = options[0]["min"], options[0]["max"]
            for number in (math.nan, math.inf, -math.inf, low - 1, high * 2 + 1, 10**400):
                for value in (number, [high, number]):
                    told = outcome(lambda node=node, name=name, value=value: node.execute(**{name: value}))
                    assert told == f"{name}: {number} is not within {low} to {high}", (node.__name__, told)
            met += 1
    assert met > 100


def check_numbers_of_settings(pack):
    """No number is taken that is none, or that no machine can count to."""
    config, masks = module(pack, "magicapture_core.config"), module(pack, "magicapture_core.masks")
    sefi, faults = module(pack, "magicapture_core.sefi.config"), []
    kinds = {config.TrainConfig: (), masks.MaskOptions: (), sefi.SefiConfig: ()}
    for kind in kinds:
        for name, field in kind.model_fields.items():
            if field.annotation not in (int, float):
                continue
            for number in NUMBERS:
                try:
                    told = outcome(lambda kind=kind, name=name, number=number: config.parse(kind, {name: number}))
                except AssertionError as error:
                    faults.append(f"{name}={number!r:.30}: {error}")
                    continue
                is_bad = not math.isfinite(number) if isinstance(number, float) else abs(number) >= 2**63
                if told is None and is_bad:
                    faults.append(f"{name}={number!r:.30}: taken")
    assert not faults, "\n".join(faults)
