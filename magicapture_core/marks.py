"""The mark that says a machine made a picture: IPTC's digital source type in an XMP packet, which search engines and
picture agencies read.

In: a word. Out: what Pillow writes into a file; and back from any file. A photo has none.
"""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .types import MagiCaptureError

Mark = Literal["generated", "retouched"]
VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SOURCE_TYPES: dict[Mark, str] = {
    "generated": "trainedAlgorithmicMedia",  # by a model alone
    "retouched": "compositeWithTrainedAlgorithmicMedia",  # a photo that a model has restored or enlarged
}
PNG_KEYWORD = "XML:com.adobe.xmp"
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    "<Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)


def packet(mark: Mark) -> str:
    return PACKET.format(source_type=VOCABULARY + SOURCE_TYPES[mark])


def add_to_png(info: PngInfo, mark: Mark) -> PngInfo:
    """The same texts of a PNG with the mark among them."""
    info.add_itxt(PNG_KEYWORD, packet(mark))
    return info


def save_options(mark: Mark | None, name: str) -> dict[str, Any]:
    """What `Image.save` needs to write the mark into the file of this name. Raises as `check_suffix` does."""
    if mark is None:
        return {}
    check_suffix(name)
    if name.lower().endswith(".png"):
        return {"pnginfo": add_to_png(PngInfo(), mark)}
    return {"xmp": packet(mark).encode()}


def check_suffix(name: str) -> None:
    """Raises MagiCaptureError for a kind of file that cannot hold the mark, here or with this Pillow."""
    if name.lower().endswith(JPEG_SUFFIXES) and not _jpeg_takes_xmp():
        raise MagiCaptureError(
            f"{name}: this Pillow writes no mark that AI made it into a JPEG; take .png or .webp, or update Pillow"
        )
    if not name.lower().endswith((".png", ".webp", *JPEG_SUFFIXES)):
        raise MagiCaptureError(f"{name}: this kind of file cannot say that AI made it; take .png, .jpg or .webp")


def _jpeg_takes_xmp() -> bool:
    """Pillow does from 11 on; before, it drops it and says nothing."""
    file = BytesIO()
    Image.new("L", (1, 1)).save(file, "JPEG", xmp=b"mark")
    return b"mark" in file.getvalue()


def read_mark(path: Path) -> Mark | None:
    """The mark of a picture file, whoever wrote it; None where it has none or cannot be read."""
    try:
        with Image.open(path) as picture:
            found = picture.info.get("xmp") or picture.info.get(PNG_KEYWORD) or ""
    except OSError:
        return None
    text = found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)
    said = re.findall(re.escape(VOCABULARY) + r"(\w+)", text)
    return next((mark for mark, source_type in SOURCE_TYPES.items() if source_type in said), None)


def mark_after(source: Path, is_changed: bool) -> Mark | None:
    """Of a picture made out of a file: the file's own mark, and else `retouched` where something was changed."""
    return read_mark(source) or ("retouched" if is_changed else None)
