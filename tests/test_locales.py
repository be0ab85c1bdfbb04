"""The translations say what the English says: the same texts, none empty, and every name and number kept."""

from __future__ import annotations

import re
from functools import cache

import pytest

from .nodes.locales import SYNTAX, TRANSLATIONS, read

KEPT = re.compile(
    r"""<\w+>                  # a learned word
      | \w+:[\w.]*\w           # embedding:name, (word:1.2)
      | \.?\w*[_/][\w./]*\w    # identifiers, files, folders
      | [A-Z]\w*[A-Z]          # LoRA, KSampler up to its last capital, MODEL
      | \d+(?:\.\d+)?
    """,
    re.VERBOSE | re.ASCII,
)
SCRIPTS = {"ko": "[\uac00-\ud7a3]", "zh": "[\u4e00-\u9fff]", "ja": "[\u3040-\u30ff]"}
ENGLISH = read("en")


@cache
def node_names(language: str) -> dict[str, str]:
    """Node id -> its display name as other texts mention it."""
    texts = read(language)
    return {key[0]: text.removesuffix(" (MagiCapture)") for key, text in texts.items() if key[1:] == ("display_name",)}


def faults(language: str, english: str, text: str) -> list[str]:
    """What a translation of a whole sentence lost."""
    lost = sorted(set(KEPT.findall(english)) - set(KEPT.findall(text)))
    translated = node_names(language)
    mentions = {translated[node]: name for node, name in node_names("en").items() if name in english}
    return [
        *(f"{kept} is lost" for kept in lost),
        *(f"{name} is not {own}" for own, name in mentions.items() if own not in text),
        *([] if re.search(SCRIPTS[language], text) else ["it is not translated"]),
    ]


def test_english_is_there() -> None:
    assert len(ENGLISH) > 200


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_the_texts_are_those_of_english(language: str) -> None:
    """Besides them, only texts that en leaves to the schema, which a check inside ComfyUI looks at."""
    texts = read(language)
    assert not ENGLISH.keys() - texts.keys()
    assert texts.keys() == read("ko").keys()
    assert {key[-1] for key in texts.keys() - ENGLISH.keys()} <= {"tooltip"}


@pytest.mark.parametrize("language", ["en", *TRANSLATIONS])
def test_every_text_can_be_shown(language: str) -> None:
    """Not empty, no space around it, and no character that some page would take for message syntax."""
    bad = {key: text for key, text in read(language).items() if text != text.strip() or not text or SYNTAX.search(text)}
    assert not bad


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_nothing_is_lost_in_translation(language: str) -> None:
    texts = read(language)
    sentences = {key: text for key, text in ENGLISH.items() if key[-1] in ("description", "tooltip")}
    bad = {key: found for key, text in sentences.items() if (found := faults(language, text, texts[key]))}
    assert not bad


@pytest.mark.parametrize("language", ["en", *TRANSLATIONS])
def test_titles_end_in_the_packs_name(language: str) -> None:
    titles = [text for key, text in read(language).items() if key[1:] == ("display_name",)]
    assert len(titles) == len(set(titles))
    assert all(title.endswith(" (MagiCapture)") for title in titles)


@pytest.mark.parametrize(
    ("english", "text", "fault"),
    [
        ("From Face Mask.", "Von Gesichtsmaske.", f"Face Mask is not {node_names('ko')['MagiCaptureFaceMask']}"),
        ("Put x_1.pth into models/faces.", "x_1.pth nach models.", "models/faces is lost"),
        ("4-6 pictures", "4 Bilder", "6 is lost"),
        ("<subject>, two LoRAs", "<subject>, zwei", "LoRA is lost"),
        ("as (word:1.2)", "wie (word:1)", "word:1.2 is lost"),
        ("Width.", "Breite.", "it is not translated"),
    ],
)
def test_a_fault_is_seen(english: str, text: str, fault: str) -> None:
    assert fault in faults("ko", english, text)
