"""What the two training nodes share: their widgets, the kept result or a run, and what is told in the end."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from comfy_api.latest import io
from torch import Tensor, nn

from ..magicapture_core.types import MagiCaptureError
from . import folders
from .progress import Progress

if TYPE_CHECKING:
    from ..magicapture_core.backbone import Backbone
    from ..magicapture_core.dino import Dino
    from ..magicapture_core.faces import FaceDetector
    from ..magicapture_core.identity import Recogniser
    from ..magicapture_core.kept import Result
    from ..magicapture_core.run import RunConfig

Made = TypeVar("Made")


# -- sockets -----------------------------------------------------------------------------------------------------------


def run_inputs(name: str) -> list[Any]:
    """The widgets `name`, with this default, `preview_every` and `train_again`."""
    return [
        io.String.Input(
            "name",
            default=name,
            tooltip="Name of the files: letters, digits, - and _. A taken name gets a number; nothing is ever "
            "overwritten. Sample pictures and the state of an unfinished run stay in output/magicapture/NAME "
            "until you delete that folder.",
        ),
        io.Int.Input(
            "preview_every",
            default=100,
            min=0,
            max=100_000,
            tooltip="Sample pictures every so many steps, and where the words look on them; 0 makes only the "
            "last ones. They cost time; in the result they change nothing but patience's end and NAME_best.",
        ),
        io.Boolean.Input(
            "train_again",
            default=False,
            tooltip="Off: the same photos, model and settings return the kept result, or go on where a cancel "
            "stopped them. On: train from the start on every queue.",
        ),
    ]


def patience_input() -> Any:
    return io.Int.Input(
        "patience",
        default=0,
        min=0,
        max=1000,
        optional=True,
        tooltip="Ends the training when so many sample pictures in a row are no more like the person. 0: "
        "never. Needs face_recognition.",
    )


def told_outputs() -> list[Any]:
    """The outputs `samples`, `curves` and `report`."""
    return [
        io.Image.Output(display_name="samples", tooltip="The sample pictures in order; the last is final."),
        io.Image.Output(display_name="curves", tooltip="The losses over the steps."),
        io.String.Output(display_name="report", tooltip="What was trained, how long it took, and the files."),
    ]


def fingerprint(name: str, train_again: bool) -> Any:
    """Changes when a file of a kept result is gone, and always when asked to train again."""
    from ..magicapture_core.kept import missing_files

    return float("nan") if train_again else folders.digest(missing_files(folders.runs_folder(name)))


# -- a training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Craft(Generic[Made]):
    """What one of them has of its own.

    result_key, personalize: its recipe in the core. save: what was made -> its files in this ComfyUI's
    folders, the main one first. load: from them. is_whole: whether they hold what was made.
    """

    result_key: Callable[..., str]
    personalize: Callable[..., Result]
    save: Callable[[Made], Sequence[Path]]
    load: Callable[[Sequence[Path]], Made]
    is_whole: Callable[[Made, Sequence[Path]], bool]

    def save_and_check(self, made: Made) -> list[Path]:
        """Writes the files, then reads them back: only what can be used counts as trained."""
        files = list(self.save(made))
        if not self.is_whole(made, files):
            raise MagiCaptureError(
                f"{files[0]} reads back differently from what was trained: check the disk, then queue"
            )
        return files


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained(Generic[Made]):
    """What a training node gives. samples: [N,3,H,W]. curves: [1,3,H,W]."""

    made: Made
    samples: Tensor
    curves: Tensor
    report: str


def train(
    craft: Craft[Made],
    backbone: Backbone,
    photos: Any,
    config: RunConfig,
    *,
    name: str,
    progress: Progress,
    preview_every: int,
    patience: int,
    train_again: bool,
    recogniser: Recogniser | Dino | None,
    detector: FaceDetector | None,
    notes: Sequence[str],
    attention_weight: float = 1.0,
    networks: Sequence[nn.Module] = (),
) -> Trained[Made]:
    """The kept result of these very inputs, or a training. notes: for the report. attention_weight: what that loss is
    multiplied by in the curves. networks: whatever else is spent by it."""
    from ..magicapture_core.kept import Kept
    from ..magicapture_core.watch import Watch

    watch = Watch(
        every=preview_every,
        patience=patience,
        detector=detector,
        on_look=progress.looked,
        on_sampling=progress.sampling,
    )
    progress.key = craft.result_key(backbone, photos, config, recogniser, watch)
    is_done = not train_again and Kept(progress.folder, progress.key).find_result() is not None
    with nullcontext("cpu") if is_done else card_for(backbone, recogniser, networks) as device:
        result = craft.personalize(
            backbone,
            photos,
            config,
            name=name,
            folder=progress.folder,
            save=craft.save_and_check,
            key=progress.key,
            recogniser=recogniser,
            device=device,
            resume=not train_again,
            on_estimate=progress.estimated,
            on_step=progress.stepped,
            watch=watch,
            say=progress.say,
        )
    return Trained(
        made=craft.load(result.files),
        samples=progress.samples(),
        curves=draw_history(result.told.history, attention_weight),
        report="\n".join([*progress.lines, *notes, *_closing_lines(result, progress.folder)]),
    )


@contextmanager
def card_for(
    backbone: Backbone, recogniser: Recogniser | Dino | None, networks: Sequence[nn.Module]
) -> Iterator[torch.device]:
    """The device to train on, empty before and after. The backbone and the networks are spent then."""
    from comfy import model_management

    model_management.unload_all_models()
    model_management.soft_empty_cache()
    try:
        yield model_management.get_torch_device()
    finally:
        backbone.to(torch.device("meta"), torch.float32)  # frees the weights, even while a traceback holds the modules
        for network in networks:
            nn.Module.to(network, "meta")
        if recogniser is not None:
            recogniser.cpu()  # ComfyUI keeps it for the next queue
        gc.collect()
        model_management.soft_empty_cache()


# -- what is told ------------------------------------------------------------------------------------------------------


def draw_history(history: list[list[float]], attention_weight: float = 1.0) -> Tensor:
    """A row of terms a step -> a picture of the curves of those that were ever there, [1,3,H,W]."""
    from ..magicapture_core.curves import draw_curves
    from ..magicapture_core.kept import TERMS

    curves = {name: [row[i] for row in history] for i, name in enumerate(TERMS)}
    curves["attention"] = [attention_weight * value for value in curves["attention"]]
    return draw_curves({name: values for name, values in curves.items() if any(values)})[None]


def _closing_lines(result: Result, folder: Path) -> list[str]:
    from ..magicapture_core.artifact import PREVIEW
    from ..magicapture_core.watch import describe

    num_steps = len(result.told.history)
    resumed = f", gone on from step {result.resumed_from}" if 0 < result.resumed_from < num_steps else ""
    likeness = describe(result.told.looks)
    previews = [files[0].with_suffix(PREVIEW) for files in (result.files, result.best_files) if files]
    return [
        f"{num_steps} steps{resumed}",
        *([likeness] if likeness else []),
        *(f"Written and read back: {file}" for file in (*result.files, *result.best_files)),
        *(f"Preview picture for model managers: {file}" for file in previews if file.is_file()),
        f"Sample pictures of the person, and the state of an unfinished run, stay in {folder} until you delete it.",
    ]
