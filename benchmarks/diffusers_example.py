"""What diffusers' DreamBooth-LoRA example does in a step, with latents and text precomputed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from magicapture_core.backbone import noise_scheduler

from .checkpoint import read_unet
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


@contextmanager
def opened(workload: Workload, conditions: Conditions) -> Iterator[Contender]:
    import diffusers
    import peft

    device, dtype = torch.device(conditions.device), DTYPES[workload.dtype]
    unet = read_unet(conditions.checkpoint).to(device, dtype)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets))
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    if workload.checkpointing:
        unet.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    schedule = noise_scheduler()
    latents = torch.randn(workload.latent_shape, device=device)
    prompt_embeds = torch.randn(workload.batch, *PROMPT_SHAPE, device=device, dtype=dtype)

    def step() -> float:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (workload.batch,), device=device)
        noisy = schedule.add_noise(latents, noise, timesteps)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            noise_pred = unet(noisy.to(dtype), timesteps, prompt_embeds, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(noise_pred.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        return loss.detach().item()

    yield Contender(
        step=step,
        predict=lambda latents, timesteps, embeds: unet(latents, timesteps, embeds).sample,
        num_parameters=sum(parameter.numel() for parameter in parameters),
        about=f"diffusers {diffusers.__version__}, peft {peft.__version__}, the step of the DreamBooth-LoRA example",
    )
