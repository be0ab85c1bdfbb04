"""Where things lie in this ComfyUI, and the check that a name from the page stays inside its folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import folder_paths

from ..magicapture_core.types import MagiCaptureError

MODELS = "magicapture"  # the kind under which face networks are found: models/magicapture and extra_model_paths.yaml
RECOGNISERS = "face_recognition"  # our own, for other packs register `insightface` with endings that leave .onnx out
INSIGHTFACE = "insightface"
VAE_APPROX = "vae_approx"
IDENTITIES = "sefi_identities"  # of one photo each, from Train SeFi Identity
OBJECT_FEATURES, DINO = "object_features", "dino"  # the kind, our own too, and its folder


def register_models() -> None:
    """Tells ComfyUI of models/magicapture and models/sefi_identities, next to whatever extra_model_paths.yaml added to
    the kinds; and of the folders in which face recognisers and DINO lie."""
    for kind in (MODELS, IDENTITIES):
        folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))
    for folder in (*other_models(INSIGHTFACE), os.path.join(folder_paths.models_dir, RECOGNISERS)):
        folder_paths.add_model_folder_path(RECOGNISERS, str(folder))
    for folder in other_models(DINO):
        folder_paths.add_model_folder_path(OBJECT_FEATURES, str(folder))


def models_folders() -> list[Path]:
    from ..magicapture_core.models import models_folder

    return [*map(Path, folder_paths.get_folder_paths(MODELS)), models_folder()]


def other_models(kind: str) -> list[Path]:
    """Where ComfyUI and other packs keep models of a kind."""
    known = folder_paths.get_folder_paths(kind) if kind in folder_paths.folder_names_and_paths else []
    return [*map(Path, known), Path(folder_paths.models_dir) / kind]


def loras_folder() -> Path:
    return Path(folder_paths.get_folder_paths("loras")[0])


def embeddings_folders() -> list[Path]:
    return list(map(Path, folder_paths.get_folder_paths("embeddings")))


def identities_folder() -> Path:
    return Path(folder_paths.get_folder_paths(IDENTITIES)[0])


def taesd_file() -> Path:
    """TAESD's decoder, which ComfyUI's previews use too. Raises MagiCaptureError where the user has none."""
    from ..magicapture_core.taesd import FILES

    for name in FILES:
        if found := folder_paths.get_full_path(VAE_APPROX, name):
            return Path(found)
    raise MagiCaptureError(
        f"loss_identity_decoder taesd: put {FILES[0]} into {folder_paths.get_folder_paths(VAE_APPROX)[0]}, or take vae"
    )


def runs_folder(name: str) -> Path:
    """<output>/magicapture/NAME, where a run keeps its state and samples."""
    from ..magicapture_core.artifact import check_name

    return inside(Path(folder_paths.get_output_directory()) / "magicapture", check_name(name))


def digest(*parts: object) -> str:
    """A node's fingerprint. ComfyUI writes it into every picture that is saved, so it must tell no path, and no name
    of a photo."""
    return hashlib.blake2b(repr(parts).encode(errors="backslashreplace"), digest_size=16).hexdigest()


def inside(folder: Path, name: str) -> Path:
    """folder/name, refused when it leaves the folder: names come over HTTP and may be anyone's."""
    try:
        root, path = os.path.realpath(folder), os.path.realpath(os.path.join(folder, name))
        is_inside = os.path.commonpath([root, path]) == root
    except ValueError:  # a NUL, half a character, or another drive of Windows
        is_inside = False
    if not is_inside:
        raise MagiCaptureError(f"{name!r} lies outside {folder}: choose an entry of the list")
    return Path(path)
