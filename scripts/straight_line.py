"""The straight line without ComfyUI, from two folders of photos to portraits: `python -m scripts.straight_line`.

With an SD1.5 checkpoint: `backbone = from_checkpoint(Path("sd15.safetensors"))` and `TrainConfig.preset("standard")`.
"""

from pathlib import Path

from magicapture_core import artifact
from magicapture_core.backbone import tiny
from magicapture_core.config import TrainConfig
from magicapture_core.faces import load_face_detector
from magicapture_core.images import list_photos, load_photos, save_image
from magicapture_core.masks import MaskOptions, prepare_portraits, require_portraits
from magicapture_core.recipe import personalize
from magicapture_core.sampler import generate
from magicapture_core.types import Portraits

FOLDER = Path("magicapture_core/tiny/samples")
SAMPLES = {"subject": "person", "style": "style"}
OUTPUT = Path("demo-output/straight-line")


def read(side: str, kind: str, resolution: int) -> Portraits:
    photos, notes = load_photos([path for path in list_photos(FOLDER) if path.name.startswith(kind)])
    portraits, framed = prepare_portraits(photos, resolution, load_face_detector(), MaskOptions())
    return require_portraits(portraits, [*notes, *framed], side)


def main() -> None:
    config = TrainConfig.preset("tiny")
    backbone = tiny()
    photos = {side: read(side, kind, config.resolution) for side, kind in SAMPLES.items()}
    result = personalize(
        backbone,
        photos,
        config,
        name="ada",
        folder=OUTPUT / "magicapture" / "ada",
        save=lambda made: list(artifact.save(made, OUTPUT)),
        on_step=lambda step: print(step.phase, step.step, f"{float(step.losses.total):.4f}"),
    )
    trained = artifact.load(result.files[0])
    prompt = "A photo of a {subject} person in the {style} style, wearing glasses"
    for index, image in enumerate(generate(backbone, trained, prompt, num_images=4)):
        save_image(image, OUTPUT / f"ada-{index}.png", "generated")


if __name__ == "__main__":
    main()
