"""RestoreIdentity: the faces of any picture redrawn as a person's, by DDIM inversion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, get_args

from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.diir.control import STRENGTH as CONTROL_STRENGTH
from ..magicapture_core.diir.pictures import PERSONAL_PROMPT
from ..magicapture_core.diir.restorer import GUIDANCE, NUM_STEPS, STRENGTHS, Mode, Walk
from ..magicapture_core.landmark_maps import Style
from .bounds import within_bounds
from .controls import check_prompt_width
from .masks import split
from .portraits import face_detector
from .restore import in_batches, make_guard, match_regions
from .sockets import (
    ArtifactType,
    FaceRecognitionType,
    IdentityType,
    checkpoint_inputs,
    schema,
    show,
    single,
    text_input,
    to_comfy,
    to_core,
)

if TYPE_CHECKING:
    from ..magicapture_core.restore import Guard


class RestoreIdentity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Restore Identity",
            node_id="MagiCaptureRestoreIdentity",
            description="Redraws faces that are too small, broken or another's as the person's: each is walked back "
            "towards noise without the person and drawn again with them, held to the picture around it. Pixels "
            "outside of the faces keep every bit. Inspired by MagicID; a reconstruction.",
            search_aliases=["MagicID", "DIIR", "DDIM inversion", "face swap", "face restore", "face detailer"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="Pictures of any generator: a list, or a batch."),
                *checkpoint_inputs(
                    model="An SD1.5 model. With neither artifact nor identity connected the person is what is patched "
                    "into it, by IP-Adapter FaceID for example.",
                    clip="The CLIP of the same checkpoint.",
                    vae="The VAE of the same checkpoint.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(get_args(Mode)),
                    default="restore",
                    tooltip="restore: the face was meant to be the person's, and keeps its landmarks. swap: it was "
                    "another's, goes farther, and a ControlNet sees the landmarks of the reference.",
                ),
                io.Float.Input(
                    "strength",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far towards noise a face goes. 0 = that of the mode, "
                    + " and ".join(f"{strength:g} for {mode}" for mode, strength in STRENGTHS.items())
                    + ".",
                ),
                io.Int.Input(
                    "steps",
                    default=NUM_STEPS,
                    min=1,
                    max=1000,
                    tooltip="Steps of the whole way to noise, of which strength walks a part, there and back.",
                ),
                io.Float.Input(
                    "cfg",
                    default=GUIDANCE,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How closely the way back follows the prompt.",
                ),
                text_input(
                    "prompt",
                    PERSONAL_PROMPT,
                    "{person} is the person; of a LoRA, {subject} and {style} are known too.",
                ),
                text_input("negative", "", "What the faces should not show."),
                ArtifactType.Input(
                    "artifact", optional=True, tooltip="The person as a LoRA, from Train or Load MagiCapture LoRA."
                ),
                IdentityType.Input(
                    "identity",
                    optional=True,
                    tooltip="The person as an identity of one photo, from Train or Load SeFi Identity. May go "
                    "together with an artifact, such as a style's.",
                ),
                FaceRecognitionType.Input(
                    "face_recognition",
                    optional=True,
                    tooltip="From Load Face Recognition: a face stays only where it became more like the reference. "
                    "Needs reference.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="Photos of the person: a list or a batch. For face recognition, and in mode swap for the "
                    "ControlNet's landmarks.",
                ),
                io.ControlNet.Input(
                    "control_net",
                    optional=True,
                    tooltip="For SD1.5, one of face landmarks: CrucibleAI's MediaPipe face, or OpenPose. Acts on the "
                    "way back.",
                ),
                io.Combo.Input(
                    "control_style",
                    options=list(get_args(Style)),
                    default="openpose",
                    optional=True,
                    tooltip="How landmarks are drawn: as the ControlNet was trained.",
                ),
                io.Float.Input(
                    "control_strength",
                    default=CONTROL_STRENGTH,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    optional=True,
                    tooltip="How strongly the ControlNet acts, where one is connected.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where faces may change; one for all pictures, or one each. A black mask means "
                    "everywhere.",
                ),
                io.Int.Input(
                    "face_index",
                    default=-1,
                    optional=True,
                    min=-1,
                    max=99,
                    tooltip="Which face, counted from 0 from the left; -1 = all, who all become the person.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    is_output_list=True,
                    tooltip="The pictures at their own sizes: a list of those that came as a list, a batch of a batch.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="For each picture: its faces, whether they were kept, likeness before and after, seconds.",
                ),
            ],
        )

    @classmethod
    @within_bounds
    def execute(
        cls,
        images: list[Tensor],
        mask: list[Tensor] | None = None,
        **lists: list[Any],
    ) -> io.NodeOutput:
        """Lists, as ComfyUI hands them over: one person for all pictures."""
        return cls.redraw(images, mask, **single(lists))

    @classmethod
    def redraw(
        cls,
        images: list[Tensor],
        mask: list[Tensor] | None,
        *,
        mode: Mode,
        strength: float,
        steps: int,
        cfg: float,
        face_recognition: Any = None,
        reference: Sequence[Tensor] | None = None,
        control_net: Any = None,
        control_style: Style = "openpose",
        control_strength: float = CONTROL_STRENGTH,
        face_index: int = -1,
        **person: Any,
    ) -> io.NodeOutput:
        from ..magicapture_core.diir.pictures import redraw_faces, report
        from ..magicapture_core.face_outcomes import choose
        from .redrawing import open_drawing

        batches = [to_core(batch) for batch in images]
        pictures = [picture for batch in batches for picture in batch]
        regions = match_regions(mask, pictures)
        detector = face_detector()
        is_shown = mode == "swap" and control_net is not None  # the reference, to the ControlNet
        guard = make_rise(detector, face_recognition, reference, is_shown)
        another = reference if is_shown else None
        bar = Bar()
        drawing = open_drawing(
            **{"artifact": None, "identity": None, **person},
            walk=Walk(strength=strength or STRENGTHS[mode], num_steps=steps, guidance=cfg),
            control=make_control(detector, control_net, control_style, control_strength, another),
            on_step=bar.step,
        )
        found = [detector.detect(picture) for picture in pictures]
        fates = [choose(faces, region, face_index) for faces, region in zip(found, regions, strict=True)]
        bar.total = 2 * (len(drawing.sigmas()) - 1) * sum(fate.count("restored") for fate in fates)
        finished = [
            redraw_faces(picture, faces, drawing.restorer(), region=region, face_index=face_index, guard=guard)
            for picture, faces, region in zip(pictures, found, regions, strict=True)
        ]
        text = "\n".join([f"prompt: {drawing.prompt}", *report(guard, finished)])
        return io.NodeOutput(in_batches([one.image for one in finished], batches), text, ui=show(text))


def make_rise(detector: Any, face_recognition: Any, reference: Sequence[Tensor] | None, is_shown: bool) -> Guard | None:
    """What lets a face stay only where its likeness rose. is_shown: the reference is there for its landmarks too."""
    from ..magicapture_core.restore import Rise

    if face_recognition is None and is_shown:
        return None
    guard = make_guard(detector, face_recognition, reference, 0.0)
    return Rise(likeness=guard.likeness) if guard else None


def make_control(
    detector: Any, control_net: Any, style: Style, strength: float, reference: Sequence[Tensor] | None
) -> Callable[[Tensor], tuple[Any, Tensor, float]] | None:
    """A face [1,3,S,S], framed -> the ControlNet with a picture of landmarks: its own, or those of the reference's
    first photo in the same frame."""
    from ..magicapture_core.diir.landmarks import Landmarks, framed

    if control_net is None:
        return None
    check_prompt_width("control_net", control_net)
    another = None if reference is None else framed(detector, split(reference)[0])
    landmarks = Landmarks(detector=detector, style=style, another=another)
    return lambda faces: (control_net, to_comfy(landmarks(faces)), strength)


class Bar:
    """The node's, which moves with every step there and back. total: of them all."""

    def __init__(self) -> None:
        self.done, self.total = 0, 1

    def step(self) -> None:
        from comfy.utils import ProgressBar

        self.done += 1
        ProgressBar(self.total).update_absolute(self.done)


NODES = [RestoreIdentity]
