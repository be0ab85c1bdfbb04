"""Writes locales/en/nodeDefs.json out of the schemas, and says what the other languages lack.

    <tree>/.venv/bin/python tests/nodes/locales.py TREE

ComfyUI's page takes these texts by node id; where a language has none, the schema's own English shows. Older pages
compile every text and newer ones all but the tooltips, so that a brace can be written for one of them only. Therefore
no text in locales/ holds a character of SYNTAX: en leaves such a text to the schema, and the others put it in words.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

LOCALES = Path(__file__).resolve().parents[2] / "locales"
TRANSLATIONS = ("ko", "zh", "ja")
SYNTAX = re.compile(r"[{}@|]")  # of the page's message compiler: a name to fill in, a link, a choice of plurals

Key = tuple[str, ...]
Texts = dict[Key, str]


def schema_texts(pack: Any) -> Texts:
    """Every text of every node, by its path in nodeDefs.json."""
    nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    return {key: text for node in nodes for key, text in _node_texts(node.GET_NODE_INFO_V1()).items()}


def _node_texts(info: dict[str, Any]) -> Texts:
    node = info["name"]
    texts: Texts = {(node, "display_name"): info["display_name"], (node, "description"): info["description"]}
    for group in ("required", "optional"):
        for name, (_, *options) in info["input"].get(group, {}).items():
            about = options[0] if options else {}
            texts[node, "inputs", name, "name"] = about.get("display_name") or name
            texts[node, "inputs", name, "tooltip"] = about.get("tooltip", "")
    for index, (name, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True)):
        texts[node, "outputs", str(index), "name"] = name
        texts[node, "outputs", str(index), "tooltip"] = tooltip
    return texts


def english(texts: Texts) -> Texts:
    """What locales/en holds: all but the texts that the page would take for message syntax."""
    return {key: text for key, text in texts.items() if not SYNTAX.search(text)}


def read(language: str) -> Texts:
    """The texts of locales/LANGUAGE/nodeDefs.json by path; none where there is no file."""
    file = LOCALES / language / "nodeDefs.json"
    return _flat(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def write(language: str, texts: Texts) -> None:
    nested: dict[str, Any] = {}
    for (*groups, last), text in texts.items():
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = text
    file = LOCALES / language / "nodeDefs.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(nested, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _flat(nested: dict[str, Any], path: Key = ()) -> Texts:
    texts: Texts = {}
    for name, value in nested.items():
        texts |= _flat(value, (*path, name)) if isinstance(value, dict) else {(*path, name): value}
    return texts


def main(tree: Path) -> None:
    import inside

    with tempfile.TemporaryDirectory() as folder:
        inside.start_comfy(tree, Path(folder))
        texts = schema_texts(inside.load_module(str(inside.PACK), inside.PACK / "__init__.py", inside.PACK))
    before, now = read("en"), english(texts)
    write("en", now)
    report = {"new or changed in en": [key for key, text in now.items() if before.get(key) != text]}
    for language in TRANSLATIONS:
        have = read(language)
        report[f"missing in {language}"] = [key for key in texts if key not in have]
        report[f"gone from the schemas, still in {language}"] = [key for key in have if key not in texts]
    for title, keys in report.items():
        sys.stdout.write("\n  ".join([f"{title}: {len(keys)}", *map(".".join, keys)]) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
