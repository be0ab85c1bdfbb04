"""TrainMagiCaptureLoRA: two sets of portraits -> one LoRA file, with progress, previews, Cancel and a kept result."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.config import TrainConfig, parse_config
from ..magicapture_core.types import Face
from . import folders, patching
from .bounds import within_bounds
from .collages import collage_inputs, read_controls
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
from .training import Craft, fingerprint, patience_input, run_inputs, told_outputs, train
from .weights import plain_backbone

if TYPE_CHECKING:
    from ..magicapture_core.artifact import Artifact
    from ..magicapture_core.backbone import Backbone
    from ..magicapture_core.collages import Controls
    from ..magicapture_core.dataset import Mode
    from ..magicapture_core.dino import Dino
    from ..magicapture_core.identity import Recogniser
    from ..magicapture_core.landmark_maps import Style


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
                *run_inputs("my_portrait"),
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
                patience_input(),
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
                *collage_inputs(),
            ],
            outputs=[
                ArtifactType.Output(display_name="artifact", tooltip="For Composed Prompt Sampler."),
                io.LoraModel.Output(display_name="lora", tooltip="The LoRA's weights, for Load LoRA Model."),
                *told_outputs(),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str, train_again: bool, **others: Any) -> Any:
        return fingerprint(name, train_again)

    @classmethod
    @within_bounds
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
        skeleton_control_net: Any = None,
        landmark_control_net: Any = None,
        landmark_style: Style = "openpose",
    ) -> io.NodeOutput:
        from ..magicapture_core.dataset import check_kind
        from ..magicapture_core.likeness import check_targets

        subject = Concept(side="subject", images=subject_images, masks=subject_masks, faces=subject_faces)
        style = Concept(side="style", images=style_images, masks=style_masks, faces=style_faces)
        with torch.inference_mode(False), torch.enable_grad():
            photos, config, notes = to_photos([subject, style], more or [], settings or parse_config({}))
            for network in (face_recognition, object_features):
                check_kind(config, network)
            if face_recognition is not None:
                notes += check_targets(photos)
            recogniser = face_recognition or object_features
            backbone = backbone_of(model, clip, vae, config, recogniser)
            given: dict[Mode, Any] = {"skeleton": skeleton_control_net, "landmark": landmark_control_net}
            controls, unused = read_controls(given, landmark_style, backbone.unet, photos, config)
            progress = Progress(cls.hidden.unique_id, config, folders.runs_folder(name))
            trained = train(
                craft(controls),
                backbone,
                photos,
                config,
                name=name,
                progress=progress,
                preview_every=preview_every,
                patience=patience,
                train_again=train_again,
                recogniser=recogniser,
                detector=face_detector(required=False) if face_recognition is not None else None,
                notes=[*notes, *unused],
                networks=[control.net for control in controls.values()],
            )
        return io.NodeOutput(
            trained.made,
            trained.made.lora,
            to_comfy(trained.samples),
            to_comfy(trained.curves),
            trained.report,
            ui=show(trained.report, trained.samples[-1:], cls),
        )


def craft(controls: Controls) -> Craft[Artifact]:
    """MagiCapture's. controls: what collages are conditioned on."""
    from ..magicapture_core import collages, recipe
    from ..magicapture_core.kept import result_key

    return Craft(
        result_key=partial(result_key, more=collages.tensors(controls)),
        personalize=partial(recipe.personalize, controls=controls),
        save=save,
        load=read_back,
        is_whole=is_whole,
    )


def backbone_of(model: Any, clip: Any, vae: Any, config: TrainConfig, recogniser: Recogniser | Dino | None) -> Backbone:
    """With TAESD, where a loss will need it."""
    from ..magicapture_core.taesd import load_taesd

    backbone = plain_backbone(model, clip, vae)
    if recogniser is not None and config.loss.identity_decoder == "taesd":  # else a missing file is no matter
        backbone.taesd = load_taesd(folders.taesd_file())
    return backbone


def save(artifact: Artifact) -> Sequence[Path]:
    """The LoRA and the embeddings."""
    from ..magicapture_core.artifact import save

    return save(artifact, folders.loras_folder(), folders.embeddings_folders()[0])


def read_back(files: Sequence[Path]) -> Artifact:
    from ..magicapture_core.artifact import load

    return patching.check_architecture(load(files[0], folders.embeddings_folders()))


def is_whole(artifact: Artifact, files: Sequence[Path]) -> bool:
    """Whether the files hold this LoRA and these words."""
    again = read_back(files)
    same_lora = again.lora.keys() == artifact.lora.keys() and all(
        torch.equal(again.lora[key].float(), weight.half().float()) for key, weight in artifact.lora.items()
    )
    same_words = len(again.tokens) == len(artifact.tokens) and all(
        torch.equal(a.vectors, b.vectors) for a, b in zip(again.tokens, artifact.tokens, strict=True)
    )
    return same_lora and same_words


NODES = [TrainMagiCaptureLoRA]
