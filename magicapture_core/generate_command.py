"""The terminal's `generate` and `attention`: pictures of learned words, and where each word looks on them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import artifact as artifacts
from .prompts import fill_prompt
from .terminal import Result, progress, read_model
from .types import MagiCaptureError

if TYPE_CHECKING:
    from torch import Tensor

    from .sefi.identity import SefiIdentity


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
