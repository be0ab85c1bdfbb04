"""Where each word of a prompt looks: sums of attention maps over a sampling run, and pictures made of them.

In: cross-attention probabilities, layer by layer, from any sampler. Out: heat maps, overlays, contact sheets, masks and
leakage figures. Knows neither the sampler nor its host, and its size does not depend on the number of steps.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .types import MagiCaptureError

Grid = tuple[int, int]

MAX_BUCKETS = 8
MAX_CELL = 256  # pixels, of one picture in the sheets over steps and over map sizes: many columns fit on a screen
# Dark to light without red against green: the order of the colours survives every colour blindness and a grey print.
RAMP = torch.tensor([(0.04, 0.04, 0.24), (0.36, 0.14, 0.56), (0.86, 0.34, 0.36), (1.0, 0.72, 0.22), (1.0, 1.0, 0.86)])
EMPTY = (
    "record: it holds no attention maps; sample with the recorded MODEL first, and raise max_grid if the picture is so "
    "large that every map is finer"
)
LUMA = torch.tensor([0.299, 0.587, 0.114])  # what R, G and B weigh in a grey picture


class AttentionRecord:
    """Attention of K words in B pictures, summed over at most eight ranges of steps ("buckets") and per map size.

    Safe to fill from several threads. Everything is kept on the CPU in fp32.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forgets what was seen: a new run begins."""
        with self._lock:
            self.num_steps = 0
            self._sums: dict[tuple[int, Grid], Tensor] = {}  # (bucket, grid) -> [B,K,h,w]
            self._counts: dict[tuple[int, Grid], int] = {}  # how many maps are in the sum

    def add(self, step: int, num_steps: int, probs: Iterable[Tensor]) -> None:
        """Adds one pass of the UNet, step 0 <= step < num_steps, given layer by layer: [B,K,heads,h,w] each.

        Only rows of the positive prompt belong here. Maps of one size are averaged over heads and summed where they
        are, so that one small tensor per size travels to the CPU.
        """
        bucket = step * min(MAX_BUCKETS, num_steps) // num_steps
        by_grid: dict[Grid, list[Tensor]] = {}
        for layer in probs:
            by_grid.setdefault((layer.shape[-2], layer.shape[-1]), []).append(layer.detach().mean(2))
        sums = {grid: torch.stack(maps).sum(0).to("cpu", torch.float32) for grid, maps in by_grid.items()}
        with self._lock:
            self.num_steps = num_steps
            for grid, maps in sums.items():
                known = self._sums.get((bucket, grid))
                self._sums[bucket, grid] = maps if known is None else known + maps
                self._counts[bucket, grid] = self._counts.get((bucket, grid), 0) + len(by_grid[grid])

    @property
    def buckets(self) -> list[int]:
        """The buckets that hold something, in the order of the steps."""
        return sorted({bucket for bucket, _ in self._sums})

    @property
    def grids(self) -> list[Grid]:
        """The map sizes (h, w) that were seen, coarse to fine."""
        return sorted({grid for _, grid in self._sums})

    @property
    def num_pictures(self) -> int:
        return len(next(iter(self._sums.values()))) if self._sums else 0

    def steps(self, bucket: int) -> range:
        """The steps, counted from 0, that went into a bucket."""
        num_buckets = min(MAX_BUCKETS, self.num_steps)
        edges = [-(-self.num_steps * edge // num_buckets) for edge in (bucket, bucket + 1)]
        return range(*edges)

    def part(self, bucket: int | None = None, grid: Grid | None = None) -> AttentionRecord:
        """What was seen in a bucket, on a grid, or in that bucket on that grid, as a record of its own."""
        part = AttentionRecord(self.words)
        part.num_steps = self.num_steps
        with self._lock:
            for key in self._sums:
                if bucket in (None, key[0]) and grid in (None, key[1]):
                    part._sums[key], part._counts[key] = self._sums[key], self._counts[key]
        return part

    def attention(self, word: str, size: Grid | None = None) -> Tensor:
        """[B,H,W]: mean attention probability that each place gives the word.

        Per grid the mean over steps, layers and heads; each grid enlarged to `size`, by default the finest grid; then
        the mean over grids, each with the same weight.
        """
        index = self._index(word)
        with self._lock:
            maps = [self._mean(index, grid) for grid in self.grids]
        if not maps:
            raise MagiCaptureError(EMPTY)
        size = size or max(map(_grid_of, maps))
        return torch.stack([enlarge(mean, size) for mean in maps]).mean(0)

    def _mean(self, index: int, grid: Grid) -> Tensor:
        """[B,h,w]: the word's mean over all maps of a grid."""
        keys = [key for key in self._sums if key[1] == grid]
        total = torch.stack([self._sums[key][:, index] for key in keys]).sum(0)
        return total / sum(self._counts[key] for key in keys)

    def heatmap(self, word: str, size: Grid | None = None) -> Tensor:
        """[B,H,W] in 0..1: `attention` stretched from its least to its greatest value, picture by picture.

        So a map shows where a word looks, not how much compared with another word. An even map is 0 everywhere.
        """
        return stretch(self.attention(word, size)[:, None])[:, 0]

    def masks(self, word: str, size: Grid, threshold: float = 0.5) -> Tensor:
        """[B,1,H,W] of 0 and 1: where the word's heat map reaches the threshold."""
        return (self.heatmap(word, size) >= threshold).float()[:, None]

    def leakage(self, word: str, masks: Tensor) -> Tensor:
        """[B] in 0..1: the share of the word's attention that falls outside. masks: [B or 1,1,H,W], white = inside.

        Of the unstretched probabilities: a word that looks everywhere alike leaks exactly the outside's share of area.
        """
        attention = self.attention(word, (masks.shape[-2], masks.shape[-1]))
        outside = 1 - masks[:, 0].to(attention)
        return (attention * outside).sum((1, 2)) / attention.sum((1, 2))

    def _index(self, word: str) -> int:
        if word not in self.words:
            raise MagiCaptureError(f"words: {word!r} was not recorded; recorded are {', '.join(self.words)}")
        return self.words.index(word)


def _grid_of(maps: Tensor) -> Grid:
    return maps.shape[-2], maps.shape[-1]


def enlarge(maps: Tensor, size: Grid) -> Tensor:
    """[B,h,w] -> [B,H,W], bilinear, so that nothing turns negative."""
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def stretch(maps: Tensor) -> Tensor:
    """[B,n,H,W] -> the same in 0..1: the n maps of one picture share one scale, from their least to their greatest."""
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)


def colour(heatmaps: Tensor) -> Tensor:
    """[B,H,W] in 0..1 -> [B,3,H,W]: dark blue, violet, coral, amber, white, evenly spaced and blended in between."""
    place = heatmaps.clamp(0, 1) * (len(RAMP) - 1)
    below = place.floor().long().clamp(max=len(RAMP) - 2)
    share = (place - below)[..., None]
    return (RAMP[below] * (1 - share) + RAMP[below + 1] * share).movedim(-1, 1)


def overlay(images: Tensor, heatmaps: Tensor) -> Tensor:
    """images [B,3,H,W] in grey with heat maps [B,H,W] laid over them, thicker where hot: all colour is heat."""
    opacity = 0.45 + 0.2 * heatmaps[:, None]
    grey = (images * LUMA.view(3, 1, 1)).sum(1, keepdim=True)
    return grey * (1 - opacity) + colour(heatmaps) * opacity


def overlays(record: AttentionRecord, images: Tensor) -> Tensor:
    """A contact sheet [3,H',W'] over images [B,3,H,W]: a row for every picture, a column for every word."""
    from .sheets import contact_sheet

    size = _size(record, images)
    columns = [overlay(images, record.heatmap(word, size)) for word in record.words]
    cells = [column[row] for row in range(len(images)) for column in columns]
    return contact_sheet(cells, len(record.words), list(record.words) * len(images))


def over_steps(record: AttentionRecord, images: Tensor) -> Tensor:
    """[K,B,n,h,w] in 0..1: the maps of every word in every step bucket, for `strips` and `frames` of images [B,3,H,W].

    The maps of one word in one picture share one scale, so that a word that gains or loses attention over the steps is
    seen to do so. In fp16 and not yet coloured, a sixth of the pictures made of them: 64 pictures are 67 MB a word.
    """
    from .images import shrink

    size = _size(record, shrink(images, MAX_CELL))
    parts = [record.part(bucket=bucket) for bucket in record.buckets]
    words = [torch.stack([part.attention(word, size) for part in parts], 1) for word in record.words]
    return torch.stack([stretch(maps).half() for maps in words])


def strips(record: AttentionRecord, images: Tensor, maps: Tensor) -> list[Tensor]:
    """For every picture a contact sheet [3,H',W'] of its maps out of `over_steps`: a row for every word, a column for
    every step bucket."""
    from .images import resize
    from .sheets import contact_sheet

    labels = [_moment(word, record, bucket) for word in record.words for bucket in record.buckets]
    small = resize(images, _grid_of(maps))
    sheets = []
    for picture, rows in zip(small.split(1), maps.unbind(1), strict=True):
        cells = [cell for row in rows for cell in overlay(picture, row.float())]
        sheets.append(contact_sheet(cells, len(record.buckets), labels))
    return sheets


def frames(record: AttentionRecord, images: Tensor, maps: Tensor) -> Tensor:
    """The same one bucket after the other, [n,3,H',W']: a row for every picture, a column for every word."""
    from .images import resize
    from .sheets import contact_sheet

    small = resize(images, _grid_of(maps))
    sheets = []
    for bucket, at_once in zip(record.buckets, maps.unbind(2), strict=True):
        columns = [overlay(small, heat.float()) for heat in at_once]
        cells = [column[row] for row in range(len(images)) for column in columns]
        labels = [_moment(word, record, bucket) for word in record.words] * len(images)
        sheets.append(contact_sheet(cells, len(columns), labels))
    return torch.stack(sheets)


def resolutions(record: AttentionRecord, images: Tensor) -> list[Tensor]:
    """For every picture a contact sheet [3,H',W']: a row for every word, a column for every map size."""
    from .images import shrink
    from .sheets import contact_sheet

    images = shrink(images, MAX_CELL)
    size, grids = _size(record, images), record.grids
    labels = [f"{word} {h}x{w}" for word in record.words for h, w in grids]
    maps = [overlay(images, record.part(grid=grid).heatmap(word, size)) for word in record.words for grid in grids]
    return [contact_sheet([cell[picture] for cell in maps], len(grids), labels) for picture in range(len(images))]


def _size(record: AttentionRecord, images: Tensor) -> Grid:
    if not record.num_pictures:
        raise MagiCaptureError(EMPTY)
    if record.num_pictures != len(images):
        raise MagiCaptureError(
            f"images: {len(images)} pictures, but attention of {record.num_pictures}; connect the pictures that were "
            "sampled with the recorded MODEL"
        )
    return images.shape[-2], images.shape[-1]


def _moment(word: str, record: AttentionRecord, bucket: int) -> str:
    """`dog step 3` or `dog steps 4-6`, counted from 1."""
    steps = record.steps(bucket)
    return f"{word} " + (f"step {steps[0] + 1}" if len(steps) == 1 else f"steps {steps[0] + 1}-{steps[-1] + 1}")
