"""OptionalModels: which files the pack can use, what each is for, on what terms, and whether it is there."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths
from comfy_api.latest import io

from .folders import DINO, INSIGHTFACE, MODELS, OBJECT_FEATURES, RECOGNISERS, models_folders, other_models
from .objects import feature_files
from .recognition import recogniser_files
from .restore import KIND as RESTORERS
from .restore import restorer_files
from .sockets import schema, show

if TYPE_CHECKING:
    from ..magicapture_core.models import KnownModel

UPSCALERS = "upscale_models"
LISTS = {  # a folder -> the kind and the list of its loader, which looks into the folder's own folders too
    INSIGHTFACE: (RECOGNISERS, recogniser_files),
    DINO: (OBJECT_FEATURES, feature_files),
    RESTORERS: (RESTORERS, restorer_files),
    UPSCALERS: (UPSCALERS, partial(folder_paths.get_filename_list, UPSCALERS)),
}


class OptionalModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Optional Models",
            node_id="MagiCaptureOptionalModels",
            description="Lists every model file that the pack can use: what it is for, its licence, the folder it goes "
            "into, and whether it is there. Nothing is downloaded.",
            search_aliases=["install", "models", "licence", "missing"],
            is_output_node=True,
            inputs=[],
            outputs=[io.String.Output(display_name="report", tooltip="A line for every file.")],
        )

    @classmethod
    def fingerprint_inputs(cls) -> float:
        """Looks again at every queue: files come and go."""
        return float("nan")

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ..magicapture_core.models import KNOWN_MODELS

        report = "\n".join(sorted((describe(model) for model in KNOWN_MODELS), key=lambda line: line.split(":")[0]))
        return io.NodeOutput(report, ui=show(report))


def describe(model: KnownModel) -> str:
    """One line: whether it is there and where, or where it would go and where to get it."""
    about = f"{model.file}: {model.purpose}. Licence: {model.terms}."
    if found := find(model):
        return f"here: {about} {shown(found)}"
    place = shown(candidates(model.places[0])[0].parent)
    if model.folder == MODELS:
        return f"missing: {about} It goes into {place}. Run: {model.get}"
    return f"missing: {about} Put it into {place}; from {model.get}"


def find(model: KnownModel) -> Path | None:
    """Where its loader finds it."""
    if model.folder not in LISTS:
        paths = [path for place in model.places for path in candidates(place)]
        return next(filter(Path.is_file, paths), None)
    kind, listed = LISTS[model.folder]
    found = [folder_paths.get_full_path(kind, name) for name in listed() if Path(name).name == model.file]
    return next((Path(path) for path in found if path), None)


def candidates(place: str) -> list[Path]:
    """FOLDER/FILE in every folder that ComfyUI knows for it, the first of them first."""
    kind, _, file = place.partition("/")
    return [folder / file for folder in (models_folders() if kind == MODELS else other_models(kind))]


def shown(path: Path) -> str:
    """Below ComfyUI's models folder where it lies there, else whole."""
    home = Path(folder_paths.models_dir)
    return f"models/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)


NODES = [OptionalModels]
