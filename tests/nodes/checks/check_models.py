"""The node that lists the files: what is there is found, also below its folder, and all others say where they go."""

import sys
from pathlib import Path


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
