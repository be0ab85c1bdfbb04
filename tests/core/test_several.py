"""Several people and styles in one training: each has a word and, of split adapters, its part of the rank."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from magicapture_core import artifact as artifacts
from magicapture_core import recipe
from magicapture_core.backbone import tiny
from magicapture_core.dataset import encode, step_items
from magicapture_core.halves import extract
from magicapture_core.kept import result_key
from magicapture_core.objective import Terms
from magicapture_core.prompts import fill_prompt
from magicapture_core.recipe import prompts_of
from magicapture_core.trainer import open_run
from magicapture_core.types import MagiCaptureError, concept_name, side_of
from tests.small import SmallRecogniser, portraits, small_config

NAMES = ["subject", "subject_2", "style", "style_2"]
TASKS = ("source", "reference", "composed")


def several_config(**changes):
    return small_config(**changes).with_another("subject").with_another("style", initializer_token="portrait")


@pytest.fixture(scope="module")
def backbone():
    return tiny()


@pytest.fixture(scope="module")
def photos():
    """One photo of each, the face of each in another place."""
    given = {name: portraits(1, seed) for seed, name in enumerate(NAMES)}
    for shift, photo in enumerate(given.values()):
        photo.masks[:] = photo.masks.roll(4 * shift, -2)
    return given


@pytest.fixture(scope="module")
def dataset(backbone, photos):
    return encode(backbone, photos, several_config(), SmallRecogniser())


def test_a_concepts_name_tells_its_side():
    assert [concept_name(side, number) for side in ("subject", "style") for number in (1, 2)] == NAMES
    assert [side_of(name) for name in NAMES] == ["subject", "subject", "style", "style"]


def test_a_further_word_is_numbered_and_starts_as_the_first_or_as_told():
    config = several_config(subject={"placeholder_token": "<ann>", "initializer_token": "woman", "num_vectors": 2})
    words = config.concepts
    assert [*words] == NAMES
    assert [word.placeholder_token for word in words.values()] == ["<ann>", "<subject_2>", "<style>", "<style_2>"]
    assert [word.initializer_token for word in words.values()] == ["woman", "woman", "", "portrait"]
    assert words["subject_2"].num_vectors == 2
    assert small_config().with_another("style", "<ink>").concepts["style_2"].placeholder_token == "<ink>"


def test_every_person_meets_every_style(dataset, photos):
    """400 composed items: four pairs, each near 100 times; photo, mask, prompt and targets belong to the pair."""
    config = several_config(flip=False)
    batch = dataset.draw(config, [step_items(config, "tuning", step)[2] for step in range(400)])
    counts = Counter(batch.words)
    assert set(counts) == {(f"<{a}>", f"<{b}>") for a in NAMES[:2] for b in NAMES[2:]}
    assert all(70 < count < 130 for count in counts.values())
    for index, (person, style) in enumerate(batch.words):
        assert person in batch.prompts[index]
        assert style in batch.prompts[index]
        encoded = dataset.concepts[style.strip("<>")]
        assert torch.equal(batch.loss_masks[index], 1 - encoded.face_masks[0, 0])
        assert torch.equal(batch.face_masks[index], encoded.attention_masks[0, 0])
        assert torch.equal(batch.target_embeds[index], dataset.likeness.embeddings[person.strip("<>")])


def test_a_source_item_is_the_persons_own_photo(dataset):
    config = several_config(flip=False)
    batch = dataset.draw(config, [step_items(config, "tuning", step)[0] for step in range(40)])
    assert {person for person, _ in batch.words} == {"<subject>", "<subject_2>"}
    for index, (person, _) in enumerate(batch.words):
        assert torch.equal(batch.loss_masks[index], dataset.concepts[person.strip("<>")].face_masks[0, 0])


@pytest.mark.parametrize(
    ("task", "halves"), [("source", [True, False]), ("reference", [False, True]), ("composed", [True, True])]
)
def test_an_item_moves_its_own_words_and_its_sides_half(backbone, dataset, task, halves):
    """Whichever of the people an item shows, all people share the one half, and so do the styles."""
    config = several_config(lora={"adapters": "split"})
    item = step_items(config, "tuning", 0)[TASKS.index(task)]
    batch = dataset.draw(config, [item])
    own = {word for word in batch.words[0] if word in batch.prompts[0]}
    weights = Terms(1.0, 1.0, 1.0, 0.0)
    with open_run(backbone, dataset, config) as run:
        run.begin("tuning", {}, midway=False)
        rows = run.trainable()[:4]
        for parameter in run.trainable():
            parameter.data.normal_(std=0.02)  # an up of zeros would hide what its down does
        with run.objective.terms(batch, weights) as terms:
            terms.weighed(weights).sum().backward()
        downs = [parameter.grad for name, parameter in backbone.unet.named_parameters() if "lora_A" in name]
        parts = torch.stack([grad.abs().sum(1).unflatten(0, (2, 4)).sum(1) for grad in downs]).sum(0)
        words = [token.placeholder for token in run.tokens()]
    assert {word for word, row in zip(words, rows, strict=True) if row.grad is not None and row.grad.any()} == own
    assert (parts > 0).tolist() == halves


def test_photos_without_a_word_and_words_without_photos_are_named(backbone, photos):
    some = {name: photos[name] for name in ("subject", "style")}
    with pytest.raises(MagiCaptureError, match="photos are given of subject, style, and the settings have words for"):
        encode(backbone, some, several_config())
    with pytest.raises(MagiCaptureError, match="subject, subject_2, style, style_2, and the settings have words for"):
        encode(backbone, photos, small_config())
    with pytest.raises(MagiCaptureError, match="photos are given of subject, style"):
        result_key(backbone, some, several_config())


def test_no_two_words_are_alike():
    first = {"placeholder_token": "<subject_2>", "initializer_token": "person"}
    config = small_config(subject=first).with_another("subject")
    assert config.concepts["subject_2"].placeholder_token == "<subject_3>"
    with pytest.raises(MagiCaptureError, match="the same placeholder_token <style>: rename one"):
        small_config(subject={"placeholder_token": "<style>", "initializer_token": "person"})
    with pytest.raises(MagiCaptureError, match="the same placeholder_token <bob>"):
        small_config().with_another("subject", "<bob>").with_another("subject", "<bob>")


def test_the_key_covers_every_persons_photos(backbone, photos):
    config = several_config()
    changed = {name: replace(given, images=given.images.clone()) for name, given in photos.items()}
    keys = {result_key(backbone, photos, config)}
    for given in changed.values():
        given.images[0, 0, 0, 0] += 0.5
        keys.add(result_key(backbone, changed, config))
    keys.add(result_key(backbone, {**photos, "subject": photos["subject_2"], "subject_2": photos["subject"]}, config))
    assert len(keys) == 6


def test_a_look_shows_everybody_once(dataset, backbone, photos):
    assert prompts_of(dataset) == [
        ("source", "subject", "style"),
        ("source", "subject_2", "style"),
        ("reference", "subject", "style"),
        ("reference", "subject", "style_2"),
        ("composed", "subject", "style"),
        ("composed", "subject_2", "style_2"),
    ]
    two = {name: photos[name] for name in ("subject", "subject_2", "style")}
    fewer = encode(backbone, two, small_config().with_another("subject"))
    assert [(person, style) for task, person, style in prompts_of(fewer) if task == "composed"] == [
        ("subject", "style"),
        ("subject_2", "style"),
    ]


def test_the_file_holds_all_words_and_each_sides_half(tmp_path, backbone, photos):
    result = recipe.personalize(
        backbone,
        photos,
        several_config(lora={"adapters": "split"}, inversion={"num_steps": 1}, tuning={"num_steps": 1}),
        name="friends",
        folder=tmp_path / "state",
        save=lambda made: list(artifacts.save(made, tmp_path)),
    )
    assert [file.stem for file in result.files] == ["friends", *(f"friends_{name}" for name in NAMES)]
    made = artifacts.load(result.files[0])
    assert made.rank_split == {"subject": 4, "style": 4}
    assert fill_prompt("{subject_2} and {subject} in {style_2}, {braces}", made) == (
        "<subject_2> and <subject> in <style_2>, {braces}"
    )
    with pytest.raises(MagiCaptureError, match=r"no learned word for \{subject_3\}"):
        fill_prompt("{subject_3}", made)
    people = extract(made, "subject", "people")
    assert ([token.name for token in people.tokens], people.rank_split) == (NAMES[:2], {"subject": 4})


def test_words_that_another_tool_dropped_are_found_beside_the_file(tmp_path, backbone, photos):
    from safetensors.torch import load_file, save_file

    with open_run(backbone, encode(backbone, photos, several_config()), several_config()) as run:
        run.begin("tuning", {}, midway=False)
        made = recipe.to_artifact(run, "friends")
    lora, *_ = artifacts.save(made, tmp_path)
    save_file(load_file(lora), lora)  # without the metadata
    assert [token.name for token in artifacts.load(lora).tokens] == NAMES
    (tmp_path / "friends_style_2.safetensors").unlink()
    assert [token.name for token in artifacts.load(lora).tokens] == NAMES[:3]
    twice = replace(made, tokens=(*made.tokens, replace(made.tokens[0], name="person")))
    with pytest.raises(MagiCaptureError, match="not for subject or style"):
        artifacts.save(twice, tmp_path)
