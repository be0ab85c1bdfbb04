"""MagiCapture's whole line on one page: portraits in, a shareable LoRA out.

`personalize` is what the terminal and the node both call; the caller owns progress, previews and the decision to stop.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import artifact as artifacts
from . import collages, kohya
from .artifact import Artifact, check_name
from .class_images import class_images
from .collages import Controls
from .config import TrainConfig
from .crew import ALONE, Crew
from .dataset import Dataset, check_kind, check_photos, encode, step_items, with_classes
from .dino import Dino
from .estimate import Estimate
from .fitting import Method, fit
from .identity import Recogniser
from .kept import Kept, Result, result_key
from .prompts import fill, templates
from .trainer import Run, TrainStep, open_run
from .types import MagiCaptureError, Photos, Task
from .watch import Look, View, Watch

if TYPE_CHECKING:
    from .backbone import Backbone


def personalize(
    backbone: Backbone,
    photos: Photos,
    config: TrainConfig,
    *,
    name: str,
    folder: Path,
    save: Callable[[Artifact], list[Path]],
    key: str = "",
    recogniser: Recogniser | Dino | None = None,
    controls: Controls | None = None,
    device: torch.device | str = "cpu",
    resume: bool = True,
    on_estimate: Callable[[Estimate], None] = lambda estimate: None,
    on_step: Callable[[TrainStep[Run]], None] = lambda step: None,
    watch: Watch | None = None,
    say: Callable[[str], None] = lambda text: None,
    crew: Crew = ALONE,
) -> Result:
    """Encode, invert, tune, save, as `fit` does.

    folder: keeps the state and the result of this name. save: puts the artifact where it belongs, returns its files.
    key: the `result_key` of these inputs, from a caller who has it: computing it reads every weight. recogniser: of
    faces, or DINO for an object. controls: what collages are conditioned on in turn.
    """
    check_name(name)
    if not config.num_steps:
        raise MagiCaptureError("nothing to train: inversion.num_steps, tuning.num_steps and clone_steps are all 0")
    check_photos(photos, config)
    check_kind(config, recogniser)
    if watch is not None:
        check_patience(watch, config, recogniser)
    if recogniser is not None and config.loss.identity_decoder == "taesd" and backbone.taesd is None:
        raise MagiCaptureError("loss.identity_decoder taesd: there is no TAESD; give its file (--taesd), or take vae")
    controls = controls or {}
    collages.check_controls(controls, photos, config)
    kept = Kept(folder, key or result_key(backbone, photos, config, recogniser, watch, collages.tensors(controls)))
    on_sampling = watch.on_sampling if watch else lambda step, num_steps: None
    result = fit(
        MagiCapture(
            backbone=backbone,
            config=config,
            photos=photos,
            recogniser=recogniser,
            kept=kept,
            on_sampling=on_sampling,
            say=say,
            controls=controls,
        ),
        kept,
        name=name,
        save=save,
        device=device,
        resume=resume,
        on_estimate=on_estimate,
        on_step=on_step,
        watch=watch,
        say=say,
        crew=crew,
    )
    if rows := result.told.history[config.num_steps - config.clone_steps :]:
        for line in collages.told(rows, collages.modes(controls)):
            say(line)
    return result


@dataclass(frozen=True, kw_only=True, eq=False)
class MagiCapture(Method[Run, Artifact]):
    """Words and a LoRA, from photos of people and styles. kept: where pictures of the class are, which `on_sampling`
    and `say` hear of when they are made."""

    config: TrainConfig
    photos: Photos
    recogniser: Recogniser | Dino | None
    kept: Kept
    on_sampling: Callable[[int, int], None]
    say: Callable[[str], None]
    controls: Controls = field(default_factory=dict)

    @property
    def most_items(self) -> int:
        return max(len(step_items(self.config, phase, 0)) for phase in ("inversion", "tuning", "clone"))

    @property
    def scored_after(self) -> int:
        return self.config.inversion.num_steps

    @property
    def smaller(self) -> str:
        return "resolution or lora_rank"

    def prepare(self) -> Callable[[], AbstractContextManager[Run]]:
        backbone, config = self.backbone, self.config
        dataset = encode(backbone, self.photos, config, self.recogniser)
        dataset = replace(dataset, controls=collages.on_device(self.controls, backbone.unet))
        if config.tuning.class_images:
            check_start(backbone, dataset, config)
            self.say(f"makes {config.tuning.class_images} pictures of the class first, those that are not there yet")
            classes = class_images(backbone, config, self.kept.classes(backbone, config), self.on_sampling)
            dataset = with_classes(dataset, backbone, classes, config)
        return partial(open_run, backbone, dataset, config)

    def look(self, run: Run, watch: Watch, step: int) -> Look:
        return watch.look(run, views(run.dataset, run.config), step, run.dataset.likeness)

    def made(self, run: Run, name: str) -> Artifact:
        return to_artifact(run, name)

    def save(self, made: Artifact, folder: Path) -> object:
        return artifacts.save(made, folder)

    def load(self, file: Path) -> Artifact:
        return artifacts.load(file)


def views(dataset: Dataset, config: TrainConfig) -> list[View]:
    """A picture from the first prompt of each kind, and in the composed ones all people."""
    made = []
    for task, person, style in prompts_of(dataset):
        words = [config.concepts[name].placeholder_token for name in (person, style)]
        prompt = fill(templates(config.noun(person))[task][0], *words)
        held = [word for word in words if word in prompt]
        made.append(View(label=task, prompt=prompt, words=held, person=person if task == "composed" else ""))
    return made


def prompts_of(dataset: Dataset) -> list[tuple[Task, str, str]]:
    """Task, person and style of each picture of a look: every person, every style, and pairs in which all occur."""
    people, styles = dataset.names("subject"), dataset.names("style")
    pairs = [(people[at % len(people)], styles[at % len(styles)]) for at in range(max(len(people), len(styles)))]
    return [
        *(("source", person, styles[0]) for person in people),
        *(("reference", people[0], style) for style in styles),
        *(("composed", person, style) for person, style in pairs),
    ]


def check_patience(watch: Watch, config: TrainConfig, recogniser: Recogniser | Dino | None) -> None:
    """Raises MagiCaptureError for a patience that nothing could ever tell to be at its end."""
    if watch.patience and config.kind == "object":
        raise MagiCaptureError("patience: the likeness of an object is not told; set it to 0")
    watch.check_patience(recogniser)


def check_start(backbone: Backbone, dataset: Dataset, config: TrainConfig) -> None:
    """Raises MagiCaptureError for what would end a run at its first step: a word, an optimizer that is not there."""
    with open_run(backbone, dataset, config) as run:
        run.begin("tuning", {}, midway=False)


def to_artifact(run: Run, name: str) -> Artifact:
    """The live run as the file will hold it."""
    layers = run.lora()
    return Artifact(
        name=name,
        architecture=run.backbone.architecture,
        tokens=tuple(run.tokens()),
        lora=kohya.to_kohya(kohya.UNET, layers["unet"]) | kohya.to_kohya(kohya.TEXT_ENCODER, layers["text_encoder"]),
        config=run.config.model_dump(mode="json"),
        templates={task: list(texts) for task, texts in templates(run.config.noun()).items()},
        rank_split=run.config.lora.rank_split if layers["unet"] else {},
    )
