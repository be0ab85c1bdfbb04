"""Plain weights are what the patcher means, whatever its module holds at the moment."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import torch


def plain(pack, patcher, prefix=""):
    with torch.inference_mode(False):
        return import_module(f"{pack.__name__}.nodes.weights").plain_weights(patcher, prefix)


def lora_on(model, seed, strength=1.0):
    """A clone of MODEL with a random LoRA on one cross-attention layer; the layer's key and its update."""
    import comfy.sd

    generator = torch.Generator().manual_seed(seed)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"
    down, up = (torch.randn(shape, generator=generator) * 0.1 for shape in ((4, 320), (320, 4)))
    lora = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, strength, 0)
    return patched, "middle_block.1.transformer_blocks.0.attn2.to_q.weight", strength * 0.5 * up @ down


def check_lora_of_another_clone(pack, loaded):
    """A LoRA that is loaded on one clone is not in the other's weights, and is in its own, exactly once."""
    import comfy.model_management

    model = loaded[0]
    patched, key, update = lora_on(model, 0)
    clean = plain(pack, model, "diffusion_model.")
    comfy.model_management.load_models_gpu([patched])
    inside = patched.model.state_dict()[f"diffusion_model.{key}"].float()
    assert not torch.allclose(inside, clean[key]), "the LoRA must be in the shared module for this check to mean much"
    for patcher, expected in ((model, clean[key]), (patched, clean[key] + update)):
        weights = plain(pack, patcher, "diffusion_model.")
        torch.testing.assert_close(weights[key], expected, rtol=0, atol=2e-6)
        assert weights.keys() == clean.keys()
        assert all(torch.equal(weights[other], clean[other]) for other in clean if other != key)
    comfy.model_management.unload_all_models()
    torch.testing.assert_close(plain(pack, patched, "diffusion_model.")[key], clean[key] + update, rtol=0, atol=2e-6)


def check_copies_that_autograd_may_use(pack, loaded):
    """fp32 on the CPU, no inference tensors, and writing to them does not reach the model."""
    model, clip, vae = loaded
    for patcher, prefix in ((model, "diffusion_model."), (clip.patcher, "clip_l.transformer."), (vae.patcher, "")):
        before = {key: value.clone() for key, value in patcher.model.state_dict().items()}
        weights = plain(pack, patcher, prefix)
        assert weights
        for weight in weights.values():
            assert weight.dtype == torch.float32
            assert weight.device.type == "cpu"
            assert not weight.is_inference()
            weight.zero_()
        after = patcher.model.state_dict()
        changed = [key for key in before if before[key].numpy().tobytes() != after[key].numpy().tobytes()]
        assert not changed  # as bytes: a tiny checkpoint leaves parts of the CLIP unset, NaN among them


def check_storage_types(pack, checkpoint):
    """fp16, bf16 and fp8 storage give the numbers they hold."""
    import comfy.sd
    import comfy.utils

    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        state = comfy.utils.load_torch_file(str(checkpoint))
        unet = {
            k.removeprefix("model.diffusion_model."): v
            for k, v in state.items()
            if k.startswith("model.diffusion_model.")
        }
        model = comfy.sd.load_diffusion_model_state_dict(dict(unet), model_options={"dtype": dtype})
        weights = plain(pack, model, "diffusion_model.")
        key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_q.weight"
        stored = model.model.state_dict()[key]
        assert stored.dtype == dtype
        assert torch.equal(weights[key.removeprefix("diffusion_model.")], stored.float())
        patched, short, update = lora_on(model, 1)
        torch.testing.assert_close(plain(pack, patched, "diffusion_model.")[short], stored.float() + update)


def check_unknown_tensors_refused(pack, loaded):
    """A packed weight, such as GGUF's, is named in one line instead of being trained on as noise."""
    types = import_module(f"{pack.__name__}.magicapture_core.types")

    class Packed(torch.Tensor):
        pass

    class Patcher:
        def get_key_patches(self, prefix):
            return {"a.weight": [(torch.zeros(2).as_subclass(Packed), lambda weight, **_: weight)]}

    message = ""
    try:
        plain(pack, Patcher())
    except types.MagiCaptureError as error:
        message = str(error)
    assert "a.weight is a Packed" in message
    assert "\n" not in message


def check_a_missing_package_is_one_line_with_the_command(pack, loaded):
    """install.py was not run, or failed."""
    nodes, types = (import_module(f"{pack.__name__}.{name}") for name in ("nodes.weights", "magicapture_core.types"))
    message = ""
    try:
        with patch.object(nodes, "find_spec", lambda name: None if name == "diffusers" else find_spec(name)):
            nodes.plain_backbone(*loaded)
    except types.MagiCaptureError as error:
        message = str(error)
    assert message.startswith("diffusers missing; run: ")
    assert str(Path(pack.__file__).parent / "install.py") in message
    assert "\n" not in message
