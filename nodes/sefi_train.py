"""TrainSeFiIdentity: one photo -> an identity, with progress, previews, Cancel and a kept result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.sefi.config import SefiConfig, parse_sefi_config
from ..magicapture_core.types import Face, MagiCaptureError, Portraits
from . import folders
from .bounds import within_bounds
from .patching import check_architecture
from .portraits import face_detector, to_squares
from .progress import Progress
from .sockets import (
    FaceRecognitionType,
    FacesType,
    IdentityType,
    checkpoint_inputs,
    schema,
    settings_sockets,
    settings_values,
    show,
    to_comfy,
)
from .training import Craft, fingerprint, patience_input, run_inputs, told_outputs, train
from .weights import plain_backbone

if TYPE_CHECKING:
    from ..magicapture_core.identity import Recogniser
    from ..magicapture_core.sefi.identity import SefiIdentity

WIDGETS = {  # of SefiConfig: id -> folded away; saved workflows hold values by position, so new ones go to the end
    "num_steps": False,
    "resolution": False,
    "seed": False,
    "initializer_token": False,
    "attention_weight": False,
    "gradient_checkpointing": False,
    "placeholder_token": True,
    "template": True,
    "num_stages": True,
    "parts": True,
    "key_value_split": True,
    "attention_downscale": True,
    "learning_rate": True,
    "weight_decay": True,
    "accumulate": True,
    "batch_size": True,
    "max_grad_norm": True,
    "flip": True,
    "dtype": True,
    "optimizer": True,
}


class TrainSeFiIdentity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Train SeFi Identity",
            node_id="MagiCaptureTrainSeFiIdentity",
            description="Learns a person from one photo as a word that prompts go on obeying: wearing sunglasses, in "
            "front of the Eiffel Tower. The model stays frozen; the file holds a few vectors. The result is kept: "
            "queueing the same again returns at once. Cancel stops within one step, and the next queue goes on from "
            "there. Train only on people who have agreed to it.",
            search_aliases=["SeFi-IDE", "one photo", "textual inversion"],
            is_output_node=True,
            is_input_list=True,
            inputs=[
                *checkpoint_inputs(
                    model="The SD1.5 model to learn for. It stays as it is. LoRAs attached to it are baked into the "
                    "base of the training: use them again when you use the result.",
                    clip="The CLIP of the same checkpoint. It stays as it is.",
                    vae="The VAE of the same checkpoint, or another full SD1.5 VAE.",
                ),
                io.Image.Input(
                    "images",
                    tooltip="One photo of the person, or more: a list or a batch, in any size. A square around the "
                    "face is cut out where the face networks are installed, else the middle; the report says which.",
                ),
                *run_inputs("my_identity"),
                *settings_sockets(SefiConfig(), WIDGETS),
                FacesType.Input(
                    "faces",
                    optional=True,
                    tooltip="From the Face Mask node that images come from: its squares are then taken as they are.",
                ),
                FaceRecognitionType.Input(
                    "face_recognition",
                    optional=True,
                    tooltip="From Load Face Recognition: the sample pictures are then compared with the person, and "
                    "the most alike step is saved too, as NAME_best. The training itself does not know it.",
                ),
                patience_input(),
            ],
            outputs=[
                IdentityType.Output(display_name="identity", tooltip="Connect to Apply SeFi Identity."),
                *told_outputs(),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def fingerprint_inputs(cls, name: list[str], train_again: list[bool], **others: Any) -> Any:
        """Runs again when a file of a kept result is gone, or when asked to train again."""
        return fingerprint(name[0], train_again[0])

    @classmethod
    @within_bounds
    def execute(
        cls,
        model: list[Any],
        clip: list[Any],
        vae: list[Any],
        images: list[Tensor],
        name: list[str],
        preview_every: list[int],
        train_again: list[bool],
        faces: Sequence[list[Face] | None] = (None,),
        face_recognition: Sequence[Recogniser | None] = (None,),
        patience: Sequence[int] = (0,),
        **widgets: list[Any],
    ) -> io.NodeOutput:
        values = settings_values(SefiConfig(), {name: value[0] for name, value in widgets.items()})
        config, recogniser = parse_sefi_config(values), face_recognition[0]
        detector = face_detector(required=recogniser is not None)
        with torch.inference_mode(False), torch.enable_grad():
            progress = Progress(cls.hidden.unique_id, config, folders.runs_folder(name[0]))
            portraits, notes = to_squares(images, faces[0], config.resolution, detector)
            if recogniser is not None:
                check_faces(portraits, notes)
            trained = train(
                craft(),
                plain_backbone(model[0], clip[0], vae[0]),
                portraits,
                config,
                name=name[0],
                progress=progress,
                preview_every=preview_every[0],
                patience=patience[0],
                train_again=train_again[0],
                recogniser=recogniser,
                detector=detector if recogniser is not None else None,
                notes=notes,
                attention_weight=config.attention_weight,
            )
        return io.NodeOutput(
            trained.made,
            to_comfy(trained.samples),
            to_comfy(trained.curves),
            trained.report,
            ui=show(trained.report, trained.samples[-1:], cls),
        )


def check_faces(portraits: Portraits, notes: Sequence[str]) -> None:
    """Raises MagiCaptureError where there is no face to compare with: the likeness would silently be none."""
    if all(face.landmarks is None for face in portraits.faces):
        raise MagiCaptureError(
            f"face_recognition: no face is found in images ({'; '.join(notes)}); give a photo that shows one, or leave "
            "face_recognition out"
        )


def craft() -> Craft[SefiIdentity]:
    """SeFi-IDE's."""
    from ..magicapture_core.sefi import recipe

    return Craft(
        result_key=recipe.result_key,
        personalize=recipe.personalize,
        save=save,
        load=read_back,
        is_whole=is_whole,
    )


def save(identity: SefiIdentity) -> Sequence[Path]:
    """The identity and its plain embedding."""
    from ..magicapture_core.sefi.identity import save

    return save(identity, folders.identities_folder(), folders.embeddings_folders()[0])


def read_back(files: Sequence[Path]) -> SefiIdentity:
    from ..magicapture_core.sefi.identity import load

    return check_architecture(load(files[0]))


def is_whole(identity: SefiIdentity, files: Sequence[Path]) -> bool:
    """Whether the files hold these words, and the embedding their mean."""
    from ..magicapture_core.artifact import read_file

    again, (tensors, _) = read_back(files), read_file(files[1])
    return torch.equal(again.stages, identity.stages) and torch.equal(tensors[identity.placeholder], identity.plain)


NODES = [TrainSeFiIdentity]
