"""The artifact on MODEL and CLIP: the same network as diffusers with the adapter, attached once."""

import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
from check_restore import refused
from crafted import random_artifact, random_identity


def module(pack, name):
    return import_module(f"{pack.__name__}.{name}")


def unet_output(model, inputs):
    import comfy.model_management

    comfy.model_management.load_models_gpu([model], force_full_load=True)
    latents, timesteps, context = inputs
    return model.model.diffusion_model(latents, timesteps, context=context)


def check_unet_equals_diffusers(pack, loaded):
    """The same input through ComfyUI with our LoRA, and through diffusers with the adapter, in fp32."""
    patching, sampler = module(pack, "nodes.patching"), module(pack, "magicapture_core.sampler")
    model, clip, vae = loaded
    artifact = random_artifact(pack)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 77, 768)
    base = unet_output(model, inputs)
    with torch.inference_mode(False), torch.no_grad():
        backbone = module(pack, "nodes.weights").plain_backbone(model, clip, vae)
        fresh = [value.clone() for value in inputs]
        plain = backbone.unet(*fresh).sample
        with sampler.applied(backbone, artifact, 0.7):
            expected = backbone.unet(*fresh).sample
    patched, _, _ = patching.attach(artifact, model, clip, 0.7, 1.0)
    output = unet_output(patched, inputs)
    assert (plain - base).abs().max() < 1e-3
    assert (expected - output).abs().max() < 1e-3
    assert (output - base).abs().max() > 0.05


def check_text_equals_diffusers(pack, loaded):
    """A prompt with both words through the patched CLIP, and through transformers with adapter and rows."""
    patching, sampler = module(pack, "nodes.patching"), module(pack, "magicapture_core.sampler")
    model, clip, vae = loaded
    artifact, text = random_artifact(pack), "A photo of a <subject> person in the <style> style"
    _, patched, _ = patching.attach(artifact, model, clip, 1.0, 1.0)
    ours = patched.encode_from_tokens_scheduled(patched.tokenize(text))[0][0].float()
    stock = clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0].float()
    with torch.inference_mode(False), torch.no_grad():
        backbone = module(pack, "nodes.weights").plain_backbone(model, clip, vae)
        with sampler.applied(backbone, artifact) as vocabulary:
            expected = sampler.encode_prompt(backbone, vocabulary.encode([text]))
    assert (ours - expected).abs().max() < 2e-2  # ComfyUI keeps the CLIP in fp16 on a CPU
    assert (stock - expected).abs().max() > 0.1


def renamed(artifact):
    """The same with <subject_2> and <style_2>."""
    words = [replace(token, placeholder=token.placeholder.replace(">", "_2>")) for token in artifact.tokens]
    return replace(artifact, tokens=tuple(words))


def check_another_lora_with_the_same_words_is_refused(pack, loaded):
    """The CLIP would know the words of one of them alone, with both on MODEL."""
    attach = module(pack, "nodes.patching").attach
    first = attach(random_artifact(pack), *loaded[:2], 1.0, 1.0)[:2]
    with refused("word: the CLIP knows another <subject> already; two people go by Group Person"):
        attach(random_artifact(pack, seed=1), *first, 1.0, 1.0)
    assert attach(random_artifact(pack), *first, 0.5, 0.5)[2] == ["MODEL", "CLIP"]
    _, clip, _ = attach(renamed(random_artifact(pack, seed=1)), *first, 1.0, 1.0)
    assert [*clip.tokenizer.words] == ["<subject>", "<style>", "<subject_2>", "<style_2>"]
    attach(random_artifact(pack, seed=1), *loaded[:2], 1.0, 1.0)  # queued once more with another file


def check_attached_once(pack, loaded, tmp_path):
    """By our node, by a stock loader, by both orders: every layer is patched exactly once."""
    import comfy.sd
    import comfy.utils

    patching, core = module(pack, "nodes.patching"), module(pack, "magicapture_core.artifact")
    model, clip, _ = loaded
    artifact = random_artifact(pack)
    file = comfy.utils.load_torch_file(str(core.save(artifact, tmp_path)[0]), safe_load=True)
    stock = comfy.sd.load_lora_for_models(model, clip, file, 1.0, 1.0)
    once = patching.attach(artifact, model, clip, 1.0, 1.0)
    assert not once[2]
    for first in (once[:2], stock):
        again, clip_again, attached = patching.attach(artifact, *first, 1.0, 1.0)
        assert attached
        for patcher in (again, clip_again.patcher):
            assert patcher.patches
            assert {len(patches) for patches in patcher.patches.values()} == {1}
    other, _, attached = patching.attach(renamed(random_artifact(pack, seed=1)), *once[:2], 1.0, 1.0)
    assert not attached
    assert {len(patches) for patches in other.patches.values()} == {2}
    assert not model.patches


def check_wrong_models_are_refused(pack, loaded):
    """A LoRA none of whose layers is there, and an artifact of the tiny model, each in one line."""
    patching, types = module(pack, "nodes.patching"), module(pack, "magicapture_core.types")
    artifact = random_artifact(pack, text=False)
    foreign = replace(artifact, lora={f"lora_unet_x{key}": weight for key, weight in artifact.lora.items()})
    tiny = replace(artifact, architecture="magicapture-tiny")
    messages = []
    for action in (lambda: patching.attach(foreign, *loaded[:2], 1, 1), lambda: patching.check_architecture(tiny)):
        try:
            action()
        except types.MagiCaptureError as error:
            messages.append(str(error))
    assert len(messages) == 2
    assert "SD1.5" in messages[0]
    assert "magicapture-tiny" in messages[1]


def check_the_loader_scales_and_mixes_halves(pack, loaded):
    """Two files of split adapters: one at half strength for its style, and the person of one with the style of both."""
    import folder_paths

    node, core = module(pack, "nodes.artifact").LoadMagiCaptureLoRA, module(pack, "magicapture_core.artifact")
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    made = [replace(random_artifact(pack, seed), rank_split={"subject": 3, "style": 1}) for seed in (0, 1)]
    first, second = (core.save(replace(artifact, name="split"), folder)[0].name for artifact in made)
    folder_paths.filename_list_cache.clear()

    def load(strength_style, style_lora_name):
        values = {"lora_name": first, "strength_subject": 1.0, "strength_style": strength_style}
        return node.execute(
            *loaded[:2], strength_model=1.0, strength_clip=1.0, style_lora_name=style_lora_name, **values
        ).result[2]

    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q.lora_up.weight"
    whole, scaled, mixed = load(1.0, "the same file"), load(0.5, "the same file"), load(1.0, second)
    assert torch.equal(whole.lora[key], made[0].lora[key])
    assert torch.equal(scaled.lora[key], made[0].lora[key] * torch.tensor([1, 1, 1, 0.5]).half())
    halved = [artifact.lora[key] / 2 for artifact in made]  # alpha 2 of rank 4: the mix has a scale of 1
    assert torch.equal(mixed.lora[key], torch.cat([halved[0][:, :3], halved[1][:, 3:]], 1))
    assert torch.equal(mixed.tokens[1].vectors, made[1].tokens[1].vectors)
    marks = {str(node.fingerprint_inputs(lora_name=first, style_lora_name=name)) for name in ("the same file", second)}
    assert len(marks) == 2


def check_newest_is_the_last_of_ours(pack):
    """`newest` passes over files of others and takes the youngest of ours; its fingerprint follows."""
    import folder_paths
    from safetensors.torch import save_file

    patching, core = module(pack, "nodes.patching"), module(pack, "magicapture_core.artifact")
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    first = core.save(random_artifact(pack), folder)[0]
    seen = patching.LORAS.fingerprint("newest")
    assert patching.LORAS.find("newest") == first
    time.sleep(0.02)
    second = core.save(random_artifact(pack, seed=1), folder)[0]
    time.sleep(0.02)
    save_file({"x": torch.zeros(1)}, folder / "others.safetensors")
    identities = module(pack, "magicapture_core.sefi.identity")
    identity = identities.save(random_identity(pack), folder, folder / "elsewhere")[0]
    folder_paths.filename_list_cache.clear()
    assert second != first
    assert patching.LORAS.find("newest") == second
    assert patching.LORAS.fingerprint("newest") != seen
    assert first.stem not in str(seen), "ComfyUI writes it into every picture that is saved"
    assert patching.LORAS.find("others.safetensors").name == "others.safetensors"
    loaded = patching.load(first.name)
    assert [token.placeholder for token in loaded.tokens] == ["<subject>", "<style>"]
    with refused(f"{identity.name}: this is an identity: load it with Load SeFi Identity"):
        patching.load(identity.name)
    assert {second.name, first.name, "others.safetensors"} <= set(patching.LORAS.choices())


def check_newest_passes_over_files_that_cannot_be_read(pack, tmp_path):
    """ComfyUI lists links whose files are gone, as those into another program's folder are after a while."""
    import folder_paths

    patching, core = module(pack, "nodes.patching"), module(pack, "magicapture_core.artifact")
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    ours = core.save(random_artifact(pack, seed=2), folder)[0]
    dead = folder / "dead.safetensors"
    dead.symlink_to(tmp_path / "gone.safetensors")
    folder_paths.filename_list_cache.clear()
    try:
        assert dead.name in folder_paths.get_filename_list("loras")
        assert patching.LORAS.find("newest") == ours
        assert patching.LORAS.fingerprint("newest")
    finally:
        dead.unlink()
        folder_paths.filename_list_cache.clear()
    kind_of = module(pack, "nodes.shelves").kind_of
    assert kind_of(ours) == ""
    assert kind_of(tmp_path) is None  # a folder: the system refuses to read it, as it does files of other users
