import pytest
import torch

from magicapture_core import kohya, lora
from magicapture_core.backbone import tiny
from magicapture_core.config import LoraConfig
from magicapture_core.types import LoraLayer, MagiCaptureError


@pytest.fixture(scope="module")
def backbone():
    return tiny()


def random_layers(model, target, rank=4, alpha=6.0):
    """Whole numbers, which fp16 keeps."""
    with lora.injected(model, LoraConfig(lora_rank=rank), target, torch.Generator()):
        fresh = lora.state(model)
    generator = torch.Generator().manual_seed(0)
    return {
        path: LoraLayer(
            down=torch.randint(-9, 10, layer.down.shape, generator=generator).float(),
            up=torch.randint(-9, 10, layer.up.shape, generator=generator).float(),
            alpha=alpha,
        )
        for path, layer in fresh.items()
    }


def test_names_are_those_that_stock_loaders_know():
    assert kohya.kohya_name("lora_unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0") == (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    )
    for path in ("encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.0.self_attn.q_proj"):
        assert kohya.kohya_name("lora_te", path) == "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


@pytest.mark.parametrize(
    ("part", "prefix", "target"),
    [("unet", "lora_unet", "attention+ff"), ("text_encoder", "lora_te", "text-encoder")],
)
def test_layers_come_back_from_their_kohya_names(backbone, part, prefix, target):
    model = getattr(backbone, part)
    layers = random_layers(model, target)
    state = kohya.to_kohya(prefix, layers)
    assert len(state) == 3 * len(layers)
    one = torch.ones(1, 1)
    other = kohya.to_kohya(
        "lora_unet" if prefix == "lora_te" else "lora_te", {"x": LoraLayer(down=one, up=one, alpha=1)}
    )
    back = kohya.from_kohya(state | other, prefix, model)
    assert back.keys() == layers.keys()
    for path, layer in layers.items():
        assert torch.equal(back[path].down, layer.down)
        assert torch.equal(back[path].up, layer.up)
        assert back[path].alpha == layer.alpha


def test_the_file_holds_fp16_on_the_cpu_and_the_true_alpha(backbone):
    state = kohya.to_kohya("lora_unet", random_layers(backbone.unet, "cross-attention", rank=4, alpha=8.0))
    assert {value.dtype for value in state.values()} == {torch.float16}
    alphas = [value for key, value in state.items() if key.endswith(".alpha")]
    assert {(value.ndim, float(value)) for value in alphas} == {(0, 8.0)}


def test_without_an_alpha_the_scale_is_one():
    parts = {"lora_unet_x.lora_down.weight": torch.zeros(3, 2), "lora_unet_x.lora_up.weight": torch.zeros(5, 3)}
    assert kohya.read_layers(parts)["lora_unet_x"].alpha == 3


def test_layers_of_another_model_are_refused(backbone):
    layers = random_layers(backbone.unet, "cross-attention")
    path, layer = next(iter(layers.items()))
    strange = kohya.to_kohya("lora_unet", {"down_blocks.9.to_q": layer})
    with pytest.raises(MagiCaptureError, match="lora_unet_down_blocks_9_to_q that this model lacks"):
        kohya.from_kohya(strange, "lora_unet", backbone.unet)
    wide = LoraLayer(down=torch.zeros(4, 768), up=layer.up, alpha=4.0)
    with pytest.raises(MagiCaptureError, match=r"768\), here it is"):
        kohya.from_kohya(kohya.to_kohya("lora_unet", {path: wide}), "lora_unet", backbone.unet)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_unet_x.lora_up.weight": None}, "lora_up.weight is missing"),
        ({"lora_unet_x.lora_down.weight": None}, "lora_down.weight is missing"),
        ({"lora_unet_x.lora_up.weight": torch.zeros(5, 4)}, "impossible shapes"),
        ({"lora_unet_x.lora_up.weight": torch.zeros(5, 3, 1, 1)}, "impossible shapes"),
        (
            {"lora_unet_x.lora_up.weight": torch.zeros(5, 0), "lora_unet_x.lora_down.weight": torch.zeros(0, 2)},
            "impossible",
        ),
        ({"lora_unet_x.alpha": torch.zeros(2)}, "impossible shapes"),
        ({"lora_unet_x.dora_scale": torch.zeros(1)}, "dora_scale belongs to no LoRA"),
        ({"model.diffusion_model.out.2.bias": torch.zeros(1)}, "belongs to no LoRA"),
    ],
)
def test_what_is_no_whole_linear_layer_is_named(changes, message):
    parts = {
        "lora_unet_x.lora_down.weight": torch.zeros(3, 2),
        "lora_unet_x.lora_up.weight": torch.zeros(5, 3),
        "lora_unet_x.alpha": torch.tensor(3.0),
    }
    state = {key: value for key, value in (parts | changes).items() if value is not None}
    with pytest.raises(MagiCaptureError, match=message):
        kohya.read_layers(state)
