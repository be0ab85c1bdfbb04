"""ComfyUI's page in a real browser: templates opened, widgets set and Run pressed as a user does it."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from PIL import Image

from .server import ComfyServer, Run

NodeId = int | str  # a number, or what a page has made of one
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUEUE_SECONDS = 30
VIEW: Any = {"width": 2400, "height": 1350}  # pixels: node texts can be read in a view of a whole workflow
PEEP: Any = {"width": 240, "height": 135}  # while it runs: painting a whole view takes as long as the nodes do


def missing() -> str:
    """Why no page can be shown here; empty when one can."""
    if not any(map(shutil.which, BROWSERS)):
        return "no Chromium (apt install chromium)"
    return "" if find_spec("playwright") else "no playwright (pip install playwright)"


class ComfyPage:
    """One open page of a server."""

    def __init__(self, page: Any, server: ComfyServer) -> None:
        self.page, self.server = page, server
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.wait_for_function("window.app && window.app.graph")

    def open_template(self, title: str) -> None:
        """Out of the Templates page, which a new user's first page opens by itself."""
        pack = self.page.get_by_text("ComfyUI-MagiCapture", exact=True).first
        self.page.wait_for_timeout(3000)
        if not pack.is_visible():
            self.page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        pack.click()
        self.page.get_by_text(title, exact=True).last.click()  # the workflow's own note may have it too
        self.page.wait_for_function("title => document.title.includes(title)", arg=title)
        self.page.wait_for_function("app.graph._nodes.length > 2")

    def nodes(self) -> list[dict[str, Any]]:
        """What the page has made of the workflow: `unknown` and `failed` nodes are those it paints red."""
        return self.page.evaluate(
            """() => app.graph._nodes.map(node => ({
                id: node.id, type: node.type, title: node.title,
                runs: node.mode === 0, failed: Boolean(node.has_errors),
                unknown: !(node.type in LiteGraph.registered_node_types),
                pictures: node.imgs?.length ?? 0,
                texts: (node.widgets ?? []).filter(w => typeof w.value === 'string').map(w => w.value),
            }))"""
        )

    def set_widgets(self, node_type: str, values: dict[str, Any]) -> None:
        """On every node of the type."""
        self.page.evaluate(
            """([type, values]) => app.graph._nodes.filter(node => node.type === type).forEach(node =>
                Object.entries(values).forEach(([name, value]) => {
                    node.widgets.find(widget => widget.name === name).value = value
                }))""",
            [node_type, values],
        )

    def connect_new(self, node_type: str, target_type: str, target_input: str) -> None:
        """Adds a node, folded up, and joins its first output to an input of the first node of a type."""
        self.page.evaluate(
            """([type, targetType, input]) => {
                const node = LiteGraph.createNode(type)
                const target = app.graph._nodes.find(other => other.type === targetType)
                node.pos = [target.pos[0], target.pos[1] - 300]
                node.flags.collapsed = true
                app.graph.add(node)
                node.connect(0, target, input)
            }""",
            [node_type, target_type, target_input],
        )

    def press_run(self) -> str:
        """The id of the prompt that the server got. Raises TimeoutError when it got none, since it refused it."""
        known = set(self.server.get("/history"))
        self.page.get_by_role("button", name="Run", exact=True).first.click()
        deadline = time.monotonic() + QUEUE_SECONDS
        while time.monotonic() < deadline:
            queued = {entry[1] for entries in self.server.get("/queue").values() for entry in entries}
            if new := queued | (set(self.server.get("/history")) - known):
                return new.pop()
            self.page.wait_for_timeout(100)
        raise TimeoutError("Run queued nothing; the page marks what is wrong")

    def run(self) -> Run:
        """Presses Run, and waits for the end of it. Raises as press_run and `ComfyServer.wait` do."""
        prompt_id = self.press_run()
        self.page.set_viewport_size(PEEP)
        try:
            return self.server.wait(prompt_id)
        finally:
            self.page.set_viewport_size(VIEW)

    def show(self, *node_ids: NodeId) -> None:
        """Fits the view to these nodes, or to all."""
        self.page.evaluate(
            """ids => {
                const canvas = app.canvas
                canvas.min_font_size_for_lod = 0  // texts stay readable in a large view
                const shown = app.graph._nodes.filter(node => !ids.length || ids.includes(node.id))
                const left = Math.min(...shown.map(node => node.pos[0]))
                const top = Math.min(...shown.map(node => node.pos[1])) - 40
                const right = Math.max(...shown.map(node => node.pos[0] + node.size[0]))
                const bottom = Math.max(...shown.map(node => node.pos[1] + node.size[1]))
                const [width, height] = [canvas.canvas.clientWidth, canvas.canvas.clientHeight]
                const scale = Math.min((width - 140) / (right - left), (height - 140) / (bottom - top), 1.5)
                canvas.ds.scale = scale
                canvas.ds.offset[0] = (width / scale - left - right) / 2
                canvas.ds.offset[1] = (height / scale - top - bottom) / 2 + 20 / scale
                canvas.setDirty(true, true)
            }""",
            list(node_ids),
        )
        self.page.wait_for_timeout(500)

    def picture(self) -> Image.Image:
        """All that the browser shows."""
        return Image.open(io.BytesIO(self.page.screenshot()))

    def picture_of(self, node_id: NodeId) -> Image.Image:
        """A node as the page draws it, title and widgets and all."""
        self.show(node_id)
        left, top, width, height = self.page.evaluate(
            """id => {
                const node = app.graph._nodes.find(other => other.id === id)
                const {scale, offset} = app.canvas.ds
                const canvas = app.canvas.canvas.getBoundingClientRect()
                const [x, y] = [node.pos[0] + offset[0], node.pos[1] - 30 + offset[1]]
                const size = [node.size[0], node.size[1] + 30]
                return [canvas.left + x * scale, canvas.top + y * scale, size[0] * scale, size[1] * scale]
            }""",
            node_id,
        )
        clip = {"x": left, "y": top, "width": width, "height": height}
        return Image.open(io.BytesIO(self.page.screenshot(clip=clip)))

    def add(self, node_type: str, width: float) -> NodeId:
        """Far below all others -> its id. width: at least."""
        return self.page.evaluate(
            """([type, width]) => {
                const node = LiteGraph.createNode(type)
                node.pos = [0, 5000 + 3000 * app.graph._nodes.length]
                node.setSize([Math.max(node.size[0], width), node.size[1]])
                app.graph.add(node)
                return node.id
            }""",
            [node_type, width],
        )


@contextmanager
def opened(server: ComfyServer) -> Iterator[ComfyPage]:
    """A page of a browser of its own. Ask `missing` first."""
    from playwright.sync_api import sync_playwright

    browser_path = next(filter(None, map(shutil.which, BROWSERS)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=QUIET)
        try:
            page = browser.new_page(viewport=VIEW)
            page.set_default_timeout(60_000)
            yield ComfyPage(page, server)
        finally:
            browser.close()
