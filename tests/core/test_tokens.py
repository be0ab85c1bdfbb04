import pytest
import torch
from torch import nn

from magicapture_core.backbone import tiny
from magicapture_core.config import TokenConfig
from magicapture_core.tokens import ExtendedEmbedding, Rows, Vocabulary, initial_token, injected, stage_of
from magicapture_core.types import MagiCaptureError, Token


@pytest.fixture(scope="module")
def backbone():
    return tiny()


def token(name, placeholder, vectors):
    return Token(name=name, placeholder=placeholder, initializer="", vectors=vectors)


@pytest.fixture
def two_tokens(backbone):
    generator = torch.Generator().manual_seed(0)
    dim = backbone.prompt_dim
    return [
        token("subject", "<subject>", torch.randn(1, dim, generator=generator)),
        token("style", "<style>", torch.randn(3, dim, generator=generator)),
    ]


def test_without_placeholders_the_ids_are_the_tokenizers(backbone, two_tokens):
    prompts = ["a photo of a person", "", "person " * 75]
    ids = backbone.tokenizer(
        prompts, padding="max_length", truncation=True, max_length=backbone.tokenizer.model_max_length
    ).input_ids
    assert Vocabulary.of(backbone.tokenizer, two_tokens).encode(prompts).tolist() == ids


def test_a_prompt_that_is_too_long_is_refused(backbone, two_tokens):
    """A learned word takes as many tokens as it has vectors."""
    vocabulary = Vocabulary.of(backbone.tokenizer, two_tokens)
    room = backbone.tokenizer.model_max_length - 2
    vocabulary.encode(["person " * (room - 3) + "<style>"])
    with pytest.raises(MagiCaptureError, match=rf"has {room + 1} tokens, .* reads {room}: shorten 'person person"):
        vocabulary.encode(["fine", "person " * (room - 2) + "<style>"])


def test_a_placeholder_becomes_ids_of_its_own_in_their_order(backbone, two_tokens):
    vocabulary = Vocabulary.of(backbone.tokenizer, two_tokens)
    ids = vocabulary.encode(["a <subject> person in the <style> style"])[0].tolist()
    around = backbone.tokenizer("a person", add_special_tokens=False).input_ids
    assert ids[1:4] == [around[0], -1, around[1]]
    assert [i for i in ids if i < -1] == [-2, -3, -4]
    assert len(ids) == backbone.tokenizer.model_max_length


def test_columns_average_a_word_over_its_places(backbone, two_tokens):
    vocabulary = Vocabulary.of(backbone.tokenizer, two_tokens)
    ids = vocabulary.encode(["<style> and <style>", "a person", "person person"])
    columns = vocabulary.columns(ids, "<style>")
    torch.testing.assert_close(columns[0].sum(), torch.tensor(1.0))
    assert columns[0].nonzero().flatten().tolist() == [1, 2, 3, 5, 6, 7]
    assert columns[1].sum() == 0
    assert vocabulary.columns(ids, "person")[2].nonzero().flatten().tolist() == [1, 2]


def test_injection_changes_only_prompts_that_hold_a_learned_word(backbone, two_tokens):
    vocabulary = Vocabulary.of(backbone.tokenizer, two_tokens)
    plain, learned = vocabulary.encode(["a photo of a person"]), vocabulary.encode(["a photo of a <subject>"])
    table = backbone.text_encoder.get_input_embeddings()
    before = backbone.text_encoder(plain).last_hidden_state
    with injected(backbone.text_encoder, two_tokens):
        assert torch.equal(backbone.text_encoder(plain).last_hidden_state, before)
        assert not torch.allclose(backbone.text_encoder(learned).last_hidden_state, before)
    assert backbone.text_encoder.get_input_embeddings() is table


@pytest.mark.parametrize("padding", [0, 8])
def test_a_learned_row_equal_to_a_word_is_that_word(padding):
    """With the row of "person", <subject> and person give the same embeddings, bit for bit; also beside a table that
    is longer than the tokenizer's list."""
    backbone = tiny()
    backbone.text_encoder.resize_token_embeddings(len(backbone.tokenizer) + padding, mean_resizing=False)
    table = backbone.text_encoder.get_input_embeddings().weight
    subject = initial_token(
        "subject",
        TokenConfig(placeholder_token="<subject>", initializer_token="person"),
        backbone.tokenizer,
        table,
        torch.Generator(),
    )
    vocabulary = Vocabulary.of(backbone.tokenizer, [subject])
    with injected(backbone.text_encoder, [subject]):
        hidden = backbone.text_encoder(vocabulary.encode(["a <subject>", "a person"])).last_hidden_state
    assert torch.equal(hidden[0], hidden[1])


def test_gradients_reach_the_rows_and_nothing_else(backbone, two_tokens):
    vocabulary = Vocabulary.of(backbone.tokenizer, two_tokens)
    with injected(backbone.text_encoder, two_tokens) as rows:
        backbone.text_encoder(vocabulary.encode(["a <subject>"])).last_hidden_state.square().sum().backward()
        assert rows[0].grad is not None
        assert rows[0].grad.abs().sum() > 0
        assert rows[1].grad is not None
        assert rows[1].grad.abs().sum() == 0  # not in the prompt
        assert all(p.grad is None for name, p in backbone.text_encoder.named_parameters() if ".learned." not in name)


def test_an_initializer_of_several_tokens_is_refused(backbone):
    table = backbone.text_encoder.get_input_embeddings().weight
    config = TokenConfig(placeholder_token="<subject>", initializer_token="xylophonist zq")
    with pytest.raises(MagiCaptureError, match="xylophonist"):
        initial_token("subject", config, backbone.tokenizer, table, torch.Generator())


def test_two_words_of_one_name_are_refused(backbone):
    twice = [token(name, "<a>", torch.zeros(1, backbone.prompt_dim)) for name in ("subject", "style")]
    with pytest.raises(MagiCaptureError, match="<a>"):
        Vocabulary.of(backbone.tokenizer, twice)


def test_the_gradient_of_a_word_is_the_same_bits_on_several_threads():
    """A word that stands in many places: its gradient is a long sum, and must always be added up in one order."""
    tokens = [Token(name="subject", placeholder="<a>", initializer="", vectors=torch.randn(2, 256))]
    rows = Rows(tokens, torch.device("cpu"))
    extended = ExtendedEmbedding(nn.Embedding(8, 256).requires_grad_(False), rows)
    input_ids = torch.randint(-2, 8, (16, 77), generator=torch.Generator().manual_seed(0))
    weights = torch.randn(16, 77, 256, generator=torch.Generator().manual_seed(1))
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        gradients = [torch.autograd.grad((extended(input_ids) * weights).sum(), [*rows.words])[0] for _ in range(50)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_stages_are_equal_intervals_from_the_least_noise_on():
    assert [stage_of(timestep, 5) for timestep in (0, 199, 200, 599, 600, 799, 800, 999)] == [0, 0, 1, 2, 3, 3, 4, 4]
    assert {stage_of(timestep, 1) for timestep in range(1000)} == {0}
    assert [sum(stage_of(t, 3) == stage for t in range(1000)) for stage in range(3)] == [334, 333, 333]


def test_a_word_with_stages_is_one_id_for_the_keys_and_one_for_the_values(backbone):
    dim = backbone.prompt_dim
    words = [
        Token(name="subject", placeholder="<a>", initializer="", vectors=torch.zeros(1, dim)),
        Token(name="subject", placeholder="<b>", initializer="", vectors=torch.zeros(10, dim), num_stages=5),
        Token(name="subject", placeholder="<c>", initializer="", vectors=torch.zeros(2, dim), num_stages=1),
    ]
    vocabulary = Vocabulary.of(backbone.tokenizer, words)
    ids = [[side.encode(["<a> <b> <c>"])[0, 1:4].tolist() for side in vocabulary.at(t)] for t in (0, 650)]
    assert ids == [[[-1, -2, -12], [-1, -3, -13]], [[-1, -8, -12], [-1, -9, -13]]]
