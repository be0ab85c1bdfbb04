"""One training step, side by side with others in one run: `python -m benchmarks.step`.

Workload W0: the SD1.5 UNet (859.5 M, random weights), batch 1, latents and text embeddings precomputed, mean squared
error on eps, LoRA of rank 4 on q, k, v, out of all attention (128 modules, 797,184 numbers), AdamW 1e-4, clip 1.0.
Both sides do exactly that; they take turns, and the ratio of each pair is what counts, since machines drift.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from magicapture_core.backbone import Backbone, tiny
from magicapture_core.config import TrainConfig, parse_config
from magicapture_core.dataset import Dataset, EncodedPortraits
from magicapture_core.recipe import resolve_dtype
from magicapture_core.trainer import open_run

Step = Callable[[], object]
W0 = {"lora": {"targets": "attention"}, "loss": {"attention_weight": 0.0}}
REFOCUSING = {"lora": {"targets": "attention"}, "loss": {"attention_weight": 2.5}}
NUM_BOOTSTRAPS = 10_000


def sd15_unet() -> Any:
    """Random weights at true size; the class's defaults are SD1.5's but for these."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval().requires_grad_(False)


def sd15_backbone(unet: Any, device: torch.device, dtype: torch.dtype) -> Backbone:
    """The UNet with a one-layer text encoder of SD1.5's width: text is encoded once and plays no part in a step."""
    from transformers import CLIPTextConfig, CLIPTextModel

    small = tiny()
    text = CLIPTextConfig(hidden_size=768, num_hidden_layers=1, num_attention_heads=12)
    text_encoder = CLIPTextModel(text).eval().requires_grad_(False)
    backbone = dataclasses.replace(small, unet=unet, text_encoder=text_encoder)
    backbone.to(device, dtype)
    return backbone


def random_latents(side: int) -> Dataset:
    """One photo a side whose mask is everything (subject) or nothing (style): the whole picture counts for each."""
    mean, std = torch.randn(2, 1, 4, side, side), torch.full((2, 1, 4, side, side), 0.1)

    def encoded(mask: float) -> EncodedPortraits:
        face = torch.full((2, 1, 1, side, side), mask)
        landmarks = torch.full((2, 1, 5, 2), torch.nan)
        masks = {"face_masks": face, "attention_masks": face[..., ::4, ::4]}
        return EncodedPortraits(mean=mean, std=std, landmarks=landmarks, **masks)

    return Dataset(concepts={"subject": encoded(1.0), "style": encoded(0.0)}, scaling_factor=0.18215)


def our_step(unet: Any, side: int, settings: dict[str, Any], arguments: argparse.Namespace, stack: ExitStack) -> Step:
    """The trainer's own optimizer step with a single source item, and the words not learning."""
    config: TrainConfig = parse_config(
        {
            **settings,
            "tuning": {"tasks": ("source",), "token_learning_rate": 0.0},
            "dtype": arguments.dtype,
            "gradient_checkpointing": arguments.checkpointing,
        }
    )
    device = torch.device(arguments.device)
    backbone = sd15_backbone(unet, device, resolve_dtype(config, device))
    run = stack.enter_context(open_run(backbone, random_latents(side), config))
    run.begin("tuning", {}, midway=False)
    steps = iter(range(10**9))
    return lambda: float(run.update("tuning", next(steps), fraction_left=1.0).total)


def diffusers_step(unet: Any, side: int, arguments: argparse.Namespace) -> Step:
    """What diffusers' DreamBooth-LoRA example does in a step, with latents and text precomputed."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from peft import LoraConfig

    device, dtype = torch.device(arguments.device), {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    unet.to(device, dtype)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    if arguments.checkpointing:
        unet.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    noise_scheduler = DDPMScheduler(1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latents = torch.randn(1, 4, side, side, device=device)
    prompt_embeds = torch.randn(1, 77, 768, device=device, dtype=dtype)

    def step() -> float:
        noise = torch.randn_like(latents)
        timesteps: Any = torch.randint(0, 1000, (1,), device=device)
        noisy = noise_scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            noise_pred = unet(noisy.to(dtype), timesteps, prompt_embeds, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(noise_pred.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        return loss.detach().item()

    return step


def compare(ours: Step, theirs: Step, arguments: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Seconds of each, turn by turn, the order of a pair alternating; the first step of each is not counted.

    On a CPU these are the seconds that the process had it, so that others on the machine count less.
    """
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    ours()
    theirs()
    seconds: tuple[list[float], list[float]] = ([], [])
    for pair in range(arguments.pairs):
        order = ((ours, seconds[0]), (theirs, seconds[1]))
        for step, taken in order if pair % 2 else order[::-1]:
            started = clock()
            step()
            taken.append(clock() - started)
    return seconds


def report(name: str, pixels: int, ours: list[float], theirs: list[float]) -> None:
    """Medians, and the median ratio of the pairs with its 95 % interval from a bootstrap over pairs."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(NUM_BOOTSTRAPS))
    low, high = medians[NUM_BOOTSTRAPS // 40], medians[-NUM_BOOTSTRAPS // 40]
    print(
        f"| {name} | {pixels} | {statistics.median(ours):.3f} | {statistics.median(theirs):.3f} "
        f"| {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}] | {len(ratios)} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 128, 256], help="pixels")
    parser.add_argument(
        "--refocusing-sizes", type=int, nargs="*", default=[256], help="pixels; attention loss on / off"
    )
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--checkpointing", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = "CPU seconds" if arguments.device == "cpu" else "seconds"
    print(f"torch {torch.__version__}, {arguments.device}, {arguments.dtype}, {arguments.threads} threads, {clock}")
    print(
        "| seconds a step | px | ours | other | ratio, median [95 %] | pairs |\n|---|---|---|---|---|---|", flush=True
    )
    unet = sd15_unet()
    for pixels in arguments.sizes:
        with ExitStack() as stack:
            ours = our_step(copy.deepcopy(unet), pixels // 8, W0, arguments, stack)
            theirs = diffusers_step(copy.deepcopy(unet), pixels // 8, arguments)
            report("W0 / diffusers DreamBooth-LoRA", pixels, *compare(ours, theirs, arguments))
    for pixels in arguments.refocusing_sizes:
        with ExitStack() as stack:
            on = our_step(copy.deepcopy(unet), pixels // 8, REFOCUSING, arguments, stack)
            off = our_step(copy.deepcopy(unet), pixels // 8, W0, arguments, stack)
            report("attention refocusing on / off", pixels, *compare(on, off, arguments))


if __name__ == "__main__":
    main()
