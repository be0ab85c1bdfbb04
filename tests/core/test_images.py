"""Every odd kind of picture file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from magicapture_core import images
from magicapture_core.types import MagiCaptureError, PhotoNote

SIZE = (12, 8)  # width, height


def quadrants(mode: str = "RGB") -> Image.Image:
    """12x8: red, green above; blue, white below."""
    picture = Image.new("RGB", SIZE, "white")
    picture.paste("red", (0, 0, 6, 4))
    picture.paste("lime", (6, 0, 12, 4))
    picture.paste("blue", (0, 4, 6, 8))
    return picture.convert(mode)


def saved(path: Path, picture: Image.Image, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def assert_quadrants(image: Tensor, tolerance: float = 1e-6) -> None:
    assert image.shape == (3, 8, 12)
    expected = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    found = image[:, 2::4, 3::6].flatten(1).T
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_files_become_rgb(tmp_path: Path, mode: str) -> None:
    assert_quadrants(images.load_photo(saved(tmp_path / "a.png", quadrants(mode))))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    assert_quadrants(images.load_photo(saved(tmp_path / "a.tif", quadrants("CMYK"))))
    jpeg = saved(tmp_path / "a.jpg", quadrants("CMYK").resize((96, 64), 0), quality=95)
    assert_quadrants(images.load_photo(jpeg)[:, ::8, ::8], tolerance=0.05)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_their_exif_tag_says(tmp_path: Path, orientation: int) -> None:
    """The tag names the move that makes the stored picture upright; here its inverse is stored."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    picture = quadrants()
    stored = picture if orientation == 1 else picture.transpose(undo[orientation])
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    path = saved(tmp_path / "a.png", stored, exif=exif)
    assert_quadrants(images.load_photo(path))
    notes = images.load_photos([path])[1]
    assert [str(note) for note in notes] == ([] if orientation == 1 else ["+ a.png: turned upright by its EXIF tag"])


def test_transparent_places_become_white_in_photos_and_black_in_masks(tmp_path: Path) -> None:
    picture = Image.new("RGBA", SIZE, (255, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 6, 8))
    path = saved(tmp_path / "a.png", picture)
    photo = images.load_photo(path)
    assert photo[:, 0, 0].tolist() == [1, 0, 0]
    assert photo[:, 0, 11].tolist() == [1, 1, 1]
    mask = images.load_mask(saved(tmp_path / "b.png", picture.convert("LA")))
    assert mask.shape == (1, 8, 12)
    assert mask[0, 0, 0] > 0
    assert mask[0, 0, 11] == 0


def test_a_transparent_palette_entry_becomes_white(tmp_path: Path) -> None:
    picture = Image.new("P", SIZE, 1)
    picture.putpalette([0, 0, 0, 200, 0, 0])
    picture.paste(0, (0, 0, 6, 8))
    photo = images.load_photo(saved(tmp_path / "a.png", picture, transparency=0))
    assert photo[:, 0, 0].tolist() == [1, 1, 1]
    assert photo[:, 0, 11].tolist() == pytest.approx([200 / 255, 0, 0])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bits_keep_their_range(tmp_path: Path, suffix: str, dtype: str) -> None:
    values = np.linspace(0, 65535, 96).reshape(8, 12).round().astype(np.uint16)
    mode = "I;16" if dtype == "<u2" else "I;16B"
    picture = Image.frombytes(mode, SIZE, values.astype(dtype).tobytes())
    photo = images.load_photo(saved(tmp_path / f"a{suffix}", picture))
    torch.testing.assert_close(photo, torch.from_numpy(values / 65535).float().expand(3, 8, 12))


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_files_become_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.new("L", SIZE, 255)
    grey.paste(0, (0, 0, 6, 8))
    photo = images.load_photo(saved(tmp_path / "a.png", grey.convert(mode)))
    assert photo[:, 0, 0].tolist() == [0, 0, 0]
    assert photo[:, 0, 11].tolist() == [1, 1, 1]


def test_broken_files_are_named(tmp_path: Path) -> None:
    noise = Image.effect_noise((64, 64), 100)
    whole = saved(tmp_path / "whole.jpg", noise).read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    saved(tmp_path / "float.tif", Image.new("F", SIZE, 0.5))
    for name in ("truncated.jpg", "text.png", "empty.jpg", "missing.jpg", "float.tif"):
        with pytest.raises(MagiCaptureError, match=f"^{name}: ") as caught:
            images.load_photo(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [9_000, 9_500, 14_000])  # beyond our bound, Pillow's warning, Pillow's error
def test_a_decompression_bomb_is_refused(tmp_path: Path, side: int) -> None:
    path = saved(tmp_path / "bomb.png", Image.new("1", (side, side)))
    assert path.stat().st_size < 100_000
    with pytest.raises(MagiCaptureError, match=r"^bomb\.png: too large for a photo"):
        images.load_photo(path)


def test_load_photos_goes_on_and_says_what_it_did(tmp_path: Path) -> None:
    saved(tmp_path / "1.png", quadrants())
    saved(tmp_path / "2.png", quadrants("L"))
    (tmp_path / "3.png").write_text("no picture")
    saved(tmp_path / "4.png", quadrants("RGBA"))
    photos, notes = images.load_photos(images.list_photos(tmp_path))
    assert [name for name, _ in photos] == ["1.png", "2.png", "4.png"]
    assert [(note.file_name, note.used) for note in notes] == [("2.png", True), ("3.png", False), ("4.png", True)]
    assert notes[0].text == "grey made RGB"
    assert notes[1].text.startswith("cannot be read as a picture")
    assert notes[2].text == "transparency laid over white"


def test_join_notes() -> None:
    loaded = [PhotoNote(file_name="a", used=True, text="turned"), PhotoNote(file_name="b", used=False, text="broken")]
    framed = [
        PhotoNote(file_name="a", used=False, text="no face"),
        PhotoNote(file_name="c", used=True, text="one face"),
    ]
    assert list(map(str, images.join_notes(loaded, framed))) == ["- a: turned; no face", "- b: broken", "+ c: one face"]


def test_list_photos(tmp_path: Path) -> None:
    for name in ("b.JPG", "A.png", "c.heic", "notes.txt", "._b.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in images.list_photos(tmp_path)] == ["A.png", "b.JPG", "c.heic"]
    with pytest.raises(MagiCaptureError, match="is not a folder"):
        images.list_photos(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MagiCaptureError, match="holds no photos"):
        images.list_photos(tmp_path / "empty")


def test_save_and_load_are_inverse(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 5, 7)) / 255
    torch.testing.assert_close(images.load_photo(images.save_image(image, tmp_path / "new" / "a.png")), image)
    mask = torch.randint(0, 256, (1, 5, 7)) / 255
    torch.testing.assert_close(images.load_mask(images.save_image(mask, tmp_path / "m.png")), mask)
    assert images.load_photo(images.save_image(image * 3 - 1, tmp_path / "b.png")).max() == 1  # clipped, not wrapped


def test_shrink_keeps_proportion_and_never_enlarges() -> None:
    assert images.shrink(torch.zeros(1, 3, 600, 150), 400).shape == (1, 3, 400, 100)
    assert images.shrink(torch.zeros(1, 3, 2, 5000), 100).shape == (1, 3, 1, 100)
    small = torch.rand(1, 3, 40, 30)
    assert images.shrink(small, 40) is small


def test_resize_keeps_the_mean_and_the_place() -> None:
    picture = torch.zeros(1, 1, 64, 64)
    picture[..., 16:32, 40:48] = 1
    small = images.resize(picture, (8, 8))
    assert small.mean() == pytest.approx(picture.mean().item(), abs=1e-3)
    assert small[0, 0, 2:4, 5].mean() == small.max()
    assert images.resize(picture, (64, 64)) is picture


def test_a_mask_that_can_mean_two_things_is_refused(tmp_path: Path) -> None:
    """A photo out of the mask editor, with a hole where the user painted; white on nothing is a mask as ever."""
    photo = Image.new("RGBA", (40, 30), (200, 120, 80, 255))
    photo.paste((200, 120, 80, 0), (10, 10, 20, 20))
    photo.save(tmp_path / "editor.png")
    with pytest.raises(MagiCaptureError, match=r"editor\.png: colours and transparency .* Load Image"):
        images.load_mask(tmp_path / "editor.png")
    white = Image.new("RGBA", (40, 30), (255, 255, 255, 0))
    white.paste((255, 255, 255, 255), (10, 10, 20, 20))
    white.save(tmp_path / "white.png")
    assert images.load_mask(tmp_path / "white.png").sum() == 100
    photo.convert("RGB").save(tmp_path / "photo.png")
    assert images.load_mask(tmp_path / "photo.png").shape == (1, 30, 40)
    photo.putalpha(255)  # an alpha channel that hides nothing
    photo.save(tmp_path / "opaque.png")
    assert torch.equal(images.load_mask(tmp_path / "opaque.png"), images.load_mask(tmp_path / "photo.png"))
