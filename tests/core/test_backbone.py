import json
import socket
import unicodedata
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from magicapture_core import backbone, ldm, metadata, vocabulary
from magicapture_core.images import load_photo, resize
from magicapture_core.types import MagiCaptureError
from tests.ldm import (
    TOKENIZER_FOLDER,
    clip_to_ldm,
    narrow_clip,
    narrow_unet,
    narrow_vae,
    save_checkpoint,
    unet_to_ldm,
    vae_to_ldm,
)
from tests.small import same, weights


@pytest.fixture(scope="module")
def modules():
    return narrow_unet(), narrow_clip(), narrow_vae()


@pytest.fixture(scope="module")
def states(modules):
    unet, text_encoder, vae = modules
    return {"unet": unet_to_ldm(unet), "text_encoder": clip_to_ldm(text_encoder), "vae": vae_to_ldm(vae)}


def convert(states, **options):
    return backbone.from_comfy_state(**states, tokenizer=None, **options)


def parts(converted):
    return converted.unet, converted.text_encoder, converted.vae


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def plain_config(module):
    """As JSON has it: tuples are lists; without the notes of a particular run of the library."""
    return json.loads(json.dumps({key: value for key, value in module.config.items() if not key.startswith("_")}))


# -- from LDM names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "layers", "attends"),
    [((32, 32, 64, 64), 2, (True, True, True, False)), ((32,), 1, (True,)), ((32, 64, 64), 1, (True, False, True))],
    ids=["SD1.5", "one level", "three levels"],
)
def test_a_unet_of_any_depth_comes_back_from_its_ldm_names(states, channels, layers, attends):
    unet = narrow_unet(channels, layers, attends)
    converted = convert(states | {"unet": unet_to_ldm(unet)}).unet
    assert same(weights(converted), weights(unet))
    assert plain_config(converted) == plain_config(unet)
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 77, 768)
    with torch.no_grad():
        assert torch.equal(converted(*inputs).sample, unet(*inputs).sample)


def test_vae_and_text_encoder_come_back_from_their_ldm_names(modules, states):
    _, text_encoder, vae = modules
    converted = convert(states)
    assert same(weights(converted.vae, converted.text_encoder), weights(vae, text_encoder))
    pixel_values, input_ids = torch.rand(1, 3, 64, 64) * 2 - 1, torch.randint(0, 1000, (1, 77))
    with torch.no_grad():
        latents = vae.encode(pixel_values).latent_dist.mean
        assert torch.equal(converted.vae.encode(pixel_values).latent_dist.mean, latents)
        assert torch.equal(converted.vae.decode(latents).sample, vae.decode(latents).sample)
        assert torch.equal(
            converted.text_encoder(input_ids).last_hidden_state, text_encoder(input_ids).last_hidden_state
        )
    assert (converted.vae_factor, converted.latent_channels, converted.prompt_dim) == (8, 4, 768)
    assert converted.vae.config.scaling_factor == 0.18215
    assert converted.architecture == backbone.SD1


def test_the_text_encoder_may_lack_the_level_text_model_and_hold_what_prompts_do_not_need(modules, states):
    more = {"text_model.embeddings.position_ids": torch.arange(77)[None], "text_projection.weight": torch.ones(2, 2)}
    flat = {key.removeprefix("text_model."): value for key, value in states["text_encoder"].items()}
    for text_encoder in (flat, states["text_encoder"] | more):
        assert same(weights(convert(states | {"text_encoder": text_encoder}).text_encoder), weights(modules[1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_every_precision_becomes_fp32_of_the_same_values(states, dtype):
    stored = {part: {key: value.to(dtype) for key, value in state.items()} for part, state in states.items()}
    converted = convert(stored)
    values = {key: value.float() for key, value in states["unet"].items()}
    assert {value.dtype for value in converted.unet.state_dict().values()} == {torch.float32}
    back = unet_to_ldm(converted.unet)
    assert same(back, {key: value.to(dtype).float() for key, value in values.items()})


def test_backward_passes_through_weights_that_were_inference_tensors(states):
    with torch.inference_mode():
        inside = {part: {key: value.clone() for key, value in state.items()} for part, state in states.items()}
        converted = convert(inside)
    assert all(value.is_inference() for value in inside["unet"].values())
    prompt_embeds = torch.randn(1, 77, 768, requires_grad=True)
    converted.unet(torch.randn(1, 4, 8, 8), torch.tensor([500]), prompt_embeds).sample.square().mean().backward()
    assert prompt_embeds.grad is not None
    assert prompt_embeds.grad.abs().max() > 0


def test_all_parts_are_frozen_real_and_in_eval_mode(states):
    for converted in (convert(states), backbone.tiny()):
        for module in parts(converted):
            assert not module.training
            assert not any(parameter.requires_grad for parameter in module.parameters())
            assert {value.device.type for value in chain(module.parameters(), module.buffers())} == {"cpu"}


# -- refusals ----------------------------------------------------------------------------------------------------------


def one_line(error):
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def context(width):
    return lambda state: {k: torch.zeros(len(v), width) if "attn2.to_k" in k else v for k, v in state.items()}


def channels(count):
    return lambda state: state | {"input_blocks.0.0.weight": torch.zeros(32, count, 3, 3)}


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", context(2048), "SDXL"),
        ("unet", context(1024), "Stable Diffusion 2"),
        ("unet", context(1280), "refiner"),
        ("unet", context(640), "640 channels"),
        ("unet", lambda state: state | {"label_emb.0.0.weight": torch.zeros(2, 2)}, "only Stable Diffusion 1.5"),
        ("unet", channels(9), "inpainting"),
        ("unet", channels(8), "picture-editing"),
        ("unet", lambda state: {"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, "no UNet"),
        ("unet", lambda state: {}, "no weights"),
        ("unet", lambda state: {k: v.to(torch.uint8) for k, v in state.items()}, "quantised"),
        ("unet", lambda state: state | {"out.2.scale_weight": torch.ones(())}, "quantised"),
        ("unet", lambda state: state | {"control_model.x": torch.zeros(1)}, "no weight control_model.x"),
        ("unet", lambda state: {k: v for k, v in state.items() if k != "out.2.bias"}, "conv_out.bias should be"),
        ("unet", lambda state: state | {"out.0.weight": torch.zeros(31)}, r"\(32,\) and is \(31,\)"),
        ("text_encoder", lambda state: {"model.transformer.resblocks.0": torch.zeros(1)}, "not CLIP"),
        ("text_encoder", lambda state: clip_to_ldm(narrow_clip(hidden_size=96)), "96 channels"),
        ("vae", lambda state: {"taesd_encoder.0.weight": torch.zeros(1)}, "AutoencoderKL"),
        ("vae", lambda state: state | {"decoder.conv_in.weight": torch.zeros(64, 16, 3, 3)}, "16 latent channels"),
    ],
)  # fmt: skip
def test_what_is_not_sd15_is_refused_by_name_in_one_line(states, part, change, message):
    with pytest.raises(MagiCaptureError, match=message) as error:
        convert(states | {part: change(states[part])})
    one_line(error)


def test_a_model_that_does_not_predict_noise_is_refused(states):
    with pytest.raises(MagiCaptureError, match="predicts v_prediction"):
        convert(states, prediction_type="v_prediction")


# -- files and folders -------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_read_without_the_network(modules, states, tmp_path, no_network):
    path = save_checkpoint(tmp_path / "sd15.safetensors", **states, dtype=torch.float32)
    loaded = backbone.from_checkpoint(path, TOKENIZER_FOLDER)
    assert same(weights(*parts(loaded)), weights(*modules))
    ids = loaded.tokenizer("a photo", padding="max_length").input_ids
    assert len(ids) == 77
    assert ids[-1] == loaded.tokenizer.eos_token_id


def test_files_that_are_no_checkpoint_are_refused(states, tmp_path):
    ckpt = tmp_path / "model.ckpt"
    ckpt.write_bytes(b"\x80\x02.")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(
        save_checkpoint(tmp_path / "whole.safetensors", **states, dtype=torch.float16).read_bytes()[:999]
    )
    velocity = tmp_path / "velocity.safetensors"
    save_file({"v_pred": torch.zeros(1)}, velocity)
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.alpha": torch.zeros(1)}, lora)
    for path, message in {
        ckpt: "convert it to safetensors",
        broken: "not a whole safetensors file",
        velocity: "predicts v_prediction",
        lora: "no weights in it",
        tmp_path / "none.safetensors": "no such file",
    }.items():
        with pytest.raises(MagiCaptureError, match=message) as error:
            backbone.from_checkpoint(path, TOKENIZER_FOLDER)
        assert path.name in str(error.value)
        one_line(error)


def test_without_a_tokenizer_the_message_is_the_command_that_gets_it(states, tmp_path, monkeypatch):
    monkeypatch.setenv("MAGICAPTURE_MODELS", str(tmp_path / "empty"))
    path = save_checkpoint(tmp_path / "sd15.safetensors", **states, dtype=torch.float16)
    with pytest.raises(MagiCaptureError, match="models get tokenizer"):
        backbone.from_checkpoint(path)
    with pytest.raises(MagiCaptureError, match=r"vocab\.json"):
        backbone.from_checkpoint(path, tmp_path)


@pytest.fixture
def diffusers_folder(modules, tmp_path):
    unet, text_encoder, vae = modules
    unet.save_pretrained(tmp_path / "unet")
    vae.save_pretrained(tmp_path / "vae")
    text_encoder.save_pretrained(tmp_path / "text_encoder")
    backbone.noise_scheduler().save_pretrained(tmp_path / "scheduler")
    (tmp_path / "tokenizer").symlink_to(TOKENIZER_FOLDER)
    return tmp_path


def test_a_diffusers_folder_is_read_without_the_network(modules, diffusers_folder, no_network):
    loaded = backbone.from_diffusers(diffusers_folder)
    assert same(weights(*parts(loaded)), weights(*modules))
    assert loaded.architecture == backbone.SD1


def test_a_vae_with_the_attention_names_of_old_diffusers_is_read(modules, diffusers_folder):
    """SD1.5 as it was published has them."""
    path = diffusers_folder / "vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(path)
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    assert any(".proj_attn." in key for key in state)
    save_file(state, path, metadata={"format": "pt"})
    assert same(weights(backbone.from_diffusers(diffusers_folder).vae), weights(modules[2]))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("unet/config.json", {"cross_attention_dim": 1024}, "Stable Diffusion 2"),
        ("unet/config.json", {"cross_attention_dim": 2048}, "SDXL"),
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "predicts v_prediction"),
    ],
)
def test_a_diffusers_folder_of_another_model_is_refused(diffusers_folder, file, change, message):
    path = diffusers_folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(MagiCaptureError, match=message) as error:
        backbone.from_diffusers(diffusers_folder)
    assert str(diffusers_folder) in str(error.value)


@pytest.mark.parametrize(
    "lost", ["unet/config.json", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
)
def test_a_diffusers_folder_that_lacks_a_file_is_refused(diffusers_folder, lost):
    (diffusers_folder / lost).unlink()
    with pytest.raises(MagiCaptureError, match=r"not a whole diffusers folder|vae: holds no weights") as error:
        backbone.from_diffusers(diffusers_folder)
    assert "\n" not in str(error.value)


# -- the embedded model ------------------------------------------------------------------------------------------------


def test_tiny_is_always_the_same_and_leaves_the_global_randomness_alone(no_network):
    torch.manual_seed(3)
    one, two = backbone.tiny(), backbone.tiny()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert same(weights(*parts(one)), weights(*parts(two)))


def test_tiny_makes_finite_pictures_that_are_not_flat():
    tiny, pixel_values = backbone.tiny(), torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        posterior = tiny.vae.encode(pixel_values).latent_dist
        images = tiny.vae.decode(posterior.mean).sample
        hidden = tiny.text_encoder(torch.tensor([[1, 2, 3]])).last_hidden_state
        noise_pred = tiny.unet(posterior.mean, torch.tensor([1, 999]), hidden.repeat(2, 1, 1)).sample
    assert posterior.mean.shape == (2, tiny.latent_channels, 64 // tiny.vae_factor, 64 // tiny.vae_factor)
    assert posterior.std.mean() < 0.1 * posterior.mean.std()
    for values in (posterior.mean, images, hidden, noise_pred):
        assert values.isfinite().all()
        assert 0.1 < values.std() < 10


@pytest.mark.parametrize("name", ["person_1", "style_2"])
def test_tiny_rebuilds_the_sample_pictures(name):
    """In latents as wide as noise: what the schedule expects."""
    vae = backbone.tiny().vae
    image = resize(load_photo(backbone.TINY_FOLDER / "samples" / f"{name}.jpg")[None, :, 64:704], (64, 64))
    with torch.no_grad():
        latents = vae.encode(image * 2 - 1).latent_dist.mean
        rebuilt = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert -10 * float((rebuilt - image).square().mean().log10()) > 27
    assert 0.5 < float((latents * vae.config.scaling_factor).std()) < 2


def test_tiny_has_the_names_of_sd15_and_its_own_architecture(modules):
    tiny = backbone.tiny()
    assert {name.partition(".transformer_blocks")[2] for name in tiny.unet.attn_processors} == {
        name.partition(".transformer_blocks")[2] for name in modules[0].attn_processors
    }
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor" in tiny.unet.attn_processors
    assert metadata.NATIVE[tiny.architecture] == (tiny.prompt_dim, tiny.unet.config.sample_size * tiny.vae_factor)
    assert metadata.NATIVE[backbone.SD1] == (ldm.PROMPT_DIM, 512)


def test_the_committed_vocabulary_is_the_one_its_words_give():
    words = vocabulary.read_words()
    for name, text in vocabulary.tokenizer_files(words).items():
        assert (vocabulary.FOLDER / name).read_text(encoding="utf-8") == text
    tokenizer = backbone.load_tokenizer(vocabulary.FOLDER)
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in words]
    assert {len(one) for one in ids} == {1}
    assert len({one[0] for one in ids}) == len(words)
    assert len(tokenizer) == len(tokenizer.get_vocab()) == backbone.tiny().text_encoder.config.vocab_size


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["C"], exclude_characters="\ufffd"), max_size=30))
def test_the_tiny_tokenizer_spells_any_text_by_its_bytes(text):
    ids = TINY_TOKENIZER(text, add_special_tokens=False).input_ids
    assert TINY_TOKENIZER.unk_token_id not in ids
    signs = "".join(token.removesuffix("</w>") for token in TINY_TOKENIZER.convert_ids_to_tokens(ids))
    spelt = bytes(byte_of_symbol(sign) for sign in signs).decode()
    assert normal_form(spelt) == normal_form("".join(text.split()))


TINY_TOKENIZER = backbone.load_tokenizer(TOKENIZER_FOLDER)


def normal_form(text):
    """CLIP joins accents to their letters and forgets the case."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def byte_of_symbol(sign):
    """The byte that a sign of CLIP's alphabet stands for: visible Latin-1 for itself, U+0100 on for the rest."""
    hidden = [code for code in range(256) if not (0x21 <= code < 0x7F or 0xA1 <= code < 0xAD or code >= 0xAE)]
    return ord(sign) if ord(sign) < 0x100 else hidden[ord(sign) - 0x100]


def test_the_noise_schedule_is_sd15s():
    scheduler = backbone.noise_scheduler()
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), (1 - roots**2).cumprod(0), rtol=1e-4, atol=1e-6)
    assert scheduler.config.prediction_type == "epsilon"


@pytest.mark.full
def test_a_true_size_checkpoint_has_sd15s_size_and_works(full_checkpoint):
    loaded = backbone.from_checkpoint(full_checkpoint, TOKENIZER_FOLDER)
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in parts(loaded)]
    assert counts == [859_520_964, 123_060_480, 83_653_863]
    assert len(loaded.unet.attn_processors) == 32
    with torch.no_grad():
        hidden = loaded.text_encoder(torch.randint(0, 49408, (1, 77))).last_hidden_state
        assert loaded.unet(torch.randn(1, 4, 8, 8), torch.tensor([500]), hidden).sample.isfinite().all()
    stored = load_file(full_checkpoint)["model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"]
    layer = loaded.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2.to_k
    assert torch.equal(layer.weight, stored.float())
