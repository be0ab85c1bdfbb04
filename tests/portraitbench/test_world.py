"""The world keeps its promises: determinism, known identity and style, faces where it says, words for what is seen."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest

from magicapture_core.prompts import templates
from portraitbench import world
from portraitbench.captions import MAX_WORDS, describe, vocabulary, words_of
from portraitbench.draw import Canvas, Patch
from portraitbench.features import Features
from portraitbench.hair import paint_beard
from portraitbench.parameters import Attributes, CatIdentity, Identity, Kind, Nuisance
from portraitbench.portrait import Subject, paint_subject
from portraitbench.world import CANVASES, FACE_SIZES, Picture, Scene, compose, identity, render, style

SPLITS: tuple[world.Split, ...] = ("pretrain", "tuning", "test")
GOLDEN = [
    [0.816, 0.56, 0.37],
    [0.679, 0.493, 0.596],
    [0.574, 0.595, 0.676],
    [0.831, 0.718, 0.626],
]  # of world version 1
PLAIN = Identity(**{field.name: 0.5 for field in fields(Identity)})


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    """Sixty training pictures on each canvas."""
    return [world.example("pretrain", index, *canvas) for canvas in CANVASES for index in range(60)]


def test_the_same_number_is_the_same_picture() -> None:
    first, again, other = (world.example("tuning", index, 64, 96) for index in (7, 7, 8))
    np.testing.assert_array_equal(first.image, again.image)
    assert (first.caption, first.scene) == (again.caption, again.scene)
    assert first.scene != other.scene


def test_a_changed_picture_asks_for_a_new_world_version() -> None:
    """Mean colours of four pictures, written down: weights trained in this world belong to these pictures."""
    assert world.WORLD_VERSION == 1
    means = [world.example("test", index).image.mean((0, 1)) / 255 for index in range(4)]
    np.testing.assert_allclose(means, GOLDEN, atol=0.003)


def test_no_two_names_and_no_two_splits_share_numbers() -> None:
    names = itertools.product(SPLITS, ("identity", "style", "example"), range(50))
    draws = [world.random(split, name, index).random() for split, name, index in names]
    assert len(set(draws)) == len(draws)


def test_identity_stays_in_every_style_and_the_truth_holds_both() -> None:
    for picture in world.truth("test", 3, 5, 2):
        [subject] = picture.scene.subjects
        assert subject.identity == identity("test", 3)
        assert (subject.look, picture.scene.setting) == (style("test", 5).look, style("test", 5).setting)
        assert subject.attributes == Attributes()


def test_photos_of_a_person_keep_face_and_hair_and_change_the_rest() -> None:
    photos = world.subject_photos("tuning", 2, 5)
    assert {photo.scene.subjects[0].identity for photo in photos} == {identity("tuning", 2)}
    assert len({photo.scene.subjects[0].look.hair_color for photo in photos}) == 1
    assert len({photo.scene.setting for photo in photos}) == 5


def test_photos_of_a_style_keep_the_style_and_change_the_people() -> None:
    photos = world.style_photos("tuning", 2, 5)
    assert {photo.scene.setting for photo in photos} == {style("tuning", 2).setting}
    assert {photo.scene.subjects[0].look for photo in photos} == {style("tuning", 2).look}
    assert len({photo.scene.subjects[0].identity for photo in photos}) == 5


def test_background_and_clothes_never_touch_the_face() -> None:
    how = style("tuning", 1)
    other = replace(
        how,
        look=replace(how.look, clothes_color="red" if how.look.clothes_color != "red" else "blue"),
        setting=replace(how.setting, background="green", pattern="dots", pattern_color="pink"),
    )
    ours, theirs = (render(compose(PLAIN, s, Nuisance(smile=0.4))) for s in (how, other))
    assert (ours.image != theirs.image).any()
    inner = _shrunk(ours.mask)
    np.testing.assert_array_equal(ours.image[inner], theirs.image[inner])


def _shrunk(mask: np.ndarray) -> np.ndarray:
    """The mask without its outermost pixels, which mix with what lies behind."""
    inner = mask.copy()
    for axis, step in itertools.product((0, 1), (-1, 1)):
        inner &= np.roll(mask, step, axis)
    return inner


def test_the_painted_features_have_the_identitys_colours_at_the_landmarks() -> None:
    canvas, scale = Canvas(400, 400), 150.0
    face = replace(PLAIN, eye_hue=1.0, eye_openness=1.0, eye_size=1.0)
    still = Nuisance(smile=0.0, light_strength=0.0)
    painted = paint_subject(canvas, 200, 200, scale, Subject(identity=face, look=style("test", 0).look, nuisance=still))
    features = Features.of(face)
    colors = canvas.planes[:3].transpose(1, 2, 0)
    iris = 0.64 * scale * min(features.eye_height * 0.98, features.eye_width * 0.58)
    for x, y in painted.landmarks[:2]:
        assert colors[round(y), round(x)].max() < 0.1  # the pupil
        np.testing.assert_allclose(colors[round(y), round(x + iris)], features.eye_color, atol=0.06)
    for (x, y), inward in zip(painted.landmarks[3:], (1, -1), strict=True):
        lip = colors[round(y + 0.02 * scale), round(x + inward * 0.12 * scale)]
        np.testing.assert_allclose(lip, features.lip_color, atol=0.06)
        assert abs(colors[round(y), round(x - inward * 0.05 * scale)] - features.lip_color).max() > 0.1
    x, y = painted.landmarks[2]
    assert canvas.planes[3, round(y), round(x)] == 1  # the nose lies on the face


def test_masks_cover_the_landmarks_and_boxes_contain_the_masks(pictures: list[Picture]) -> None:
    for picture in pictures:
        for face in picture.faces:
            columns, rows = face.landmarks.astype(int).T
            assert face.mask[rows, columns].all(), picture.caption
            ys, xs = np.nonzero(face.mask)
            x1, y1, x2, y2 = face.box
            assert x1 <= xs.min() + 1, picture.caption
            assert y1 <= ys.min() + 1, picture.caption
            assert xs.max() <= x2, picture.caption
            assert ys.max() <= y2, picture.caption


def test_landmarks_stand_in_order(pictures: list[Picture]) -> None:
    for picture in pictures:
        for face in picture.faces:
            left, right, nose, left_corner, right_corner = face.landmarks
            assert left[0] < right[0]
            assert left_corner[0] < right_corner[0]
            assert max(left[1], right[1]) < nose[1] < min(left_corner[1], right_corner[1])


def test_face_sizes(pictures: list[Picture]) -> None:
    sizes = [face.size for picture in pictures for face in picture.faces]
    assert min(sizes) >= FACE_SIZES[0]
    assert max(sizes) <= FACE_SIZES[1]
    assert min(sizes) < 20
    assert max(sizes) > 50


def test_people_do_not_overlap_and_stand_from_left_to_right(pictures: list[Picture]) -> None:
    groups = [picture for picture in pictures if len(picture.faces) > 1]
    assert {len(picture.faces) for picture in groups} == {2, 3}
    for picture in groups:
        for left, right in itertools.pairwise(picture.faces):
            assert left.box[2] <= right.box[0]
        assert np.sum([face.mask for face in picture.faces], axis=0).max() == 1
        assert "on the left" in picture.caption
        assert "on the right" in picture.caption


def test_captions_hold_only_known_words_and_fit_the_text_encoder(pictures: list[Picture]) -> None:
    known = set(vocabulary())
    for picture in pictures:
        full = render(picture.scene).caption
        for caption in (picture.caption, full):
            words = words_of(caption)
            assert not set(words) - known, caption
            assert len(words) <= MAX_WORDS
        assert len(words_of(full)) >= len(words_of(picture.caption)) - 6  # dropped parts, up to other wordings


def test_the_vocabulary_holds_the_training_templates_and_every_word_is_used() -> None:
    used = {word for index in range(3000) for word in words_of(_caption(index))}
    assert set(vocabulary()) - used == set()
    for template in itertools.chain(*templates().values()):
        words = words_of(template.replace("{subject}", "").replace("{style}", ""))
        assert not set(words) - set(vocabulary()), template


def _caption(index: int) -> str:
    """A training caption without the picture."""
    rng = world.random("pretrain", "words", index)
    scene = world.draw_scene(rng, 64, 128)
    return describe(scene.setting, scene.subjects, world.positions(scene), rng)


def test_a_full_caption_says_what_is_seen() -> None:
    picture = world.truth("test", 0, 0, 1)[0]
    look, setting = picture.scene.subjects[0].look, picture.scene.setting
    caption = render(picture.scene).caption
    assert f"{look.cut} {look.hair_color} hair" in caption
    assert f"{look.clothes_color} {look.garment}" in caption
    assert f"{setting.background} background" in caption


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("eyes_closed", "eyes closed"),
        ("beard", "a beard"),
        ("old", "an old"),
        ("cap", "cap"),
        ("glasses", "glasses"),
        ("earrings", "earrings"),
    ],
)
def test_an_attribute_has_its_word_and_its_pixels_and_leaves_the_identity(name: str, word: str) -> None:
    how = style("tuning", 4)
    how = replace(
        how, look=replace(how.look, hat="none", cut="short"), setting=replace(how.setting, framing="close-up")
    )
    bare = compose(PLAIN, how, Nuisance())
    subject = replace(bare.subjects[0], attributes=Attributes(**{name: True}))
    scene = replace(bare, subjects=(subject,))
    without, with_it = render(bare), render(scene)
    assert word in with_it.caption
    assert word not in without.caption
    changed = (with_it.image.astype(int) != without.image).any(-1)
    assert changed.mean() > 0.002
    x1, _, x2, y2 = without.faces[0].box
    outside = changed.copy()
    outside[: int(y2) + 2, int(x1) - 6 : int(x2) + 6] = False  # a cap rises above the box
    assert not outside.any()
    np.testing.assert_array_equal(with_it.faces[0].landmarks, without.faces[0].landmarks)


def test_nuisance_keeps_the_skin_tone_and_another_skin_does_not() -> None:
    rng = world.random("tuning", "skin test")
    nuisances = [Nuisance.draw(rng) for _ in range(12)]
    how = style("tuning", 6)
    tones = {
        skin: np.array([_mean_skin(replace(PLAIN, skin=skin), how, nuisance) for nuisance in nuisances])
        for skin in (0.2, 0.8)
    }
    for values in tones.values():
        assert np.abs(values - values.mean(0)).max() < 0.09
    assert (tones[0.2].mean(0) - tones[0.8].mean(0)).min() > 0.15


def _mean_skin(who: Identity, how: world.Style, nuisance: Nuisance) -> np.ndarray:
    picture = render(compose(who, how, nuisance))
    return picture.image[picture.mask].mean(0) / 255


def test_every_identity_number_can_be_seen() -> None:
    """Each parameter alone, from low to high, changes a face of 32 px; the mole's place needs a mole to be there."""
    how = style("tuning", 0)
    how = replace(how, setting=replace(how.setting, framing="close-up"))
    how = replace(how, look=replace(how.look, hat="none", fringe="middle", cut="short"))
    for cls, mole in ((Identity, {"mole": 1.0}), (CatIdentity, {})):
        for field in fields(cls):
            base = {f.name: 0.5 for f in fields(cls)} | mole
            ends = [cls(**(base | {field.name: value})) for value in (0.1, 0.9)]
            low, high = (render(compose(end, how, Nuisance())) for end in ends)
            change = (low.image.astype(float) - high.image)[low.mask | high.mask]
            assert np.sqrt((change**2).mean()) > 2.5, field.name


@pytest.mark.parametrize("kind", ["person", "cat"])
def test_an_enlarged_picture_is_the_same_picture(kind: Kind) -> None:
    scene = compose(identity("test", 1, kind), style("test", 1), Nuisance())
    small, large = render(scene), render(scene, enlarge=3)
    assert large.image.shape == (192, 192, 3)
    means = large.image.reshape(64, 3, 64, 3, 3).mean((1, 3))
    assert np.abs(means - small.image).mean() < 4
    np.testing.assert_allclose(large.faces[0].landmarks / 3, small.faces[0].landmarks, atol=1e-3)


def test_a_beard_leaves_whole_pixels_at_every_height() -> None:
    """Its hairs run together at one height above the face, where nothing may be divided."""
    u, v = np.meshgrid(np.linspace(-1, 1, 21, dtype=np.float32), np.array([-0.6, 0.0, 0.6], np.float32))
    patch = Patch(u=u, v=v, pixel=0.1, planes=np.full((4, *u.shape), 0.5, np.float32))
    paint_beard(patch, Features.of(PLAIN), mouth_open=0.0)
    assert np.isfinite(patch.planes).all()


def test_one_person_stands_where_the_caption_says() -> None:
    for index in range(200):
        scene = world.draw_scene(world.random("tuning", "place", index), 64, 128)
        if len(scene.subjects) == 1:
            x, _, _ = world.place(scene, 0)
            words = {"on the left": x < 0.4 * 128, "on the right": x > 0.6 * 128, "": 0.4 <= x / 128 <= 0.6}
            assert words[world.positions(scene)[0]]
            assert isinstance(scene, Scene)
