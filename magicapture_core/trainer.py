"""Training as a generator: textual inversion, then LoRA and words together. The caller owns progress and stopping.

In: a backbone, an encoded dataset, a configuration. Out: one `TrainStep` an optimizer step. Closing the generator, at
any step, leaves the backbone's modules as they were. Knows nothing of files.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from . import lora, losses, tokens
from .attention import capture
from .config import TrainConfig
from .dataset import Batch, Dataset, draw, step_items
from .diffusion import add_noise
from .sampler import encode_prompt, sample
from .tokens import Vocabulary
from .types import LossTerms, MagiCaptureError, Token

if TYPE_CHECKING:
    from .backbone import Backbone

Phase = Literal["inversion", "tuning"]
State = dict[str, Tensor]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainStep:
    """One finished optimizer step. `step` counts 1..num_steps over both phases; `seconds` is its own time.

    `run` is live: it is as after this step until the generator goes on.
    """

    phase: Phase
    step: int
    num_steps: int
    losses: LossTerms
    seconds: float
    run: Run

    def state(self) -> State:
        """Copies of all that `train(..., resume=...)` needs to go on exactly from here."""
        return {"step": torch.tensor(self.step), **self.run.state()}


def train(
    backbone: Backbone, dataset: Dataset, config: TrainConfig, resume: State | None = None
) -> Iterator[TrainStep]:
    """Phase 1 moves the learned words alone (Eq. 9), phase 2 the LoRA and the words (Eq. 10).

    resume: a `TrainStep.state()` of the same photos and configuration; the run goes on bit for bit as if it had never
    stopped. Raises MagiCaptureError when a loss is not a number.
    """
    done = int(resume["step"]) if resume else 0
    phases = {"inversion": config.inversion.num_steps, "tuning": config.tuning.num_steps}
    with _run(backbone, dataset, config) as run:
        first = 0
        for phase, num_steps in phases.items():
            if done < first + num_steps:
                run.begin(phase, resume or {}, midway=done > first)
                for step in range(max(done - first, 0), num_steps):
                    started = time.perf_counter()
                    terms = run.update(phase, step, fraction_left=1 - step / num_steps)
                    yield TrainStep(
                        phase=phase,
                        step=first + step + 1,
                        num_steps=sum(phases.values()),
                        losses=terms,
                        seconds=time.perf_counter() - started,
                        run=run,
                    )
            first += num_steps


@contextmanager
def _run(backbone: Backbone, dataset: Dataset, config: TrainConfig) -> Iterator[Run]:
    """A run whose changes to the backbone's modules are undone on leaving."""
    with ExitStack() as undo:
        if config.gradient_checkpointing:  # diffusers' is non-reentrant: maps read inside keep their gradient
            backbone.unet.enable_gradient_checkpointing()
            undo.callback(backbone.unet.disable_gradient_checkpointing)
        yield Run(backbone, dataset, config, undo)


class Run:
    """The moving parts of a training: the learned words' rows, the LoRA, the optimizer of the present phase."""

    def __init__(self, backbone: Backbone, dataset: Dataset, config: TrainConfig, undo: ExitStack) -> None:
        self.backbone, self.dataset, self.config = backbone, dataset, config
        self._undo = undo
        self._generator = torch.Generator().manual_seed(config.seed)
        self._device = backbone.unet.device
        self._alphas_cumprod = backbone.noise_scheduler.alphas_cumprod.to(self._device)
        self._initial = self._initial_tokens()
        rows = undo.enter_context(tokens.injected(backbone.text_encoder, self._initial))
        self._parameters = {f"token.{index}": row for index, row in enumerate(rows)}
        self.vocabulary = Vocabulary.of(backbone.tokenizer, self._initial)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=backbone.unet.dtype == torch.float16)
        self._fixed_embeds: dict[str, Tensor] | None = None  # prompt -> [1,T,C], while nothing on the text side moves

    def _initial_tokens(self) -> list[Token]:
        table = self.backbone.text_encoder.get_input_embeddings().weight
        return [
            tokens.initial_token(name, settings, self.backbone.tokenizer, table, self._generator)
            for name, settings in (("subject", self.config.subject), ("style", self.config.style))
        ]

    # -- what was learned ----------------------------------------------------------------------------------------------

    def tokens(self) -> list[Token]:
        """The learned words as they are now, copied to the CPU."""
        return [
            replace(token, vectors=self._parameters[f"token.{index}"].detach().float().cpu().clone())
            for index, token in enumerate(self._initial)
        ]

    def lora(self) -> dict[str, lora.State]:
        """The LoRA of each model as it is now, copied to the CPU; empty in phase 1."""
        return {"unet": lora.state(self.backbone.unet), "text_encoder": lora.state(self.backbone.text_encoder)}

    def preview(self, prompt: str, **options: Any) -> Tensor:
        """Pictures from the weights as they are now, [B,3,H,W] in 0..1; options as for `sampler.sample`."""
        return sample(self.backbone, self.vocabulary, prompt, **options)

    def state(self) -> State:
        """Parameters, optimizer and loss scale as flat copies on the CPU."""
        state: State = {}
        for name, parameter in self._parameters.items():
            state[f"parameter.{name}"] = parameter.detach()
            for key, value in self._optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{name}.{key}"] = value
        for key, value in self._scaler.state_dict().items():
            state[f"scaler.{key}"] = torch.tensor(value)
        return {key: value.to("cpu", copy=True) for key, value in state.items()}

    # -- phases --------------------------------------------------------------------------------------------------------

    def begin(self, phase: str, resume: State, midway: bool) -> None:
        """Put the trainable parts of a phase in place. midway: the optimizer goes on from `resume`."""
        settings = self.config.inversion if phase == "inversion" else self.config.tuning
        rows = [parameter for name, parameter in self._parameters.items() if name.startswith("token.")]
        for row in rows:
            row.requires_grad_(settings.token_learning_rate > 0)
        groups = [{"params": rows, "base": settings.token_learning_rate}]
        if phase == "tuning":
            groups.append({"params": self._inject_lora(), "base": self.config.tuning.lora_learning_rate})
        for name, parameter in self._parameters.items():
            if f"parameter.{name}" in resume:
                parameter.data.copy_(resume[f"parameter.{name}"])
        self._optimizer = torch.optim.AdamW(
            groups, lr=1.0, weight_decay=settings.weight_decay, fused=self._device.type == "cuda"
        )
        text_moves = settings.token_learning_rate > 0 or (phase == "tuning" and self.config.lora.text_encoder)
        self._fixed_embeds = None if text_moves else {}
        if midway:
            self._load_optimizer(resume)

    def _inject_lora(self) -> list[nn.Parameter]:
        settings, models = self.config.lora, [(self.backbone.unet, self.config.lora.targets)]
        if settings.text_encoder:
            models.append((self.backbone.text_encoder, "text-encoder"))
        parameters = []
        for model, target in models:
            parameters += self._undo.enter_context(lora.injected(model, settings, target, self._generator))
        self._parameters |= {f"lora.{index}": parameter for index, parameter in enumerate(parameters)}
        return parameters

    def _load_optimizer(self, resume: State) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for index, name in enumerate(self._parameters):
            prefix = f"optimizer.{name}."
            found = {key.removeprefix(prefix): value for key, value in resume.items() if key.startswith(prefix)}
            if found:
                state[index] = found
        self._optimizer.load_state_dict({"state": state, "param_groups": self._optimizer.state_dict()["param_groups"]})
        if self._scaler.is_enabled():
            saved = {key.removeprefix("scaler."): v.item() for key, v in resume.items() if key.startswith("scaler.")}
            self._scaler.load_state_dict(saved)

    # -- one step ------------------------------------------------------------------------------------------------------

    def update(self, phase: str, step: int, fraction_left: float) -> LossTerms:
        """One optimizer step over the step's items, learning rates at `fraction_left` of their start (linear decay)."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["base"] * fraction_left
        items = step_items(self.config, phase, step)
        sums = torch.zeros(2, device=self._device)
        for start in range(0, len(items), self.config.batch_size):
            batch = draw(self.dataset, self.config, items[start : start + self.config.batch_size])
            sums += self.backward(batch, phase, share=1 / len(items))
        reconstruction, attention = sums
        terms = LossTerms(
            reconstruction=reconstruction,
            attention=attention,
            total=reconstruction + self._attention_weight(phase) * attention,
        )
        self._scaler.unscale_(self._optimizer)
        trainable = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(trainable, self.config.max_grad_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return terms

    def _attention_weight(self, phase: str) -> float:
        # "text embeddings are not well-suited for learning geometric information": no refocusing in phase 1
        return 0.0 if phase == "inversion" else self.config.loss.attention_weight

    def backward(self, batch: Batch, phase: str, share: float) -> Tensor:
        """Add the gradient of one forward pass, each item weighing `share`. Returns [2]: both terms, summed, weighed."""
        reconstruction, attention = self._forward(batch, phase)
        total = (reconstruction + self._attention_weight(phase) * attention).sum() * share
        self._scaler.scale(total).backward()
        return torch.stack([reconstruction.detach().sum(), attention.detach().sum()]) * share

    def _forward(self, batch: Batch, phase: str) -> tuple[Tensor, Tensor]:
        """Reconstruction (Eq. 4 to 6) and attention refocusing (Eq. 8) of each item, [B] and [B]: one UNet pass."""
        device, unet = self._device, self.backbone.unet
        noise, timesteps = batch.noise.to(device), batch.timesteps.to(device)
        noisy_latents = add_noise(batch.latents.to(device), noise, timesteps, self._alphas_cumprod)
        watching = self._attention_weight(phase) > 0
        columns = self._token_columns(batch.prompts).to(device) if watching else None
        grid = (batch.face_masks.shape[-2], batch.face_masks.shape[-1])
        with torch.autocast(device.type, unet.dtype, enabled=unet.dtype != torch.float32):
            prompt_embeds = self._prompt_embeds(batch.prompts)
            with nullcontext({}) if columns is None else capture(unet, columns, {grid}) as maps:
                noise_pred = unet(noisy_latents, timesteps, prompt_embeds).sample
        reconstruction = losses.masked_reconstruction(noise_pred, noise, batch.loss_masks.to(device))
        if columns is None:
            return reconstruction, torch.zeros_like(reconstruction)
        return reconstruction, self._refocusing(maps, columns, batch.face_masks.to(device))

    def _refocusing(self, maps: dict[str, Tensor], columns: Tensor, face_masks: Tensor) -> Tensor:
        """Mean over the item's tokens: the subject's region is the face, the style's all the rest. [B]."""
        if not maps:
            raise MagiCaptureError(
                f"no attention layer works on a grid of {tuple(face_masks.shape[-2:])}: change "
                "loss.attention_downscale or the resolution"
            )
        probs = torch.stack(list(maps.values()), 2)  # [B,K,L,heads,h',w']
        regions = (face_masks, 1 - face_masks)
        terms = [
            losses.attention_refocusing(probs[:, index], region, self.config.loss.attention_reduce)
            for index, region in enumerate(regions)
        ]
        present = columns.sum(-1)  # [B,K] 1 where the prompt holds the token; an absent token's maps are zero
        return torch.stack(terms, 1).sum(1) / present.sum(1)

    def _token_columns(self, prompts: list[str]) -> Tensor:
        input_ids = self.vocabulary.encode(prompts)
        return torch.stack([self.vocabulary.columns(input_ids, token.placeholder) for token in self._initial], 1)

    def _prompt_embeds(self, prompts: list[str]) -> Tensor:
        """[B,T,C]; remembered while nothing on the text side moves."""
        if self._fixed_embeds is None:
            return encode_prompt(self.backbone, self.vocabulary.encode(prompts))
        for prompt in set(prompts) - set(self._fixed_embeds):
            with torch.no_grad():
                self._fixed_embeds[prompt] = encode_prompt(self.backbone, self.vocabulary.encode([prompt]))
        return torch.cat([self._fixed_embeds[prompt] for prompt in prompts])
