"""A real ComfyUI server on loopback, and a small client for it. Nothing is written into the tree that it runs from."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib import error, parse, request

import aiohttp
from PIL import Image

from magicapture_core.models import models_folder

from .trees import PACK, Tree

Prompt = dict[str, dict[str, Any]]  # API form: node id -> {"class_type", "inputs"}
QUICK = Path(__file__).with_name("quick.py")
START_SECONDS = 180
FLAGS = ["--cpu", "--use-pytorch-cross-attention", "--disable-api-nodes", "--listen", "127.0.0.1"]
OPENER = request.build_opener(request.ProxyHandler({}))


class PromptRejected(AssertionError):
    """The server refused the prompt, whole or in part; the message holds its reasons."""


class PromptFailed(AssertionError):
    """A node raised; the message holds its traceback. `error` is the server's own record of it."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error.get('exception_message')}\n{''.join(error.get('traceback', []))}")
        self.error = error


@dataclass
class Run:
    """What a prompt came to. outputs: node id -> the node's UI entries. interrupted: stopped by a Cancel."""

    outputs: dict[str, dict[str, list[Any]]]
    interrupted: bool = False


@dataclass
class Events:
    """What the page would see: `messages` in order (type, data), and `previews` as pictures."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    previews: list[Image.Image] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message["data"] for message in self.messages if message["type"] == kind]

    def add_binary(self, frame: bytes) -> None:
        """ComfyUI's binary frames: 4 bytes kind; 1 = picture (4 bytes format), 3 = text (4 bytes length, node id),
        4 = picture with metadata (4 bytes length, JSON)."""
        kind, body = int.from_bytes(frame[:4], "big"), frame[4:]
        if kind == 1:
            self.previews.append(Image.open(io.BytesIO(body[4:])))
        elif kind == 3:
            self.texts.append(body[4 + int.from_bytes(body[:4], "big") :].decode())
        elif kind == 4:
            self.previews.append(Image.open(io.BytesIO(body[4 + int.from_bytes(body[:4], "big") :])))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ComfyServer:
    """One running server. `base` holds its models, input, output and custom_nodes with the pack linked in.

    quick: what a training shows of itself is sampled in one step, and faces are redrawn small.
    """

    def __init__(self, tree: Tree, base: Path, cache: str = "classic", quick: bool = False) -> None:
        self.tree, self.base, self.port = tree, base, free_port()
        self.client_id = uuid.uuid4().hex
        for folder in ("custom_nodes", "input", "output", "user", "models/checkpoints", "models/loras"):
            (base / folder).mkdir(parents=True)
        (base / "custom_nodes" / "ComfyUI-MagiCapture").symlink_to(PACK, target_is_directory=True)
        if quick:
            (base / "custom_nodes" / QUICK.name).symlink_to(QUICK)
        self.cache = cache
        self.start()

    # Life

    def start(self) -> None:
        """Its process, once more after one that was killed."""
        database = f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}"
        places = ["--base-directory", str(self.base), "--database-url", database, "--port", str(self.port)]
        environment = os.environ | {"MAGICAPTURE_MODELS": str(models_folder()), "PYTHONUNBUFFERED": "1"}
        with (self.base / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [self.tree.python, self.tree.folder / "main.py", *FLAGS, f"--cache-{self.cache}", *places],
                cwd=self.tree.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"ComfyUI {self.tree.version} did not start:\n{self.log()[-4000:]}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        """Everything the server has printed so far, without colours."""
        text = (self.base / "log.txt").read_text(encoding="utf-8", errors="replace")
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    # HTTP

    def fetch(self, path: str, data: Any = None) -> bytes:
        """GET, or POST when there is data (JSON). Raises HTTPError, an OSError, for other codes than 2xx."""
        body = None if data is None else json.dumps(data).encode()
        headers = {"Content-Type": "application/json"}
        url = f"http://127.0.0.1:{self.port}{path}"
        with OPENER.open(request.Request(url, body, headers), timeout=60) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        return json.loads(self.fetch(path))

    def object_info(self) -> dict[str, Any]:
        return self.get("/object_info")

    # Files

    def add_model(self, kind: str, path: Path) -> str:
        """Links a model file into models/KIND. Returns the name under which loaders list it."""
        folder = self.base / "models" / kind
        folder.mkdir(exist_ok=True)
        link = folder / path.name
        if not link.exists():
            link.symlink_to(path)
        return path.name

    def add_image(self, image: Image.Image, name: str) -> str:
        """Puts a picture where LoadImage finds it; `name` may have a folder in it."""
        path = self.base / "input" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        return name

    def view(self, entry: dict[str, str]) -> Image.Image:
        """The picture behind one entry of a node's `images` output."""
        return Image.open(io.BytesIO(self.fetch(f"/view?{parse.urlencode(entry)}")))

    # Prompts

    def queue(self, prompt: Prompt) -> str:
        """Posts a prompt. Returns its id; raises PromptRejected when any part of it is refused."""
        try:
            answer = json.loads(self.fetch("/prompt", {"prompt": prompt, "client_id": self.client_id}))
        except error.HTTPError as refusal:
            raise PromptRejected(refusal.read().decode()) from None
        if answer["node_errors"]:
            raise PromptRejected(json.dumps(answer["node_errors"], indent=2))
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 600) -> Run:
        """Waits until the prompt is done. Raises PromptFailed with the node's traceback when a node raised."""
        deadline = time.monotonic() + timeout
        while prompt_id not in (history := self.get(f"/history/{prompt_id}")):
            if self.process.poll() is not None:
                raise RuntimeError(f"the server died:\n{self.log()[-4000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not done after {timeout} s:\n{self.log()[-4000:]}")
            time.sleep(0.1)
        entry = history[prompt_id]
        for kind, data in entry["status"]["messages"]:
            if kind == "execution_error":
                raise PromptFailed(data)
        kinds = {kind for kind, _ in entry["status"]["messages"]}
        return Run(outputs=entry["outputs"], interrupted="execution_interrupted" in kinds)

    def run(self, prompt: Prompt, timeout: float = 600) -> Run:
        return self.wait(self.queue(prompt), timeout)

    def images(self, run: Run, node_id: str) -> list[Image.Image]:
        return [self.view(entry) for entry in run.outputs[node_id]["images"]]

    def interrupt(self) -> None:
        self.fetch("/interrupt", {})

    def free(self) -> None:
        """Unloads models and forgets cached results.

        The server obeys between two prompts, maybe only after the next one: so a small one follows.
        """
        self.fetch("/free", {"unload_models": True, "free_memory": True})
        picture = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}}
        self.run({"1": picture, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})

    # The page's live connection

    @contextmanager
    def listen(self) -> Iterator[Events]:
        """Collects what the server sends to the page about this client's prompts, while the block runs."""
        events, connected, loop = Events(), threading.Event(), asyncio.new_event_loop()

        async def receive() -> None:
            url = f"http://127.0.0.1:{self.port}/ws?clientId={self.client_id}"
            async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
                connected.set()
                async for message in socket:
                    if message.type is aiohttp.WSMsgType.TEXT:
                        events.messages.append(json.loads(message.data))
                    elif message.type is aiohttp.WSMsgType.BINARY:
                        events.add_binary(message.data)

        task = loop.create_task(receive())
        thread = threading.Thread(target=loop.run_until_complete, args=(asyncio.wait([task]),))
        thread.start()
        try:
            assert connected.wait(30), "no websocket connection"
            yield events
        finally:
            loop.call_soon_threadsafe(task.cancel)
            thread.join()
            loop.close()
