"""DDIM there and back: oracles, what is held, and a face that gets somebody's identity."""

import pytest
import torch

from magicapture_core.backbone import TINY_FOLDER, tiny
from magicapture_core.diir.control import Control, plain_embeds
from magicapture_core.diir.inversion import ddim_sigmas, denoise, invert
from magicapture_core.diir.landmarks import Landmarks
from magicapture_core.diir.landmarks import framed as framed_face
from magicapture_core.diir.restorer import Walk, encoded, redrawing
from magicapture_core.faces import similarity_transform
from magicapture_core.images import load_photo, resize
from magicapture_core.restore import FFHQ_POINTS, Guard, Rise, face_mask, restore_faces
from magicapture_core.sampler import PromptEmbeds, decode, encode_prompt, taught
from magicapture_core.tokens import Vocabulary, injected
from magicapture_core.types import Face, Token
from tests.core.test_collages import controls_of
from tests.core.test_sefi_command import identity
from tests.small import random_artifact, same, weights

SHORT = Walk(num_steps=10)


@pytest.fixture(scope="module")
def backbone():
    return tiny()


@pytest.fixture(scope="module")
def artifact(backbone):
    return random_artifact(backbone)


def noise_of(x, sigma):
    """A model that is smooth in both."""
    return torch.sin(3 * x / (sigma**2 + 1).sqrt()) * 0.3 + 0.5 * sigma / (sigma + 1)


def psnr(left, right):
    return float(-10 * (left - right).square().mean().log10())


def there_and_back(backbone, latents, walk):
    """Without anybody, at guidance 1: latents [B,C,h,w] -> the end of the way there, and what the way back makes."""
    sigmas = walk.sigmas(backbone.noise_scheduler.alphas_cumprod)
    levels = ((1 - backbone.noise_scheduler.alphas_cumprod) / backbone.noise_scheduler.alphas_cumprod).sqrt()
    with torch.no_grad(), taught(backbone, None) as vocabulary:
        embeds = PromptEmbeds(backbone, vocabulary, ["a photo of a person"]).at(0).expand(len(latents), -1, -1)

        def predict(x, sigma):
            return backbone.unet(x / (sigma**2 + 1).sqrt(), (levels - sigma).abs().argmin(), embeds).sample

        path = invert(predict, latents, sigmas)
        return path[-1], denoise(predict, path, sigmas, torch.ones(1))


# -- the walk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["DDIMScheduler", "DDIMInverseScheduler"])
def test_both_ways_are_those_of_diffusers(backbone, way):
    """Its schedulers walk z = x sqrt(abar), the same K timesteps."""
    import diffusers

    abar = backbone.noise_scheduler.alphas_cumprod
    options = {"set_alpha_to_one": True, "clip_sample": False, "timestep_spacing": "trailing"}
    scheduler = getattr(diffusers, way).from_config(backbone.noise_scheduler.config, **options)
    scheduler.set_timesteps(10)
    sigmas = ddim_sigmas(abar, 10, 1.0)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    z = start.clone()
    for timestep in scheduler.timesteps:
        sigma = ((1 - abar[timestep]) / abar[timestep]).sqrt()
        level = (sigma**2 + 1).sqrt()
        if way == "DDIMInverseScheduler":  # which hands the model z of the level before, as noise of the next
            before = sigmas[(sigmas - sigma).abs().argmin() - 1]
            z = scheduler.step(noise_of(z * (before**2 + 1).sqrt(), sigma), timestep, z).prev_sample
        else:
            z = scheduler.step(noise_of(z * level, sigma), timestep, z).prev_sample
    last = (sigmas[-1] ** 2 + 1).sqrt()
    if way == "DDIMScheduler":
        path = [start * last] * len(sigmas)
        ours = denoise(noise_of, path, sigmas, torch.ones(1))
    else:
        ours = invert(noise_of, start, sigmas)[-1] / last
    torch.testing.assert_close(ours, z, atol=1e-4, rtol=1e-4)


def test_the_levels_are_the_first_of_evenly_spaced_times(backbone):
    abar = backbone.noise_scheduler.alphas_cumprod
    sigmas = ddim_sigmas(abar, 50, 0.5)
    assert len(sigmas) == 26
    assert sigmas[0] == 0
    expected = ((1 - abar[499]) / abar[499]).sqrt()
    torch.testing.assert_close(sigmas[-1], expected)
    assert len(ddim_sigmas(abar, 50, 0.001)) == 2
    assert (ddim_sigmas(abar, 5000, 1.0).diff() >= 0).all()  # more steps than times: some stand still


def test_what_the_mask_leaves_out_is_as_it_was_bit_for_bit_and_half_of_it_is_held():
    sigmas = torch.tensor([0.0, 0.5, 1.0, 2.0])
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    path = invert(noise_of, clean, sigmas)
    back = denoise(lambda x, sigma: -noise_of(x, sigma), path, sigmas, mask)
    assert torch.equal(back[..., 4:], clean[..., 4:])
    assert not torch.allclose(back[..., :4], clean[..., :4], atol=0.1)
    level = []
    denoise(lambda x, sigma: level.append(x) or torch.zeros_like(x), path, sigmas, mask / 2)
    held = path[3] / 2 + path[2] / 2
    torch.testing.assert_close(level[1][..., :4], held[..., :4])


def test_there_and_back_without_anybody_is_the_face_that_was(backbone):
    """At guidance 1, through the tiny UNet and the tiny VAE, on drawn portraits."""
    photos = [load_photo(TINY_FOLDER / "samples" / f"person_{number}.jpg") for number in (1, 2, 3)]
    images = torch.stack([resize(photo[None], (64, 64))[0].clamp(0, 1) for photo in photos])
    posterior = encoded(backbone, images)
    _, back = there_and_back(backbone, posterior, Walk())
    assert psnr(back, posterior) > 25
    assert psnr(decode(backbone, back), decode(backbone, posterior)) > 35


# -- the restorer ------------------------------------------------------------------------------------------------------


def framed():
    """[1,3,512,512], a face in FFHQ's frame: stripes that no VAE of 64 pixels keeps, under broad colours."""
    colours = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return (resize(colours, (512, 512)) * 0.8 + 0.1 * (torch.arange(512) % 4 < 2)).clamp(0, 1)


def test_the_ground_around_the_face_holds_without_any_paste_and_the_face_gets_the_person(backbone, artifact):
    face = framed()
    with redrawing(backbone, artifact, "a photo of a <subject> person", walk=SHORT) as restorer:
        restored = restorer(face)
        assert torch.equal(restored, restorer(face))
    with redrawing(backbone, None, "a photo of a person", walk=Walk(num_steps=10, guidance=1.0)) as nobody:
        unchanged = nobody(face)
    outside = (resize(face_mask(torch.eye(2, 3), (512, 512))[None], (16, 16)) <= 0.01)[0, 0]
    corners = torch.nn.functional.interpolate(outside[None, None].float(), (512, 512))[0, 0] > 0
    corners &= torch.nn.functional.max_pool2d(1 - corners[None, None].float(), 129, 1, 64)[0, 0] == 0  # of the VAE
    assert corners.any()
    assert psnr(restored[..., corners], face[..., corners]) > 35
    middle = (..., slice(200, 350), slice(200, 312))
    assert psnr(restored[middle], face[middle]) < 25
    assert psnr(unchanged[middle], face[middle]) > psnr(restored[middle], face[middle]) + 5


def test_a_controlnet_sees_the_landmarks_and_acts_on_the_way_back(backbone, artifact, astronaut, detector):
    """At strength 0 it is not there; in a swap it sees another's landmarks, here the mirrored face's."""
    net = controls_of(backbone)["landmark"].net
    face = framed_face(detector, astronaut)
    own = Landmarks(detector=detector, style="openpose")
    mirrored = Landmarks(detector=detector, style="openpose", another=face.flip(-1))
    assert own(face).shape == (1, 3, 512, 512)
    assert torch.equal(own(face.flip(-1)), mirrored(face))
    made = []
    for control in (
        None,
        Control(net=net, landmarks=own, strength=0.0),
        Control(net=net, landmarks=own),
        Control(net=net, landmarks=mirrored),
    ):
        with redrawing(backbone, artifact, "a photo of a <subject> person", walk=SHORT, control=control) as restorer:
            made.append(restorer(face))
    plain, idle, shown, swapped = made
    assert torch.equal(idle, plain)
    assert not torch.allclose(shown, plain, atol=1e-2)
    assert not torch.equal(swapped, shown)


def test_a_controlnet_sees_the_plain_word_of_an_identity(backbone):
    someone, prompts = identity(), ["", "a photo of <person>"]
    with taught(backbone, None, identities=[someone]) as vocabulary, torch.no_grad():
        staged = PromptEmbeds(backbone, vocabulary, prompts).at(0)
    embeds = plain_embeds(backbone, None, [someone], prompts)
    assert embeds.shape == (*staged[:, 0].shape,)
    word = Token(name="subject", placeholder="<person>", initializer="", vectors=someone.plain)
    with injected(backbone.text_encoder, [word]), torch.no_grad():
        ids = Vocabulary.of(backbone.tokenizer, [word]).encode(prompts)
        torch.testing.assert_close(embeds, encode_prompt(backbone, ids))


def test_it_restores_faces_of_a_picture_and_touches_nothing_else(backbone, artifact):
    """A face of 20 pixels, one that the border cuts, in a picture of any size."""
    image = torch.rand(3, 90, 120, generator=torch.Generator().manual_seed(4))
    places = [(0.05, (20.0, 30.0)), (0.12, (90.0, 50.0))]
    faces = [Face(box=torch.zeros(4), landmarks=FFHQ_POINTS * scale + torch.tensor(at)) for scale, at in places]
    with redrawing(backbone, artifact, "a photo of a <subject> person", walk=SHORT) as restorer:
        restored, outcomes = restore_faces(image, faces, restorer)
    assert [outcome.fate for outcome in outcomes] == ["restored"] * 2
    masks = [face_mask(similarity_transform(face.landmarks, FFHQ_POINTS), (90, 120)) for face in faces]  # pyright: ignore
    ground = (torch.cat(masks) == 0).all(0)
    assert torch.equal(restored[:, ground], image[:, ground])
    assert all((restored != image).any(0)[mask[0] > 0.5].any() for mask in masks)


def test_the_model_is_its_own_again(backbone, artifact):
    modules = (backbone.unet, backbone.text_encoder, backbone.vae)
    before = weights(*modules)
    steps = []
    options = {"walk": SHORT, "on_step": lambda: steps.append(1)}
    with redrawing(backbone, artifact, "a photo of a <subject> person", **options) as restorer:
        restorer(framed())
    assert same(weights(*modules), before)
    assert len(steps) == 2 * 5


# -- what is accepted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "fate"), [(0.2, "restored"), (0.0, "put back"), (-0.2, "put back")])
def test_only_what_is_more_alike_stays_and_every_face_is_asked(change, fate):
    """Likeness is how bright a face is."""
    image = torch.full((3, 100, 200), 0.5)
    faces = [Face(box=torch.zeros(4), landmarks=FFHQ_POINTS * 0.15 + torch.tensor(at)) for at in ((5, 10), (110, 10))]

    def brightness(picture, face):
        x, y = face.landmarks.mean(0).int().tolist()
        return float(picture[:, y, x].mean())

    def brighter(framed_face):
        return (framed_face + change).clamp(0, 1)

    restored, outcomes = restore_faces(image, faces, brighter, guard=Rise(likeness=brightness))
    assert [outcome.fate for outcome in outcomes] == [fate] * 2
    assert all((outcome.finished or 0) >= (outcome.before or 0) for outcome in outcomes)
    assert torch.equal(restored, image) == (fate == "put back")
    _, [_, stranger] = restore_faces(image, faces, brighter, guard=Guard(likeness=brightness))
    assert stranger.before is None
