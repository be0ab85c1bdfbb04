"""SeFi-IDE's whole line on one page: a photo in, a shareable identity out.

`personalize` is what the terminal and the node both call; the caller owns progress, previews and the decision to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import torch

from ..artifact import check_name
from ..crew import ALONE, Crew
from ..dataset import encode_images
from ..estimate import Estimate
from ..fitting import Method, fit
from ..identity import Likeness, Recogniser
from ..kept import TERMS, Kept, Result, key_of, seen_by, weights
from ..run import TrainStep
from ..types import MagiCaptureError, Portraits
from ..watch import Look, View, Watch
from . import identity as identities
from .config import SefiConfig, fill_word
from .identity import SefiIdentity
from .objective import EncodedPhotos
from .prompts import EDITS
from .trainer import SefiRun, open_run

if TYPE_CHECKING:
    from ..backbone import Backbone

SUBJECT = "subject"  # the one whose likeness is told
LAST = 100  # steps that the balance of the losses is told of


def personalize(
    backbone: Backbone,
    portraits: Portraits,
    config: SefiConfig,
    *,
    name: str,
    folder: Path,
    save: Callable[[SefiIdentity], list[Path]],
    key: str = "",
    recogniser: Recogniser | None = None,
    device: torch.device | str = "cpu",
    resume: bool = True,
    on_estimate: Callable[[Estimate], None] = lambda estimate: None,
    on_step: Callable[[TrainStep[SefiRun]], None] = lambda step: None,
    watch: Watch | None = None,
    say: Callable[[str], None] = lambda text: None,
    crew: Crew = ALONE,
) -> Result:
    """Encode, train, save, as `fit` does. portraits: one photo is enough; their masks play no part.

    folder: keeps the state and the result of this name. save: puts the identity where it belongs, returns its files.
    key: the `result_key` of these inputs, from a caller who has it. recogniser: compares what a look shows with the
    photos; the training does not know it.
    """
    check_name(name)
    check_photos(portraits, recogniser)
    if watch is not None:
        watch.check_patience(recogniser)
    kept = Kept(folder, key or result_key(backbone, portraits, config, recogniser, watch))
    result = fit(
        Sefi(backbone=backbone, config=config, portraits=portraits, recogniser=recogniser),
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
    say(describe_balance(result.told.history, config))
    return result


@dataclass(frozen=True, kw_only=True, eq=False)
class Sefi(Method[SefiRun, SefiIdentity]):
    """The words of all stages, from photos of one person."""

    config: SefiConfig
    portraits: Portraits
    recogniser: Recogniser | None

    @property
    def most_items(self) -> int:
        return self.config.accumulate

    @property
    def scored_after(self) -> int:
        return 0

    @property
    def smaller(self) -> str:
        return "resolution"

    def prepare(self) -> Callable[[], AbstractContextManager[SefiRun]]:
        photos = encode(self.backbone, self.portraits, self.config.flip, self.recogniser)
        return partial(open_run, self.backbone, photos, self.config)

    def look(self, run: SefiRun, watch: Watch, step: int) -> Look:
        return watch.look(run, views(run.config), step, run.photos.likeness)

    def made(self, run: SefiRun, name: str) -> SefiIdentity:
        return to_identity(run, name)

    def save(self, made: SefiIdentity, folder: Path) -> object:
        return identities.save(made, folder)

    def load(self, file: Path) -> SefiIdentity:
        return identities.load(file)


def encode(backbone: Backbone, portraits: Portraits, flip: bool, recogniser: Recogniser | None = None) -> EncodedPhotos:
    """The photos through the VAE, with `flip` mirrored as well; with a recogniser, their faces through that."""
    mean, std = encode_images(backbone.vae, portraits.images, flip)
    likeness = Likeness.of(recogniser, {SUBJECT: portraits}, backbone.vae.device) if recogniser else None
    return EncodedPhotos(mean=mean, std=std, scaling_factor=backbone.vae.config.scaling_factor, likeness=likeness)


def views(config: SefiConfig) -> list[View]:
    """The sentence of the training, whose face is compared, and edits of it: whether the prompt is still obeyed."""
    word = config.placeholder_token
    sentence = View(label="training", prompt=config.sentence(word), words=[word], person=SUBJECT)
    return [sentence, *(View(label=edit, prompt=fill_word(EDITS[edit], word), words=[word]) for edit in EDITS)]


def to_identity(run: SefiRun, name: str) -> SefiIdentity:
    """The live run as the file will hold it."""
    token, config = run.token(), run.config
    return SefiIdentity(
        name=name,
        architecture=run.backbone.architecture,
        placeholder=token.placeholder,
        initializer=token.initializer,
        stages=token.vectors.unflatten(0, (token.num_stages, 2)),
        template=config.template,
        config=config.model_dump(mode="json"),
    )


def check_photos(portraits: Portraits, recogniser: Recogniser | None) -> None:
    """Raises MagiCaptureError without a photo, and without a face for the recogniser: the likeness would silently be
    none, and a patience never end."""
    if not len(portraits):
        raise MagiCaptureError("no photo is left: give at least one")
    if recogniser is not None and all(face.landmarks is None for face in portraits.faces):
        raise MagiCaptureError(
            "recogniser: no photo shows a face to compare with; give one that does, or leave the face recogniser out"
        )


def result_key(
    backbone: Backbone,
    portraits: Portraits,
    config: SefiConfig,
    recogniser: Recogniser | None = None,
    watch: Watch | None = None,
) -> str:
    """A hash of all that decides the result: pixels, weights and settings; with a recogniser, which says what look is
    the best, landmarks too; with patience, when it is looked at. NAME_best depends on the interval of the looks too,
    which trains nothing and is not hashed."""
    return key_of(config, [portraits.images, *weights(backbone), *seen_by(recogniser, [portraits])], watch)


def describe_balance(history: Sequence[Sequence[float]], config: SefiConfig) -> str:
    """history: rows of `kept.TERMS` -> what the weighed attention loss was beside the reconstruction, over the last
    steps: too small a share learns the photo by heart, too large a one loses the person."""
    last = history[-LAST:]
    reconstruction, attention = (mean(row[TERMS.index(term)] for row in last) for term in TERMS[:2])
    share = config.attention_weight * attention / reconstruction
    return (
        f"attention loss {attention:.3g}, weighed by {config.attention_weight:g}, beside a reconstruction of "
        f"{reconstruction:.3g}: {share:.1%} of it, over the last {len(last)} steps"
    )
