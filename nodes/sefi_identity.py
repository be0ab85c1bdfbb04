"""LoadSeFiIdentity and ApplySeFiIdentity: a person learned from one photo, in any prompt and any sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..magicapture_core.metadata import IDENTITY
from .folders import IDENTITIES
from .patching import check_architecture
from .shelves import Shelf
from .sockets import IdentityType, checkpoint_inputs, schema

if TYPE_CHECKING:
    from ..magicapture_core.sefi.identity import SefiIdentity

SHELF = Shelf(
    IDENTITIES,
    f"there is no identity in models/{IDENTITIES} yet: train one with the workflow MagiCapture 5 - One Photo, or "
    "copy a file there",
    IDENTITY,
)


class LoadSeFiIdentity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load SeFi Identity",
            node_id="MagiCaptureLoadSeFiIdentity",
            description="Loads an identity that was learned from one photo. Connect it to Apply SeFi Identity.",
            search_aliases=["SeFi-IDE", "one photo", "textual inversion"],
            inputs=[
                io.Combo.Input(
                    "identity_name",
                    options=SHELF.choices(),
                    tooltip="A file made by Train SeFi Identity; newest = the last one trained.",
                )
            ],
            outputs=[IdentityType.Output(display_name="identity", tooltip="Connect to Apply SeFi Identity.")],
        )

    @classmethod
    def fingerprint_inputs(cls, identity_name: str) -> list[Any]:
        return SHELF.fingerprint(identity_name)

    @classmethod
    def execute(cls, identity_name: str) -> io.NodeOutput:
        from ..magicapture_core.sefi import identity

        return io.NodeOutput(check_architecture(identity.load(SHELF.find(identity_name))))


class ApplySeFiIdentity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Apply SeFi Identity",
            node_id="MagiCaptureApplySeFiIdentity",
            description="Teaches MODEL and CLIP an identity: then <person> can be written in the prompts of CLIP "
            "Text Encode, and any sampler draws it. No weight of the model changes.",
            search_aliases=["SeFi-IDE", "one photo"],
            inputs=[
                *checkpoint_inputs(
                    model="Any SD1.5 model, with LoRA, ControlNet, IP-Adapter or without.",
                    clip="The CLIP of the same checkpoint.",
                ),
                IdentityType.Input("identity", tooltip="From Load or Train SeFi Identity."),
                io.String.Input(
                    "word",
                    default="",
                    optional=True,
                    tooltip="How it is written in prompts, such as <anna>: give each a word of its own where several "
                    "stand in one prompt. Empty: as it was trained, <person>.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Connect to a KSampler."),
                io.Clip.Output(display_name="clip", tooltip="The CLIP that knows the word, for the prompt nodes."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, identity: SefiIdentity, word: str = "") -> io.NodeOutput:
        from .staging import apply_identity

        return io.NodeOutput(*apply_identity(identity, model, clip, word))


NODES = [LoadSeFiIdentity, ApplySeFiIdentity]
