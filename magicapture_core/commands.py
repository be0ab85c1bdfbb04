"""The terminal's commands: files in, one call into the core, files out. Each returns what it prints, ready for JSON.

`train`, the longest, has train_command.py to itself.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import artifact as artifacts
from . import models as known
from .config import Kind
from .prompts import fill_prompt
from .types import Face, MagiCaptureError, PhotoNote, Portraits, Side

if TYPE_CHECKING:
    from torch import Tensor

    from .backbone import Backbone
    from .crew import Crew
    from .sefi.identity import SefiIdentity

SHEET = Path("overlays", "contact-sheet.jpg")  # not beside the squares: their folder is one of photos

Result = dict[str, Any]
Command = Callable[[Namespace], Result]


def progress(total: int, text: str, is_shown: bool = True) -> Any:
    """A bar on standard error."""
    from tqdm import tqdm

    return tqdm(total=total, desc=text, file=sys.stderr, dynamic_ncols=True, disable=not is_shown)


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


def read_portraits(
    folder: Path, masks_folder: Path | None, resolution: int, side: Side, kind: Kind = "person"
) -> tuple[Portraits, list[PhotoNote]]:
    """As `frame_folder`, without the photos. Raises MagiCaptureError with the reasons when none can be used."""
    from .masks import require_portraits

    _, portraits, notes = frame_folder(folder, masks_folder, resolution, side, kind)
    return require_portraits(portraits, notes, side), notes


def frame_folder(
    folder: Path, masks_folder: Path | None, resolution: int, side: Side, kind: Kind = "person"
) -> tuple[list[tuple[str, Tensor]], Portraits | None, list[PhotoNote]]:
    """A folder's photos that can be read, (name, image [3,H,W]) each; the portraits, None without one; what became of
    each file. masks_folder: masks of the same stems, white = face.

    Of an object there have to be masks, white = all of it: no network looks for it. In a style photo every face counts.
    """
    from .faces import load_face_detector
    from .images import join_notes, list_photos, load_masks, load_photos, match_masks
    from .masks import MaskOptions, prepare_portraits

    files = list_photos(folder)
    if kind == "object" and masks_folder is None:
        raise MagiCaptureError(f"--{side}-masks: give a folder with a mask for every photo, white = the object")
    readable, notes = load_photos(files)
    photos, given, faults = load_masks(readable, match_masks(files, masks_folder) if masks_folder else {})
    needs_detector = kind == "person" and any(mask is None for mask in given)
    try:
        detector = load_face_detector() if needs_detector else None
    except MagiCaptureError as error:
        raise MagiCaptureError(f"{error}, or give --{side}-masks with a mask for every photo") from error
    options = MaskOptions(shape="own" if kind == "object" else "oval", all_faces=side == "style")
    portraits, framed = prepare_portraits(photos, resolution, detector, options, given)
    return readable, portraits, join_notes(notes, faults, framed)


def read_backbone(checkpoint: Path | None) -> Backbone:
    """A single file, a diffusers folder, or without either the embedded tiny model."""
    from . import backbone

    if checkpoint is None:
        return backbone.tiny()
    return backbone.from_diffusers(checkpoint) if checkpoint.is_dir() else backbone.from_checkpoint(checkpoint)


def pick_device(name: str | None) -> str:
    import torch

    if name:
        try:
            return str(torch.empty(0, device=name).device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise MagiCaptureError(f"--device {name}: {reason}; leave it out for the fastest there is") from error
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def find_crew(device: str | None) -> Crew:
    """Of this process alone, or of those that a launcher has started with it, with the device of this one."""
    import torch

    from .crew import Crew, is_launched, join_crew

    return join_crew(device) if is_launched() else Crew(device=torch.device(pick_device(device)))


def generate(arguments: Namespace) -> Result:
    from .images import save_image
    from .sampler import generate as sample

    given = _Given.of(arguments)
    with progress(arguments.num_steps, "sampling") as bar:
        options = given.sampling(arguments, bar)
        images = sample(read_model(arguments), **options, num_images=arguments.count)
    files = []
    for index, image in enumerate(images):
        files.append(str(arguments.output / f"{given.name}-{arguments.seed + index}.png"))
        save_image(image, Path(files[-1]), "generated")
    return {"prompt": options["prompt"], "images": files}


def attention(arguments: Namespace) -> Result:
    from . import heatmaps
    from .images import save_image
    from .sampler import generate as sample
    from .sefi.prompts import fill_people

    given = _Given.of(arguments)
    asked = fill_prompt(fill_people(arguments.words or "", given.identities), given.artifact)
    words = [word.strip() for word in asked.split(",") if word.strip()]
    record = heatmaps.AttentionRecord(words or given.words)
    with progress(arguments.num_steps, "sampling") as bar:
        images = sample(read_model(arguments), **given.sampling(arguments, bar), record=record)
    sheets: dict[str, Tensor] = {
        "overlay": heatmaps.overlays(record, images),
        "steps": heatmaps.strips(record, images, heatmaps.over_steps(record, images))[0],
        "resolutions": heatmaps.resolutions(record, images)[0],
    }
    files = {name: arguments.output / f"{given.name}-attention-{name}.png" for name in sheets}
    for name, sheet in sheets.items():
        save_image(sheet, files[name], "generated")
    return {"words": list(record.words), **{name: str(file) for name, file in files.items()}}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Given:
    """What pictures are made from: a LoRA, identities, or both."""

    artifact: artifacts.Artifact | None
    identities: Sequence[SefiIdentity]

    @classmethod
    def of(cls, arguments: Namespace) -> _Given:
        from .sefi.identity import load
        from .sefi.prompts import told_apart

        if arguments.lora is None and not arguments.identity:
            raise MagiCaptureError("--lora, --identity: give one of them, or both")
        artifact = artifacts.load(arguments.lora) if arguments.lora else None
        words = [token.placeholder for token in artifact.tokens] if artifact else []
        return cls(artifact=artifact, identities=told_apart([load(file) for file in arguments.identity], words))

    @property
    def name(self) -> str:
        return self.artifact.name if self.artifact else self.identities[0].name

    @property
    def words(self) -> list[str]:
        """The learned ones."""
        tokens = self.artifact.tokens if self.artifact else ()
        return [one.placeholder for one in (*tokens, *self.identities)]

    @property
    def prompt(self) -> str:
        """Where the user gives none: that of the training, with everybody in it; of identities and a LoRA, the people
        in the style."""
        from .sefi.config import fill_word
        from .sefi.prompts import IN_A_STYLE, everybody

        if self.artifact and not self.identities:
            return self.artifact.composed_prompt
        sentence = IN_A_STYLE if self.artifact else self.identities[0].template
        return fill_word(sentence, everybody(len(self.identities)))

    def sampling(self, arguments: Namespace, bar: Any) -> dict[str, Any]:
        from .sefi.prompts import fill_people

        return {
            "artifact": self.artifact,
            "identities": self.identities,
            "prompt": fill_people(arguments.prompt or self.prompt, self.identities),
            "negative_prompt": arguments.negative_prompt,
            "strength": arguments.strength,
            "num_steps": arguments.num_steps,
            "guidance": arguments.guidance,
            "seed": arguments.seed,
            "on_step": lambda step, num_steps: bar.update(),
        }


def read_model(arguments: Namespace) -> Backbone:
    """The base model, on the device that was asked for."""
    import torch

    backbone = read_backbone(arguments.checkpoint)
    backbone.to(torch.device(pick_device(arguments.device)), torch.float32)
    return backbone


def restore(arguments: Namespace) -> Result:
    from dataclasses import asdict

    from .face_outcomes import mean_likeness
    from .faces import load_face_detector
    from .images import load_photo, save_image
    from .marks import check_suffix, read_mark
    from .restore import load_restorer, match_colour, report, restore_and_upscale
    from .upscale import load_upscaler

    if arguments.restorer or arguments.upscaler:
        check_suffix(arguments.output.name)
    image = load_photo(arguments.input)
    restorer = load_restorer(arguments.restorer) if arguments.restorer else None
    upscaler = load_upscaler(arguments.upscaler) if arguments.upscaler else None
    if restorer and arguments.fidelity is not None:
        restorer = restorer.with_fidelity(arguments.fidelity)
    guard = _guard(arguments)
    faces = load_face_detector().detect(image) if restorer else []
    paint = match_colour(restorer) if restorer and arguments.match_colour else restorer
    options = {"factor": arguments.scale, "face_index": arguments.face_index, "guard": guard}
    restored, outcomes = restore_and_upscale(image, faces, paint, upscaler, **options)
    is_retouched = upscaler or any(outcome.fate == "restored" for outcome in outcomes)
    save_image(restored, arguments.output, read_mark(arguments.input) or ("retouched" if is_retouched else None))
    before, after = mean_likeness(outcomes) or (None, None)
    return {
        "output": str(arguments.output),
        "size": list(restored.shape[:0:-1]),
        "faces": [asdict(outcome) for outcome in outcomes],
        "likeness_before": before,
        "likeness_after": after,
        "report": report(restorer, upscaler, guard, [(faces, outcomes)]),
    }


def _guard(arguments: Namespace) -> Any:
    """What puts a face back that lost the person, where a recogniser and photos are given."""
    from .restore import Guard

    likeness = read_likeness(arguments)
    return Guard(likeness=likeness, max_loss=arguments.max_likeness_loss) if likeness else None


def read_likeness(arguments: Namespace) -> Callable[[Tensor, Face], float] | None:
    """Of faces to the photos, where a recogniser and photos are given. Raises MagiCaptureError for one of the two."""
    from .faces import load_face_detector
    from .images import load_photo
    from .likeness import likeness_to
    from .recognisers import load_recogniser

    if arguments.recogniser is None and arguments.reference is None:
        return None
    if arguments.recogniser is None:
        raise MagiCaptureError("--reference: give --recogniser too, the network that compares the faces")
    if arguments.reference is None:
        raise MagiCaptureError("--recogniser: give --reference too, a photo or a folder of photos of the person")
    recogniser = load_recogniser(arguments.recogniser)
    photos = [load_photo(path) for path in reference_photos(arguments.reference)]
    return likeness_to(recogniser, load_face_detector(), photos)


def reference_photos(reference: Path) -> Sequence[Path]:
    """Of a photo itself, or of a folder all."""
    from .images import list_photos

    return list_photos(reference) if reference.is_dir() else [reference]


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
