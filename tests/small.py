"""Inputs that are as small as they can be: 64 px portraits of noise, and a configuration of six steps."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from magicapture_core import kohya, lora
from magicapture_core.artifact import Artifact
from magicapture_core.backbone import Backbone
from magicapture_core.config import LoraConfig, TrainConfig, parse_config
from magicapture_core.dino import Dino
from magicapture_core.identity import Recogniser
from magicapture_core.types import Face, LoraLayer, Portraits, Token

SMALL: dict[str, Any] = {
    "resolution": 64,
    "inversion": {"num_steps": 3},
    "tuning": {"num_steps": 3},
    "loss": {"attention_downscale": 2},
}


def small_config(**changes: Any) -> TrainConfig:
    return parse_config({**SMALL, **changes})


LANDMARKS = torch.tensor([(17.0, 27.0), (31.0, 27.0), (24.0, 34.0), (18.0, 41.0), (30.0, 41.0)])


def portraits(count: int, seed: int = 0) -> Portraits:
    """Noise with a square face in the left half, so that a mirrored mask differs."""
    images = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    masks = torch.zeros(count, 1, 64, 64)
    masks[..., 16:48, 8:40] = 1
    face = Face(box=torch.tensor([8.0, 16.0, 40.0, 48.0]), landmarks=LANDMARKS)
    return Portraits(images=images, masks=masks, faces=[face] * count)


class SmallRecogniser(Recogniser):
    """One convolution and one matrix: frozen, smooth, and different for different faces."""

    input_size = 16

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.matrix = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8 * 7 * 7, 12)
        generator = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        self.eval().requires_grad_(False)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.matrix(self.convolution(faces).tanh().flatten(1)), dim=1)


def small_dino(grid_size: int = 4) -> Dino:
    """Two blocks on 32 px, every weight drawn."""
    dino = Dino(64, 2, 8, grid_size)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in dino.named_parameters():
        is_scale = "norm" in name and name.endswith("weight")
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2 + float(is_scale)
    return dino.eval().requires_grad_(False)


def small_restoreformer(path: Path) -> Any:
    """RestoreFormer's own class at a small size, which spandrel reads off the file; returns the network saved."""
    from spandrel.architectures.RestoreFormer import RestoreFormer

    torch.manual_seed(0)
    sizes = {"n_embed": 16, "embed_dim": 32, "ch": 32, "out_ch": 3, "ch_mult": (1,) * 6, "num_res_blocks": 1}
    rest = {"attn_resolutions": (16,), "dropout": 0.0, "in_channels": 3, "resolution": 512, "z_channels": 32}
    model = RestoreFormer(**sizes, **rest, double_z=False, enable_mid=True, head_size=8).eval()
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save({"params_ema": model.state_dict()}, path)
    return model


def random_artifact(backbone: Backbone, seed: int = 3, name: str = "random") -> Artifact:
    """Random words and a random LoRA on both models, strong enough to be seen; alpha 8 at rank 4."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    targets = ((kohya.UNET, backbone.unet, "attention"), (kohya.TEXT_ENCODER, backbone.text_encoder, "text-encoder"))
    for prefix, model, target in targets:
        with lora.injected(model, LoraConfig(), target, generator):
            layers = {
                path: LoraLayer(down=layer.down, up=torch.randn(layer.up.shape, generator=generator) * 0.2, alpha=8.0)
                for path, layer in lora.state(model).items()
            }
        state |= kohya.to_kohya(prefix, layers)
    tokens = tuple(
        Token(
            name=side,
            placeholder=f"<{side}>",
            initializer="",
            vectors=torch.randn(2, backbone.prompt_dim, generator=generator),
        )
        for side in ("subject", "style")
    )
    return Artifact(name=name, architecture=backbone.architecture, tokens=tokens, lora=state)


def weights(*modules: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{i}.{name}": value.clone() for i, module in enumerate(modules) for name, value in module.state_dict().items()
    }


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Bit-identical, key for key."""
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
