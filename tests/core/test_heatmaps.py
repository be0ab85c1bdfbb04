"""Sums, heat maps and leakage worked out by hand; the pictures by where and how they are coloured."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from magicapture_core import heatmaps
from magicapture_core.heatmaps import AttentionRecord
from magicapture_core.types import MagiCaptureError


def layer(*words: list[list[float]]) -> Tensor:
    """One picture, one head: [1,K,1,h,w] from K maps."""
    return torch.tensor(words)[None, :, None]


@pytest.fixture
def record() -> AttentionRecord:
    return AttentionRecord(["face", "sky"])


def random_probs(generator: torch.Generator, grid: tuple[int, int] = (4, 4), num_pictures: int = 2) -> Tensor:
    return torch.rand(num_pictures, 2, 3, *grid, generator=generator)


def test_attention_is_the_mean_over_steps_layers_and_heads(record: AttentionRecord) -> None:
    generator = torch.Generator().manual_seed(0)
    calls = [[random_probs(generator), random_probs(generator)] for _ in range(20)]
    for step, layers in enumerate(calls):
        record.add(step, 20, layers)
    expected = torch.stack([torch.stack(layers) for layers in calls]).mean((0, 1, 4))  # [B,K,h,w]
    torch.testing.assert_close(record.attention("face"), expected[:, 0])
    torch.testing.assert_close(record.attention("sky"), expected[:, 1])


def test_each_grid_weighs_the_same_however_many_layers_it_has(record: AttentionRecord) -> None:
    """Coarse 1x1 map of .9 seen once, fine 2x2 maps of .1 seen twice: (.9 + .1) / 2."""
    fine = layer([[0.1, 0.1], [0.1, 0.1]], [[0.0, 0.0], [0.0, 0.0]])
    record.add(0, 1, [layer([[0.9]], [[0.0]]), fine, fine])
    assert record.grids == [(1, 1), (2, 2)]
    torch.testing.assert_close(record.attention("face"), torch.full((1, 2, 2), 0.5))
    torch.testing.assert_close(record.part(grid=(2, 2)).attention("face"), torch.full((1, 2, 2), 0.1))


@pytest.mark.parametrize(("num_steps", "num_buckets"), [(1, 1), (3, 3), (8, 8), (20, 8), (1000, 8)])
def test_buckets_cover_all_steps_once_and_are_eight_at_most(
    record: AttentionRecord, num_steps: int, num_buckets: int
) -> None:
    for step in range(num_steps):
        record.add(step, num_steps, [layer([[float(step)]], [[0.0]])])
        bucket = max(record.buckets)
        assert step in record.steps(bucket)
    assert record.buckets == list(range(num_buckets))
    assert [step for bucket in record.buckets for step in record.steps(bucket)] == list(range(num_steps))
    assert len(record._sums) == num_buckets
    for bucket in record.buckets:
        steps = record.steps(bucket)
        assert record.part(bucket=bucket).attention("face").item() == pytest.approx(sum(steps) / len(steps))


def test_reset_forgets_the_run_before(record: AttentionRecord) -> None:
    record.add(0, 1, [layer([[1.0, 0.0]], [[0.0, 0.0]])])
    record.reset()
    record.add(0, 1, [layer([[0.0, 0.5]], [[0.0, 0.0]])])
    torch.testing.assert_close(record.attention("face"), torch.tensor([[[0.0, 0.5]]]))


def test_threads_lose_nothing(record: AttentionRecord) -> None:
    def fill() -> None:
        for step in range(200):
            record.add(step, 200, [layer([[1.0]], [[3.0]])])

    threads = [threading.Thread(target=fill) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(record._counts.values()) == 800
    assert record.attention("sky").item() == 3


def test_maps_are_kept_without_gradients_in_fp32(record: AttentionRecord) -> None:
    record.add(0, 1, [layer([[1.0]], [[0.5]]).half().requires_grad_()])
    assert record.attention("sky").dtype == torch.float32
    assert not record.attention("sky").requires_grad


def test_heatmap_spans_zero_to_one_in_every_picture(record: AttentionRecord) -> None:
    probs = random_probs(torch.Generator().manual_seed(1)) * torch.tensor([1.0, 0.01]).view(2, 1, 1, 1, 1)
    record.add(0, 1, [probs])
    for heatmap in record.heatmap("face", (4, 4)):
        assert (heatmap.min(), heatmap.max()) == (0, 1)


def test_an_even_map_is_cold(record: AttentionRecord) -> None:
    record.add(0, 1, [torch.full((1, 2, 1, 2, 2), 0.25)])
    assert record.heatmap("face", (8, 8)).eq(0).all()


def test_masks_hold_what_reaches_the_threshold(record: AttentionRecord) -> None:
    """Values .1 .2 .4 .5 stretch to 0 .25 .75 1."""
    record.add(0, 1, [layer([[0.1, 0.2], [0.4, 0.5]], [[0.0, 0.0], [0.0, 0.0]])])
    assert record.masks("face", (2, 2)).tolist() == [[[[0, 0], [1, 1]]]]
    assert record.masks("face", (2, 2), 0.8).tolist() == [[[[0, 0], [0, 1]]]]


def test_leakage_is_the_share_outside(record: AttentionRecord) -> None:
    """face: .1 of .1 + .2 + .3 + .4 lies outside; sky is even, so one place in four leaks a quarter."""
    record.add(0, 1, [layer([[0.1, 0.2], [0.3, 0.4]], [[0.2, 0.2], [0.2, 0.2]])])
    mask = torch.tensor([[[[0.0, 1.0], [1.0, 1.0]]]])
    assert record.leakage("face", mask).item() == pytest.approx(0.1)
    assert record.leakage("sky", mask).item() == pytest.approx(0.25)


def test_one_mask_serves_all_pictures(record: AttentionRecord) -> None:
    record.add(0, 1, [random_probs(torch.Generator().manual_seed(2))])
    mask = torch.ones(1, 1, 6, 6)
    assert record.leakage("face", mask).tolist() == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda record: record.heatmap("dog"), "'dog' was not recorded; recorded are face, sky"),
        (lambda record: AttentionRecord(["face"]).heatmap("face"), "sample with the recorded MODEL"),
        (lambda record: heatmaps.overlays(record, torch.rand(3, 3, 8, 8)), "3 pictures, but attention of 2"),
    ],
)
def test_refusals_name_the_remedy(
    record: AttentionRecord, ask: Callable[[AttentionRecord], object], message: str
) -> None:
    record.add(0, 1, [random_probs(torch.Generator().manual_seed(3))])
    with pytest.raises(MagiCaptureError, match=message):
        ask(record)


def test_colours_grow_lighter_all_the_way() -> None:
    red, green, blue = heatmaps.colour(torch.linspace(0, 1, 101).view(1, 1, -1))[0, :, 0]
    assert (0.2126 * red + 0.7152 * green + 0.0722 * blue).diff().min() > 0.001


def test_overlay_colours_a_grey_picture() -> None:
    """Red is 0.299 in grey: 55 % of it under 45 % of the coldest colour, 35 % under 65 % of the hottest."""
    images = torch.zeros(1, 3, 1, 2)
    images[:, 0] = 1
    shown = heatmaps.overlay(images, torch.tensor([[[0.0, 1.0]]]))
    torch.testing.assert_close(shown[0, :, 0, 0], 0.55 * 0.299 + 0.45 * heatmaps.RAMP[0])
    torch.testing.assert_close(shown[0, :, 0, 1], 0.35 * 0.299 + 0.65 * heatmaps.RAMP[-1])


def test_maps_over_the_steps_share_one_scale(record: AttentionRecord) -> None:
    """Of the face 0 .5 and then 0 1: .5 stays half as hot. The sky, ten times as dark, has a scale of its own."""
    record.add(0, 2, [layer([[0.0, 0.5]], [[0.0, 0.1]])])
    record.add(1, 2, [layer([[0.0, 1.0]], [[0.1, 0.0]])])
    maps = heatmaps.over_steps(record, torch.zeros(1, 3, 1, 2))
    expected = torch.tensor([[[[[0.0, 0.5]], [[0.0, 1.0]]]], [[[[0.0, 1.0]], [[1.0, 0.0]]]]])  # [K,B,n,h,w]
    torch.testing.assert_close(maps.float(), expected)


def test_maps_over_the_steps_are_small(record: AttentionRecord) -> None:
    """64 pictures of any size, two bytes for a place of 256 x 192 at most."""
    record.add(0, 1, [random_probs(torch.Generator().manual_seed(4), num_pictures=64)])
    maps = heatmaps.over_steps(record, torch.zeros(64, 1, 512, 384).expand(-1, 3, -1, -1))
    assert maps.shape == (2, 64, 1, 256, 192)
    assert maps.element_size() == 2


def test_sheets_hold_words_pictures_buckets_and_grids(record: AttentionRecord) -> None:
    generator = torch.Generator().manual_seed(5)
    for step in range(3):
        record.add(step, 3, [random_probs(generator, (4, 4)), random_probs(generator, (8, 8))])
    images = torch.rand(2, 3, 64, 48, generator=generator)
    sheet = heatmaps.overlays(record, images)
    strips = heatmaps.strips(record, images, heatmaps.over_steps(record, images))
    resolutions = heatmaps.resolutions(record, images)
    assert len(strips) == len(resolutions) == 2
    assert sheet.shape[1] >= 2 * 64
    assert 2 * 48 <= sheet.shape[2] < 3 * 48
    assert strips[0].shape[1] >= 2 * 64
    assert 3 * 48 <= strips[0].shape[2] < 4 * 48
    assert not torch.equal(strips[0], strips[1])
    assert 2 * 48 <= resolutions[0].shape[2] < 3 * 48


def test_frames_are_the_columns_of_the_strip() -> None:
    """Of one picture and one word: what stands under step 2 of the strip is the second frame."""
    generator = torch.Generator().manual_seed(6)
    seen = AttentionRecord(["face"])
    for step in range(3):
        seen.add(step, 3, [torch.rand(1, 1, 2, 4, 4, generator=generator)])
    images = torch.rand(1, 3, 64, 64, generator=generator)
    maps = heatmaps.over_steps(seen, images)
    frames, (strip,) = heatmaps.frames(seen, images, maps), heatmaps.strips(seen, images, maps)
    assert len(frames) == 3
    gap = 2
    for step, frame in enumerate(frames):
        left = gap + step * (64 + gap)
        assert torch.equal(frame[:, gap : gap + 64, gap : gap + 64], strip[:, gap : gap + 64, left : left + 64])
    assert not torch.equal(frames[0], frames[1])
