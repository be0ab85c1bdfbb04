"""A workflow file as the page saves it (UI format 0.4) -> the prompt that the server takes (API form).

What the page does when Queue is pressed: notes and muted nodes fall away, bypassed nodes pass through the input of the
same type, widgets come from `widgets_values` by position, linked ones from their link.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
PAGE_ONLY = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4

Prompt = dict[str, dict[str, Any]]


def to_prompt(
    workflow: Mapping[str, Any],
    object_info: Mapping[str, Any],
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Prompt:
    """overrides: node class -> widget values that take the place of the file's."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}
    prompt: Prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in PAGE_ONLY or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        inputs = widget_values(node, object_info[node["type"]]) | dict((overrides or {}).get(node["type"], {}))
        for socket in node.get("inputs", ()):
            source = find_source(nodes, links, socket.get("link"))
            if source:
                inputs[socket["name"]] = source
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def find_source(nodes: Mapping[int, Any], links: Mapping[int, Any], link: int | None) -> list[Any] | None:
    """[node id, slot] that feeds a link; None when it ends in a node that is muted or bypassed with nothing behind."""
    while link is not None:
        _, origin, slot, _, _, kind = links[link]
        mode = nodes[origin].get("mode", 0)
        if mode != BYPASSED:
            return None if mode == MUTED else [str(origin), slot]
        link = next((i["link"] for i in nodes[origin].get("inputs", ()) if i["type"] == kind), None)
    return None


def widget_values(node: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """Widget name -> value. Raises AssertionError when the file holds more or fewer values than there are widgets."""
    names = list(value_names(info))
    values = node.get("widgets_values", [])
    assert len(names) == len(values), f"{node['type']}: widgets {names}, values {values}"
    return {name: value for name, value in zip(names, values, strict=True) if name}


def value_names(info: Mapping[str, Any]) -> Iterator[str]:
    """The widgets of a node in the order of `widgets_values`; an empty name stands for a value of the page's own."""
    for group in ("required", "optional"):
        for name, (kind, *options) in info["input"].get(group, {}).items():
            settings = options[0] if options else {}
            if not (isinstance(kind, list) or kind in WIDGET_TYPES) or settings.get("forceInput"):
                continue
            yield name
            if settings.get("control_after_generate", name in ("seed", "noise_seed")):
                yield ""  # what the dice does after a queue
            if settings.get("image_upload"):
                yield ""  # the upload button
