"""The terminal's short commands: files in, one call into the core, files out. Each returns what it prints."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from . import artifact as artifacts
from . import models as known
from .terminal import Result, frame_folder, progress

SHEET = Path("overlays", "contact-sheet.jpg")  # not beside the squares: their folder is one of photos


def run_demo(arguments: Namespace) -> Result:
    from . import demo

    return demo.run(arguments.output, progress)


def masks(arguments: Namespace) -> Result:
    from .images import save_image
    from .masks import require_portraits
    from .proofs import overlay, photo_sheet

    photos, portraits, notes = frame_folder(arguments.photos, None, arguments.resolution, "subject")
    sheet, source = arguments.output / SHEET, str(arguments.photos)
    if photos:
        by_name = {note.file_name: note for note in notes}
        save_image(photo_sheet([image for _, image in photos], [by_name[name] for name, _ in photos]), sheet)
        source += f", see {sheet}"
    portraits = require_portraits(portraits, notes, source)
    names = output_names([face.file_name for face in portraits.faces])
    for index, picture in enumerate(overlay(portraits)):
        save_image(portraits.images[index], arguments.output / names[index])
        save_image(portraits.masks[index].expand(3, -1, -1), arguments.output / "masks" / names[index])
        save_image(picture, arguments.output / "overlays" / names[index])
    return {
        "output": str(arguments.output),
        "contact_sheet": str(sheet),
        "photos": [str(note) for note in notes],
    }


def output_names(photos: Sequence[str]) -> list[str]:
    """A PNG's name for each photo: by its stem; by its whole name, all of them, where two photos share a stem."""
    stems = [Path(photo).stem for photo in photos]
    distinct = len({stem.casefold() for stem in stems}) == len(stems)  # for file systems that ignore case, too
    return [f"{name}.png" for name in (stems if distinct else photos)]


def inspect(arguments: Namespace) -> Result:
    from .sefi import identity

    about = identity if identity.is_identity(arguments.file) else artifacts
    return about.inspect(arguments.file)


def strip(arguments: Namespace) -> Result:
    from .sharing import strip as strip_file

    return {"lora": str(strip_file(arguments.file, arguments.output))}


def export(arguments: Namespace) -> Result:
    from .sharing import export_a1111

    made = export_a1111(arguments.file, arguments.output)
    return {**made, "next": f"copy what is in {arguments.output} into the WebUI's own folder, or unpack it there"}


def forget(arguments: Namespace) -> Result:
    from .kept import forget as delete

    folder = arguments.output / "magicapture" / artifacts.check_name(arguments.name)
    return {
        "deleted": [str(path) for path in delete(folder)],
        "stays": "the LoRA or the identity, its embeddings and its preview, wherever they lie, and your photos: delete "
        "them by hand",
    }


def unpack(arguments: Namespace) -> Result:
    return {"embeddings": [str(file) for file in artifacts.unpack(arguments.file, arguments.output)]}


def extract(arguments: Namespace) -> Result:
    from .halves import extract as take_out

    found = artifacts.load(arguments.file)
    name = arguments.name or f"{found.name}_{arguments.concept}_only"
    return _saved(take_out(found, arguments.concept, name), arguments.output)


def mix(arguments: Namespace) -> Result:
    from .halves import mix as join

    mixed = join(artifacts.load(arguments.subject), artifacts.load(arguments.style), arguments.name)
    return _saved(mixed, arguments.output)


def _saved(artifact: artifacts.Artifact, folder: Path) -> Result:
    lora, *embeddings = artifacts.save(artifact, folder)
    return {"lora": str(lora), "embeddings": [str(file) for file in embeddings]}


def models(arguments: Namespace) -> Result:
    folder = known.models_folder()
    if arguments.action == "get":
        getters = {"faces": known.get_faces, "tokenizer": known.get_tokenizer}
        wanted = [arguments.what] if arguments.what else list(getters)
        return {"got": [line for what in wanted for line in getters[what](folder)]}
    return {
        "folder": str(folder),
        "models": [
            {
                "file": str(model.path(folder)),
                "there": model.find(folder) is not None,
                "purpose": model.purpose,
                "licence": model.terms,
                "get": model.get,
            }
            for model in known.KNOWN_MODELS
        ],
    }
