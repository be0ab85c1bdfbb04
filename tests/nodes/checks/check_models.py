"""The node that lists the files: what is there is found, also below its folder, and all others say where they go."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def placed(*paths):
    """Empty files, below ComfyUI's models folder where they are not whole paths."""
    import folder_paths

    files = [Path(folder_paths.models_dir, path) for path in paths]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    try:
        yield
    finally:
        for file in files:
            file.unlink()


def line(pack, file):
    """What the report says of the one file."""
    (report,) = sys.modules[f"{pack.__name__}.nodes.models"].OptionalModels.execute().result
    [found] = [said for said in report.splitlines() if f": {file}: " in said]
    return found


def check_every_known_file_has_its_line(pack):
    import folder_paths

    node = sys.modules[f"{pack.__name__}.nodes.models"].OptionalModels
    place = Path(folder_paths.models_dir, "insightface", "models", "buffalo_l", "w600k_r50.onnx")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()
    try:
        (report,) = node.execute().result
    finally:
        place.unlink()
    known = sys.modules[f"{pack.__name__}.magicapture_core.models"].KNOWN_MODELS
    lines = report.splitlines()
    assert len(lines) == len(known)
    here = [line for line in lines if line.startswith("here: w600k_r50.onnx")]
    assert len(here) == 1
    assert "(non-commercial)" in here[0]
    assert here[0].endswith("models/insightface/models/buffalo_l/w600k_r50.onnx")
    missing = [line for line in lines if line.startswith("missing: GFPGANv1.4.pth")]
    assert len(missing) == 1
    assert "Put it into models/facerestore_models; from https://" in missing[0]


def check_what_a_loader_takes_is_here(pack):
    for place in (
        "face_recognition/glintr100.onnx",
        "vae_approx/taesd_decoder.pth",
        "facerestore_models/parsing_bisenet.pth",
        "magicapture/parsing_bisenet.pth",
        "dino/small/dino_deitsmall16_pretrain.pth",
        "upscale_models/real/RealESRGAN_x2plus.pth",
    ):
        file = Path(place).name.replace("decoder.pth", "decoder.safetensors")
        assert line(pack, file).startswith("missing: ")
        with placed(place):
            assert line(pack, file).startswith("here: ")
            assert line(pack, file).endswith(f" models/{place}")


def check_what_a_loader_does_not_take_is_missing(pack):
    with placed("facedetection/sub/parsing_bisenet.pth", "vae_approx/sub/taesd_decoder.safetensors"):
        for file in ("parsing_bisenet.pth", "taesd_decoder.safetensors"):
            assert line(pack, file).startswith("missing: ")


def check_linked_folders_are_followed(pack, tmp_path):
    import folder_paths

    link = Path(folder_paths.models_dir, "facerestore_models", "linked")
    link.parent.mkdir(parents=True, exist_ok=True)
    with placed(tmp_path / "GFPGANv1.4.pth"):
        link.symlink_to(tmp_path, target_is_directory=True)
        try:
            assert line(pack, "GFPGANv1.4.pth").endswith(" models/facerestore_models/linked/GFPGANv1.4.pth")
        finally:
            link.unlink()


def check_our_own_files_say_what_to_run(pack, tmp_path):
    remedy = sys.modules[f"{pack.__name__}.magicapture_core.models"].REMEDIES["faces"]
    default, os.environ["MAGICAPTURE_MODELS"] = os.environ["MAGICAPTURE_MODELS"], str(tmp_path)
    try:
        said = line(pack, "faces/facemesh.npz")
        assert said.startswith("missing: ")
        assert said.endswith(f" It goes into models/magicapture/faces. Run: {remedy}")
        with placed("magicapture/faces/facemesh.npz"):
            assert line(pack, "faces/facemesh.npz").endswith(" models/magicapture/faces/facemesh.npz")
    finally:
        os.environ["MAGICAPTURE_MODELS"] = default
