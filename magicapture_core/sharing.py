"""What goes to others with a LoRA file: a preview picture, a copy that says no more than it must, and the folders of a
WebUI (A1111 or Forge) filled.

In: files of `artifact.save`. Out: more files; nothing is overwritten.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .artifact import NOTES, PREVIEW, Artifact, embedding_names, load, plain_name, save, sentence, write_new
from .files import place, written_beside
from .metadata import Content, modelspec, write_content
from .types import SD1, MagiCaptureError

NEEDED = (
    "magicapture.format",
    "magicapture.tokens",
    "magicapture.templates",
    "magicapture.rank_split",
    "modelspec.architecture",
    "modelspec.license",  # has to go with the file
)
LORAS, EMBEDDINGS = Path("models") / "Lora", Path("embeddings")  # of a WebUI


def add_preview(lora: Path, sample: Path) -> Path | None:
    """A picture that the training has made, beside the LoRA under the name that LoRA managers look for.

    None where there is no such sample. A preview that is there already stays.
    """
    if not sample.is_file():
        return None
    preview = lora.with_suffix(PREVIEW)
    if not preview.exists():
        _place_new(preview, lambda beside: shutil.copyfile(sample, beside))
    return preview


def strip(path: Path, folder: Path) -> Path:
    """A copy into `folder` that holds the weights, the learned words, one sentence to use them in, and the licence.

    Gone are settings, what the training was like, titles, the words that the learned ones started from, and whatever
    other tools have added.
    """
    artifact = load(path)
    content = Content(
        tokens=tuple(replace(token, initializer="") for token in artifact.tokens),
        config={},
        templates={"composed": [artifact.composed_prompt]},
        rank_split=artifact.rank_split,
    )
    fields = write_content(content) | modelspec(artifact.architecture, "lora", "", {})
    metadata = {field: fields[field] for field in NEEDED}
    (stripped,) = write_new(
        plain_name(artifact), lambda name: {folder / f"{name}{path.suffix}": (artifact.lora, metadata)}
    )
    return stripped


def export_a1111(path: Path, folder: Path) -> dict[str, Any]:
    """LoRA, embeddings, preview and notes, as they lie in a WebUI's own folder -> the files, and what to write.

    Raises MagiCaptureError for a file of a model that a WebUI does not have.
    """
    artifact = load(path)
    if artifact.architecture != SD1:
        raise MagiCaptureError(f"{path.name} was trained for {artifact.architecture}: A1111 and Forge have SD1.5")
    artifact = replace(artifact, name=plain_name(artifact))
    lora, *embeddings = save(artifact, folder / LORAS, folder / EMBEDDINGS)
    artifact = replace(artifact, name=lora.stem)
    preview = add_preview(lora, path.with_suffix(PREVIEW))
    notes = lora.with_suffix(NOTES)
    text = json.dumps(_notes(artifact), indent=1)
    _place_new(notes, lambda beside: beside.write_text(text, encoding="utf-8"))
    return {
        "lora": str(lora),
        "embeddings": [str(file) for file in embeddings],
        "preview": str(preview or ""),
        "notes": str(notes),
        "prompt": f"<lora:{lora.stem}:1> {sentence(artifact, embedding_names(artifact))}",
    }


def _notes(artifact: Artifact) -> dict[str, Any]:
    """A1111's user metadata: a click on the card writes the activation text behind `<lora:NAME:1>`."""
    words = embedding_names(artifact)
    return {
        "description": "",
        "sd version": "SD1",
        "activation text": sentence(artifact, words),
        "preferred weight": 1.0,
        "negative text": "",
        "notes": f"Made with MagiCapture. Needs in the folder embeddings: {', '.join(words.values())}",
    }


def _place_new(path: Path, write: Callable[[Path], object]) -> None:
    """Another run that has just taken the place keeps it."""
    with written_beside(path, write) as beside:
        try:
            place(beside, path)
        except FileExistsError:
            return
