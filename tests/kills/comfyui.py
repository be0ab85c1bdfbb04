"""A training in a real ComfyUI: Cancel, Free memory and kill -9 of the server, each at a moment that is drawn."""

from __future__ import annotations

import atexit
import random
import time
from collections import Counter
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from tests.checkpoints import make_checkpoint
from tests.comfy.journeys import CHECKPOINT, training
from tests.comfy.server import ComfyServer, Prompt
from tests.comfy.trees import find_trees
from tests.kills.files import read_all
from tests.small import same

ACTS = ("cancels", "frees", "kills")


class Killed:
    def __init__(self, whole: Path) -> None:
        self.server = ComfyServer(find_trees()[0][-1], whole, quick=True)
        self.server.add_model("checkpoints", make_checkpoint(whole / CHECKPOINT, "small"))
        atexit.register(self.server.stop)
        self.server.wait_until_ready()
        self.info = self.server.object_info()
        self.server.run(self.prompt("first", seed=1))  # with what a fresh server loads
        start = time.monotonic()
        self.server.run(self.prompt("whole"))
        self.seconds, self.weights = time.monotonic() - start, self.weights_of("whole")

    def prompt(self, name: str, seed: int = 0) -> Prompt:
        return training(self.info, name, tuning_num_steps=7, seed=seed)

    def weights_of(self, name: str) -> dict[str, Tensor]:
        return load_file(self.server.base / "models" / "loras" / f"{name}.safetensors")

    def until_its_end(self, folder: Path, moments: random.Random) -> Counter[str]:
        """How often it was disturbed. It ends with the weights of one that nobody disturbed."""
        counted, name, is_done = Counter[str](), f"training_{folder.name}", False
        while not is_done:
            is_done = self.disturbed(name, moments.uniform(0, self.seconds), act := moments.choice(ACTS))
            counted += Counter({act: 1, "files read": read_all(self.server.base / "output")})
        assert same(self.weights_of(name), self.weights)
        return counted

    def disturbed(self, name: str, after: float, act: str) -> bool:
        """Whether the training came to its end all the same."""
        prompt_id = self.server.queue(self.prompt(name))
        time.sleep(after)
        if act == "kills":
            self.server.process.kill()
            self.server.process.wait()
            self.server.start()
            self.server.wait_until_ready()
            return False
        if act == "frees":
            self.server.fetch("/free", {"unload_models": True, "free_memory": True})
        else:
            self.server.interrupt()
        return not self.server.wait(prompt_id).interrupted
