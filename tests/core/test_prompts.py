import pytest
import torch

from magicapture_core.artifact import Artifact
from magicapture_core.prompts import TEMPLATES, fill, fill_prompt, templates
from magicapture_core.types import MagiCaptureError, Token

HOLDS = {"source": (1, 0), "reference": (0, 1), "composed": (1, 1), "class": (0, 0)}


@pytest.mark.parametrize("task", HOLDS)
def test_every_template_holds_its_placeholders_once(task):
    for template in TEMPLATES[task]:
        assert (template.count("{subject}"), template.count("{style}")) == HOLDS[task]
    assert len(set(TEMPLATES[task])) == len(TEMPLATES[task]) >= 7


def test_a_person_has_the_papers_sentences():
    assert [texts[0] for texts in templates().values()] == [
        "A photo of {subject} person",
        "A photo of a person in the {style} style",
        "A photo of a {subject} person in the {style} style",
        "A photo of a person",
    ]


def test_a_teapot_is_called_one_and_has_no_face():
    sentences = templates("teapot")
    assert sentences["composed"][0] == "A photo of a {subject} teapot in the {style} style"
    for task, texts in sentences.items():
        assert all("teapot" in text and "person" not in text and "face" not in text for text in texts)
        assert len(texts) == len(set(texts)) == len(TEMPLATES[task]) - (task == "source") >= 7


def test_fill_leaves_other_braces_alone():
    assert fill("{subject} in {style}, {red|blue}", "<a>", "<b>") == "<a> in <b>, {red|blue}"


def test_a_prompt_gets_the_words_of_the_artifact_and_no_others():
    word = Token(name="subject", placeholder="<ada>", initializer="", vectors=torch.zeros(1, 4))
    ada = Artifact(name="ada", architecture="", tokens=(word,), lora={})
    assert fill_prompt("{subject}, {red|blue}", ada) == "<ada>, {red|blue}"
    assert fill_prompt("a cat", None) == "a cat"
    with pytest.raises(MagiCaptureError, match=r"ada has no learned word for \{style\}"):
        fill_prompt("{subject} in {style}", ada)
    with pytest.raises(MagiCaptureError, match=r"without a MagiCapture LoRA .* \{style\} and \{subject\}"):
        fill_prompt("{style} of {subject}", None)
