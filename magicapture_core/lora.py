"""Low-rank updates of linear layers, with peft. Inject and eject are inverses; a state is plain tensors by module path.

W' = W + scale (alpha / rank) up down (section 3.2 of arXiv 2309.06895). Knows modules by their diffusers names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .config import LoraConfig
from .types import LoraLayer, MagiCaptureError

TARGETS = {
    "cross-attention": r".*\.attn2\.(to_q|to_k|to_v|to_out\.0)",
    "attention": r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)",
    "attention+ff": r".*\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2))",
    "key-value": r".*\.attn2\.(to_k|to_v)",
    "text-encoder": r".*\.self_attn\.(q_proj|k_proj|v_proj|out_proj)",
}
ADAPTER = "default"

State = dict[str, LoraLayer]  # module path -> its update


def lora_modules(model: nn.Module) -> dict[str, Any]:
    """Module path -> peft layer, in the model's order."""
    from peft.tuners.lora import LoraLayer as PeftLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, PeftLayer)}


def _inject(model: nn.Module, **options: Any) -> None:
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    try:
        inject_adapter_in_model(PeftConfig(**options), model, ADAPTER)
    except ValueError as error:
        raise MagiCaptureError(f"the LoRA matches no layer of this model: {error}") from error


def eject(model: nn.Module) -> None:
    """Take every LoRA layer out; the layers below are the same objects as before the injection."""
    for name, layer in lora_modules(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    vars(model).pop("peft_config", None)


def state(model: nn.Module) -> State:
    """Copies of the injected updates on the CPU, in fp32."""
    return {
        name: LoraLayer(
            down=layer.lora_A[ADAPTER].weight.detach().float().cpu().clone(),
            up=layer.lora_B[ADAPTER].weight.detach().float().cpu().clone(),
            alpha=float(layer.lora_alpha[ADAPTER]),
        )
        for name, layer in lora_modules(model).items()
    }


@contextmanager
def injected(
    model: nn.Module, config: LoraConfig, target: str, generator: torch.Generator, num_parts: int = 1
) -> Iterator[list[nn.Parameter]]:
    """A fresh trainable LoRA on the layers of TARGETS[target] inside the block: down ~ N(0, (1/rank)^2), up = 0.

    Split adapters, num_parts of them, are one of the sum of their ranks and the same scale, which is exactly their sum;
    `gated` tells them apart. Yields its parameters in fp32. Raises MagiCaptureError when no layer matches.
    """
    rank, alpha = config.lora_rank, config.lora_alpha * num_parts
    try:
        _inject(model, r=rank * num_parts, lora_alpha=alpha, target_modules=TARGETS[target])
        parameters: list[nn.Parameter] = []
        for layer in lora_modules(model).values():
            down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            # drawn on the CPU in the model's order, so that every device and every peft version starts the same
            down.data = (torch.randn(down.shape, generator=generator) / rank).to(down.device)
            up.data = torch.zeros(up.shape, device=up.device)
            parameters += [down.requires_grad_(), up.requires_grad_()]
        yield parameters
    finally:
        eject(model)


@contextmanager
def gated(model: nn.Module, gates: Tensor) -> Iterator[None]:
    """Inside the block each item of a batch goes through its own part of the rank: gates [B,R], 1 = acts, 0 = not.

    What does not act gets no gradient. A checkpointed layer runs again in the backward pass, which then belongs inside.
    """

    def gate(_module: nn.Module, _args: Any, inner: Tensor) -> Tensor:  # [B,N,R], between down and up
        return inner * gates[:, None].to(inner)

    with ExitStack() as undo:
        for layer in lora_modules(model).values():
            undo.callback(layer.lora_A[ADAPTER].register_forward_hook(gate).remove)
        yield


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is as it is without its LoRA."""
    layers = lora_modules(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@contextmanager
def applied(model: nn.Module, layers: Mapping[str, LoraLayer], strength: float = 1.0) -> Iterator[None]:
    """A finished LoRA acts inside the block, `strength` times. Raises MagiCaptureError for a layer the model lacks."""
    if not layers:
        yield
        return
    unknown = sorted(set(layers) - {name for name, _ in model.named_modules()})
    if unknown:
        raise MagiCaptureError(f"the LoRA has {len(unknown)} layers that this model lacks, such as {unknown[0]}")
    try:
        _inject(
            model,
            r=1,
            target_modules=list(layers),
            rank_pattern={f"^{name}$": layer.down.shape[0] for name, layer in layers.items()},
            alpha_pattern={f"^{name}$": layer.alpha * strength for name, layer in layers.items()},
        )
        for name, module in lora_modules(model).items():
            for part, value in ((module.lora_A, layers[name].down), (module.lora_B, layers[name].up)):
                weight = part[ADAPTER].weight
                weight.data = value.to(weight.device, torch.float32)
                weight.requires_grad_(False)
        yield
    finally:
        eject(model)
