"""The mark that a machine made a picture, in every kind of file, read back by Pillow and out of the bytes."""

import re
import struct
import zlib
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from magicapture_core import marks
from magicapture_core.images import load_photo, save_image
from magicapture_core.marks import Mark, read_mark
from magicapture_core.types import MagiCaptureError

IMAGE = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0))
KINDS: dict[Mark, str] = {
    "generated": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    "retouched": "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia",
}
PROPERTY = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"


def source_type(packet: str) -> str:
    """Parsed as XML, as whoever reads XMP does."""
    [found] = ElementTree.fromstring(re.sub(r"<\?xpacket.*?\?>", "", packet)).iter(PROPERTY)
    return found.text or ""


def png_packet(data: bytes) -> str:
    """The XMP chunk as its specification has it: before the pixels, uncompressed, no language."""
    at = 8
    while data[at + 4 : at + 8] != b"IDAT":
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        if kind == b"iTXt" and body.startswith(b"XML:com.adobe.xmp\0\0\0\0\0"):
            return body.removeprefix(b"XML:com.adobe.xmp\0\0\0\0\0").decode()
        at += 12 + length
    return ""


def jpeg_packet(data: bytes) -> str:
    head = b"http://ns.adobe.com/xap/1.0/\0"
    at = 2
    while data[at + 1] != 0xDA:  # the pixels
        (length,) = struct.unpack(">H", data[at + 2 : at + 4])
        body = data[at + 4 : at + 2 + length]
        if data[at : at + 2] == b"\xff\xe1" and body.startswith(head):
            return body.removeprefix(head).decode()
        at += 2 + length
    return ""


def webp_packet(data: bytes) -> str:
    at = 12
    while at < len(data):
        (length,) = struct.unpack("<I", data[at + 4 : at + 8])
        if data[at : at + 4] == b"XMP ":
            return data[at + 8 : at + 8 + length].decode()
        at += 8 + length + length % 2
    return ""


@pytest.mark.parametrize("mark", KINDS)
@pytest.mark.parametrize(
    ("suffix", "packet"), [(".png", png_packet), (".jpg", jpeg_packet), (".JPEG", jpeg_packet), (".webp", webp_packet)]
)
def test_the_mark_lies_where_the_kind_of_file_has_xmp(tmp_path, mark, suffix, packet):
    path = save_image(IMAGE, tmp_path / f"a{suffix}", mark)
    assert source_type(packet(path.read_bytes())) == KINDS[mark]
    assert read_mark(path) == mark


def test_the_pixels_are_those_without_a_mark(tmp_path):
    plain, marked = save_image(IMAGE, tmp_path / "plain.png"), save_image(IMAGE, tmp_path / "marked.png", "generated")
    assert torch.equal(load_photo(plain), load_photo(marked))
    assert b"xmp" not in plain.read_bytes()
    assert read_mark(plain) is None


def test_a_kind_that_cannot_hold_it_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(MagiCaptureError, match=r"a\.bmp: .*take \.png"):
        save_image(IMAGE, tmp_path / "a.bmp", "generated")
    assert list(tmp_path.iterdir()) == []
    assert save_image(IMAGE, tmp_path / "photo.bmp").is_file()


def test_a_pillow_that_drops_the_mark_of_a_jpeg_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    save_jpeg = Image.SAVE["JPEG"]

    def as_before_pillow_11(picture, file, name):
        picture.encoderinfo.pop("xmp", None)
        save_jpeg(picture, file, name)

    monkeypatch.setitem(Image.SAVE, "JPEG", as_before_pillow_11)
    for name in ("a.jpg", "a.JPEG"):
        with pytest.raises(MagiCaptureError, match=rf"{name}: .*take \.png or \.webp, or update Pillow"):
            save_image(IMAGE, tmp_path / name, "generated")
    assert list(tmp_path.iterdir()) == []
    assert save_image(IMAGE, tmp_path / "photo.jpg").is_file()
    assert read_mark(save_image(IMAGE, tmp_path / "a.webp", "generated")) == "generated"


def test_the_mark_of_another_program_is_read(tmp_path):
    """As an attribute, which XMP allows too; a photo's own packet is none."""
    made = f'<rdf:Description Iptc4xmpExt:DigitalSourceType="{KINDS["generated"]}"/>'
    captured = KINDS["generated"].replace("trainedAlgorithmicMedia", "digitalCapture")
    for name, packet, expected in (("a", made, "generated"), ("b", captured, None)):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.jpg", xmp=packet.encode())
        assert read_mark(tmp_path / f"{name}.jpg") == expected
    (tmp_path / "c.jpg").write_bytes(b"no picture")
    assert read_mark(tmp_path / "c.jpg") is None


def test_the_two_kinds_are_told_apart():
    assert {mark: source_type(marks.packet(mark)) for mark in marks.SOURCE_TYPES} == KINDS
