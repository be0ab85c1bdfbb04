"""OptionalModels: which files the pack can use, what each is for, on what terms, and whether it is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths
from comfy_api.latest import io

from .folders import MODELS, models_folders, other_models
from .sockets import schema, show

if TYPE_CHECKING:
    from ..magicapture_core.models import KnownModel


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
    folders = models_folders() if model.folder == MODELS else other_models(model.folder)
    found = model.find(folders)
    about = f"{model.file}: {model.purpose}. Licence: {model.terms}."
    if found:
        return f"here: {about} {shown(found)}"
    return f"missing: {about} Put it into {shown(folders[0])}; from {model.get}"


def shown(path: Path) -> str:
    """Below ComfyUI's models folder where it lies there, else whole."""
    home = Path(folder_paths.models_dir)
    return f"models/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)


NODES = [OptionalModels]
