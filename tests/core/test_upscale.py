"""Tiles against the whole picture, on real small networks of Real-ESRGAN's kinds."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magicapture_core.types import MagiCaptureError
from magicapture_core.upscale import load_upscaler, tile_starts, tile_weights, upscale

pytest.importorskip("spandrel")


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Real-ESRGAN's small network, doubling, with random weights; it looks three pixels around."""
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("upscale") / "compact.pth"
    torch.save({"params": Compact(num_feat=8, num_conv=1, upscale=2).state_dict()}, path)
    return load_upscaler(path)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 150, 203, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tile", [64, 100, 149])
def test_tiles_give_what_the_whole_picture_gives(upscaler, images, tile: int) -> None:
    whole = torch.cat([upscaler(image[None]) for image in images])
    tiled = upscale(images, upscaler, tile=tile, overlap=32)
    assert tiled.shape == (2, 3, 300, 406)
    assert whole.std() > 0.1
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


def test_without_the_margin_the_seams_would_show(upscaler, images) -> None:
    """What the test above can see: tiles set side by side differ from the whole."""
    whole = upscaler(images[:1])
    halves = torch.cat([upscaler(images[:1, :, :, :100]), upscaler(images[:1, :, :, 100:])], -1)
    assert (halves - whole).abs().max() > 1e-3


def test_a_picture_smaller_than_the_tile_is_one_call(upscaler, images) -> None:
    seen = []
    upscale(images[:1], upscaler, on_tile=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 1)]


def test_progress_counts_every_tile(upscaler, images) -> None:
    seen = []
    upscale(images[:1], upscaler, tile=100, on_tile=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 6) for n in range(1, 7)]  # 150 x 203 by steps of 68: 2 rows of 3


@pytest.mark.parametrize(("length", "tile"), [(1, 64), (64, 64), (65, 64), (96, 64), (97, 64), (1000, 512), (203, 100)])
def test_tiles_cover_the_line_without_a_gap(length: int, tile: int) -> None:
    starts = tile_starts(length, tile, 32)
    assert starts[0] == 0
    assert min(starts[-1] + tile, length) == length
    assert all(0 < right - left <= tile - 32 for left, right in pairwise(starts))
    total = torch.zeros(length * 2)
    for start in starts:
        size = min(tile, length - start)
        total[start * 2 : (start + size) * 2] += tile_weights(start, size, length, 32, 2)
    assert total.min() > 0.999


def test_the_ramp_by_hand() -> None:
    """overlap 8: the outer 2 pixels count nothing, then come 4 pixels of ramp; no ramp at the picture's border."""
    middle = tile_weights(start=10, size=10, length=100, overlap=8, scale=1)
    torch.testing.assert_close(middle, torch.tensor([0, 0, 1, 3, 5, 5, 3, 1, 0, 0]) / 8)
    first = tile_weights(start=0, size=10, length=100, overlap=8, scale=1)
    torch.testing.assert_close(first, torch.tensor([8, 8, 8, 8, 7, 5, 3, 1, 0, 0]) / 8)
    last = tile_weights(start=90, size=10, length=100, overlap=8, scale=1)
    torch.testing.assert_close(last, first.flip(0))


class LittleMemory(torch.nn.Module):
    """Doubles by repeating, and takes no tile of more than `limit` pixels a side, like a small graphics card."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.sizes: list[int] = []
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(max(images.shape[-2:]))
        if max(images.shape[-2:]) > self.limit:
            raise torch.OutOfMemoryError("too much")
        return (images * self.weight).repeat_interleave(2, -1).repeat_interleave(2, -2)


def little_memory(limit: int, purpose: Any = "SR", channels: int = 3) -> Any:
    from spandrel import ImageModelDescriptor
    from spandrel.architectures.Compact import CompactArch

    model = LittleMemory(limit)
    return ImageModelDescriptor(
        model, model.state_dict(), CompactArch(), purpose, [], True, True, 2, channels, channels
    ).eval()


def test_tiles_are_halved_until_they_fit(images) -> None:
    upscaler = little_memory(limit=120)
    larger = upscale(images[:1], upscaler, tile=512)
    assert upscaler.model.sizes[:3] == [203, 101, 101]
    torch.testing.assert_close(larger, images[:1].repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_a_tile_of_64_that_does_not_fit_is_the_end(images) -> None:
    upscaler = little_memory(limit=20)
    with pytest.raises(
        MagiCaptureError, match=r"^upscale model: out of memory even with tiles of 64 pixels; .*smaller"
    ):
        upscale(torch.rand(1, 3, 512, 100), upscaler, tile=512)
    assert upscaler.model.sizes == [512, 256, 128, 64]


@pytest.mark.parametrize(
    ("purpose", "channels", "message"), [("FaceSR", 3, "load it as a face restorer"), ("SR", 1, "colour")]
)
def test_a_model_of_another_kind_is_refused(images, purpose: str, channels: int, message: str) -> None:
    with pytest.raises(MagiCaptureError, match=f"^upscale model: .*{message}"):
        upscale(images, little_memory(1000, purpose, channels))


def test_the_result_can_be_trained_on(upscaler, images) -> None:
    """The network runs in inference mode; what comes out is a plain tensor."""
    assert not upscale(images, upscaler).is_inference()


def test_it_works_inside_inference_mode(upscaler, images) -> None:
    """As ComfyUI runs nodes."""
    with torch.inference_mode():
        inside = upscale(images, upscaler, tile=100)
    torch.testing.assert_close(inside.clone(), upscale(images, upscaler, tile=100))


def test_a_photo_model_and_a_whole_number_of_times(tmp_path: Path) -> None:
    """ESRGAN's big network at a small size, times four, out of a file with the old names."""
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(0)
    torch.save(ESRGAN(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=4).state_dict(), tmp_path / "x4.pth")
    upscaler = load_upscaler(tmp_path / "x4.pth")
    image = torch.rand(1, 3, 33, 47)
    torch.testing.assert_close(upscale(image, upscaler), upscaler(image).clone())
    assert upscale(image, upscaler).shape == (1, 3, 132, 188)


def real_esrgan_name(name: str) -> str:
    """ESRGAN's old name of a weight -> the one that RealESRGAN_x4plus.pth has."""
    parts = name.split(".")
    if parts[:3] == ["model", "1", "sub"] and "RDB" in name:
        return f"body.{parts[3]}.{parts[4].lower()}.{parts[5]}.{parts[7]}"
    places = {"0": "conv_first", "1": "conv_body", "3": "conv_up1", "6": "conv_up2", "8": "conv_hr", "10": "conv_last"}
    return f"{places[parts[1]]}.{parts[-1]}"


def test_a_real_esrgan_file_comes_whole(tmp_path: Path) -> None:
    """RRDBNet at a small size in the form of RealESRGAN_x4plus.pth: its names, under params_ema."""
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(0)
    net = ESRGAN(in_nc=3, out_nc=3, num_filters=8, num_blocks=2, scale=4).eval()
    weights = {real_esrgan_name(name): value for name, value in net.state_dict().items()}
    assert len(weights) == len(net.state_dict())
    assert "body.1.rdb3.conv5.weight" in weights
    torch.save({"params_ema": weights}, tmp_path / "RealESRGAN_x4plus.pth")
    upscaler = load_upscaler(tmp_path / "RealESRGAN_x4plus.pth")
    image = torch.rand(1, 3, 20, 31)
    with torch.no_grad():
        torch.testing.assert_close(upscale(image, upscaler), net(image).clamp(0, 1))


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (513, 77)])
def test_any_size_is_upscaled(upscaler, size: tuple[int, int]) -> None:
    image = torch.rand(1, 3, *size)
    torch.testing.assert_close(upscale(image, upscaler, tile=64), upscaler(image).clone(), atol=1e-5, rtol=0)
