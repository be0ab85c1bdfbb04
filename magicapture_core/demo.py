"""The whole line on the pack's own pictures and the embedded tiny model, and the page that shows it.

In: a folder. Out: in it the LoRA, the two embeddings, pictures of every stage, and a page that holds them together.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import artifact as artifacts
from .config import TrainConfig
from .curves import draw_curves
from .faces import load_face_detector
from .files import write_atomic
from .heatmaps import AttentionRecord, overlays
from .images import load_photo, load_photos, resize, save_image
from .marks import Mark
from .masks import MaskOptions, prepare_portraits, require_portraits
from .restore import restore_and_upscale
from .sampler import generate
from .sheets import contact_sheet
from .types import Portraits

if TYPE_CHECKING:
    from .artifact import Artifact
    from .backbone import Backbone

SAMPLES = Path(__file__).parent / "tiny" / "samples"
NAME = "demo"
SAMPLING: dict[str, Any] = {"num_images": 8, "num_steps": 20, "guidance": 2.5, "seed": 7}
LOOK = 256  # side of the pictures that are only looked at
NOTE = (
    "The embedded model is tiny and knows drawn portraits alone. Every stage is the real one; with --checkpoint the "
    "same line trains on your SD1.5 model."
)

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>MagiCapture demo</title>
<style>body{{font:16px system-ui;max-width:62rem;margin:2rem auto;padding:0 1rem}}img{{max-width:100%}}</style>
<h1>MagiCapture demo</h1>
<p>{note}</p>
<p>In this folder:</p><ul>{kept}</ul>
{sections}
</html>
"""

Progress = Callable[[int, str], Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """A picture of the report [3,H,W], its file's name, what it shows, and whether a model made it."""

    name: str
    caption: str
    image: Tensor
    mark: Mark | None = None


def run(output: Path, progress: Progress) -> dict[str, Any]:
    """Photos, masks, training, composed pictures before and after, attention, restoration. Returns what was written."""
    from . import backbone as backbones
    from . import recipe
    from .proofs import overlay

    config = TrainConfig.preset("tiny")
    photos = {"subject": read_samples("person", config.resolution), "style": read_samples("style", config.resolution)}
    backbone = backbones.tiny()
    with progress(config.num_steps, "training") as bar:
        result = recipe.personalize(
            backbone,
            photos,
            config,
            name=NAME,
            folder=output / "magicapture" / NAME,
            save=lambda made: list(artifacts.save(made, output)),
            on_step=lambda step: bar.update(),
        )
    before, after, record = compose(backbone, artifacts.load(result.files[0]), progress)
    sheets = [
        Sheet(
            name="masks",
            caption="Photos, framed, with the face masks that were found. Above the subject, below the style.",
            image=contact_sheet([*overlay(read_samples("person", LOOK)), *overlay(read_samples("style", LOOK))], 4),
        ),
        losses(result.told.history),
        Sheet(
            name="composed",
            caption="The composed prompt before and after training, same seeds.",
            image=compare({"before": before, "after": after}),
            mark="generated",
        ),
        Sheet(
            name="attention",
            caption="Where the two learned words look while the pictures are made.",
            image=overlays(record, enlarge(after)),
            mark="generated",
        ),
        restored(),
    ]
    return write_report(output, result.files, sheets, NOTE)


def read_samples(kind: str, resolution: int) -> Portraits:
    """The pack's `person` or `style` pictures, framed."""
    photos, notes = load_photos(sorted(SAMPLES.glob(f"{kind}_*.jpg")))
    portraits, framed = prepare_portraits(photos, resolution, load_face_detector(), MaskOptions())
    return require_portraits(portraits, [*notes, *framed], "subject" if kind == "person" else "style")


def compose(backbone: Backbone, artifact: Artifact, progress: Progress) -> tuple[Tensor, Tensor, AttentionRecord]:
    """The composed prompt without and with the LoRA, [4,3,H,W] each, and where the learned words look in the latter."""
    record = AttentionRecord([token.placeholder for token in artifact.tokens])
    with progress(2 * SAMPLING["num_steps"], "sampling") as bar:
        options = {**SAMPLING, "on_step": lambda step, num_steps: bar.update()}
        before = generate(backbone, artifact, strength=0.0, **options)
        after = generate(backbone, artifact, record=record, **options)
    return before, after, record


def losses(history: Sequence[Sequence[float]]) -> Sheet:
    from .kept import TERMS

    return Sheet(
        name="losses",
        caption="The losses of every step: textual inversion, then LoRA tuning.",
        image=draw_curves({name: [row[i] for row in history] for i, name in enumerate(TERMS)}),
    )


def restored() -> Sheet:
    """A blurred small portrait beside the same with its face restored, twice as large.

    No restoration model is part of the pack; plain sharpening stands in for it here.
    """
    photo = load_photo(SAMPLES / "person_1.jpg")
    poor = resize(resize(photo[None], (photo.shape[1] // 6, photo.shape[2] // 6)), (384, 320))[0]
    faces = load_face_detector().detect(poor)
    before = resize(poor[None], (768, 640))[0]
    after, _ = restore_and_upscale(poor, faces, sharpen, factor=2.0)
    return Sheet(
        name="restored",
        caption="A small blurred portrait, and its face restored and enlarged (sharpening in place of a model).",
        image=contact_sheet([before, after], 2, ["before", "after"]),
    )


def sharpen(faces: Tensor) -> Tensor:
    """Unsharp masking: faces [B,3,H,W] 0..1 -> the same, edges stronger."""
    blurred = F.avg_pool2d(faces, 13, stride=1, padding=6, count_include_pad=False)
    return (faces + 1.5 * (faces - blurred)).clamp(0, 1)


def compare(rows: Mapping[str, Tensor]) -> Tensor:
    """Name -> small pictures [N,3,H,W], as many of each: a sheet [3,H',W'] with a labelled row of each."""
    labels = [name for name, images in rows.items() for _ in images]
    return contact_sheet(list(enlarge(torch.cat(list(rows.values())))), len(labels) // len(rows), labels)


def enlarge(images: Tensor) -> Tensor:
    """Small pictures at a size to look at, every pixel a square."""
    return F.interpolate(images, scale_factor=3, mode="nearest")


def write_report(output: Path, files: Sequence[Path], sheets: Sequence[Sheet], note: str) -> dict[str, Any]:
    """The sheets as PNG, and report.html, which shows them under their captions."""
    sections = []
    for number, sheet in enumerate(sheets, 1):
        file = f"{number}-{sheet.name}.png"
        save_image(sheet.image, output / file, sheet.mark)
        sections.append(f'<h2>{number}. {html.escape(sheet.caption)}</h2>\n<img src="{file}" alt="{sheet.name}">')
    kept = "".join(f"<li>{html.escape(file.name)}</li>" for file in files)
    page = PAGE.format(note=html.escape(note), kept=kept, sections="\n".join(sections))
    write_atomic(output / "report.html", lambda file: file.write_text(page, encoding="utf-8"))
    return {"report": str(output / "report.html"), "lora": str(files[0]), "note": note}
