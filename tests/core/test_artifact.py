import base64
import getpass
import json
import re
import socket
import struct
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from magicapture_core import artifact as artifacts
from magicapture_core import kohya, lora
from magicapture_core.artifact import Artifact, check_name, inspect, load, save, unpack
from magicapture_core.config import TrainConfig
from magicapture_core.types import LoraLayer, MagiCaptureError, Side, Token
from tests.ldm import narrow_unet

GOLDEN = Path(__file__).parents[1] / "data" / "golden_v1.safetensors"
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"


def make_artifact(name="anna", seed=0, num_vectors=2, **changes):
    generator = torch.Generator().manual_seed(seed)
    layer = LoraLayer(
        down=torch.randn(4, 768, generator=generator), up=torch.randn(64, 4, generator=generator), alpha=8.0
    )

    def token(side: Side, word, count):
        vectors = torch.randn(count, 768, generator=generator)
        return Token(name=side, placeholder=f"<{side}>", initializer=word, vectors=vectors)

    tokens = token("subject", "person", num_vectors), token("style", "", 1)
    made = Artifact(
        name=name,
        architecture="stable-diffusion-v1",
        tokens=tokens,
        lora=kohya.to_kohya("lora_unet", {LAYER: layer}),
        config=TrainConfig().model_dump(mode="json"),
        templates={"source": ["A photo of {subject} person"]},
    )
    return replace(made, **changes)


def assert_equal(one, other):
    for field in fields(Artifact):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if field.name == "tokens":
            assert [(t.name, t.placeholder, t.initializer) for t in left] == [
                (t.name, t.placeholder, t.initializer) for t in right
            ]
            assert all(torch.equal(a.vectors, b.vectors) for a, b in zip(left, right, strict=True))
        elif field.name == "lora":
            assert left.keys() == right.keys()
            assert all(
                torch.equal(value, right[key]) and value.dtype == right[key].dtype for key, value in left.items()
            )
        else:
            assert left == right, field.name


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def content(path):
    """All that a file says; its bytes may differ, since safetensors orders the fields as it likes."""
    return metadata_of(path), {key: (value.dtype, value.tolist()) for key, value in load_file(path).items()}


def rewrite(path, changes, tensors=None):
    """The file with other metadata: None takes a field away."""
    metadata = {key: value for key, value in (metadata_of(path) | changes).items() if value is not None}
    save_file(load_file(path) if tensors is None else tensors, path, metadata=metadata)
    return path


# -- inverse -----------------------------------------------------------------------------------------------------------

words = st.text(max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=20, deadline=None)
@given(
    name=st.from_regex(artifacts.NAME_PATTERN, fullmatch=True),
    seed=st.integers(0, 1000),
    num_vectors=st.integers(1, 16),
    initializer=words,
    config=st.dictionaries(words.filter(lambda word: word != "resolution"), values, max_size=4),
    templates=st.dictionaries(words, st.lists(words, max_size=3), max_size=3),
    rank_split=st.dictionaries(words, st.integers(0, 128), max_size=2),
    metadata=st.dictionaries(words.map(lambda word: "other." + word), words, max_size=3),
)
def test_load_is_the_inverse_of_save(name, seed, num_vectors, initializer, **changes):
    made = make_artifact(name, seed, num_vectors, **changes)
    made = replace(made, tokens=(replace(made.tokens[0], initializer=initializer), made.tokens[1]))
    with TemporaryDirectory() as folder:
        files = save(made, Path(folder))
        assert [file.name for file in files] == [f"{name}{end}.safetensors" for end in ("", "_subject", "_style")]
        loaded = load(files[0])
        assert_equal(loaded, made)
        again = save(loaded, Path(folder) / "again")
        assert [content(file) for file in again] == [content(file) for file in files]


def test_the_golden_file_of_format_1_loads_for_ever():
    loaded = load(GOLDEN)
    assert loaded.name == "golden_v1"
    assert loaded.architecture == "stable-diffusion-v1"
    subject, style = loaded.tokens
    assert (subject.name, subject.placeholder, subject.initializer) == ("subject", "<anna>", "woman")
    assert (style.name, style.placeholder, style.initializer) == ("style", "<ink>", "")
    assert torch.equal(subject.vectors, torch.arange(2 * 768).reshape(2, 768) / 1024)
    assert torch.equal(style.vectors, -torch.arange(768)[None] / 3)
    layers = kohya.read_layers(loaded.lora)
    assert set(layers) == {kohya.kohya_name("lora_unet", LAYER), "lora_te_text_model_encoder_layers_0_self_attn_q_proj"}
    unet, text = layers.values() if next(iter(layers)).startswith("lora_unet") else reversed(layers.values())
    assert torch.equal(unet.down, torch.arange(4 * 768).reshape(4, 768) % 7 / 8)
    assert torch.equal(unet.up, torch.arange(32 * 4).reshape(32, 4) / 16)
    assert (unet.alpha, text.alpha) == (8.0, 2.0)
    assert text.down.shape == (4, 8)
    assert loaded.config == {"seed": 7, "resolution": 512, "a knob of the future": [1, None]}
    assert loaded.templates == {"source": ["A photo of {subject} person"]}
    assert loaded.rank_split == {"subject": 3, "style": 1}
    assert loaded.metadata == {"magicapture.future": "kept", "somebody.else": "kept too"}


# -- names and places --------------------------------------------------------------------------------------------------


def test_the_three_files_share_one_number_and_nothing_is_overwritten(tmp_path):
    loras, embeddings = tmp_path / "loras", tmp_path / "embeddings"
    embeddings.mkdir()
    taken = embeddings / "anna_style.safetensors"
    taken.write_bytes(b"somebody's")
    files = save(make_artifact(), loras, embeddings)
    assert files == (
        loras / "anna_2.safetensors",
        embeddings / "anna_2_subject.safetensors",
        embeddings / "anna_2_style.safetensors",
    )
    assert save(make_artifact(), loras, embeddings)[0].name == "anna_3.safetensors"
    assert taken.read_bytes() == b"somebody's"
    assert sorted(file.name for file in tmp_path.rglob("*.safetensors")) == sorted(
        [
            "anna_style.safetensors",
            *(f"anna_{n}{end}.safetensors" for n in (2, 3) for end in ("", "_subject", "_style")),
        ]
    )
    assert metadata_of(files[0])["modelspec.title"] == metadata_of(files[0])["ss_output_name"] == "anna_2"


def test_a_long_name_stays_a_name_with_its_number(tmp_path):
    save(make_artifact("a" * 64), tmp_path)
    second = save(make_artifact("a" * 64), tmp_path)[0]
    assert check_name(second.stem) == "a" * 62 + "_2"


@pytest.mark.parametrize("name", ["CON", "nul", "Com1", "LPT9"])
def test_a_device_of_windows_is_no_name(name):
    with pytest.raises(MagiCaptureError, match=f"name '{name}': Windows"):
        check_name(name)
    assert check_name(f"{name}0") == f"{name}0"


def test_a_save_that_fails_leaves_nothing(tmp_path):
    broken = make_artifact(metadata={"other": 1})  # the header takes text alone
    with pytest.raises(TypeError):
        save(broken, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "-a", "a b", "../a", "a/b", "a\\b", "a.b", "\u00e9", "a\n", "a" * 65])
def test_names_that_are_no_file_names_everywhere_are_refused(tmp_path, name):
    with pytest.raises(MagiCaptureError, match="name"):
        save(make_artifact(name), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e6])
def test_weights_that_fp16_cannot_hold_are_not_saved(tmp_path, number):
    made = make_artifact()
    key = next(iter(made.lora))
    lora_state = {**made.lora, key: torch.full((4, 768), number)}
    with pytest.raises(MagiCaptureError, match="not finite"):
        save(replace(made, lora=lora_state), tmp_path)


# -- what other tools read ---------------------------------------------------------------------------------------------


def test_an_embedding_file_is_one_tensor_under_its_placeholder(tmp_path):
    made = make_artifact()
    files = save(made, tmp_path)
    for token, path in zip(made.tokens, files[1:], strict=True):
        ((key, vectors),) = load_file(path).items()
        assert key == token.placeholder
        assert torch.equal(vectors, token.vectors)
        assert metadata_of(path)["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"


def test_the_header_says_what_lora_managers_look_for(tmp_path):
    metadata = metadata_of(save(make_artifact(), tmp_path)[0])
    expected = {
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": "anna",
        "modelspec.resolution": "512x512",
        "modelspec.prediction_type": "epsilon",
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "8.0",
        "ss_output_name": "anna",
        "magicapture.format": "1",
    }
    assert expected.items() <= metadata.items()
    assert "embedding:anna_subject" in metadata["modelspec.usage_hint"]


def test_the_header_holds_no_place_person_or_time(tmp_path):
    files = save(make_artifact(), tmp_path / "secretfolder")
    said = {key: value for file in files for key, value in metadata_of(file).items()}
    text = re.sub(r"\"fp32\": \"[^\"]*\"", "", str(said))
    for secret in ("secretfolder", tmp_path.name, socket.gethostname(), getpass.getuser()):
        assert not re.search(rf"\b{re.escape(secret)}\b", text)
    assert not [key for key in said if any(word in key for word in ("date", "hash", "time", "path"))]


def test_a_tiny_models_lora_says_so_everywhere(tmp_path):
    made = make_artifact(
        architecture="magicapture-tiny",
        tokens=tuple(replace(token, vectors=token.vectors[:, :128]) for token in make_artifact().tokens),
        config={},
    )
    files = save(made, tmp_path)
    assert {metadata_of(file)["modelspec.architecture"] for file in files} == {"magicapture-tiny"}
    assert metadata_of(files[0])["ss_base_model_version"] == "magicapture-tiny"
    assert metadata_of(files[0])["modelspec.resolution"] == "64x64"
    assert load(files[0]).architecture == "magicapture-tiny"


def test_diffusers_reads_the_file_and_paints_as_we_do(tmp_path):
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

    unet = narrow_unet()
    with lora.injected(unet, TrainConfig().lora, "attention+ff", torch.Generator().manual_seed(0)):
        fresh = lora.state(unet)
    generator = torch.Generator().manual_seed(1)
    layers = {
        path: LoraLayer(down=layer.down, up=torch.randn(layer.up.shape, generator=generator) / 8, alpha=2.0)
        for path, layer in fresh.items()
    }
    path = save(make_artifact(lora=kohya.to_kohya("lora_unet", layers)), tmp_path)[0]
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 77, 768)
    with torch.no_grad():
        plain = unet(*inputs).sample
        with lora.applied(unet, kohya.from_kohya(load(path).lora, "lora_unet", unet)):
            ours = unet(*inputs).sample
        state, alphas, *_ = Loader.lora_state_dict(load_file(path))
        Loader.load_lora_into_unet(state, network_alphas=alphas, unet=unet)
        theirs = unet(*inputs).sample
    assert (ours - plain).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# -- files of strangers ------------------------------------------------------------------------------------------------


def test_other_tools_may_change_precision_and_the_shape_of_alpha(tmp_path):
    made = make_artifact()
    path = save(made, tmp_path)[0]
    changed = {k: v.float().reshape(1) if k.endswith("alpha") else v.float() for k, v in load_file(path).items()}
    assert_equal(load(rewrite(path, {}, changed)), made)


def test_where_the_metadata_was_dropped_the_embeddings_beside_the_file_are_taken(tmp_path):
    made = make_artifact()
    loras, embeddings = tmp_path / "loras", tmp_path / "embeddings"
    path = save(made, loras, embeddings)[0]
    save_file(load_file(path), path)
    with pytest.raises(MagiCaptureError, match=r"anna_subject\.safetensors and anna_style\.safetensors") as error:
        load(path)
    assert "\n" not in str(error.value)
    loaded = load(path, [tmp_path, embeddings])
    assert loaded.architecture == made.architecture
    assert [t.placeholder for t in loaded.tokens] == ["<subject>", "<style>"]
    assert all(torch.equal(a.vectors, b.vectors) for a, b in zip(loaded.tokens, made.tokens, strict=True))
    (embeddings / "anna_style.safetensors").rename(loras / "anna_style.safetensors")
    assert len(load(path, [embeddings]).tokens) == 2
    (embeddings / "anna_subject.safetensors").unlink()
    with pytest.raises(MagiCaptureError, match=r"put anna_subject\.safetensors beside it"):
        load(path, [embeddings])


def token_entry(**changes):
    entry = {"name": "subject", "placeholder": "<a>", "initializer": "", "n": 1, "fp32": encode(torch.zeros(1, 768))}
    return json.dumps([entry | changes])


def encode(vectors):
    return base64.b64encode(struct.pack(f"<{vectors.numel()}f", *vectors.flatten().tolist())).decode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magicapture.format": "2"}, "update the pack"),
        ({"magicapture.format": "one"}, "no number"),
        ({"magicapture.format": None}, "no number"),
        ({"magicapture.format": "9" * 5000}, "no number"),
        ({"magicapture.tokens": "{"}, "magicapture.tokens is damaged"),
        ({"magicapture.tokens": "{}"}, "magicapture.tokens is damaged"),
        ({"magicapture.tokens": "[" * 100_000}, "magicapture.tokens is damaged"),
        ({"magicapture.tokens": "[7]"}, "lacks one of"),
        ({"magicapture.tokens": token_entry(n="1")}, "lacks one of"),
        ({"magicapture.tokens": token_entry(n=True)}, "lacks one of"),
        ({"magicapture.tokens": token_entry(n=10**12)}, "are not 1000000000000 vectors"),
        ({"magicapture.tokens": token_entry(n=0)}, "are not 0 vectors"),
        ({"magicapture.tokens": token_entry(n=-1)}, "are not -1 vectors"),
        ({"magicapture.tokens": token_entry(n=5)}, "are not 5 vectors"),
        ({"magicapture.tokens": token_entry(fp32="$$$")}, "not base64"),
        ({"magicapture.tokens": token_entry(fp32="\u00e9")}, "not base64"),
        ({"magicapture.tokens": token_entry(fp32="")}, "0 bytes"),
        ({"magicapture.tokens": token_entry(fp32=encode(torch.full((1, 768), float("nan"))))}, "not finite"),
        ({"magicapture.tokens": token_entry(fp32=encode(torch.zeros(1, 64)))}, "64 channels"),
        ({"magicapture.tokens": token_entry(name="object")}, "not for subject or style"),
        ({"magicapture.tokens": token_entry(placeholder="a|b")}, "not like <subject>"),
        ({"magicapture.tokens": token_entry(placeholder="<a>\n")}, "not like <subject>"),
        ({"magicapture.tokens": token_entry()[:-1] + "," + token_entry()[1:]}, "the same name"),
        ({"magicapture.config": "[]"}, "magicapture.config is damaged"),
        ({"magicapture.templates": '{"source": "a"}'}, "not lists of text"),
        ({"magicapture.rank_split": '{"style": 0.5}'}, "not whole numbers"),
        ({"modelspec.architecture": "magicapture-tiny"}, "768 channels"),
    ],
)  # fmt: skip
def test_a_header_that_makes_no_sense_is_one_clear_line(tmp_path, changes, message):
    path = rewrite(save(make_artifact(), tmp_path)[0], changes)
    with pytest.raises(MagiCaptureError, match=message) as error:
        load(path)
    assert str(error.value).startswith("anna.safetensors: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_unknown_fields_are_ignored_and_kept(tmp_path):
    entries = json.loads(token_entry(mood="happy"))
    path = rewrite(
        save(make_artifact(), tmp_path)[0],
        {"magicapture.tokens": json.dumps(entries), "magicapture.later": "x", "ss_comment": "mine"},
    )
    loaded = load(path)
    assert loaded.metadata == {"magicapture.later": "x", "ss_comment": "mine"}
    assert loaded.metadata.items() <= metadata_of(save(loaded, tmp_path)[0]).items()


@pytest.mark.parametrize("length", [0, 4, 8, 100, 5000, -1])
def test_a_truncated_file_is_one_clear_line(tmp_path, length):
    path = save(make_artifact(), tmp_path)[0]
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(MagiCaptureError, match="not a whole safetensors file") as error:
        load(path)
    assert "\n" not in str(error.value)


def test_files_that_are_something_else_are_refused(tmp_path):
    model, infinite, pickled = (tmp_path / f"{name}.safetensors" for name in ("model", "infinite", "pickled"))
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, model)
    pickled.write_bytes(b"\x80\x02cos\nsystem\n(S'false'\ntR.")
    path = save(make_artifact(), tmp_path)[0]
    poison = {key: value.float().fill_(float("inf")) for key, value in load_file(path).items()}
    save_file(poison, infinite, metadata=metadata_of(path))
    for file, message in {
        model: "no LoRA made by MagiCapture",
        infinite: "not finite",
        pickled: "not a whole safetensors file",
        tmp_path / "none.safetensors": "no such file",
        tmp_path: "no such file",
    }.items():
        with pytest.raises(MagiCaptureError, match=message):
            load(file)


# -- the terminal's two ------------------------------------------------------------------------------------------------


def test_unpack_gives_the_embeddings_that_save_wrote(tmp_path):
    path, *embeddings = save(make_artifact(), tmp_path / "loras")
    unpacked = unpack(path, tmp_path / "embeddings")
    assert [file.name for file in unpacked] == [file.name for file in embeddings]
    assert [content(file) for file in unpacked] == [content(file) for file in embeddings]
    assert unpack(path, tmp_path / "embeddings")[0].name == "anna_2_subject.safetensors"
    odd = path.rename(path.with_name("my lora (1).safetensors"))
    assert unpack(odd, tmp_path / "odd")[0].name == "my_lora__1__subject.safetensors"


def test_inspect_sums_up_the_file(tmp_path):
    path = save(make_artifact(), tmp_path)[0]
    summary = inspect(path)
    assert json.loads(json.dumps(summary)) == summary
    assert summary["tokens"][0] == {
        "name": "subject", "placeholder": "<subject>", "initializer": "person", "num_vectors": 2,
    }  # fmt: skip
    assert (summary["architecture"], summary["format"]) == ("stable-diffusion-v1", "1")
    assert (summary["lora_rank"], summary["lora_alpha"], summary["layers"]) == ([4], [8.0], {"cross-attention": 1})
    assert summary["bytes"] == path.stat().st_size
    assert summary["config"]["seed"] == 0
    assert (summary["base_model"], summary["preview"], summary["other_fields"]) == ("sd_v1", "", {})
    assert summary["sentence_in_a1111"] == "A photo of a anna_subject person in the anna_style style"
    assert summary["training"]["ss_max_train_steps"] == "2700"
