"""A sound file -> one that a stranger might have made of it. Knows the containers, not what they hold.

Whatever is drawn comes from the Random that is handed in: hypothesis gives one that it can shrink, a long run gives one
with a seed.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

NUMBERS = (-1, 0, 1, 2, 76, 255, 4096, 2**15, 2**31 - 1, 2**31, 2**32, 2**60, 2**63 - 1, 2**63, 2**64 - 1, 10**30)
TEXTS = (
    "",
    "\n",
    "\x1b[2J",
    "../../x",
    "/etc/passwd",
    "NUL",
    "<subject>",
    "{subject}",
    "\ud800",
    "a" * 70_000,
    "1e999",
)
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64", "U64", "X9")
DEEP = 5_000  # levels of brackets
MORE_BYTES = 4_000_000


def mutated(data: bytes, random: Random) -> bytes:
    """One to four edits of the whole, or of one part inside its container, which stays whole."""
    limit = len(data) + MORE_BYTES
    for _ in range(random.randint(1, 4)):
        data = random.choice([_edit_bytes, _edit_inside, _edit_inside])(data, random)
    return data[:limit]


def _edit_inside(data: bytes, random: Random) -> bytes:
    """A safetensors header, a member of a zip archive, or numbers and words of a text; else any bytes."""
    if data[:4] == b"PK\3\4":
        return _edit_archive(data, random)
    size = struct.unpack("<Q", data[:8])[0] if len(data) > 8 else 0
    if 0 < size <= len(data) - 8 and data[8:9] == b"{":
        return _edit_header(data[8 : 8 + size], data[8 + size :], random)
    return _edit_text(data, random) if random.random() < 0.3 else _edit_bytes(data, random)


# -- bytes -------------------------------------------------------------------------------------------------------------


def _edit_bytes(data: bytes, random: Random) -> bytes:
    at = random.randint(0, len(data))
    if random.random() < 0.5:  # what decides lies at the start
        at = random.randint(0, min(len(data), 200))
    size = random.choice([1, 2, 4, 8, 40, 1000])
    other = random.randint(0, len(data))
    number = random.choice(NUMBERS) % 2 ** (8 * min(size, 8))
    edits: list[Callable[[], bytes]] = [
        lambda: data[:at] + bytes([random.randrange(256)]) + data[at + 1 :],
        lambda: data[:at] + number.to_bytes(min(size, 8), random.choice(["little", "big"])) + data[at + size :],
        lambda: data[:at],
        lambda: data[:at] + data[at + size :],
        lambda: data[:at] + data[other : other + size] + data[at:],
        lambda: data[:at] + data[other : other + size] * random.choice([1, 10, 1000]) + data[at:],
        lambda: data[:at] + random.randbytes(size) + data[at + size :],
    ]
    return random.choice(edits)()


def _edit_text(data: bytes, random: Random) -> bytes:
    """A number grows, a word becomes another, a bracket many."""
    found = list(re.finditer(rb"[0-9]+|\"[^\"]*\"|[\[{]", data[:20_000]))
    if not found:
        return _edit_bytes(data, random)
    place = random.choice(found)
    new = str(random.choice([*NUMBERS, "nan", "inf", "1e400", "9" * 5000, "0x" + "f" * 9000])).encode()
    if place[0][:1] == b'"':
        new = json.dumps(random.choice(TEXTS)).encode()
    elif place[0] in (b"[", b"{"):
        new = place[0] * random.choice([2, DEEP])
    return data[: place.start()] + new + data[place.end() :]


# -- containers --------------------------------------------------------------------------------------------------------


def _edit_header(header: bytes, rest: bytes, random: Random) -> bytes:
    """Of a safetensors file; its length is set right."""
    try:
        fields = json.loads(header)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or not fields or random.random() < 0.2:
        header = _edit_text(header, random)
    else:
        _edit_fields(fields, random)
        header = json.dumps(fields).encode()
    return struct.pack("<Q", len(header)) + header + rest


def _edit_fields(fields: dict[str, Any], random: Random) -> None:
    key = random.choice(sorted(fields))
    entry = fields[key]
    metadata = fields.get("__metadata__")
    if isinstance(metadata, dict) and metadata and random.random() < 0.5:
        name = random.choice(sorted(metadata))
        edited_text = _edit_json(str(metadata[name]), random)
        random.choice([lambda: metadata.pop(name), lambda: metadata.update({name: edited_text})])()
    elif random.random() < 0.2:
        fields[random.choice([*TEXTS, key + ".x", "blocks.0.x", "lora_unet_x.alpha"])] = fields.pop(key)
    elif isinstance(entry, dict) and isinstance(entry.get("shape"), list):
        _edit_entry(entry, random)


def _edit_entry(entry: dict[str, Any], random: Random) -> None:
    """Name, size and place of a tensor: some fit its bytes, in other shapes, and most do not."""
    shape, count = entry["shape"], 1
    for side in shape:
        count *= side if isinstance(side, int) else 1
    shapes = [[count], [1, count], [count, 1], [], [0], [0, 2**40], [2**40, 0, 3, 3], [*shape, 1], shape[::-1]]
    shapes += [[1] * 70 + shape, [random.choice(NUMBERS), *shape], shape[1:]]
    if random.random() < 0.6:
        entry["shape"] = random.choice(shapes)
        if 0 in entry["shape"]:
            entry["data_offsets"] = entry.get("data_offsets", [0])[:1] * 2
    elif random.random() < 0.7:
        entry["dtype"] = random.choice(DTYPES)
        if entry["dtype"] == "F4" and shape:
            entry["shape"] = [*shape[:-1], shape[-1] * random.choice([2, 4, 8])]
    else:
        entry["data_offsets"] = [random.choice([*NUMBERS, *entry.get("data_offsets", [])]) for _ in range(2)]


def _edit_json(text: str, random: Random, deep: bool = True) -> str:
    """A value of it becomes another; where it is no JSON, a text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return random.choice(TEXTS)
    values: list[Any] = [*NUMBERS, *TEXTS, None, True, 0.5, float("nan"), float("inf"), [], {}, [[]], "9" * 5000]
    new: Any = random.choice(values)
    if isinstance(value, list | dict) and value:
        places = range(len(value)) if isinstance(value, list) else sorted(value)
        place = random.choice(places)
        inner = value[place]
        value[place] = new
        if isinstance(inner, list | dict) and random.random() < 0.8:
            value[place] = json.loads(_edit_json(json.dumps(inner), random, deep=False))
        if isinstance(value, list) and random.random() < 0.2:
            value += value * random.choice([1, 100])
    else:
        value = new
    written = json.dumps(value)
    if not deep or random.random() < 0.95:
        return written
    return random.choice(["[" * DEEP, "9" * 5000, written[:-1], f"[{written}]"])


def _edit_archive(data: bytes, random: Random) -> bytes:
    """A member of a zip is edited, dropped, or unfolds to much; sums and directory are right again."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # it was damaged by an edit before
        return _edit_bytes(data, random)
    if not members:
        return data
    first = sorted(members, key=lambda name: "pkl" not in name and "meta" not in name)[:2]
    name = random.choice([*first, *members])
    compression = random.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    edit = random.random()
    if edit < 0.8:
        members[name] = random.choice([_edit_bytes, _edit_text])(members[name], random)
    elif edit < 0.9:
        del members[name]
    else:
        members[name] += bytes(random.choice([10, 50_000_000]))
        compression = zipfile.ZIP_DEFLATED
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", compression) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return written.getvalue()
