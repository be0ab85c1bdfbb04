"""Pictures in and out of files, and their sizes. PIL and torch; knows nothing of faces.

An image is a Tensor [3,H,W], RGB in 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from .files import write_atomic
from .marks import Mark, save_options
from .types import MagiCaptureError, PhotoNote

# What people keep as photos. Some Pillows cannot read some of these: then the file is named in a note, not overlooked.
PHOTO_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif", ".avif"}
)
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "HEIF", "AVIF")
MAX_PIXELS = 80_000_000  # a gigabyte as a tensor; Pillow itself suspects a decompression bomb from 89 million on
ORIENTATION = 0x0112  # EXIF tag
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")
MODES = {
    "L": "grey",
    "LA": "grey",
    "La": "grey",
    "1": "black and white",
    "CMYK": "CMYK",
    "P": "palette",
    "PA": "palette",
}
MODES |= dict.fromkeys(SIXTEEN_BITS, "16-bit grey")
COLOURED = 0.2  # difference of a pixel's channels, 0..1
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


# --- files -----------------------------------------------------------------------------------------------------------


def list_photos(folder: Path) -> list[Path]:
    """The photos of a folder by name, without those of its folders.

    Raises MagiCaptureError when there is no such folder or it holds no photo.
    """
    if not folder.is_dir():
        raise MagiCaptureError(f"{folder} is not a folder")
    paths = [path for path in folder.iterdir() if _is_photo(path)]
    if not paths:
        raise MagiCaptureError(f"{folder} holds no photos (JPEG, PNG, WebP, ...)")
    return sorted(paths, key=lambda path: (path.name.lower(), path.name))


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".") and path.is_file()


def load_photo(path: Path) -> Tensor:
    """A picture file of any common kind -> [3,H,W] 0..1, upright, over white where it is transparent.

    Raises MagiCaptureError naming the file when it is broken, no picture, or too large to be a photo.
    """
    return from_pil(_open(path)[0])


def load_photos(paths: Sequence[Path]) -> tuple[list[tuple[str, Tensor]], list[PhotoNote]]:
    """Files -> (name, image [3,H,W]) of each that can be read, and a note on each where something had to be done."""
    photos: list[tuple[str, Tensor]] = []
    notes: list[PhotoNote] = []
    for path in paths:
        try:
            picture, changes = _open(path)
        except MagiCaptureError as error:
            notes.append(PhotoNote(file_name=path.name, used=False, text=str(error).removeprefix(f"{path.name}: ")))
            continue
        photos.append((path.name, from_pil(picture)))
        if changes:
            notes.append(PhotoNote(file_name=path.name, used=True, text=", ".join(changes)))
    return photos, notes


def join_notes(*stages: Sequence[PhotoNote]) -> list[PhotoNote]:
    """The notes of several stages on the same files -> one note per file: used if it came through all of them."""
    by_file: dict[str, list[PhotoNote]] = {}
    for note in (note for notes in stages for note in notes):
        by_file.setdefault(note.file_name, []).append(note)
    return [
        PhotoNote(
            file_name=name,
            used=all(note.used for note in notes),
            text="; ".join(note.text for note in notes),
            warnings=tuple(warning for note in notes for warning in note.warnings),
        )
        for name, notes in by_file.items()
    ]


def load_mask(path: Path) -> Tensor:
    """A picture file -> [1,H,W] 0..1: its brightness, black where it is transparent.

    Raises MagiCaptureError as load_photo does, and for colours with transparent pixels, such as a photo out of
    ComfyUI's mask editor: whether what is transparent counts or what is not, only the user can say.
    """
    picture, _ = _open(path)
    image = from_pil(picture, background=BLACK)
    if _least_alpha(picture) < 255 and (image.amax(0) - image.amin(0)).max() > COLOURED:
        raise MagiCaptureError(
            f"{path.name}: colours and transparency in a mask can mean two things; save it in black and white, or load "
            "what the mask editor saved with Load Image, whose MASK is right"
        )
    return image.mean(0, keepdim=True)


def _least_alpha(picture: Image.Image) -> int:
    """0..255; 255 where no pixel is transparent."""
    return int(np.asarray(picture.convert("RGBA"))[..., 3].min()) if picture.has_transparency_data else 255


def load_masks(
    photos: Sequence[tuple[str, Tensor]], masks: Mapping[str, Path]
) -> tuple[list[tuple[str, Tensor]], list[Tensor | None], list[PhotoNote]]:
    """Each photo's mask [1,H,W], None where it has none. A photo whose mask cannot be read is left out, with a note."""
    kept: list[tuple[str, Tensor]] = []
    found: list[Tensor | None] = []
    notes: list[PhotoNote] = []
    for name, image in photos:
        try:
            found.append(load_mask(masks[name]) if name in masks else None)
        except MagiCaptureError as error:
            notes.append(PhotoNote(file_name=name, used=False, text=f"its mask: {error}"))
            continue
        kept.append((name, image))
    return kept, found, notes


def match_masks(photos: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Name of a photo -> the mask in `folder` of the same stem, where there is one.

    Raises MagiCaptureError when two files share a stem.
    """
    masks = _by_stem(list_photos(folder))
    return {photo.name: masks[stem] for stem, photo in _by_stem(photos).items() if stem in masks}


def _by_stem(files: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in files:
        if file.stem in found:
            raise MagiCaptureError(
                f"{file.parent}: {found[file.stem].name} and {file.name} share the name before the ending, by which "
                "photos and masks find each other; rename one"
            )
        found[file.stem] = file
    return found


def save_image(image: Tensor, path: Path, mark: Mark | None = None) -> Path:
    """image [3,H,W] or [1,H,W] -> a file of the kind its suffix names, whole or not at all. Returns `path`.

    mark: says in the file that a machine made the picture. Raises MagiCaptureError where the kind cannot hold it.
    """
    picture, options = to_pil(image), save_options(mark, path.name)
    return write_atomic(path, lambda beside: picture.save(beside, quality=95, **options))


def _open(path: Path) -> tuple[Image.Image, list[str]]:
    """The decoded, upright picture, and in words what is unusual about the file."""
    try:
        with Image.open(path, formats=_formats()) as file:
            if file.width * file.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{file.width} x {file.height}")
            file.load()
            turned = file.getexif().get(ORIENTATION, 1) != 1
            picture = ImageOps.exif_transpose(file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"{MAX_PIXELS // 1_000_000} million pixels"
        raise MagiCaptureError(f"{path.name}: too large for a photo; make it smaller than {limit}") from None
    except FileNotFoundError:
        raise MagiCaptureError(f"{path.name}: there is no such file in {path.parent}") from None
    except Exception as error:  # decoders raise nearly anything on a broken file
        reason = str(error).replace(str(path), path.name)
        raise MagiCaptureError(
            f"{path.name}: cannot be read as a picture ({reason}); save it anew as JPEG or PNG"
        ) from error
    if picture.mode == "F":
        raise MagiCaptureError(
            f"{path.name}: pictures of floating-point numbers are not read; save it with 8 or 16 bits"
        )
    return picture, [*(["turned upright by its EXIF tag"] if turned else []), *_mode_changes(picture)]


def _formats() -> list[str]:
    """Those of FORMATS that this Pillow knows. By itself it goes by the content, whatever the name, and would start
    Ghostscript for a program in PostScript that is called photo.jpg."""
    Image.init()
    return [kind for kind in FORMATS if kind in Image.OPEN]


def _mode_changes(picture: Image.Image) -> list[str]:
    changes = [f"{MODES[picture.mode]} made RGB"] if picture.mode in MODES else []
    return [*changes, "transparency laid over white"] if picture.has_transparency_data else changes


# --- tensors ---------------------------------------------------------------------------------------------------------


def from_pil(picture: Image.Image, background: tuple[int, int, int] = WHITE) -> Tensor:
    """A picture of any mode -> [3,H,W] 0..1, over `background` where it is transparent."""
    if picture.mode in SIXTEEN_BITS:
        grey = torch.from_numpy(np.asarray(picture).astype(np.float32)).div_(65535).clamp_(0, 1)
        return grey.expand(3, -1, -1).contiguous()
    if picture.has_transparency_data:
        ground = Image.new("RGBA", picture.size, (*background, 255))
        ground.alpha_composite(picture.convert("RGBA"))
        picture = ground
    pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)  # no second gigabyte


def to_pil(image: Tensor) -> Image.Image:
    """image [1,H,W], [3,H,W] or [4,H,W] 0..1 -> an 8-bit picture: grey, RGB, RGBA. Values outside are clipped."""
    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """images [B,C,H,W] -> [B,C,*size], bilinear and without aliasing; as they are where that is their size."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def shrink(images: Tensor, side: int) -> Tensor:
    """images [B,C,H,W] -> the same in proportion with no side above `side`; smaller ones stay as they are."""
    height, width = images.shape[2:]
    scale = min(1.0, side / max(height, width))
    return resize(images, (max(round(height * scale), 1), max(round(width * scale), 1)))
