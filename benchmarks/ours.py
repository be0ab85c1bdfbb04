"""Our side: the trainer's own optimizer step, with each loss and option on or off.

Without features it is W0: one subject photo, the whole picture counts, the words do not learn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magicapture_core import __version__
from magicapture_core.backbone import TINY_FOLDER, Backbone, load_tokenizer, noise_scheduler
from magicapture_core.config import TrainConfig, parse_config
from magicapture_core.dataset import Dataset, EncodedPortraits
from magicapture_core.faces import ARCFACE_POINTS
from magicapture_core.identity import ARCFACE_SIZE, Likeness
from magicapture_core.iresnet import BLOCKS, NUM_FEATURES, IResNet
from magicapture_core.ldm import SCALING_FACTOR
from magicapture_core.trainer import open_run
from magicapture_core.types import SD1

from .checkpoint import read_unet
from .workload import DTYPES, LEARNING_RATE, MAX_GRAD_NORM, PIXELS_PER_LATENT, RANK, Conditions, Contender, Workload

FACE_SHARE = 0.4  # of the picture's height that a face takes
MAP_SIDE = 16  # of the attention maps that are read, where the latents are that large

FEATURES: dict[str, dict[str, dict[str, Any]]] = {
    "mask": {},  # the reconstruction counts inside the face only
    "refocusing": {"loss": {"attention_weight": 2.5}},
    "three tasks": {"tuning": {"tasks": ("source", "reference", "composed")}},
    "composed": {"tuning": {"tasks": ("composed",)}},
    "identity": {"loss": {"identity_weight": 0.25}},
    "identity always": {"loss": {"identity_weight": 0.25, "identity_max_timestep": 1000}},
    "prior": {"loss": {"prior_weight": 1.0}},
    "words": {"tuning": {"token_learning_rate": 1e-5}},
    "text encoder": {"lora": {"text_encoder": True}},
    "cross-attention": {"lora": {"targets": "cross-attention"}},
    "split": {"lora": {"adapters": "split"}},
}


@contextmanager
def opened(workload: Workload, conditions: Conditions) -> Iterator[Contender]:
    config, device = settings(workload), torch.device(conditions.device)
    backbone = random_backbone(read_unet(conditions.checkpoint), workload)
    backbone.to(device, DTYPES[workload.dtype])
    with open_run(backbone, random_dataset(workload, device), config) as run:
        run.begin("tuning", {}, midway=False)
        steps = itertools.count()
        yield Contender(
            step=lambda: run.update("tuning", next(steps), fraction_left=1.0),
            predict=lambda latents, timesteps, embeds: backbone.unet(latents, timesteps, embeds).sample,
            num_parameters=sum(parameter.numel() for parameter in run.trainable()),
            about=f"MagiCapture {__version__}",
        )


def settings(workload: Workload) -> TrainConfig:
    """W0, and what each feature changes in it."""
    values: dict[str, dict[str, Any]] = {
        "lora": {"targets": "attention", "lora_rank": RANK, "lora_alpha": RANK},
        "loss": {
            "attention_weight": 0.0,
            "attention_downscale": max(workload.pixels // PIXELS_PER_LATENT // MAP_SIDE, 1),
            "identity_weight": 0.0,
        },
        "tuning": {"tasks": ("source",), "token_learning_rate": 0.0, "lora_learning_rate": LEARNING_RATE},
    }
    for feature in workload.features:
        for group, changes in FEATURES[feature].items():
            values[group] |= changes
    return parse_config(
        {
            **values,
            "accumulate": workload.batch,
            "batch_size": workload.batch,
            "dtype": workload.dtype,
            "gradient_checkpointing": workload.checkpointing,
            "max_grad_norm": MAX_GRAD_NORM,
        }
    )


def random_backbone(unet: Any, workload: Workload) -> Backbone:
    """The UNet beside the parts that the workload needs, of SD1.5's size; what plays no part in it takes no memory."""
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = load_tokenizer(TINY_FOLDER / "tokenizer")
    text_acts = {"words", "text encoder"} & set(workload.features) or workload.method != "ours"
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=unet.config.cross_attention_dim,
        intermediate_size=3072,
        num_hidden_layers=12 if text_acts else 0,  # text is precomputed elsewhere, so here it costs nothing
        num_attention_heads=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    decodes = {"identity", "identity always"} & set(workload.features)
    return Backbone(
        unet=unet,
        vae=random_vae() if decodes else nn.Identity(),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        noise_scheduler=noise_scheduler(),
        architecture=SD1,
    )


def random_vae() -> Any:
    """SD1.5's."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    levels: dict[str, Any] = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    return AutoencoderKL(**levels, layers_per_block=2, sample_size=512, scaling_factor=SCALING_FACTOR)


def random_dataset(workload: Workload, device: torch.device) -> Dataset:
    """One photo a side, a face in its middle. Without `mask` the whole picture counts for either side."""
    pixels, side = workload.pixels, workload.latent_shape[-1]
    downscale = settings(workload).loss.attention_downscale
    size = FACE_SHARE * pixels
    landmarks = ARCFACE_POINTS * (size / ARCFACE_SIZE) + (pixels - size) / 2

    def encoded(whole: float) -> EncodedPortraits:
        masks = face_mask(side) if "mask" in workload.features else torch.full((side, side), whole)
        return EncodedPortraits(
            mean=torch.randn(1, 1, 4, side, side).repeat(2, 1, 1, 1, 1),
            std=torch.full((2, 1, 4, side, side), 0.1),
            face_masks=masks.expand(2, 1, 1, -1, -1),
            attention_masks=face_mask(side // downscale).expand(2, 1, 1, -1, -1),
            landmarks=landmarks.expand(2, 1, -1, -1),
        )

    likeness = None
    if {"identity", "identity always"} & set(workload.features):
        recogniser = IResNet(BLOCKS[50]).eval().requires_grad_(False).to(device)
        embeddings = {"subject": F.normalize(torch.randn(1, NUM_FEATURES), dim=1)}
        likeness = Likeness(recogniser=recogniser, embeddings=embeddings)
    concepts = {"subject": encoded(1.0), "style": encoded(0.0)}
    return Dataset(concepts=concepts, scaling_factor=SCALING_FACTOR, likeness=likeness)


def face_mask(side: int) -> Tensor:
    """[side,side], 1 in a square of FACE_SHARE in the middle, at least one cell."""
    mask, margin = torch.zeros(side, side), min(round(side * (1 - FACE_SHARE) / 2), (side - 1) // 2)
    mask[margin : side - margin, margin : side - margin] = 1
    return mask
