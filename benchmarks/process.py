"""Every contender has a process of its own, `python -m benchmarks.process`, and makes a step whenever it is asked to.

So each is run by the Python of its own tree, none sees another's modules, and seconds and memory are its own. What the
two ends say to each other is a line of JSON at a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import torch

from magicapture_core.types import LossTerms, MagiCaptureError

from .counting import counted_flops, peak_bytes, reset_peak
from .workload import DTYPES, PROMPT_SHAPE, Conditions, Contender, Method, Workload

ROOT = Path(__file__).parents[1]
METHODS: dict[Method, str] = {
    "ours": "ours",
    "sefi": "sefi",
    "textual-inversion": "sefi",
    "diffusers": "diffusers_example",
    "kohya": "kohya",
    "comfyui": "comfyui",
}
PROBE_PIXELS, PROBE_TIMESTEP = 64, 500
LAST_WORDS = 2_000  # letters of a dead process' log that are shown


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What a process says of itself once it has made its first step. prediction: the probe's, before that step.

    flops: of that step, 0 where it could not be counted.
    """

    about: str
    torch: str
    num_parameters: int | None
    prediction: list[float]
    flops: int


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One step. peak_bytes: of memory, since the first step. fired: whether the identity loss acted in it."""

    seconds: float
    peak_bytes: int
    fired: bool = False


# -- the command's end -------------------------------------------------------------------------------------------------


class Ended(MagiCaptureError):
    """A process has died: with the end of its log, of which `reason` is the last line."""

    def __init__(self, method: Method, code: int, log: str) -> None:
        super().__init__(f"{method} ended with {code}: {log}")
        last = "".join(log.splitlines()[-1:])
        self.method, self.reason = method, f"{method} ended with {code}: {last}"


class Process:
    """A contender at work. Started at once; `hello` waits until it is ready."""

    def __init__(self, workload: Workload, conditions: Conditions) -> None:
        self.workload, self._hello = workload, None
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (`close` closes it)
        self._child = subprocess.Popen(
            [interpreter(conditions.trees.get(workload.method)), "-m", "benchmarks.process"],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(conditions.threads), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._ask(json.dumps({"workload": asdict(workload), "conditions": asdict(conditions)}))

    @property
    def hello(self) -> Hello:
        self._hello = self._hello or Hello(**self._answer())
        return self._hello

    def step(self) -> Turn:
        self._ask("step")
        return Turn(**self._answer())

    def close(self) -> None:
        """Its memory is free when this returns."""
        self._child.kill()
        self._child.communicate()
        self._log.close()

    def _ask(self, line: str) -> None:
        assert self._child.stdin
        with suppress(BrokenPipeError):  # it has died, and `_answer` says of what
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        """Raises Ended if it has died."""
        assert self._child.stdout
        if line := self._child.stdout.readline():
            return json.loads(line)
        code = self._child.wait()  # -9: killed, mostly for memory
        self._log.seek(0)
        raise Ended(self.workload.method, code, self._log.read()[-LAST_WORDS:].strip())


class Stable:
    """The processes at work. Those that the next row needs too are kept, the others make room first."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._open: dict[Workload, Process] = {}

    def get(self, *workloads: Workload) -> list[Process]:
        for workload in self._open.keys() - set(workloads):
            self._open.pop(workload).close()
        for workload in workloads:
            if workload not in self._open:
                self._open[workload] = Process(workload, self._conditions)
        return [self._open[workload] for workload in workloads]

    def __enter__(self) -> Stable:
        return self

    def __exit__(self, *_error: object) -> None:
        self.get()


def interpreter(tree: str | None) -> str:
    """The Python of a tree's own .venv where it has one, else the one that runs this."""
    own = Path(tree or "", ".venv", "bin", "python")
    return str(own) if tree and own.exists() else sys.executable


# -- the process' end --------------------------------------------------------------------------------------------------


def main() -> None:
    with own_output() as answers:
        asked = json.loads(sys.stdin.readline())
        asked["workload"]["features"] = tuple(asked["workload"]["features"])
        workload, conditions = Workload(**asked["workload"]), Conditions(**asked["conditions"])
        torch.set_num_threads(conditions.threads)
        torch.manual_seed(0)
        method = import_module(f"benchmarks.{METHODS[workload.method]}")
        with method.opened(workload, conditions) as contender:
            prediction = probe(contender, workload, conditions)
            flops = counted_flops(contender.step)
            reset_peak(conditions.device)
            hello = Hello(
                about=contender.about,
                torch=torch.__version__,
                num_parameters=contender.num_parameters,
                prediction=prediction,
                flops=flops,
            )
            print(json.dumps(asdict(hello)), file=answers, flush=True)
            for _line in sys.stdin:
                print(json.dumps(asdict(timed(contender, conditions))), file=answers, flush=True)


@contextmanager
def own_output() -> Iterator[TextIO]:
    """The pipe to the command; whatever else prints goes to the log."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        yield answers


@torch.no_grad()
def probe(contender: Contender, workload: Workload, conditions: Conditions) -> list[float]:
    """Its noise prediction for one input, which is the same everywhere: equal weights give equal numbers."""
    generator, device = torch.Generator().manual_seed(1), torch.device(conditions.device)
    shape = Workload(pixels=PROBE_PIXELS).latent_shape
    dtype = DTYPES[workload.dtype]
    latents, embeds = (torch.randn(s, generator=generator).to(device, dtype) for s in (shape, (1, *PROMPT_SHAPE)))
    timesteps = torch.tensor([PROBE_TIMESTEP], device=device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        return contender.predict(latents, timesteps, embeds).float().flatten().tolist()


def timed(contender: Contender, conditions: Conditions) -> Turn:
    """On one CPU thread these are the seconds that the process had it, so that others on the machine count less."""
    on_card = conditions.device != "cpu"
    clock = time.process_time if conditions.threads == 1 and not on_card else time.perf_counter
    if on_card:
        torch.cuda.synchronize(conditions.device)
    started = clock()
    told = contender.step()
    if on_card:
        torch.cuda.synchronize(conditions.device)
    seconds = clock() - started
    fired = isinstance(told, LossTerms) and told.num_identity > 0
    return Turn(seconds=seconds, peak_bytes=peak_bytes(conditions.device), fired=fired)


if __name__ == "__main__":
    main()
