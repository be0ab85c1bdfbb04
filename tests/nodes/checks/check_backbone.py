"""The core's base model is ComfyUI's, and ComfyUI reads the files that the core writes."""

import logging
from importlib import import_module

import torch


def core(pack, name):
    return import_module(f"{pack.__name__}.magicapture_core.{name}")


def converted(pack, loaded):
    with torch.inference_mode(False):
        return import_module(f"{pack.__name__}.nodes.weights").plain_backbone(*loaded)


def check_vae_equals_diffusers(pack, loaded):
    """VAE.encode gives the mean, unscaled; VAE.decode takes the same."""
    vae, ours = loaded[2], converted(pack, loaded).vae
    images = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    latents = vae.encode(images).float()
    pixel_values = images.movedim(-1, 1) * 2 - 1
    torch.testing.assert_close(ours.encode(pixel_values).latent_dist.mean, latents, rtol=1e-3, atol=1e-3)
    decoded = ours.decode(latents).sample.movedim(1, -1)
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1), vae.decode(latents).float(), rtol=1e-3, atol=1e-3)


def check_both_ways_in_give_the_same_weights(pack, loaded, checkpoint):
    """A checkpoint read by the core and the same through ComfyUI's sockets."""
    backbone, vocabulary = core(pack, "backbone"), core(pack, "vocabulary")
    direct, through = backbone.from_checkpoint(checkpoint, vocabulary.FOLDER), converted(pack, loaded)
    for part in ("unet", "vae", "text_encoder"):
        left, right = (getattr(side, part).state_dict() for side in (direct, through))
        assert left.keys() == right.keys()
        assert all(torch.equal(value, right[key]) for key, value in left.items()), part


def check_the_embedded_model_is_read_whole(pack):
    """Whatever names this ComfyUI's transformers has for the layers of a text encoder."""
    from safetensors.torch import load_file

    backbone = core(pack, "backbone")
    with torch.inference_mode(False):
        read = backbone.tiny().text_encoder.state_dict()
    kept = load_file(backbone.TINY_WEIGHTS["text_encoder"])
    assert {name.removeprefix("text_model.") for name in read} == kept.keys()
    assert all(torch.equal(value, kept[name.removeprefix("text_model.")].float()) for name, value in read.items())


def check_stock_loaders_read_the_files(pack, loaded, tmp_path):
    """No key is left over, every layer finds its weight, and `embedding:` gives the learned vectors."""
    import comfy.lora
    import comfy.sd1_clip
    import comfy.utils

    model, clip, _ = loaded
    artifacts, kohya, lora, types = (core(pack, name) for name in ("artifact", "kohya", "lora", "types"))
    ours = converted(pack, loaded)
    with torch.inference_mode(False):
        layers = {}
        parts = ((ours.unet, "lora_unet", "attention+ff"), (ours.text_encoder, "lora_te", "text-encoder"))
        for part, prefix, target in parts:
            config = core(pack, "config").LoraConfig()
            with lora.injected(part, config, target, torch.Generator().manual_seed(0)):
                layers |= kohya.to_kohya(prefix, lora.state(part))
        tokens = tuple(
            types.Token(name=side, placeholder=f"<{side}>", initializer="", vectors=torch.randn(2, 768))
            for side in ("subject", "style")
        )
        made = artifacts.Artifact(name="anna", architecture=ours.architecture, tokens=tokens, lora=layers)
        path, *_ = artifacts.save(made, tmp_path)
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    key_map = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, key_map)
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    patches = comfy.lora.load_lora(comfy.utils.load_torch_file(str(path)), key_map)
    logging.getLogger().removeHandler(handler)
    assert not [line for line in lines if "not loaded" in line]
    assert len(patches) == len(layers) // 3
    for token in tokens:
        vectors = comfy.sd1_clip.load_embed(f"anna_{token.name}", str(tmp_path), 768, "clip_l")
        assert torch.equal(vectors, token.vectors)
