"""Every knob of SeFi-IDE's training, with its bounds, its default and its help text, as in `config`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from ..config import PLACEHOLDER_PATTERN, OptimizerName, Settings, parse
from ..prompts import PERSON

SLOT = "{person}"
SefiPreset = Literal["standard", "tiny"]


def fill_word(prompt: str, word: str) -> str:
    """`{person}` becomes the word."""
    return prompt.replace(SLOT, word)


class SefiConfig(Settings):
    """Everything that decides a run, besides the photo and the base model.

    The paper states the template, the number of stages and the weight of the attention loss; the rest is ours.
    """

    seed: int = Field(default=0, ge=0, lt=2**63, description="Same seed, same photo, same model: same identity.")
    resolution: int = Field(
        default=512, ge=64, le=1024, multiple_of=64, description="Side of the square training picture in pixels."
    )
    placeholder_token: str = Field(
        default="<person>",
        pattern=PLACEHOLDER_PATTERN,
        description="The learned word as it is written in prompts, in angle brackets.",
    )
    initializer_token: str = Field(
        default=PERSON,
        min_length=1,
        description="The plain word that the learned one starts from, and whose attention it is held to: person, or "
        "what else it is, such as woman, dog or chair. One token.",
    )
    template: str = Field(
        default=f"a photo of the face of {SLOT}",
        description="The sentence of the training, with {person} where the word goes. Leave out the face for a pet or "
        "a thing.",
    )
    num_stages: Literal[1, 3, 5, 10] = Field(
        default=5, description="How many words the identity has over the noise levels. The paper takes 5."
    )
    parts: Literal["block", "vectors"] = Field(
        default="block",
        description="What is trained: block makes all vectors out of the plain word by a small self-attention block, "
        "as the paper does; vectors moves them one by one.",
    )
    key_value_split: bool = Field(
        default=True,
        description="The keys and the values of cross-attention see words of their own. Off: both see the same.",
    )
    attention_weight: float = Field(
        default=0.003,
        ge=0,
        le=1,
        description="Attention loss: every token of the prompt should look where it does beside the plain word. Less "
        "learns the photo by heart, more loses the identity. The paper takes 0.003.",
    )
    attention_downscale: int = Field(
        default=2,
        ge=1,
        le=8,
        description="The attention loss reads maps of at most the latent's size divided by this.",
    )
    num_steps: int = Field(default=800, ge=1, le=100_000, description="Optimizer steps.")
    learning_rate: float = Field(
        default=1e-4, gt=0, le=0.1, description="Learning rate. With parts vectors 10 times as much is good."
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="AdamW's weight decay.")
    accumulate: int = Field(default=1, ge=1, le=64, description="Items behind one optimizer step.")
    batch_size: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Items in one forward pass. Faster and hungrier for memory; the identity is the same.",
    )
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000, description="Gradients are clipped to this norm.")
    flip: bool = Field(default=False, description="Mirror half of the pictures. A face is not alike on both sides.")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="Precision of the frozen base model: auto is bf16 on graphics cards that compute in it, else fp32. "
        "What is trained stays in fp32.",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Recompute activations: about a third slower, fits a 6 GB card."
    )
    optimizer: OptimizerName = Field(
        default="adamw",
        description="adamw8bit keeps AdamW's memory in 8 bits; needs bitsandbytes. prodigy finds the learning rate by "
        "itself; needs prodigyopt.",
    )

    @field_validator("template")
    @classmethod
    def _one_slot(cls, template: str) -> str:
        if template.count(SLOT) != 1:
            raise ValueError(f"it has to hold {SLOT} once")
        return template

    def sentence(self, word: str) -> str:
        """The training's sentence with this word."""
        return fill_word(self.template, word)

    @classmethod
    def preset(cls, name: SefiPreset) -> SefiConfig:
        """`tiny`: for the embedded model of 64 px, whose rates and map sizes do not carry over to SD1.5."""
        return cls.model_validate(PRESETS[name])


PRESETS: dict[SefiPreset, dict[str, Any]] = {
    "standard": {},
    "tiny": {
        "resolution": 64,
        "attention_weight": 0.45,  # its maps are small: the paper's 0.003 is under 1 % of the reconstruction here
        "attention_downscale": 1,
        "accumulate": 8,
        "batch_size": 8,
        "num_steps": 100,
        "learning_rate": 3e-5,
    },
}


def parse_sefi_config(values: dict[str, Any]) -> SefiConfig:
    """What a user typed -> SefiConfig. Raises MagiCaptureError in one line that names each bad field and the remedy."""
    return parse(SefiConfig, values)
