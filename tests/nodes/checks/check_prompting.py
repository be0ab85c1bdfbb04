"""Spliced words against ComfyUI's own embedding files: the same tokens, the same conditioning."""

import sys

import torch
from safetensors.torch import save_file


def prompting(pack):
    return sys.modules[f"{pack.__name__}.nodes.prompting"]


def entries(tokens):
    """Token chunks with every row replaced by its bytes, so that they can be compared."""
    return [[(t if isinstance(t, int) else t.float().numpy().tobytes(), w) for t, w in chunk] for chunk in tokens["l"]]


def with_words(pack, clip, **words):
    clip = clip.clone()
    clip.tokenizer = prompting(pack).LearnedTokenizer(clip.tokenizer, {f"<{k}>": v for k, v in words.items()})
    return clip


def check_equals_embedding_file(pack, loaded):
    """For one and for many vectors, weighted, at the chunk's border, twice in a text, next to punctuation."""
    import folder_paths

    clip = loaded[1]
    folder = folder_paths.get_folder_paths("embeddings")[0]
    one, three, ten = (torch.randn(n, 768) for n in (1, 3, 10))
    for name, rows in (("one", one), ("three", three), ("ten", ten)):
        save_file({"clip_l": rows}, f"{folder}/{name}.safetensors")
    ours = with_words(pack, clip, one=one, three=three, ten=ten)
    border = " ".join(["photo"] * 73)
    for text in (
        "a photo of a <one> person in the <three> style",
        "<ten> at the start",
        "weighted (<three>:1.3) and (a <one> man:0.7) here",
        f"{border} <three> tail",
        f"{border} <ten> tail",
        f"{border} {border} {border} <one> <three> <ten> <one>",
        "<one> <one>",
    ):
        theirs = text
        for name in ("one", "three", "ten"):
            theirs = theirs.replace(f"<{name}>", f"embedding:{name}")
        assert entries(ours.tokenize(text)) == entries(clip.tokenize(theirs)), text
    text = "a photo of a <three> person"
    a = ours.encode_from_tokens_scheduled(ours.tokenize(text))[0][0]
    b = clip.encode_from_tokens_scheduled(clip.tokenize("a photo of a embedding:three person"))[0][0]
    c = clip.encode_from_tokens_scheduled(clip.tokenize("a photo of a person"))[0][0]
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def check_punctuation_stays_outside(pack, loaded):
    """A comma or bracket that touches the word is tokenized as after any word."""
    ours = with_words(pack, loaded[1], one=torch.ones(1, 768))
    plain = [t for t, _ in loaded[1].tokenize("a person, smiling")["l"][0]]
    mixed = [t for t, _ in ours.tokenize("a <one>, smiling")["l"][0]]
    assert len(plain) == len(mixed) == 77
    assert [a == b for a, b in zip(plain, [*mixed[:2], plain[2], *mixed[3:]], strict=True)] == [True] * 77
    assert torch.equal(mixed[2], torch.ones(768))


def check_clip_of_others_untouched(pack, loaded):
    """Only the clone knows the words; text without them is the stock tokenizer's; wrapping twice adds up."""
    clip = loaded[1]
    before = clip.tokenizer
    ours = with_words(pack, with_words(pack, clip, one=torch.ones(1, 768)), two=torch.zeros(1, 768))
    assert clip.tokenizer is before
    assert ours.tokenizer.wrapped is before
    assert entries(ours.tokenize("a photo")) == entries(clip.tokenize("a photo"))
    assert entries(ours.clone().tokenize("<two>")) == entries(ours.tokenize("<two>")) != entries(clip.tokenize("<two>"))
    row = ours.tokenize("<one> <two>")["l"][0]
    assert torch.equal(row[1][0], torch.ones(768))
    assert torch.equal(row[2][0], torch.zeros(768))
    assert len(ours.tokenize("<one>", return_word_ids=True)["l"][0][0]) == 3


def check_equals_core_tokens(pack, loaded):
    """The core's tokenizer puts the words at the same places, and the ids around them are the same."""
    from importlib import import_module

    tokens = import_module(f"{pack.__name__}.magicapture_core.tokens")
    weights = import_module(f"{pack.__name__}.nodes.weights")
    types = import_module(f"{pack.__name__}.magicapture_core.types")
    clip = loaded[1]
    word = types.Token(name="subject", placeholder="<one>", initializer="", vectors=torch.ones(2, 768))
    vocabulary = tokens.Vocabulary.of(weights.plain_tokenizer(clip), [word])
    ours = with_words(pack, clip, one=word.vectors)
    for text in ("a photo of a <one> person", "<one>, smiling; in Paris's light", "no word"):
        comfy = [t if isinstance(t, int) else None for t, _ in ours.tokenize(text)["l"][0]]
        core = [t if t >= 0 else None for t in vocabulary.encode([text])[0].tolist()]
        assert comfy == core, text
    assert clip.tokenizer.clip_l.tokenizer.model_max_length != 77
