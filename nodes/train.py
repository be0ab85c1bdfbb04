"""TrainMagiCaptureLoRA: two sets of portraits -> one LoRA file, with progress, previews, Cancel and a kept result."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.config import TrainConfig, parse_config
from ..magicapture_core.types import Face, MagiCaptureError
from . import folders, patching
from .concepts import Concept, to_photos
from .portraits import face_detector
from .progress import Progress
from .sockets import (
    ArtifactType,
    ConceptsType,
    FaceRecognitionType,
    FacesType,
    ObjectFeaturesType,
    SettingsType,
    checkpoint_inputs,
    schema,
    show,
    to_comfy,
)
from .weights import plain_backbone

if TYPE_CHECKING:
    from ..magicapture_core.artifact import Artifact
    from ..magicapture_core.dino import Dino
    from ..magicapture_core.identity import Recogniser
    from ..magicapture_core.kept import Result
    from ..magicapture_core.types import Photos
    from ..magicapture_core.watch import Watch


class TrainMagiCaptureLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Train MagiCapture LoRA",
            node_id="TrainMagiCaptureLoRA",
            description="Learns a person and a style from their photos and writes one LoRA file into the loras folder "
            "and an embedding for each learned word into the embeddings folder. The result is kept: queueing the same "
            "again returns at once. Cancel stops within one step, and the next queue goes on from there. Train only on "
            "people who have agreed to it.",
            is_output_node=True,
            inputs=[
                *checkpoint_inputs(
                    model="The SD1.5 model to train on. It stays as it is. LoRAs attached to it are baked into the "
                    "base of the training: use them again when you use the result.",
                    clip="The CLIP of the same checkpoint. It stays as it is.",
                    vae="The VAE of the same checkpoint, or another full SD1.5 VAE.",
                ),
                io.Image.Input("subject_images", tooltip="4-6 square pictures of the person, from Face Mask."),
                io.Mask.Input("subject_masks", tooltip="Their face masks, white = face, from Face Mask."),
                io.Image.Input("style_images", tooltip="4-6 square pictures in the style, from Face Mask."),
                io.Mask.Input("style_masks", tooltip="Their face masks, white = face, from Face Mask."),
                io.String.Input(
                    "name",
                    default="my_portrait",
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
                FacesType.Input("subject_faces", optional=True, tooltip="From Face Mask; else looked for again."),
                FacesType.Input("style_faces", optional=True, tooltip="From Face Mask; else looked for again."),
                SettingsType.Input("settings", optional=True, tooltip="From MagiCapture Settings; else the defaults."),
                FaceRecognitionType.Input(
                    "face_recognition",
                    optional=True,
                    tooltip="From Load Face Recognition: the identity loss then pulls the face of the composed picture "
                    "towards the person's. Without it there is no such loss. The sample pictures are then compared "
                    "with the person, and the most alike step of phase 2 is saved too, as NAME_best.",
                ),
                io.Int.Input(
                    "patience",
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip="Ends the training when so many sample pictures in a row are no more like the person. 0: "
                    "never. Needs face_recognition.",
                ),
                ConceptsType.Input(
                    "more",
                    optional=True,
                    tooltip="Further people and styles in the same training, from Another Person or Style.",
                ),
                ObjectFeaturesType.Input(
                    "object_features",
                    optional=True,
                    tooltip="From Load Object Features, where the settings' kind is object: the object loss then pulls "
                    "the composed picture's object to the subject's shape and the style's look. Without it there is no "
                    "such loss.",
                ),
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
        """Runs again when a file of a kept result is gone, or when asked to train again."""
        from ..magicapture_core.kept import missing_files

        return float("nan") if train_again else folders.digest(missing_files(folders.runs_folder(name)))

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
        face_recognition: Recogniser | None = None,
        patience: int = 0,
        more: list[Concept] | None = None,
        object_features: Dino | None = None,
    ) -> io.NodeOutput:
        from ..magicapture_core.dataset import check_kind
        from ..magicapture_core.likeness import check_targets
        from ..magicapture_core.watch import Watch

        subject = Concept(side="subject", images=subject_images, masks=subject_masks, faces=subject_faces)
        style = Concept(side="style", images=style_images, masks=style_masks, faces=style_faces)
        with torch.inference_mode(False), torch.enable_grad():
            photos, config, notes = to_photos([subject, style], more or [], settings or parse_config({}))
            for network in (face_recognition, object_features):
                check_kind(config, network)
            if face_recognition is not None:
                notes += check_targets(photos)
            progress = Progress(cls.hidden.unique_id, config, folders.runs_folder(name))
            watch = Watch(
                every=preview_every,
                patience=patience,
                detector=face_detector(required=False) if face_recognition is not None else None,
                on_look=progress.looked,
                on_sampling=progress.sampling,
            )
            result, artifact = train(
                (model, clip, vae),
                photos,
                config,
                name=name,
                progress=progress,
                train_again=train_again,
                recogniser=face_recognition or object_features,
                watch=watch,
            )
            samples = progress.samples()
        report = "\n".join([*progress.lines, *notes, *_closing_lines(result, progress.folder)])
        curves = draw_history(result.told.history)
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
    photos: Photos,
    config: TrainConfig,
    *,
    name: str,
    progress: Progress,
    train_again: bool,
    recogniser: Recogniser | Dino | None,
    watch: Watch,
) -> tuple[Result, Artifact]:
    """The kept result of these very inputs, or a training. The graphics card is empty before and after."""
    from comfy import model_management

    from ..magicapture_core import recipe
    from ..magicapture_core.kept import Kept, result_key
    from ..magicapture_core.taesd import load_taesd

    backbone = plain_backbone(*sockets)
    if recogniser is not None and config.loss.identity_decoder == "taesd":  # else a missing file is no matter
        backbone.taesd = load_taesd(folders.taesd_file())
    progress.key = result_key(backbone, photos, config, recogniser, watch)
    kept = Kept(progress.folder, progress.key)
    found = None if train_again else kept.find_result()
    if found:
        found = recipe.conclude(found, kept, save_and_check, progress.say)  # where a kill left that to do
        progress.say("Nothing has changed since the last training: its result is returned.")
        return found, read_back(found.files)
    model_management.unload_all_models()
    model_management.soft_empty_cache()
    try:
        result = recipe.personalize(
            backbone,
            photos,
            config,
            name=name,
            folder=progress.folder,
            save=save_and_check,
            key=progress.key,
            recogniser=recogniser,
            device=model_management.get_torch_device(),
            resume=not train_again,
            on_estimate=progress.estimated,
            on_step=progress.stepped,
            watch=watch,
            say=progress.say,
        )
    finally:
        backbone.to(torch.device("meta"), torch.float32)  # frees the weights, even while a traceback holds the modules
        if recogniser is not None:
            recogniser.cpu()  # ComfyUI keeps it for the next queue
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


def read_back(files: list[Path]) -> Artifact:
    from ..magicapture_core.artifact import load

    return patching.check_architecture(load(files[0], folders.embeddings_folders()))


def draw_history(history: list[list[float]]) -> Tensor:
    """A row of terms a step -> a picture of the curves, [1,3,H,W]."""
    from ..magicapture_core.images import draw_curves
    from ..magicapture_core.kept import TERMS

    return draw_curves({name: [row[i] for row in history] for i, name in enumerate(TERMS)})[None]


def _closing_lines(result: Result, folder: Path) -> list[str]:
    from ..magicapture_core.artifact import PREVIEW
    from ..magicapture_core.watch import describe

    resumed = f", gone on from step {result.resumed_from}" if result.resumed_from else ""
    likeness = describe(result.told.looks)
    previews = [files[0].with_suffix(PREVIEW) for files in (result.files, result.best_files) if files]
    return [
        f"{len(result.told.history)} steps{resumed}",
        *([likeness] if likeness else []),
        *(f"Written and read back: {file}" for file in (*result.files, *result.best_files)),
        *(f"Preview picture for LoRA managers: {file}" for file in previews if file.is_file()),
        f"Sample pictures of the person, and the state of an unfinished run, stay in {folder} until you delete it.",
    ]


NODES = [TrainMagiCaptureLoRA]
