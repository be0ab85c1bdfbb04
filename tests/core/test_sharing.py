"""What others get: a preview, a copy that says little, a WebUI's folders; and that no tool meets a surprise in them."""

import json
import re
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import nn

from magicapture_core import kohya, lora, sampler
from magicapture_core.artifact import embedding_names, inspect, load, save, sentence
from magicapture_core.backbone import Backbone, load_tokenizer
from magicapture_core.config import LoraConfig, TrainConfig
from magicapture_core.images import save_image
from magicapture_core.marks import read_mark
from magicapture_core.sharing import NEEDED, add_preview, export_a1111, strip
from magicapture_core.types import LoraLayer, MagiCaptureError
from tests.core.test_artifact import make_artifact, metadata_of
from tests.ldm import TOKENIZER_FOLDER, clip_to_ldm, narrow_clip, narrow_unet, narrow_vae, unet_to_ldm

SAMPLE = torch.full((3, 8, 8), 0.5)


@pytest.fixture
def shared(tmp_path):
    """A LoRA with its preview beside it, in a folder of its own."""
    path = save(make_artifact(metadata={"other.tool": "was here"}), tmp_path / "loras")[0]
    add_preview(path, save_image(SAMPLE, tmp_path / "sample.png", "generated"))
    return path


# -- preview -----------------------------------------------------------------------------------------------------------


def test_a_preview_is_the_sample_under_the_name_that_tools_look_for(shared, tmp_path):
    preview = shared.with_name("anna.preview.png")
    assert preview.read_bytes() == (tmp_path / "sample.png").read_bytes()
    assert read_mark(preview) == "generated"
    assert inspect(shared)["preview"] == "anna.preview.png"


def test_a_preview_that_is_there_stays(shared, tmp_path):
    other = save_image(SAMPLE * 0, tmp_path / "other.png")
    assert add_preview(shared, other) == shared.with_name("anna.preview.png")
    assert shared.with_name("anna.preview.png").read_bytes() == (tmp_path / "sample.png").read_bytes()
    assert add_preview(shared.with_name("b.safetensors"), tmp_path / "none.png") is None
    assert sorted(file.name for file in shared.parent.iterdir()) == [
        "anna.preview.png", "anna.safetensors", "anna_style.safetensors", "anna_subject.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("taken", ["anna.preview.png", "anna.json", "anna_style.preview.png"])
def test_all_files_of_a_name_get_a_number_where_a_preview_or_notes_have_it(tmp_path, taken):
    (tmp_path / taken).write_bytes(b"somebody's")
    assert {file.stem for file in save(make_artifact(), tmp_path)} == {"anna_2", "anna_2_subject", "anna_2_style"}
    assert (tmp_path / taken).read_bytes() == b"somebody's"


# -- what the header tells other tools ---------------------------------------------------------------------------------


def test_the_header_tells_the_words_the_model_and_the_training(shared):
    metadata = metadata_of(shared)
    words = ["embedding:anna_subject", "embedding:anna_style"]
    assert list(json.loads(metadata["ss_tag_frequency"])["magicapture"]) == words
    phrase = "A photo of a embedding:anna_subject person in the embedding:anna_style style"
    assert metadata["modelspec.trigger_phrase"] == phrase
    expected = {
        "ss_sd_model_name": "Stable Diffusion 1.5", "ss_max_train_steps": "2700", "ss_learning_rate": "0.0001",
        "ss_optimizer": "adamw", "ss_seed": "0", "ss_resolution": "(512, 512)",
    }  # fmt: skip
    assert expected.items() <= metadata.items()


def test_settings_that_make_no_sense_leave_the_fields_out(tmp_path):
    strange = {"tuning": {"num_steps": "many"}, "inversion": 7, "seed": [1], "optimizer": {"a": 1}}
    metadata = metadata_of(save(make_artifact(config=strange), tmp_path)[0])
    assert not {"ss_max_train_steps", "ss_learning_rate", "ss_optimizer", "ss_seed", "ss_resolution"} & set(metadata)


def test_a_sentence_holds_only_words_that_are_there():
    made = make_artifact(templates={"composed": ["{subject} and {style}"], "reference": ["{style} alone"]})
    assert sentence(made, embedding_names(made)) == "anna_subject and anna_style"
    style = replace(made, tokens=made.tokens[1:])
    assert sentence(style, embedding_names(style)) == "anna_style alone"
    assert sentence(replace(style, templates={}), {"style": "x"}) == "A photo of a person in the x style"
    assert sentence(replace(style, templates={}), {"style_2": "x"}) == "x"


# -- strip -------------------------------------------------------------------------------------------------------------


def test_a_stripped_file_is_used_as_the_whole_one_and_says_no_more(shared, tmp_path):
    config = TrainConfig().model_dump(mode="json")
    split = {"subject": 2, "style": 2}
    prompt = "A picture of a {subject} cat in the {style} style"
    made = make_artifact("cat", config=config, templates={"composed": [prompt, "x"]}, rank_split=split)
    path = save(replace(made, metadata={"ss_comment": "secret"}), tmp_path)[0]
    stripped = strip(path, tmp_path / "out")
    assert stripped == tmp_path / "out" / "cat.safetensors"
    whole, bare = load(path), load(stripped)
    assert all(torch.equal(bare.lora[key], value) for key, value in whole.lora.items())
    assert all(torch.equal(a.vectors, b.vectors) for a, b in zip(whole.tokens, bare.tokens, strict=True))
    assert [token.placeholder for token in bare.tokens] == ["<subject>", "<style>"]
    assert (bare.architecture, bare.rank_split, bare.composed_prompt) == (whole.architecture, split, prompt)
    assert (bare.config, bare.metadata) == ({}, {})
    assert metadata_of(stripped).keys() == set(NEEDED)
    said = str(metadata_of(stripped))
    assert not [word for word in ("secret", "person", "0.1.0", "adamw", "cat'") if word in said]
    assert strip(path, tmp_path / "out").name == "cat_2.safetensors"


# -- A1111 and Forge ---------------------------------------------------------------------------------------------------


def test_an_export_fills_a_webuis_folders(shared, tmp_path):
    made = export_a1111(shared, tmp_path / "webui")
    files = sorted(path.relative_to(tmp_path / "webui").as_posix() for path in (tmp_path / "webui").rglob("*.*"))
    assert files == [
        "embeddings/anna_style.safetensors", "embeddings/anna_subject.safetensors",
        "models/Lora/anna.json", "models/Lora/anna.preview.png", "models/Lora/anna.safetensors",
    ]  # fmt: skip
    notes = json.loads((tmp_path / "webui/models/Lora/anna.json").read_text())
    assert notes["activation text"] == "A photo of a anna_subject person in the anna_style style"
    assert (notes["sd version"], notes["preferred weight"]) == ("SD1", 1.0)
    assert made["prompt"] == f"<lora:anna:1> {notes['activation text']}"
    again = export_a1111(shared, tmp_path / "webui")
    written = (again["lora"], *again["embeddings"], again["preview"], again["notes"])
    assert [Path(file).name for file in written] == [
        "anna_2.safetensors", "anna_2_subject.safetensors", "anna_2_style.safetensors", "anna_2.preview.png",
        "anna_2.json",
    ]  # fmt: skip
    assert "anna_2_subject" in again["prompt"]


def test_an_odd_name_becomes_one_that_a_prompt_can_hold(shared, tmp_path):
    odd = shared.rename(shared.with_name("my lora (1).safetensors"))
    prompt = export_a1111(odd, tmp_path / "webui")["prompt"]
    assert prompt.startswith("<lora:my_lora__1_:1> A photo of a my_lora__1__subject person")


def test_a_tiny_models_lora_is_no_webuis(tmp_path):
    words = tuple(replace(token, vectors=token.vectors[:, :128]) for token in make_artifact().tokens)
    path = save(make_artifact(architecture="magicapture-tiny", tokens=words, config={}), tmp_path)[0]
    with pytest.raises(MagiCaptureError, match=r"anna\.safetensors was trained for magicapture-tiny"):
        export_a1111(path, tmp_path / "webui")
    assert not (tmp_path / "webui").exists()


def webui_name(name: str) -> str:
    """Where A1111 looks for a layer of this name among the modules of the original Stable Diffusion: its published
    map in other words. Blocks are numbered through, three to a level; attention is a block's slot 1.
    """
    if text := re.fullmatch(r"lora_te_text_model_encoder_layers_(\d+)_(.+)", name):
        return f"transformer_text_model_encoder_layers_{text[1]}_{text[2]}"
    if middle := re.fullmatch(r"lora_unet_mid_block_attentions_0_(.+)", name):
        return f"diffusion_model_middle_block_1_{middle[1]}"
    [(side, level, index, rest)] = re.findall(r"lora_unet_(down|up)_blocks_(\d)_attentions_(\d)_(.+)", name)
    at = 3 * int(level) + int(index) + (side == "down")  # block 0 of the input is the first convolution
    return f"diffusion_model_{'in' if side == 'down' else 'out'}put_blocks_{at}_1_{rest}"


def all_layers(model, targets):
    """Every layer that a setting can train, by its kohya name."""
    with lora.injected(model, LoraConfig(lora_rank=4), targets, torch.Generator()):
        prefix = "lora_te" if targets == "text-encoder" else "lora_unet"
        return {kohya.kohya_name(prefix, path) for path in lora.state(model)}


@pytest.fixture(scope="module")
def layers():
    unet, text_encoder = narrow_unet(), narrow_clip()
    names = all_layers(unet, "attention+ff") | all_layers(text_encoder, "text-encoder")
    return unet, text_encoder, names


def test_every_layer_is_where_a1111_looks_for_it(layers):
    """The modules of the original are known by the names of a checkpoint's weights."""
    unet, text_encoder, names = layers
    weights = chain(
        (f"diffusion_model.{key}" for key in unet_to_ldm(unet)),
        (f"transformer.{key}" for key in clip_to_ldm(text_encoder)),
    )
    modules = {key.rpartition(".")[0].replace(".", "_") for key in weights if key.endswith(".weight")}
    assert len(names) == 16 * 10 + 2 * 4
    assert {name for name in names if webui_name(name) not in modules} == set()
    assert len({webui_name(name) for name in names}) == len(names)


def test_every_layer_is_one_of_kohyas(layers):
    """Its scripts train what is linear inside Transformer2DModel, CLIPAttention (CLIPSdpaAttention ...) and CLIPMLP."""
    unet, text_encoder, names = layers
    parents = {"lora_unet": (unet, ("Transformer2DModel",)), "lora_te": (text_encoder, ("CLIPAttention", "CLIPMLP"))}
    theirs = {
        kohya.kohya_name(prefix, f"{path}.{inner}")
        for prefix, (model, kinds) in parents.items()
        for path, module in model.named_modules()
        if type(module).__name__ in kinds
        for inner, child in module.named_modules()
        if isinstance(child, nn.Linear)
    }
    assert names <= theirs
    assert len(theirs - names) == 2 * 2  # fc1 and fc2 of the text encoder, which no setting of ours trains


# -- diffusers ---------------------------------------------------------------------------------------------------------


def test_a_pipeline_of_diffusers_reads_lora_and_words_and_paints_as_we_do(tmp_path):
    """`load_lora_weights` and `load_textual_inversion`, as its documentation has it; the text encoder's part too."""
    unet, text_encoder = narrow_unet(), narrow_clip()
    generator = torch.Generator().manual_seed(1)

    def draw(model, targets):
        with lora.injected(model, LoraConfig(lora_rank=4), targets, torch.Generator().manual_seed(0)):
            fresh = lora.state(model)
        return {
            path: LoraLayer(down=layer.down, up=torch.randn(layer.up.shape, generator=generator) / 8, alpha=2.0)
            for path, layer in fresh.items()
        }

    weights = kohya.to_kohya("lora_unet", draw(unet, "attention+ff"))
    weights |= kohya.to_kohya("lora_te", draw(text_encoder, "text-encoder"))
    files = save(make_artifact(lora=weights), tmp_path)
    parts: dict[str, Any] = {"unet": unet, "text_encoder": text_encoder, "vae": narrow_vae()}
    parts["tokenizer"], scheduler = (
        load_tokenizer(TOKENIZER_FOLDER),
        DDIMScheduler(steps_offset=1, clip_sample=False),
    )
    ours = Backbone(**parts, noise_scheduler=scheduler, architecture="stable-diffusion-v1")
    made, latent = load(files[0]), torch.randn(1, 4, 16, 16, generator=generator)
    text = "A photo of a <subject> person in the <style> style"
    with torch.no_grad():
        plain = unet(latent, torch.tensor([500]), torch.zeros(1, 77, 768)).sample
    with torch.no_grad(), sampler.applied(ours, made) as vocabulary:
        our_embeds = sampler.encode_prompt(ours, vocabulary.encode([text]))
        our_noise = unet(latent, torch.tensor([500]), our_embeds).sample
    parts |= {"scheduler": scheduler, "safety_checker": None, "feature_extractor": None}
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    with torch.no_grad():
        pipeline.load_lora_weights(str(files[0]))
        for file in files[1:]:
            pipeline.load_textual_inversion(str(file))
        embeds, _ = pipeline.encode_prompt(text, torch.device("cpu"), 1, False)
        noise = unet(latent, torch.tensor([500]), embeds).sample
    torch.testing.assert_close(embeds, our_embeds, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(noise, our_noise, rtol=1e-3, atol=1e-3)
    assert (noise - plain).abs().max() > 0.1
    assert [key for file in files[1:] for key in load_file(file)] == ["<subject>", "<style>"]
