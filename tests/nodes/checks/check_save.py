"""SavePortraits: what it writes is what Save Image writes, and the mark."""

import json
import re
import time
from importlib import import_module
from pathlib import Path

import torch
from check_restore import refused
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

WORKFLOW = {"nodes": [{"id": 1, "type": "MagiCaptureSavePortraits", "title": "\u00e4"}], "version": 0.4}
PROMPT = {"1": {"class_type": "MagiCaptureSavePortraits", "inputs": {"filename_prefix": "x"}}}


def texts(file):
    """What a PNG says beside its pixels."""
    with PngImageFile(file) as picture:
        return picture.text


def module(pack, name):
    return import_module(f"{pack.__name__}.{name}")


def save(pack, prefix, count=2, images=None, **options):
    """-> the files, and the pictures that went in."""
    import folder_paths

    node = module(pack, "nodes.save").SavePortraits.PREPARE_CLASS_CLONE(None)
    node.hidden = type(node.hidden).from_dict({"PROMPT": PROMPT, "EXTRA_PNGINFO": {"workflow": WORKFLOW}})
    if images is None:
        images = torch.rand(count, 8, 12, 3, generator=torch.Generator().manual_seed(0))
    options = {"mark": "generated", **options}
    saved = node.execute(images=images, filename_prefix=prefix, **options).ui["images"]
    output = Path(folder_paths.get_output_directory())
    return [output / entry["subfolder"] / entry["filename"] for entry in saved], images


def check_a_file_is_that_of_save_image_with_a_mark(pack):
    """Same names, pixels and texts, so that a file dropped on the page brings its workflow back."""
    import folder_paths

    ours, images = save(pack, "one/ours")
    stock = (
        import_module("nodes")
        .SaveImage()
        .save_images(images, "one/stock", PROMPT, {"workflow": WORKFLOW})["ui"]["images"]
    )
    theirs = [Path(folder_paths.get_output_directory()) / "one" / entry["filename"] for entry in stock]
    assert [file.name.replace("ours", "stock") for file in ours] == [file.name for file in theirs]
    read_mark = module(pack, "magicapture_core.marks").read_mark
    for left, right in zip(ours, theirs, strict=True):
        said = {key: value for key, value in texts(left).items() if key != "XML:com.adobe.xmp"}
        assert said == texts(right)
        assert json.loads(said["workflow"]) == WORKFLOW
        with Image.open(left) as one, Image.open(right) as other:
            difference = torch.tensor(list(one.tobytes())) - torch.tensor(list(other.tobytes()))
            assert difference.abs().max() <= 1  # Save Image cuts off, ours rounds
        assert (read_mark(left), read_mark(right)) == ("generated", None)


def check_transparency_is_kept_as_save_image_keeps_it(pack):
    images = torch.rand(1, 8, 12, 4, generator=torch.Generator().manual_seed(1))
    [ours], _ = save(pack, "clear/ours", images=images)
    [stock] = import_module("nodes").SaveImage().save_images(images, "clear/stock")["ui"]["images"]
    with Image.open(ours) as one, Image.open(ours.with_name(stock["filename"])) as other:
        assert one.mode == other.mode == "RGBA"
        difference = torch.tensor(list(one.tobytes())) - torch.tensor(list(other.tobytes()))
        assert difference.abs().max() <= 1


def check_a_batch_number_overwrites_nothing(pack):
    """ComfyUI counts by the prefix as it was written, so every queue begins at 1."""
    queues = [save(pack, "many/a%batch_num%")[0] for _ in range(2)]
    names = [[file.name for file in files] for files in queues]
    assert names == [["a0_00001_.png", "a1_00002_.png"], ["a0_00002_.png", "a1_00003_.png"]]
    folder = queues[0][0].parent
    assert {file.name for file in folder.iterdir()} == {*names[0], *names[1]}


def check_a_prefix_without_a_name_stays_in_its_folder(pack):
    """Save Image calls these files ._00001_.png and so on; the page is told of files that are there."""
    import folder_paths

    output = Path(folder_paths.get_output_directory())
    for prefix in ("", ".", "nameless/.."):
        files, _ = save(pack, prefix)
        assert all(file.is_file() and file.parent == output for file in files), (prefix, files)
        assert len(set(files)) == 2


def check_a_prefix_is_filled_as_the_page_fills_that_of_save_image(pack):
    """The page knows the stock save nodes by their ids, and sends ours as it was written."""
    fill = module(pack, "nodes.save").fill_prefix
    now = time.struct_time((2026, 3, 4, 5, 6, 7, 0, 0, 0))
    prompt = {
        "1": {"class_type": "KSampler", "inputs": {"seed": 7, "steps": ["2", 0]}, "_meta": {"title": "Noise"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a/b: c"}, "_meta": {"title": "My prompt"}},
    }
    expected = {
        "%date:yyyy-MM-dd%/x": "2026-03-04/x",
        "%date:yyMMdd_hhmmss%": "260304_050607",
        "%date:d.M.yyyy h:m:s%": "4.3.2026 5:6:7",
        "%KSampler.seed%_%Noise.seed%": "7_7",
        "%My prompt.text%": "a_b_ c",
        "%year%-%width%-%batch_num%-%mine%, 50% of 3.5%": "%year%-%width%-%batch_num%-%mine%, 50% of 3.5%",
    }
    assert {prefix: fill(prefix, prompt, now) for prefix in expected} == expected
    for unknown in ("%KSampler.sead%", "%Nobody.seed%", "%KSampler.steps%"):
        with refused(f"filename_prefix: {unknown} is no widget"):
            fill(f"a_{unknown}", prompt, now)
    [file], _ = save(pack, "filled/%date:yyyy%_%MagiCaptureSavePortraits.filename_prefix%", count=1)
    assert re.fullmatch(r"\d{4}_x_00001_.png", file.name)


def check_the_mark_is_the_users_choice(pack):
    read_mark = module(pack, "magicapture_core.marks").read_mark
    for mark, expected in (("retouched", "retouched"), ("none", None)):
        files, _ = save(pack, f"choice-{mark}", mark=mark)
        assert {read_mark(file) for file in files} == {expected}


def check_scores_go_along_and_numbers_go_on(pack):
    first, _ = save(pack, "scored", scores="seed 7: 0.51 \u00e4")
    second, _ = save(pack, "scored", count=1)
    assert [file.name for file in first + second] == [f"scored_{n:05}_.png" for n in (1, 2, 3)]
    assert texts(first[0])["scores"] == "seed 7: 0.51 \u00e4"
    assert "scores" not in texts(second[0])


def check_disable_metadata_leaves_the_mark(pack):
    from comfy.cli_args import args

    args.disable_metadata = True
    try:
        [file], _ = save(pack, "bare", count=1, scores="7")
    finally:
        args.disable_metadata = False
    assert list(texts(file)) == ["XML:com.adobe.xmp"]
