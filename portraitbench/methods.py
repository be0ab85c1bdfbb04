"""MagiCapture, its ablations and its rivals on equal terms: the core's own parts, the same number of UNet passes.

A method is a configuration and the photos it is given; all are trained by the core's trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from magicapture_core.config import PRESETS, TrainConfig, parse_config
from magicapture_core.dataset import Batch, Dataset, ItemKey, step_items
from magicapture_core.losses import AttentionLoss

from . import rivals

COMPOSED = "a photo of a {subject} person in the {style} style"
STYLE_ONLY = "a photo of a person in the {style} style"
OURS = "magicapture"
BASE = PRESETS["tiny"]
PHASES = ("inversion", "tuning")


def passes(config: TrainConfig) -> int:
    """Of the UNet in both phases, item by item."""
    return sum(len(step_items(config, phase, 0)) * getattr(config, phase).num_steps for phase in PHASES)


PASSES = passes(parse_config(BASE))  # of every method


class Unmasked(Dataset):
    """Every pixel of every photo counts."""

    def draw_item(self, config: TrainConfig, item: ItemKey) -> Batch:
        batch = super().draw_item(config, item)
        return replace(batch, loss_masks=torch.ones_like(batch.loss_masks))


@dataclass(frozen=True, kw_only=True)
class Method:
    """changes: to BASE. learning_rate: by how much BASE's rates are multiplied, as `tune` found best for the method.

    inversion_share: of the passes, spent in phase 1. photos: what it trains on; `truth` gives the true composed
    pictures as the style's photos: the ceiling. `nothing` trains not at all. `two pairs` trains on this pair and, all
    over again, on the next one, and mixes the first's person with the second's style.
    attention_loss: in the place of attention refocusing.
    """

    title: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 1.0
    inversion_share: float = 1 / 4
    masked: bool = True
    photos: str = "pair"
    attention_loss: AttentionLoss | None = None

    def config(self, seed: int, learning_rate_factor: float = 1.0, attention_factor: float = 1.0) -> TrainConfig:
        """Both phases together make PASSES passes; the method's learning rates and the weight of its attention loss are
        multiplied by the factors."""
        values = merge(BASE, {**self.changes, "seed": seed})
        values["loss"]["attention_weight"] *= attention_factor
        for phase in PHASES:
            for name, value in values[phase].items():
                if name.endswith("learning_rate"):
                    values[phase][name] = value * self.learning_rate * learning_rate_factor
        config = parse_config(values)
        for phase, share in zip(PHASES, (self.inversion_share, 1 - self.inversion_share), strict=True):
            values[phase]["num_steps"] = round(PASSES * share) // len(step_items(config, phase, 0))
        return parse_config(values)

    def dataset(self, encoded: Dataset) -> Dataset:
        return encoded if self.masked else Unmasked(**vars(encoded))


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the nested dictionary with the changes in place."""
    merged = {key: merge(value, {}) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in changes.items():
        merged[key] = merge(merged.get(key, {}), value) if isinstance(value, Mapping) else value
    return merged


TWO_TASKS = ("source", "reference")
NO_EXTRAS = {"attention_weight": 0, "identity_weight": 0}
# Not tuned: with these the losses have about as much gradient as attention refocusing at BASE's weight, at the start of
# phase 2 and after some steps of it, on two tuning pairs. `tune` has a third and three times of them.
BREAK_A_SCENE_WEIGHT, FASTCOMPOSER_WEIGHT = 0.16, 3.0
SPLIT = {"lora": {"adapters": "split"}}
WITHOUT_COMPOSED = {"tuning": {"tasks": TWO_TASKS}, "loss": {"identity_tasks": ("source",)}}

METHODS: dict[str, Method] = {
    "untouched": Method(title="untouched model", photos="nothing"),
    "truth": Method(
        title="trained on the true pictures",
        changes={"tuning": {"tasks": ("composed",)}, "loss": NO_EXTRAS},
        inversion_share=0,
        masked=False,
        photos="truth",
    ),
    "textual_inversion": Method(
        title="Textual Inversion", changes={"loss": NO_EXTRAS}, learning_rate=0.25, inversion_share=1, masked=False
    ),
    "dreambooth": Method(
        title="DreamBooth (LoRA)",
        changes={
            "subject": {"placeholder_token": "<subject>", "initializer_token": ""},  # a rare word that stays as it is
            "lora": {"targets": "attention+ff", "text_encoder": True},
            "tuning": {"tasks": TWO_TASKS, "token_learning_rate": 0},
            "loss": NO_EXTRAS,
        },
        inversion_share=0,
        masked=False,
    ),
    "custom_diffusion": Method(
        title="Custom Diffusion",
        changes={
            "lora": {"targets": "key-value", "lora_rank": 64, "lora_alpha": 64.0},  # as good as full rank here
            "tuning": {"tasks": TWO_TASKS, "token_learning_rate": 2e-3},
            "loss": NO_EXTRAS,
        },
        inversion_share=0,
        masked=False,
    ),
    OURS: Method(title="MagiCapture"),
    "without_ar": Method(title="without attention refocusing", changes={"loss": {"attention_weight": 0}}),
    "without_cp": Method(title="without composed prompts", changes=WITHOUT_COMPOSED),
    "without_ar_cp": Method(title="without both", changes=merge(WITHOUT_COMPOSED, {"loss": {"attention_weight": 0}})),
    "without_masks": Method(title="without masks", masked=False),
    "without_identity": Method(title="without the identity loss", changes={"loss": {"identity_weight": 0}}),
    "mean_then_square": Method(
        title="the authors' mean, then square", changes={"loss": {"attention_reduce": "mean_then_square"}}
    ),
    "break_a_scene": Method(
        title="Break-A-Scene's attention loss",
        changes={"loss": {"attention_weight": BREAK_A_SCENE_WEIGHT}},
        attention_loss=rivals.break_a_scene,
    ),
    "fastcomposer": Method(
        title="FastComposer's attention loss",
        changes={"loss": {"attention_weight": FASTCOMPOSER_WEIGHT}},
        attention_loss=rivals.fastcomposer,
    ),
    "split": Method(title="split adapters", changes=SPLIT),
    "mixed": Method(title="split adapters, mixed across two runs", changes=SPLIT, photos="two pairs"),
}
