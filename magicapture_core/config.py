"""Every knob of the training, with its bounds, its default and its help text.

`Field(description=...)` is the node's tooltip and the command line's help; the bounds are the widget's.
"""

from __future__ import annotations

from itertools import count
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from .prompts import PERSON
from .types import MagiCaptureError, Side, concept_name

Kind = Literal["person", "object"]
Preset = Literal["quick", "standard", "paper", "tiny"]
OptimizerName = Literal["adamw", "adamw8bit", "prodigy"]
MAX_SHOWN = 300  # characters of a wrong value
PLACEHOLDER_PATTERN = r"^<[A-Za-z0-9_-]{1,40}>$"
MAX_MORE = 15  # people or styles besides the first


class Settings(BaseModel):
    """Frozen, and a misspelt knob is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


S = TypeVar("S", bound=Settings)


class TokenConfig(Settings):
    """The learned word of one concept."""

    placeholder_token: str = Field(
        pattern=PLACEHOLDER_PATTERN, description="The learned word as it is written in prompts, in angle brackets."
    )
    initializer_token: str = Field(
        description="The word whose embedding the learned word starts from; empty starts from small random numbers."
    )
    num_vectors: int = Field(
        default=1,
        ge=1,
        le=16,
        description="How many vectors the word holds. More remember more, and obey the prompt less.",
    )


class LoraConfig(Settings):
    """The low-rank update of the weights, W' = W + (alpha / rank) U V^T."""

    lora_rank: int = Field(
        default=4, ge=4, le=128, description="Size of the update. Higher learns more, and forgets more."
    )
    lora_alpha: float = Field(
        default=4.0,
        gt=0,
        le=256,
        description="Strength of the update: it is scaled by alpha / rank. Equal to rank means 1.",
    )
    targets: Literal["cross-attention", "attention", "attention+ff", "key-value"] = Field(
        default="cross-attention",
        description="Layers of the UNet that learn. cross-attention is the paper's; attention and attention+ff add "
        "self-attention and feed-forward layers; key-value is Custom Diffusion's, the text side of cross-attention.",
    )
    text_encoder: bool = Field(default=False, description="Also train a LoRA on the attention of the text encoder.")
    adapters: Literal["joint", "split"] = Field(
        default="joint",
        description="joint: one update holds person and style. split: each has its own half, of this rank, in one file "
        "of twice the rank; their strengths can then be set apart, and the style be shared without the person.",
    )

    @property
    def rank_split(self) -> dict[str, int]:
        """The people's and the styles' share of the file's rank, in order; empty while they share it all."""
        return {"subject": self.lora_rank, "style": self.lora_rank} if self.adapters == "split" else {}


class LossConfig(Settings):
    """Weights of Eq. 10 and the exact form of its terms."""

    attention_weight: float = Field(
        default=2.5,
        ge=0,
        le=100,
        description="Attention refocusing: keeps each learned word's attention inside its region.",
    )
    attention_reduce: Literal["square_then_mean", "mean_then_square"] = Field(
        default="square_then_mean",
        description="square_then_mean punishes every map by itself (Eq. 8); mean_then_square is the authors' code.",
    )
    attention_downscale: int = Field(
        default=4,
        ge=1,
        le=8,
        description="Attention maps are read where the grid is the latent's size divided by this.",
    )
    identity_weight: float = Field(
        default=0.25,
        ge=0,
        le=10,
        description="Identity loss: the composed picture's face should be the subject's. Needs a face recogniser.",
    )
    identity_max_timestep: int = Field(
        default=800,
        ge=1,
        le=1000,
        description="The identity loss, and that of an object, looks only at steps with less noise than this; above, a "
        "face is a blur.",
    )
    identity_tasks: tuple[Literal["source", "composed"], ...] = Field(
        default=("composed",),
        min_length=1,
        description="Where the identity loss applies: on composed items (the paper), on the subject's own photos, or "
        "on both.",
    )
    identity_target: Literal["random", "mean", "best"] = Field(
        default="random",
        description="Whom the face should resemble: one of the subject's photos, drawn anew each time; the mean of "
        "them all; or the one that it is nearest to.",
    )
    identity_weighting: Literal["flat", "falling"] = Field(
        default="flat",
        description="flat counts every step alike; falling counts a step by (1 - t / 1000)^2, less where there is more "
        "noise.",
    )
    identity_min_cosine: float = Field(
        default=-1.0,
        ge=-1,
        le=1,
        description="The identity loss leaves out a face that is less alike than this, as one not worth comparing. -1 "
        "leaves out none.",
    )
    identity_decoder: Literal["vae", "taesd"] = Field(
        default="vae",
        description="What makes the picture of a face for the identity loss: the model's VAE; or taesd, much faster "
        "and less exact, which needs taesd_decoder.safetensors.",
    )
    min_snr_gamma: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Min-SNR weighting of the reconstruction: steps with little noise, and a signal to noise ratio "
        "above this, count less. 5 is customary; 0 counts every step alike, as the paper does.",
    )
    prior_weight: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Prior preservation: where the reconstruction does not look, the prediction should stay as it is "
        "without the UNet's LoRA. A second pass for every picture: a step takes about a third longer. 0 leaves it out.",
    )
    object_weight: float = Field(
        default=1.0,
        ge=0,
        le=10,
        description="Object loss: the composed picture's object should have the shape of the subject and the look of "
        "the style. Needs kind object and object features (DINO).",
    )


class PhaseConfig(Settings):
    """What both phases have. One step holds one item of each task; `accumulate` such groups make one update."""

    num_steps: int = Field(ge=0, le=100_000, description="Optimizer steps of this phase.")
    token_learning_rate: float = Field(ge=0, le=0.1, description="Learning rate of the learned words' vectors.")
    weight_decay: float = Field(ge=0, le=1, description="AdamW's weight decay.")


class InversionConfig(PhaseConfig):
    """Phase 1: textual inversion, only the learned words move (Eq. 9)."""

    num_steps: int = Field(default=1200, ge=0, le=100_000, description="Optimizer steps of phase 1, textual inversion.")
    token_learning_rate: float = Field(
        default=5e-4, gt=0, le=0.1, description="Learning rate of the learned words in phase 1."
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="AdamW's weight decay in phase 1.")
    pull_norm: bool = Field(
        default=False,
        description="After each step of phase 1, pulls the length of the learned words' vectors towards that of the "
        "model's own words, as the authors' code does.",
    )


class TuningConfig(PhaseConfig):
    """Phase 2: LoRA and learned words together (Eq. 10)."""

    num_steps: int = Field(default=1500, ge=0, le=100_000, description="Optimizer steps of phase 2, LoRA tuning.")
    token_learning_rate: float = Field(
        default=1e-5,
        ge=0,
        le=0.1,
        description="Learning rate of the learned words in phase 2; 0 keeps them as they are.",
    )
    lora_learning_rate: float = Field(default=1e-4, gt=0, le=0.1, description="Learning rate of the LoRA.")
    weight_decay: float = Field(default=1e-3, ge=0, le=1, description="AdamW's weight decay in phase 2.")
    class_images: int = Field(
        default=0,
        ge=0,
        le=500,
        description="Prior preservation as in DreamBooth: before the training the model makes so many pictures of the "
        "subject's class, such as person, and every step holds one, so that not everybody becomes the subject. 200 are "
        "customary; a step takes a third longer. 0 leaves it out.",
    )
    tasks: tuple[Literal["source", "reference", "composed"], ...] = Field(
        default=("source", "reference", "composed"),
        min_length=1,
        description="What every step holds one item of: the subject's photo, the style's photo, and the style's "
        "photo under the composed prompt.",
    )

    @field_validator("tasks")
    @classmethod
    def _distinct(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(tasks)) < len(tasks):
            raise ValueError("each task once")  # an item is drawn by its task's name: twice would be the same item
        return tasks


class TrainConfig(Settings):
    """Everything that decides a run, besides the photos and the base model."""

    seed: int = Field(default=0, ge=0, lt=2**63, description="Same seed, same photos, same model: same LoRA.")
    resolution: int = Field(
        default=512, ge=64, le=1024, multiple_of=64, description="Side of the square training pictures in pixels."
    )
    subject: TokenConfig = TokenConfig(placeholder_token="<subject>", initializer_token="person")
    style: TokenConfig = TokenConfig(placeholder_token="<style>", initializer_token="")
    more_subjects: tuple[TokenConfig, ...] = Field(
        default=(), max_length=MAX_MORE, description="The learned words of further people in the same training."
    )
    more_styles: tuple[TokenConfig, ...] = Field(
        default=(), max_length=MAX_MORE, description="The learned words of further styles in the same training."
    )
    kind: Kind = Field(  # after the subjects, which it looks at
        default="person",
        description="What the subject is. person: the masks hold faces. object, a pet or a thing: the masks hold all "
        "of it, the style's photos count as a whole, and the training's sentences call it by the subject's "
        "initializer token, such as dog or teapot.",
    )
    lora: LoraConfig = LoraConfig()
    loss: LossConfig = LossConfig()
    inversion: InversionConfig = InversionConfig()
    tuning: TuningConfig = TuningConfig()
    clone_steps: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Optimizer steps of a third phase, inspired by MagicID: collages of the person's photos in 1 to 3 "
        "slots, the faces small and large; each learned word is kept off all that is not its own face. 200 to 500 are "
        "meant; 0 leaves it out.",
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Groups of one item of each task behind one optimizer step. The paper uses 4.",
    )
    batch_size: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Items in one forward pass. Faster and hungrier for memory; the LoRA is the same.",
    )
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000, description="Gradients are clipped to this norm.")
    flip: bool = Field(
        default=True, description="Mirror half of the pictures. Switch off for lettering or lopsided faces."
    )
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
        description="adamw8bit keeps AdamW's memory in 8 bits, which counts for a large LoRA; needs bitsandbytes. "
        "prodigy finds the learning rate by itself: of those set here it heeds only a 0; needs prodigyopt.",
    )

    @field_validator("kind")
    @classmethod
    def _named(cls, kind: Kind, info: ValidationInfo) -> Kind:
        words = [info.data[name] for name in ("subject", "more_subjects") if name in info.data]
        subjects = [word for group in words for word in (group if isinstance(group, tuple) else (group,))]
        if kind == "object" and any(word.initializer_token in ("", PERSON) for word in subjects):
            raise ValueError("say what it is in subject.initializer_token, such as dog or teapot")
        return kind

    def noun(self, subject: str = "subject") -> str:
        """What the prompts call a subject."""
        return self.concepts[subject].initializer_token if self.kind == "object" else PERSON

    @model_validator(mode="after")
    def _told_apart(self) -> TrainConfig:
        words = [word.placeholder_token for word in self.concepts.values()]
        if twice := [word for word in dict.fromkeys(words) if words.count(word) > 1]:
            raise ValueError(f"two people or styles have the same placeholder_token {twice[0]}: rename one")
        return self

    @property
    def num_steps(self) -> int:
        """Optimizer steps of all phases."""
        return self.inversion.num_steps + self.tuning.num_steps + self.clone_steps

    @property
    def concepts(self) -> dict[str, TokenConfig]:
        """Name -> its learned word, the people first."""
        sides: dict[Side, tuple[TokenConfig, ...]] = {
            "subject": (self.subject, *self.more_subjects),
            "style": (self.style, *self.more_styles),
        }
        return {
            concept_name(side, number): word for side, words in sides.items() for number, word in enumerate(words, 1)
        }

    def with_another(self, side: Side, placeholder_token: str = "", initializer_token: str = "") -> TrainConfig:
        """The same with the word of one more person or style, by default <subject_2> and so on, and like the first."""
        first, more = getattr(self, side), getattr(self, f"more_{side}s")
        taken = {word.placeholder_token for word in self.concepts.values()}
        numbered = (f"<{concept_name(side, number)}>" for number in count(len(more) + 2))
        word = {
            **first.model_dump(),
            "placeholder_token": placeholder_token or next(word for word in numbered if word not in taken),
            "initializer_token": initializer_token or first.initializer_token,
        }
        return parse_config({**self.model_dump(), f"more_{side}s": (*more, word)})

    @classmethod
    def preset(cls, name: Preset) -> TrainConfig:
        """`paper`: 1200 + 1500 steps of four groups. `standard`: the same steps of one group. `quick`: a first look.

        `tiny`: for the embedded model of 64 px, whose learning rates and map sizes do not carry over to SD1.5.
        """
        return cls.model_validate(PRESETS[name])


PRESETS: dict[Preset, dict[str, Any]] = {
    "quick": {"inversion": {"num_steps": 200}, "tuning": {"num_steps": 300}},
    "standard": {},
    "paper": {"accumulate": 4},
    "tiny": {
        "resolution": 64,
        "flip": False,  # its people have moles on one cheek
        "accumulate": 8,
        "batch_size": 12,
        "lora": {"lora_rank": 16, "lora_alpha": 16.0, "targets": "attention+ff"},
        "loss": {
            "attention_downscale": 1,
            "attention_weight": 0.06,
            "identity_weight": 0.03,
        },
        "inversion": {"num_steps": 48, "token_learning_rate": 4e-3},
        "tuning": {"num_steps": 96, "token_learning_rate": 1e-3, "lora_learning_rate": 4e-3},
    },
}


def parse_config(values: dict[str, Any]) -> TrainConfig:
    """What a user typed, as nested dictionaries -> TrainConfig. Raises MagiCaptureError as `parse` does."""
    return parse(TrainConfig, values)


def parse(kind: type[S], values: dict[str, Any]) -> S:
    """What a user typed, as nested dictionaries -> settings of this kind.

    Raises MagiCaptureError in one line that names each bad field and what it should be.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, e['loc']))}={_shown(e['input'])}: {e['msg']}" for e in error.errors())
        raise MagiCaptureError("settings: " + "; ".join(faults)) from None


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
