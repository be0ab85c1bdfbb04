"""Whose face it is: stored landmarks, a window of the latents, gradient all the way, and never a detector."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from magicapture_core.backbone import TINY_FOLDER, tiny
from magicapture_core.dataset import ItemKey, encode, step_items
from magicapture_core.faces import load_face_detector
from magicapture_core.identity import (
    MARGIN,
    MAX_SIDE,
    Likeness,
    Recogniser,
    align,
    embed_latents,
    face_window,
    recognition_frame,
    shrink_to,
)
from magicapture_core.images import load_photo, resize
from magicapture_core.losses import identity
from magicapture_core.objective import Terms
from magicapture_core.trainer import open_run, train
from magicapture_core.types import Face, Portraits
from tests.small import LANDMARKS, SmallRecogniser, portraits, same, small_config, weights

MIRRORED = torch.tensor([(33.0, 27.0), (47.0, 27.0), (40.0, 34.0), (34.0, 41.0), (46.0, 41.0)])


@pytest.fixture(scope="module")
def backbone():
    return tiny()


@pytest.fixture(scope="module")
def dataset(backbone):
    return encode(backbone, {"subject": portraits(3), "style": portraits(4, seed=1)}, small_config(), SmallRecogniser())


def composed(count: int) -> list[ItemKey]:
    return [ItemKey(phase="tuning", step=step, group=0, task="composed") for step in range(count)]


def test_only_composed_items_below_the_limit_are_asked_for_a_face(dataset):
    batch = dataset.draw(small_config(), step_items(small_config(), "tuning", 0))
    assert batch.landmarks[:2].isnan().all()
    config = small_config(loss={"identity_max_timestep": 300})
    batch = dataset.draw(config, composed(60))
    asked = ~batch.landmarks.isnan().flatten(1).any(1)
    assert torch.equal(asked, batch.timesteps < 300)
    assert batch.identity_items == asked.nonzero().flatten().tolist() != []


def test_the_face_is_the_style_photos_and_its_owner_a_subject_photo(dataset):
    batch = dataset.draw(small_config(loss={"identity_max_timestep": 1000}), composed(40))
    places = {tuple(landmarks.flatten().tolist()) for landmarks in batch.landmarks}
    assert places == {tuple(LANDMARKS.flatten().tolist()), tuple(MIRRORED.flatten().tolist())}
    assert all(len(targets) == 1 for targets in batch.target_embeds)
    drawn = (torch.stack(batch.target_embeds) == dataset.likeness.embeddings["subject"]).all(-1)
    assert drawn.any(1).all()
    assert drawn.any(0).all()


def test_the_subjects_own_photos_may_be_asked_too(dataset):
    config = small_config(loss={"identity_max_timestep": 1000, "identity_tasks": ["source"]})
    assert dataset.draw(config, step_items(config, "tuning", 0)).identity_items == [0]


def test_phase_1_has_no_identity_term(dataset):
    """Eq. 9, which source items would otherwise get when they are asked too."""
    config = small_config(loss={"identity_max_timestep": 1000, "identity_tasks": ["source"]})
    assert dataset.draw(config, step_items(config, "inversion", 0)).identity_items == []


def test_the_landmarks_mirror_with_the_latents(dataset):
    batch = dataset.draw(small_config(loss={"identity_max_timestep": 1000}), composed(10))
    for landmarks, face in zip(batch.landmarks, batch.face_masks, strict=True):
        columns = face[0].any(0).nonzero().flatten() * 8.0
        assert columns.min() <= landmarks[:, 0].min() < landmarks[:, 0].max() <= columns.max() + 8


def test_a_mirrored_photo_gives_the_mirrored_face():
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.avg_pool2d(image, 9, stride=1, padding=4)
    face, mirrored = align(image, LANDMARKS, 32), align(image.flip(-1), MIRRORED, 32)
    # ArcFace's points are not quite symmetric: a third of a pixel in 32
    assert (mirrored.flip(-1) - face).abs().mean() < 0.2 * (face.flip(-1) - face).abs().mean()


def test_the_window_holds_all_that_the_recogniser_sees():
    rows, columns = face_window(LANDMARKS, (64, 64), 1)
    corners = torch.linalg.solve(recognition_frame(LANDMARKS, 1)[:, :2], -recognition_frame(LANDMARKS, 1)[:, 2])
    assert columns.start == int(corners[0].floor()) - MARGIN
    assert rows.start == int(corners[1].floor()) - MARGIN
    assert face_window(LANDMARKS, (8, 6), 8) == (slice(0, 8), slice(0, 6))


def test_photos_without_landmarks_are_passed_over(backbone):
    known = portraits(2)
    faces = [known.faces[0], Face(box=known.faces[1].box)]
    half = Portraits(images=known.images, masks=known.masks, faces=faces)
    dataset = encode(backbone, {"subject": half, "style": half}, small_config(), SmallRecogniser())
    assert dataset.likeness is not None
    assert len(dataset.likeness.embeddings["subject"]) == 1
    batch = dataset.draw(small_config(loss={"identity_max_timestep": 1000}), composed(40))
    assert 0 < len(batch.identity_items) < 40
    blind = encode(backbone, {"subject": replace(known, faces=[]), "style": half}, small_config(), SmallRecogniser())
    assert blind.draw(small_config(), composed(40)).identity_items == []


def test_no_weight_no_term_but_a_likeness(backbone):
    config = small_config(loss={"attention_downscale": 2, "identity_weight": 0})
    dataset = encode(backbone, {"subject": portraits(1), "style": portraits(1)}, config, SmallRecogniser())
    assert dataset.likeness is not None
    assert dataset.draw(config, composed(40)).identity_items == []


def test_the_window_alone_shows_the_same_face_as_the_whole_picture(backbone):
    """Decoding all latents and aligning there, against decoding the window: the aligned faces, in -1..1."""
    vae = deepcopy(backbone.vae)
    vae.register_to_config(scaling_factor=0.2)
    photo = resize(load_photo(TINY_FOLDER / "samples" / "person_1.jpg")[None, :, :640], (128, 128))
    [face] = load_face_detector().detect(photo[0])
    assert face.landmarks is not None
    for landmarks in (face.landmarks, face.landmarks + torch.tensor([30.0, 30.0])):
        with torch.no_grad():
            latents = vae.encode(photo * 2 - 1).latent_dist.mean
            whole = align(vae.decode(latents).sample, landmarks, 48)
            window = embed_latents(vae, Seen(), latents[0] * 0.2, landmarks)
        assert (window - whole).abs().mean() < 0.2 * whole.std()


class Seen(Recogniser):
    """Embeds a face as itself."""

    input_size = 48

    def forward(self, faces):
        return faces


def test_the_term_by_hand_and_one_unet_pass(backbone, dataset):
    config = small_config(loss={"attention_downscale": 2, "identity_max_timestep": 500})
    item = next(item for item in composed(20) if dataset.draw(config, [item]).identity_items)
    batch, calls = dataset.draw(config, [item]), []
    kept = {}

    def keep(module, inputs, output):
        calls.append(1)
        kept.update(noisy_latents=inputs[0], noise_pred=output.sample)

    with (
        torch.no_grad(),
        open_run(backbone, dataset, config) as run,
        backbone.unet.register_forward_hook(keep),
        run.objective.terms(batch, Terms(1, 1, 1, 0)) as (_, _, term, _),
    ):
        pass
    abar = backbone.noise_scheduler.alphas_cumprod[batch.timesteps[0]]
    latents = (kept["noisy_latents"][0] - (1 - abar).sqrt() * kept["noise_pred"][0]) / abar.sqrt()
    with torch.no_grad():
        pred_embeds = embed_latents(backbone.vae, dataset.likeness.recogniser, latents, batch.landmarks[0])
    assert len(calls) == 1
    torch.testing.assert_close(term, 2 * identity(pred_embeds, batch.target_embeds[0]))


def test_the_identity_term_alone_moves_the_lora_and_nothing_else(backbone, dataset):
    """Through decoder, alignment and recogniser, which stay as they are."""
    recogniser = dataset.likeness.recogniser
    before = weights(backbone.vae, recogniser)
    config = small_config(inversion={"num_steps": 0}, loss={"attention_downscale": 2, "identity_max_timestep": 1000})
    with open_run(backbone, dataset, config) as run:
        run.begin("tuning", {}, midway=False)
        with run.objective.terms(dataset.draw(config, composed(1)), Terms(1, 0, 1, 0)) as (_, _, term, _):
            term.sum().backward()
        gradients = [parameter.grad for parameter in run.trainable() if parameter.grad is not None]
        assert len(gradients) == len(run.trainable())
        assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0
    assert same(weights(backbone.vae, recogniser), before)
    assert not any(parameter.requires_grad for parameter in (*backbone.vae.parameters(), *recogniser.parameters()))


def test_a_run_tells_how_often_it_looked_at_a_face(backbone, dataset):
    config = small_config(tuning={"num_steps": 3}, loss={"attention_downscale": 2, "identity_max_timestep": 1000})
    steps = [step.losses for step in train(backbone, dataset, config)]
    assert [step.num_identity for step in steps] == [0, 0, 0, 1, 1, 1]
    for terms in steps:
        expected = terms.reconstruction + 2.5 * terms.attention + 0.25 * terms.identity
        assert terms.total == pytest.approx(expected, rel=1e-5)
    assert all(terms.identity > 0 for terms in steps[3:])


def test_a_likeness_needs_a_known_face():
    nobody = Likeness.of(SmallRecogniser(), {"subject": replace(portraits(2), faces=[])}, torch.device("cpu"))
    assert len(nobody.embeddings["subject"]) == 0


def test_the_target_may_be_one_photo_their_mean_or_the_nearest():
    """Three photos seen as x, y and z: the mean is (1, 1, 1) / sqrt 3, and `best` leaves the choice to the loss."""

    def last(count: int) -> int:
        return count - 1

    likeness = Likeness(recogniser=SmallRecogniser(), embeddings={"subject": torch.eye(3)})
    assert torch.equal(likeness.targets("subject", "random", last), torch.tensor([[0.0, 0.0, 1.0]]))
    torch.testing.assert_close(likeness.targets("subject", "mean", last), torch.full((1, 3), 3**-0.5))
    assert torch.equal(likeness.targets("subject", "best", last), torch.eye(3))


def identity_term(backbone, dataset, **loss):
    """The term of one composed item at a step below 500, and that step."""
    config = small_config(loss={"attention_downscale": 2, "identity_max_timestep": 500, **loss})
    item = next(item for item in composed(20) if dataset.draw(config, [item]).identity_items)
    batch = dataset.draw(config, [item])
    with (
        torch.no_grad(),
        open_run(backbone, dataset, config) as run,
        run.objective.terms(batch, Terms(1, 0, 1, 0)) as terms,
    ):
        return float(terms.identity), int(batch.timesteps)


def test_the_nearest_photo_asks_least(backbone, dataset):
    likenesses = [
        replace(dataset.likeness, embeddings={"subject": row[None]}) for row in dataset.likeness.embeddings["subject"]
    ]
    ones = [identity_term(backbone, replace(dataset, likeness=likeness))[0] for likeness in likenesses]
    best, _ = identity_term(backbone, dataset, identity_target="best")
    assert best == pytest.approx(min(ones))
    assert max(ones) > min(ones)


def test_noisier_steps_may_count_less(backbone, dataset):
    flat, timestep = identity_term(backbone, dataset)
    falling, _ = identity_term(backbone, dataset, identity_weighting="falling")
    assert falling == pytest.approx(flat * (1 - timestep / 1000) ** 2)


def test_a_face_that_is_not_alike_enough_is_left_out(backbone, dataset):
    flat, _ = identity_term(backbone, dataset)
    cosine = 1 - flat / 2  # the term is doubled: half of all steps take part
    assert identity_term(backbone, dataset, identity_min_cosine=cosine - 0.01)[0] == flat
    assert identity_term(backbone, dataset, identity_min_cosine=cosine + 0.01)[0] == 0


def test_a_large_window_is_decoded_smaller():
    """30 x 24 cells of a ramp into 24: 24 x 19, whose middles lie where they lay."""
    ramp = torch.arange(30.0)[None, None, :, None].expand(1, 4, 30, 24)
    window, scale = shrink_to(ramp, 24)
    assert window.shape == (1, 4, 24, 19)
    torch.testing.assert_close(scale, torch.tensor([19 / 24, 24 / 30]))
    torch.testing.assert_close(window[0, 0, 0, 0], torch.tensor(0.5))  # the mean of the cells 0 and 1
    small = torch.zeros(1, 4, 24, 10)
    assert shrink_to(small, 24)[0] is small


def test_a_large_face_is_seen_as_well_after_shrinking(backbone, monkeypatch):
    """A face over most of 256 pixels, decoded whole and within a cap of three quarters of it: aligned, in -1..1."""
    vae = deepcopy(backbone.vae)
    photo = resize(load_photo(TINY_FOLDER / "samples" / "person_1.jpg")[None, :, :640], (256, 256))
    [face] = load_face_detector().detect(photo[0])
    assert face.landmarks is not None
    faces = []
    for cap in (MAX_SIDE, 96):
        monkeypatch.setattr("magicapture_core.identity.MAX_SIDE", cap)
        with torch.no_grad():
            latents = vae.encode(photo * 2 - 1).latent_dist.mean[0] * vae.config.scaling_factor
            faces.append(embed_latents(vae, Seen(), latents, face.landmarks))
    assert (faces[0] - faces[1]).abs().mean() < 0.35 * faces[0].std()
