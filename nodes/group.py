"""GroupPerson and GroupPortraitSampler: several people in one picture, each in their region."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..magicapture_core.group.people import DELAY
from ..magicapture_core.types import MagiCaptureError
from .bounds import within_bounds
from .controls import check_control, control_sockets, with_control
from .sampling import Shot, odd_size, sample, sampler_sockets, seeds_from
from .sockets import ArtifactType, IdentityType, checkpoint_inputs, masks_to_core, schema, show, text_input

if TYPE_CHECKING:
    from ..magicapture_core.artifact import Artifact
    from ..magicapture_core.group.people import Person
    from ..magicapture_core.sefi.identity import SefiIdentity

GroupType = io.Custom("MAGICAPTURE_GROUP")


class GroupPerson(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Group Person",
            node_id="MagiCaptureGroupPerson",
            description="Says who stands where in a group portrait: a person, as a LoRA or as an identity of one "
            "photo, and their region. Chain one for each person.",
            search_aliases=["MagicID", "several people", "multi person", "regional", "couple"],
            inputs=[
                io.Mask.Input(
                    "mask", tooltip="White where the person stands, such as one of Face Regions; of any size."
                ),
                text_input(
                    "prompt",
                    "a photo of {person}",
                    "What only this person is and does; {person} is their name. What is said of the whole picture, in "
                    "Group Portrait Sampler, is added behind it.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of the region is this person's; the rest is the prompt of the whole picture's.",
                ),
                ArtifactType.Input(
                    "artifact",
                    optional=True,
                    tooltip="A person as a LoRA, from Train or Load MagiCapture LoRA; that node's MODEL stays "
                    "unconnected. Or else connect identity.",
                ),
                IdentityType.Input(
                    "identity",
                    optional=True,
                    tooltip="A person as an identity of one photo, from Train or Load SeFi Identity. Or else connect "
                    "artifact.",
                ),
                GroupType.Input("group", optional=True, tooltip="The people so far, from another Group Person."),
            ],
            outputs=[
                GroupType.Output(
                    display_name="group", tooltip="To the next Group Person, or to Group Portrait Sampler."
                )
            ],
        )

    @classmethod
    @within_bounds
    def execute(
        cls,
        mask: Tensor,
        prompt: str,
        strength: float,
        artifact: Artifact | None = None,
        identity: SefiIdentity | None = None,
        group: tuple[Person, ...] = (),
    ) -> io.NodeOutput:
        from ..magicapture_core.group.people import Person
        from .patching import check_architecture

        made = artifact or identity
        if made is None or (artifact and identity):
            said = "both are connected" if made else "neither is connected"
            raise MagiCaptureError(f"artifact, identity: {said}; connect one of them, it says who the person is")
        check_architecture(made)
        regions = masks_to_core(mask)
        if len(regions) > 1:
            raise MagiCaptureError(
                f"mask: it is a batch of {len(regions)}; connect a single region, such as region 1 of Face Regions"
            )
        person = Person(made=made, mask=regions[0], prompt=prompt, strength=strength)
        return io.NodeOutput((*group, person))


class GroupPortraitSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Group Portrait Sampler",
            node_id="MagiCaptureGroupPortraitSampler",
            description="Makes pictures of several people, each in their region, in one pass: their words and LoRAs "
            "act nowhere else. Inspired by MagicID; a reconstruction.",
            search_aliases=["MagicID", "several people", "multi person", "regional prompt", "couple"],
            inputs=[
                *checkpoint_inputs(
                    model="An SD1.5 model, without the people's LoRAs on it. Other LoRAs stay as they are; IP-Adapter "
                    "and other patches of cross-attention act outside of the regions.",
                    clip="The CLIP of the same checkpoint.",
                    vae="Turns latents into pictures.",
                ),
                GroupType.Input("group", tooltip="The people, from the last Group Person."),
                text_input(
                    "prompt",
                    "in front of a plain blue background",
                    "What is said of the whole picture. In each region it stands behind the person's own prompt, "
                    "everywhere else alone.",
                ),
                text_input("negative", "", "What the pictures should not show."),
                *sampler_sockets("The first picture's seed; the next pictures use the next numbers."),
                io.Int.Input("count", default=1, min=1, max=64, tooltip="How many pictures to make."),
                *control_sockets(),
                text_input(
                    "layout",
                    "",
                    "How many people there are and where, with no name in it, such as: a photo of two people side by "
                    "side. Alone it makes the first steps. Empty: the people act from the first step on.",
                    optional=True,
                ),
                io.Float.Input(
                    "delay",
                    default=DELAY,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="The share of the steps that the layout makes, where there is one.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The pictures, one batch."),
                io.Latent.Output(display_name="latents", tooltip="The same as latents, for a second pass."),
                io.String.Output(display_name="report", tooltip="Who stands where, and with which prompt."),
            ],
        )

    @classmethod
    @within_bounds
    def execute(
        cls,
        *,
        model: Any,
        clip: Any,
        vae: Any,
        group: tuple[Person, ...],
        prompt: str,
        negative: str,
        seed: int,
        count: int,
        width: int,
        height: int,
        control_net: Any = None,
        control_image: Tensor | None = None,
        control_strength: float = 1.0,
        layout: str = "",
        delay: float = DELAY,
        **settings: Any,
    ) -> io.NodeOutput:
        from ..magicapture_core.group.people import check_people, overlaps
        from .grouping import apply_group

        people = check_people([fitted(person, (height, width)) for person in group])
        control = check_control(control_net, control_image, control_strength)
        model, positive, negatives = apply_group(people, model, clip, prompt, negative, layout.strip(), delay)
        if control:
            positive, negatives = with_control(positive, negatives, *control)
        shot = Shot(model, positive, negatives)
        latents = sample([(shot, each) for each in seeds_from(seed, count)], settings, (width, height))
        told = [describe(number, person, prompt) for number, person in enumerate(people, 1)]
        report = "\n".join([*told, *overlaps(people), *odd_size((width, height))])
        return io.NodeOutput(vae.decode(latents), {"samples": latents}, report, ui=show(report))


def fitted(person: Person, size: tuple[int, int]) -> Person:
    """The same with their region at the size (height, width) of the picture."""
    mask = torch.nn.functional.interpolate(person.mask[None], size, mode="area")[0]
    return replace(person, mask=mask)


def describe(number: int, person: Person, prompt: str) -> str:
    return f"person {number}, {person.made.name}, {float(person.mask.mean()):.0%} of the picture: {person.text(prompt)}"


NODES = [GroupPerson, GroupPortraitSampler]
