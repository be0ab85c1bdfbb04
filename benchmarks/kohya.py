"""kohya's sd-scripts out of its tree: its UNet and its LoRA network, and what train_network.py does in a step.

Its network adapts all linear layers of the transformers; here only those of attention, so that both sides do W0.
Latents and text are precomputed, attention is its fast one (--sdpa).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from .checkpoint import read_weights
from .workload import (
    DTYPES,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    PROMPT_SHAPE,
    RANK,
    Conditions,
    Contender,
    Workload,
)

ATTENTION = re.compile(r".*_attn[12]_to_(q|k|v|out_0)")


@contextmanager
def opened(workload: Workload, conditions: Conditions) -> Iterator[Contender]:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    tree = conditions.trees["kohya"]
    sys.path.insert(0, tree)
    device, dtype = torch.device(conditions.device), DTYPES[workload.dtype]
    unet = import_module("library.original_unet").UNet2DConditionModel(
        sample_size=64, attention_head_dim=8, cross_attention_dim=PROMPT_SHAPE[1]
    )
    unet.load_state_dict(read_weights(conditions.checkpoint))
    unet.set_use_sdpa(True)
    unet.requires_grad_(False).to(device, dtype)
    unet.train(workload.checkpointing)
    unet.set_gradient_checkpointing(workload.checkpointing)
    network = import_module("networks.lora").create_network(1.0, RANK, RANK, None, [], unet)
    network.unet_loras = [module for module in network.unet_loras if ATTENTION.fullmatch(module.lora_name)]
    network.apply_to([], unet, apply_text_encoder=False, apply_unet=True)
    network.requires_grad_(True).train().to(device)
    parameters = list(network.get_trainable_params())
    optimizer = torch.optim.AdamW([{"params": parameters, "lr": LEARNING_RATE}], lr=LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _step: 1.0)
    schedule: Any = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, clip_sample=False
    )
    cached_latents = torch.randn(workload.latent_shape, device=device)
    prompt_embeds = torch.randn(workload.batch, *PROMPT_SHAPE, device=device)
    loss_weights = torch.ones(workload.batch, device=device)

    def step() -> float:
        noise = torch.randn_like(cached_latents)
        timesteps = torch.randint(0, 1000, (workload.batch,), device=device)
        noisy_latents = schedule.add_noise(cached_latents, noise, timesteps).requires_grad_(True)  # as it does
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            noise_pred = unet(noisy_latents, timesteps, prompt_embeds).sample
        loss = torch.nn.functional.mse_loss(noise_pred.float(), noise.float(), reduction="none")
        loss = (loss.mean(dim=(1, 2, 3)) * loss_weights).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.get_trainable_params(), MAX_GRAD_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach().item()

    yield Contender(
        step=step,
        predict=lambda latents, timesteps, embeds: unet(latents, timesteps, embeds).sample,
        num_parameters=sum(parameter.numel() for parameter in parameters),
        about=f"kohya sd-scripts {commit(tree)}, its UNet and LoRA, the step of train_network.py with --sdpa",
    )


def commit(tree: str) -> str:
    """The first letters of the commit that is checked out; empty where that is not known."""
    told = subprocess.run(["git", "-C", tree, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return told.stdout.strip()
