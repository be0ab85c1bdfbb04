"""The figures by hand: whose face, whose style, where words look, and what is said of a picture without a face."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from magicapture_core.heatmaps import AttentionRecord
from portraitbench import world
from portraitbench.labels import ATTRIBUTES, STYLE_WORDS, style_words
from portraitbench.measure import Judges, Reading, leakage, likeness, obeyed, read, style_likeness
from portraitbench.nets import NUM_TRAITS
from portraitbench.pictures import to_arrays
from portraitbench.portrait import Subject

LANDMARKS = torch.tensor([(26.0, 28.0), (38.0, 28.0), (32.0, 35.0), (27.0, 41.0), (37.0, 41.0)])


def reading(seen: list[bool], **changes: Any) -> Reading:
    """N pictures; a face that was found looks along the first axis."""
    count, found = len(seen), torch.tensor(seen)
    blank = Reading(
        seen=found,
        embeddings=F.one_hot(torch.zeros(count, dtype=torch.long), 4).float() * found[:, None],
        style=F.one_hot(torch.zeros(count, dtype=torch.long), 4).float(),
        words=[{} for _ in seen],
        attributes=torch.zeros(count, len(ATTRIBUTES), dtype=torch.bool),
        traits=torch.where(found[:, None], torch.full((count, NUM_TRAITS), 0.5), torch.nan),
        landmarks=[LANDMARKS if one else None for one in seen],
    )
    return replace(blank, **changes)


@pytest.fixture(scope="module")
def judges():
    return Judges.load()


def test_a_picture_without_a_face_counts_zero():
    who, truth = world.identity("tuning", 0), reading([True, True])
    figures = likeness(reading([True, True, False, False]), reading([True, False]), who, truth)
    assert figures["csim"] == pytest.approx(0.5)
    assert figures["detection"] == 0.5
    assert torch.tensor(likeness(reading([False, False]), truth, who, truth)["trait_error"]).isnan()


def test_the_traits_error_leaves_out_where_a_mole_would_be():
    drawn = world.identity("tuning", 0)
    for mole, counted in ((0.2, NUM_TRAITS - 2), (0.9, NUM_TRAITS)):
        who = replace(drawn, mole=mole)
        target = torch.from_numpy(who.vector()).float()
        target[-2:] += 1  # mole_u and mole_v, read wrongly
        figures = likeness(reading([True], traits=target[None]), reading([True]), who, reading([True, True]))
        assert figures["trait_error"] == pytest.approx((counted - NUM_TRAITS + 2) / counted)


def test_style_words_are_those_that_show():
    who, how = world.identity("tuning", 0), world.style("tuning", 0)
    right = style_words(Subject(identity=who, look=how.look), how.setting)
    wrong = {name: next(word for word in STYLE_WORDS[name] if word != right[name]) for name in right}
    made = reading([True, True], words=[right, wrong])
    assert style_likeness(made, reading([True]), how, who) == {"style": pytest.approx(1), "style_words": 0.5}


def test_leakage_is_outside_the_face_for_the_person_and_inside_it_for_the_style():
    """Both words look at the face's middle alone; neither a picture without a face nor a coarse map counts."""
    maps = torch.zeros(2, 2, 1, 16, 16)
    maps[..., 8, 8] = 1
    record = AttentionRecord(["<subject>", "<style>"])
    record.add(0, 1, [maps, torch.ones(2, 2, 1, 4, 4)])
    figures = leakage(record, reading([True, False]), 64, "<subject>", "<style>")
    assert figures == {"subject_leakage": pytest.approx(0), "style_leakage": pytest.approx(1)}
    assert torch.tensor(list(leakage(record, reading([False]), 64, "<subject>", "<style>").values())).isnan().all()


def test_edits_are_read_by_the_judges():
    glasses = torch.zeros(2, len(ATTRIBUTES), dtype=torch.bool)
    glasses[0, ATTRIBUTES.index("glasses")] = True
    made = reading([True, True], attributes=glasses, words=[{"background": "blue"}, {"background": "blue"}])
    assert obeyed("glasses", made) == 0.5
    assert obeyed("blue_background", made) == 1


def test_true_pictures_are_read_as_their_own_and_grey_ones_have_no_face(judges):
    truth = world.truth("tuning", 3, 3, 4)
    images = torch.cat([to_arrays(truth).tensor(), torch.full((1, 3, 64, 64), 0.5)])
    found = read(judges, images)
    assert found.seen.tolist() == [True] * 4 + [False]
    assert found.embeddings[4].abs().sum() == 0
    assert found.traits[4].isnan().all()
    who, how = world.identity("tuning", 3), world.style("tuning", 3)
    right = style_words(Subject(identity=who, look=how.look), how.setting)
    assert all(words["clothes_color"] == right["clothes_color"] for words in found.words[:4])
    others = read(judges, to_arrays(world.truth("tuning", 4, 3, 4)).tensor())
    own = read(judges, to_arrays(world.subject_photos("tuning", 3, 4)).tensor())
    assert (found.embeddings[:4] @ own.embeddings.T).mean() > (others.embeddings @ own.embeddings.T).mean() + 0.2
