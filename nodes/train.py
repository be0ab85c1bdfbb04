"""TrainMagiCaptureLoRA: two sets of portraits -> one LoRA file, with progress, previews, Cancel and a kept result."""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.config import TrainConfig, parse_config
from ..magicapture_core.prompts import COMPOSED_PROMPT, fill
from ..magicapture_core.types import Face, MagiCaptureError, Portraits
from . import folders, patching
from .portraits import to_portraits
from .sockets import ArtifactType, FacesType, SettingsType, schema, show, to_comfy
from .weights import plain_backbone

if TYPE_CHECKING:
    from ..magicapture_core.artifact import Artifact
    from ..magicapture_core.recipe import Result
    from ..magicapture_core.trainer import TrainStep

PREVIEW_STEPS = 20  # sampling steps of a preview
TEXT_EVERY = 0.5  # seconds between two lines of text on the node
CURVES = ("reconstruction", "attention", "total")


class TrainMagiCaptureLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Train MagiCapture LoRA",
            node_id="TrainMagiCaptureLoRA",
            description="Learns a person and a style from their photos and writes one LoRA file into the loras folder "
            "and an embedding for each learned word into the embeddings folder. The result is kept: queueing the same "
            "again returns at once. Cancel stops within one step, and the next queue goes on from there.",
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The SD1.5 model to train on. It stays as it is. LoRAs attached to it are baked into the "
                    "base of the training: use them again when you use the result.",
                ),
                io.Clip.Input("clip", tooltip="The CLIP of the same checkpoint. It stays as it is."),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint, or another full SD1.5 VAE."),
                io.Image.Input("subject_images", tooltip="4-6 square pictures of the person, from Face Mask."),
                io.Mask.Input("subject_masks", tooltip="Their face masks, white = face, from Face Mask."),
                io.Image.Input("style_images", tooltip="4-6 square pictures in the style, from Face Mask."),
                io.Mask.Input("style_masks", tooltip="Their face masks, white = face, from Face Mask."),
                io.String.Input(
                    "name",
                    default="my_portrait",
                    tooltip="Name of the files: letters, digits, - and _. A taken name gets a number; nothing is ever "
                    "overwritten.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=100,
                    min=0,
                    max=100_000,
                    tooltip="A sample picture every so many steps; 0 makes only the last one. They cost time, and "
                    "change nothing in the result.",
                ),
                io.Boolean.Input(
                    "train_again",
                    default=False,
                    tooltip="Off: the same photos, model and settings return the kept result, or go on where a cancel "
                    "stopped them. On: train from the start on every queue.",
                ),
                FacesType.Input("subject_faces", optional=True, tooltip="From Face Mask; else looked for again."),
                FacesType.Input("style_faces", optional=True, tooltip="From Face Mask; else looked for again."),
                SettingsType.Input("settings", optional=True, tooltip="From MagiCapture Settings; else the defaults."),
            ],
            outputs=[
                ArtifactType.Output(display_name="artifact", tooltip="For Composed Prompt Sampler."),
                io.LoraModel.Output(display_name="lora", tooltip="The LoRA's weights, for Load LoRA Model."),
                io.Image.Output(display_name="samples", tooltip="The sample pictures in order; the last is final."),
                io.Image.Output(display_name="curves", tooltip="The losses over the steps."),
                io.String.Output(display_name="report", tooltip="What was trained, how long it took, and the files."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str, train_again: bool, **others: Any) -> Any:
        """Runs again when a file of the kept result is gone, or when asked to train again."""
        return float("nan") if train_again else [[file, Path(file).is_file()] for file in kept_files(name)]

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        subject_images: Tensor,
        subject_masks: Tensor,
        style_images: Tensor,
        style_masks: Tensor,
        name: str,
        preview_every: int,
        train_again: bool,
        subject_faces: list[Face] | None = None,
        style_faces: list[Face] | None = None,
        settings: TrainConfig | None = None,
    ) -> io.NodeOutput:
        config = settings or parse_config({})
        with torch.inference_mode(False), torch.enable_grad():
            subject, notes = to_portraits("subject", subject_images, subject_masks, subject_faces, config.resolution)
            style, more = to_portraits("style", style_images, style_masks, style_faces, config.resolution)
            progress = Progress(cls.hidden.unique_id, config, folders.runs_folder(name), preview_every)
            result, artifact = train(
                (model, clip, vae), subject, style, config, name=name, progress=progress, train_again=train_again
            )
            samples = progress.samples()
        report = "\n".join([*progress.lines, *notes, *more, *_closing_lines(result)])
        curves = draw_history(result.history)
        return io.NodeOutput(
            artifact,
            artifact.lora,
            to_comfy(samples),
            to_comfy(curves),
            report,
            ui=show(report, samples[-1:], cls),
        )


def train(
    sockets: tuple[Any, Any, Any],
    subject: Portraits,
    style: Portraits,
    config: TrainConfig,
    *,
    name: str,
    progress: Progress,
    train_again: bool,
) -> tuple[Result, Artifact]:
    """The kept result of these very inputs, or a training. The graphics card is empty before and after."""
    from comfy import model_management

    from ..magicapture_core import recipe

    backbone = plain_backbone(*sockets)
    progress.key = recipe.result_key(backbone, subject, style, config)
    kept = None if train_again else recipe.find_result(progress.folder, progress.key)
    if kept:
        progress.say("Nothing has changed since the last training: its result is returned.")
        return kept, read_back(kept.files)
    model_management.unload_all_models()
    model_management.soft_empty_cache()
    try:
        result = recipe.personalize(
            backbone,
            subject,
            style,
            config,
            name=name,
            folder=progress.folder,
            save=save_and_check,
            device=model_management.get_torch_device(),
            resume=not train_again,
            on_estimate=progress.estimated,
            on_step=progress.stepped,
        )
    except model_management.OOM_EXCEPTION as error:
        raise MagiCaptureError(
            f"out of memory ({progress.estimate}): switch on gradient_checkpointing, or take a smaller resolution or "
            "lora_rank in MagiCapture Settings"
        ) from error
    finally:
        backbone.to(torch.device("meta"), torch.float32)  # frees the weights, even while a traceback holds the modules
        gc.collect()
        model_management.soft_empty_cache()
    return result, read_back(result.files)


def save_and_check(artifact: Artifact) -> list[Path]:
    """Writes the LoRA and the embeddings, then loads them back: only a file that can be used counts as trained."""
    from ..magicapture_core.artifact import save

    embeddings = folders.embeddings_folders()[0]
    files = list(save(artifact, folders.loras_folder(), embeddings))
    again = read_back(files)
    same_lora = again.lora.keys() == artifact.lora.keys() and all(
        torch.equal(again.lora[key].float(), weight.half().float()) for key, weight in artifact.lora.items()
    )
    same_words = len(again.tokens) == len(artifact.tokens) and all(
        torch.equal(a.vectors, b.vectors) for a, b in zip(again.tokens, artifact.tokens, strict=True)
    )
    if not (same_lora and same_words):
        raise MagiCaptureError(f"{files[0]} reads back differently from what was trained: check the disk, then queue")
    return files


def kept_files(name: str) -> list[str]:
    """The files of the result that is kept under this name."""
    from ..magicapture_core.recipe import RESULT_FILE

    try:
        return json.loads((folders.runs_folder(name) / RESULT_FILE).read_text(encoding="utf-8"))["files"]
    except (FileNotFoundError, ValueError, KeyError):
        return []


def read_back(files: list[Path]) -> Artifact:
    from ..magicapture_core.artifact import load

    return patching.check_architecture(load(files[0], folders.embeddings_folders()))


class Progress:
    """What the user sees while it trains: bar, sample pictures, a line of text; and what stops it: Cancel."""

    def __init__(self, node_id: str | None, config: TrainConfig, folder: Path, preview_every: int) -> None:
        self.config, self.folder, self.preview_every = config, folder, preview_every
        self.key = ""  # of this training's inputs
        self.lines: list[str] = []
        self.estimate = "not estimated"
        self._node_id = node_id
        self._bar: Any = None
        self._spoke_at = 0.0
        self._seconds = 0.0  # a step, smoothed

    def say(self, text: str) -> None:
        """A line for the report, shown at once."""
        self.lines.append(text)
        self._show(text)

    def estimated(self, estimate: Any) -> None:
        self.estimate = str(estimate)
        self.say(f"Estimated before the start: {estimate}.")

    def stepped(self, step: TrainStep) -> None:
        """Called after every step. Raises ComfyUI's interrupt when the user has pressed Cancel."""
        from comfy import model_management, utils

        model_management.throw_exception_if_processing_interrupted()
        self._bar = self._bar or utils.ProgressBar(step.num_steps)
        self._bar.update_absolute(step.step, step.num_steps, self._preview(step))
        self._seconds = 0.9 * self._seconds + 0.1 * step.seconds if self._seconds else step.seconds
        if time.monotonic() - self._spoke_at > TEXT_EVERY or step.step == step.num_steps:
            self._spoke_at = time.monotonic()
            left = (step.num_steps - step.step) * self._seconds / 60
            self._show(
                f"{step.phase}, step {step.step} of {step.num_steps}, loss {float(step.losses.reconstruction):.4f}, "
                f"attention {float(step.losses.attention):.4f}, {self._seconds:.2f} s a step, {left:.1f} minutes left"
            )

    def samples(self) -> Tensor:
        """The sample pictures of a training [N,3,H,W], from the disk; a black one where they were deleted."""
        from ..magicapture_core.images import load_photo

        pictures = [load_photo(path) for path in sorted(self._samples_folder().glob("*.png"))]
        side = self.config.resolution
        return torch.stack(pictures) if pictures else torch.zeros(1, 3, side, side)

    def _preview(self, step: TrainStep) -> tuple[str, Any, int] | None:
        """A picture from the composed prompt where one is due, kept on the disk and handed to the bar."""
        due = step.step == step.num_steps or (self.preview_every and step.step % self.preview_every == 0)
        if not due:
            return None
        from ..magicapture_core.images import save_image, to_pil

        prompt = fill(COMPOSED_PROMPT, self.config.subject.placeholder_token, self.config.style.placeholder_token)
        side = self.config.resolution
        picture = step.run.preview(prompt, num_steps=PREVIEW_STEPS, seed=self.config.seed, size=(side, side))[0]
        save_image(picture, self._samples_folder() / f"step-{step.step:06d}.png")
        return "JPEG", to_pil(picture), 512

    def _samples_folder(self) -> Path:
        return self.folder / f"samples-{self.key[:16]}"

    def _show(self, text: str) -> None:
        """A line of text on the running node, where a page is there to show it."""
        if self._node_id is None:
            return
        from server import PromptServer

        server = getattr(PromptServer, "instance", None)
        if server is not None:
            server.send_progress_text(text, self._node_id)


def draw_history(history: list[list[float]]) -> Tensor:
    """[steps][reconstruction, attention, total] -> a picture of the curves, [1,3,H,W]."""
    from ..magicapture_core.images import draw_curves

    return draw_curves({name: [row[i] for row in history] for i, name in enumerate(CURVES)})[None]


def _closing_lines(result: Result) -> list[str]:
    return [f"{len(result.history)} steps", *(f"Written and read back: {file}" for file in result.files)]


NODES = [TrainMagiCaptureLoRA]
