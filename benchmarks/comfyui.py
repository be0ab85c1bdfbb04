"""ComfyUI's own LoRA trainer out of its tree: TrainLoraNode in its default mode, not the bypass mode.

It adapts every weight and bias of the UNet, and does not clip: its workload cannot be made W0, and this is what its
users get. Precision and checkpointing are those of the other side; attention is PyTorch's, which is its fastest.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .checkpoint import WEIGHTS
from .workload import DTYPES, LEARNING_RATE, PROMPT_SHAPE, RANK, Conditions, Contender, Workload

ENOUGH_STEPS = 100_000


class Turns:
    """Stands in for the progress bar, which the node moves on at the end of each step: there it waits for its turn."""

    def __init__(self) -> None:
        self._go, self._done, self._error = threading.Semaphore(0), threading.Semaphore(0), None

    def __call__(self, _total: int) -> Turns:
        return self

    def update(self, _steps: int) -> None:
        self._done.release()
        self._go.acquire()

    def run(self, train: Any) -> None:
        """In a thread of its own: the whole training, from the first turn on."""
        self._go.acquire()
        try:
            train()
        except BaseException as error:
            self._error = error
        self._done.release()

    def step(self) -> None:
        """Let it go on to the end of a step. Raises what the training raised."""
        self._go.release()
        self._done.acquire()
        if self._error:
            raise self._error


@contextmanager
def opened(workload: Workload, conditions: Conditions) -> Iterator[Contender]:
    tree = conditions.trees["comfyui"]
    sys.path.insert(0, tree)
    sys.argv = ["main.py", "--use-pytorch-cross-attention", *(["--cpu"] if conditions.device == "cpu" else [])]
    import_module("comfy.options").enable_args_parsing()
    nodes: Any = import_module("comfy_extras.nodes_train")
    model = import_module("comfy.sd").load_diffusion_model(
        str(Path(conditions.checkpoint, WEIGHTS)), model_options={"dtype": DTYPES[workload.dtype]}
    )
    import_module("comfy.model_management").load_models_gpu([model], force_full_load=True)
    turns = Turns()
    nodes.ProgressBar = turns
    options = {
        "model": model,
        "latents": {"samples": torch.randn(workload.latent_shape)},
        "positive": [[torch.randn(1, *PROMPT_SHAPE), {}]],
        "batch_size": workload.batch,
        "steps": ENOUGH_STEPS,
        "grad_accumulation_steps": 1,
        "learning_rate": LEARNING_RATE,
        "rank": RANK,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": workload.dtype,
        "lora_dtype": "fp32",
        "quantized_backward": False,
        "algorithm": "LoRA",
        "gradient_checkpointing": workload.checkpointing,
        "checkpoint_depth": 1,
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": False,
    }
    inputs = {name: [value] for name, value in options.items()}  # the node takes lists
    threading.Thread(target=turns.run, args=[lambda: nodes.TrainLoraNode.execute(**inputs)], daemon=True).start()
    version = import_module("comfyui_version").__version__
    yield Contender(
        step=turns.step,
        predict=lambda latents, timesteps, embeds: model.model.diffusion_model(latents, timesteps, context=embeds),
        num_parameters=None,
        about=f"ComfyUI {version}, TrainLoraNode in its default mode: LoRA and biases on the whole UNet, no clipping",
    )
