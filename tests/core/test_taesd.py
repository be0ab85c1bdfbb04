"""TAESD out of the user's file, against its published layers written out here, and as the identity loss's decoder."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from magicapture_core import recipe
from magicapture_core.backbone import tiny
from magicapture_core.config import parse_config
from magicapture_core.dataset import ItemKey, encode
from magicapture_core.identity import Recogniser, align, embed_latents
from magicapture_core.kept import result_key
from magicapture_core.losses import identity
from magicapture_core.objective import Terms
from magicapture_core.taesd import load_taesd
from magicapture_core.trainer import open_run
from magicapture_core.types import MagiCaptureError
from tests.small import LANDMARKS, SmallRecogniser, portraits, same, small_config, weights

CONVOLUTIONS = {7: 64, 12: 64, 17: 64}  # place in the file -> channels; without bias
BLOCKS = (3, 4, 5, 8, 9, 10, 13, 14, 15, 18)
UPSAMPLINGS = (6, 11, 16)


def random_file(channels=4):
    """Weights under the file's names: 1 is the first convolution, 0 the clamp, 19 the last."""
    generator = torch.Generator().manual_seed(0)

    def convolution(name, inputs, outputs, bias=True):
        found = {f"{name}.weight": torch.randn(outputs, inputs, 3, 3, generator=generator) * 0.6 / inputs**0.5}
        return found | ({f"{name}.bias": torch.randn(outputs, generator=generator) * 0.1} if bias else {})

    file = convolution("1", channels, 64) | convolution("19", 64, 3)
    for place in CONVOLUTIONS:
        file |= convolution(place, 64, 64, bias=False)
    for place in BLOCKS:
        for layer in (0, 2, 4):
            file |= convolution(f"{place}.conv.{layer}", 64, 64)
    return file


def decode_by_hand(file, latents):
    """The layers one after the other, as their author publishes them -> pictures in about 0..1."""

    def convolve(name, x):
        return F.conv2d(x, file[f"{name}.weight"], file.get(f"{name}.bias"), padding=1)

    x = convolve(1, torch.tanh(latents / 3) * 3).relu()
    for place in range(3, 19):
        if place in BLOCKS:
            inner = convolve(f"{place}.conv.2", convolve(f"{place}.conv.0", x).relu()).relu()
            x = (convolve(f"{place}.conv.4", inner) + x).relu()
        elif place in UPSAMPLINGS:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        else:
            x = convolve(place, x)
    return convolve(19, x)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_it_decodes_as_published_from_either_file(tmp_path, suffix):
    file, path = random_file(), tmp_path / f"taesd_decoder{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(
        {key: value.half().contiguous() for key, value in file.items()}, path
    )
    net = load_taesd(path)
    latents = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(1)) * 3
    wanted = decode_by_hand({key: value.half().float() for key, value in file.items()}, latents) * 2 - 1
    decoded = net.decode(latents).sample
    assert decoded.shape == (1, 3, 48, 40)
    torch.testing.assert_close(decoded, wanted, rtol=1e-4, atol=1e-3)
    assert (net.config.scaling_factor, len(net.config.block_out_channels)) == (1, 4)
    assert not any(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (random_file(channels=16), r"layers.0.weight should be \(64, 4, 3, 3\) and is \(64, 16, 3, 3\)"),
        ({**random_file(), "encoder.weight": torch.zeros(1)}, "encoder.weight should be nothing"),
        ({key: value for key, value in random_file().items() if key != "19.bias"}, "is nothing"),
    ],
    ids=["of another model", "more than a decoder", "cut off"],
)
def test_another_network_is_refused(tmp_path, file, said):
    save_file(file, tmp_path / "taesd_decoder.safetensors")
    with pytest.raises(MagiCaptureError, match=rf"^taesd_decoder.safetensors: [^\n]*{said}[^\n]*TAESD"):
        load_taesd(tmp_path / "taesd_decoder.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MagiCaptureError, match="there is no such file"):
        load_taesd(tmp_path / "taesd_decoder.pth")


# -- in the identity loss ------------------------------------------------------------------------------------------


def small_taesd():
    """diffusers' class, for the tiny model's four pixels a latent."""
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    generator, sizes = torch.Generator().manual_seed(2), (8, 8, 8)
    net = AutoencoderTiny(
        encoder_block_out_channels=sizes,
        decoder_block_out_channels=sizes,
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def backbone():
    return replace(tiny(), taesd=small_taesd())


@pytest.fixture(scope="module")
def dataset(backbone):
    return encode(backbone, {"subject": portraits(3), "style": portraits(4, seed=1)}, small_config(), SmallRecogniser())


CONFIG = small_config(loss={"attention_downscale": 2, "identity_max_timestep": 1000, "identity_decoder": "taesd"})


def test_the_term_by_hand_with_gradient_to_the_lora(backbone, dataset):
    """Eq. 7 of what TAESD makes of the very latents that the UNet predicts, unscaled; nothing of it moves."""
    batch = dataset.draw(CONFIG, [ItemKey(phase="tuning", step=0, group=0, task="composed")])
    before, kept = weights(backbone.taesd), {}

    def keep(module, inputs, output):
        kept.update(noisy_latents=inputs[0].detach(), noise_pred=output.sample.detach())

    with open_run(backbone, dataset, CONFIG) as run, backbone.unet.register_forward_hook(keep):
        run.begin("tuning", {}, midway=False)
        with run.objective.terms(batch, Terms(1, 0, 1, 0)) as (_, _, term, _):
            term.sum().backward()
        gradients = [parameter.grad for parameter in run.trainable() if parameter.grad is not None]
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0
    abar = backbone.noise_scheduler.alphas_cumprod[batch.timesteps[0]]
    latents = (kept["noisy_latents"][0] - (1 - abar).sqrt() * kept["noise_pred"][0]) / abar.sqrt()
    recogniser = dataset.likeness.recogniser
    with torch.no_grad():
        pictures = backbone.taesd.decode(latents[None]).sample
        whole = recogniser(align(pictures, batch.landmarks[0], recogniser.input_size))
        window = embed_latents(backbone.taesd, recogniser, latents, batch.landmarks[0])
    torch.testing.assert_close(term.detach(), identity(window, batch.target_embeds[0]))
    torch.testing.assert_close(window, whole, rtol=0, atol=0.05)
    assert same(weights(backbone.taesd), before)


class Seen(Recogniser):
    """Embeds a face as itself."""

    input_size = 48

    def forward(self, faces):
        return faces


def test_the_window_shows_the_face_of_the_whole_picture(backbone):
    """Its layers look seven cells far: with as many around the face, no pixel of it differs."""
    latents = torch.randn(4, 40, 40, generator=torch.Generator().manual_seed(3))
    landmarks = LANDMARKS * 0.6 + 65
    whole = align(backbone.taesd.decode(latents[None]).sample, landmarks, 48)
    exact, usual = (embed_latents(backbone.taesd, Seen(), latents, landmarks, margin) for margin in (8, 2))
    torch.testing.assert_close(exact, whole, rtol=1e-4, atol=1e-5)
    assert (usual - whole).abs().mean() < 0.2 * whole.std()


def test_without_the_file_it_is_asked_for(tmp_path):
    photos = {"subject": portraits(1), "style": portraits(1)}
    with pytest.raises(MagiCaptureError, match=r"^loss.identity_decoder taesd: [^\n]*--taesd"):
        recipe.personalize(
            tiny(), photos, CONFIG, name="ann", folder=tmp_path, save=lambda made: [], recogniser=SmallRecogniser()
        )


def test_it_stays_in_fp32_and_decides_the_result(backbone):
    moved = replace(backbone, taesd=deepcopy(backbone.taesd))
    photos = {"subject": portraits(1), "style": portraits(1)}
    key = result_key(moved, photos, CONFIG)
    moved.taesd.decoder.layers[0].bias.data += 1
    assert result_key(moved, photos, CONFIG) != key
    moved.to("cpu", torch.bfloat16)
    assert {parameter.dtype for parameter in moved.taesd.parameters()} == {torch.float32}
    assert moved.unet.dtype == torch.bfloat16
    assert parse_config({}).loss.identity_decoder == "vae"
