"""Jobs out of a file, their place, their table: all that the fleet does without Ray."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch

from magicapture_core import fitting
from magicapture_core.__main__ import main
from magicapture_core.faces import FaceDetector
from magicapture_core.fleet import storage
from magicapture_core.fleet.command import means
from magicapture_core.fleet.jobs import Job, read_jobs
from magicapture_core.fleet.scheduler import Row
from magicapture_core.fleet.storage import Place, locked
from magicapture_core.fleet.table import Table
from magicapture_core.fleet.worker import run_job
from magicapture_core.images import save_image
from magicapture_core.types import MagiCaptureError

PACK = Path(__file__).parents[2]
JOBS = """
subjects = "people/*"
styles = "styles/*"
subject_masks = "people-masks"
style_masks = "styles-masks"
looks = 0
[configs.short]
inversion.num_steps = 2
tuning.num_steps = 4
accumulate = 1
[pictures]
images = 2
num_steps = 2
"""


def make_people(folder: Path, people: tuple[str, ...] = ("ada", "bob"), styles: tuple[str, ...] = ("ink",)) -> None:
    """Noise with masks: no detector is needed."""
    mask = torch.zeros(3, 64, 64)
    mask[:, 16:48, 16:48] = 1
    for side, names in (("people", people), ("styles", styles)):
        for number, name in enumerate(names):
            generator = torch.Generator().manual_seed(number)
            save_image(torch.rand(3, 64, 64, generator=generator), folder / side / name / "0.png")
            save_image(mask, folder / f"{side}-masks" / name / "0.png")


def write_jobs(folder: Path, text: str = JOBS) -> Path:
    path = folder / "jobs.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def jobs_file(tmp_path: Path) -> Path:
    make_people(tmp_path, styles=("ink", "oil"))
    return write_jobs(tmp_path)


def made(folder: Path) -> dict[str, object]:
    """All that a job is for, by name: pictures, and weights with their metadata, whose order safetensors draws."""
    files = [file for file in folder.rglob("*") if file.suffix in (".safetensors", ".png")]
    return {file.relative_to(folder).as_posix(): content(file.name, file.read_bytes()) for file in files}


def content(name: str, data: bytes) -> object:
    if not name.endswith(".safetensors"):
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def silent(stage: str, step: int, num_steps: int) -> None:
    pass


# -- the jobs file -----------------------------------------------------------------------------------------------------


def test_jobs_are_people_times_styles_times_settings_times_seeds(jobs_file: Path) -> None:
    write_jobs(jobs_file.parent, "seeds = [0, 7]\n" + JOBS + "[configs.plain.loss]\nidentity_weight = 0\n")
    _, jobs = read_jobs(jobs_file)
    people, styles = ("ada", "bob"), ("ink", "oil")
    expected = {f"{m}/{p}_{s}_s{n}" for m in ("short", "plain") for p in people for s in styles for n in (0, 7)}
    assert {job.name for job in jobs} == expected
    assert len({job.keys.all for job in jobs}) == len(jobs) == 16
    assert {(job.config.seed, job.config.tuning.num_steps) for job in jobs if job.method == "short"} == {(0, 4), (7, 4)}
    assert {job.config.loss.identity_weight for job in jobs if job.method == "plain"} == {0}


def test_the_papers_protocol_is_one_jobs_file(tmp_path: Path) -> None:
    """10 people x 10 styles x the methods of its tables, 100 pictures of each."""
    people, styles = ([f"{side}{number}" for number in range(10)] for side in ("person", "style"))
    make_people(tmp_path, tuple(people), tuple(styles))
    shutil.copy(PACK / "docs" / "paper-protocol.toml", tmp_path)
    for name in re.findall(
        r'^\w+ = "([^"*]+\.\w+|clip[^"]+)"', (tmp_path / "paper-protocol.toml").read_text("ascii"), re.M
    ):
        (tmp_path / name).touch()
    file, jobs = read_jobs(tmp_path / "paper-protocol.toml")
    methods = [*file.configs]
    assert methods[:2] == ["magicapture", "without_ar"]
    assert len(jobs) == 100 * len(methods) == len({job.folder for job in jobs})
    assert {job.pictures.images for job in jobs} == {100}
    steps = {job.method: (job.config.inversion.num_steps, job.config.tuning.num_steps) for job in jobs}
    assert steps["magicapture"] == (1200, 1500)
    assert (steps["textual_inversion"], steps["dreambooth"], steps["custom_diffusion"]) == (
        (5000, 0),
        (0, 2000),
        (0, 750),
    )


def test_a_key_changes_with_photos_and_settings_and_not_with_folders(jobs_file: Path, tmp_path: Path) -> None:
    before = {job.name: job.keys.all for job in read_jobs(jobs_file)[1]}
    shutil.copytree(jobs_file.parent, moved := tmp_path / "moved")
    assert {job.name: job.keys.all for job in read_jobs(moved / jobs_file.name)[1]} == before
    shutil.copy(moved / "people" / "ada" / "0.png", moved / "people" / "ada" / "1.png")
    after = {job.name: job.keys.all for job in read_jobs(moved / jobs_file.name)[1]}
    assert {name for name in before if after[name] != before[name]} == {"short/ada_ink_s0", "short/ada_oil_s0"}
    write_jobs(jobs_file.parent, JOBS.replace("images = 2", "images = 3"))
    assert not set(before.values()) & {job.keys.all for job in read_jobs(jobs_file)[1]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("subjects = [", "TOML"),
        ('styles = "styles/*"', "subjects"),
        (JOBS.replace("people/*", "nobody/*"), "nobody"),
        (JOBS.replace('styles = "styles/*"', 'styles = "empty"'), "holds no photos"),
        (JOBS + "[configs.odd]\nsteps = 3\n", "configs.odd: settings: steps"),
        (JOBS + "[configs.'a b']\n", "name 'a b'"),
        (JOBS.replace("people-masks", "no-masks"), "no-masks"),
        ('checkpoint = "sd15.safetensors"\n' + JOBS, "checkpoint"),
        ('preset = "paper"\n' + JOBS, "preset"),
        ("seeds = [1, 1]\n" + JOBS.replace('"people/*"', '["people/*", "more/*"]'), "ada_ink"),
        ('results = "nowhere://bucket"\n' + JOBS, "nowhere"),
        ("pages = 3\n" + JOBS, "pages"),
        (JOBS + '[evaluate]\nclip = "clip.safetensors"\n', "evaluate.clip"),
    ],
)
def test_each_fault_of_a_jobs_file_is_one_line(
    jobs_file: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (jobs_file.parent / "empty").mkdir()
    shutil.copytree(jobs_file.parent / "people", jobs_file.parent / "more")
    assert main(["fleet", str(write_jobs(jobs_file.parent, text))]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


# -- the place of results ----------------------------------------------------------------------------------------------


class KilledError(BaseException):
    pass


def killed_at(stage: str, at: int):
    def report(now: str, step: int, num_steps: int) -> None:
        if (now, step) == (stage, at):
            raise KilledError

    return report


@pytest.fixture
def job(jobs_file: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(fitting, "STATE_EVERY", 2)
    return read_jobs(jobs_file)[1][0]


def test_results_anywhere_are_those_of_a_folder_whatever_machine_goes_on(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory:// as for any remote address: stopped twice, each time nothing is left of the machine but what was
    brought there."""
    whole = tmp_path / "whole"
    told = run_job(job, silent, str(whole))
    monkeypatch.setattr(storage.tempfile, "gettempdir", lambda: str(tmp_path / "temp"))
    address = "memory://bucket/results"
    for stage, at in (("train", 5), ("pictures", 1)):
        with pytest.raises(KilledError):
            run_job(job, killed_at(stage, at), address)
        assert Place(address, job.folder).read_result(job.keys.all) is None
        shutil.rmtree(tmp_path / "temp")
    resumed = run_job(job, silent, address)
    found = fsspec.filesystem("memory")
    root = f"/bucket/results/{job.folder}/"
    there = {file.removeprefix(root): found.cat_file(file) for file in found.find(root)}
    brought = {name: content(name, data) for name, data in there.items() if name.endswith((".safetensors", ".png"))}
    assert brought == made(whole / job.folder)
    assert json.loads(there["result.json"]) == resumed
    assert {key: resumed[key] for key in ("lora", "images", "loss", "key")} == {
        key: told[key] for key in ("lora", "images", "loss", "key")
    }
    assert not list((tmp_path / "temp").rglob("*.safetensors"))


def test_what_a_kill_left_half_written_goes_with_the_end(job: Job, tmp_path: Path) -> None:
    """Hidden files beside their places; of others, and of the lock, there are none in a job's folder."""
    place = Place(str(tmp_path), job.folder)
    for name in (".step-000002-0a1b2c3d.png", "images-1/.0-0a1b2c3d.png"):
        (place.work / name).parent.mkdir(parents=True, exist_ok=True)
        (place.work / name).write_bytes(b"half")
    run_job(job, silent, str(tmp_path))
    assert {path.name for path in place.work.rglob(".*")} <= {storage.LOCK}


def test_a_state_of_a_remote_training_is_brought_there_as_it_comes(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill, after which no line of ours runs, would find: a state every two steps, kept before it is told."""
    monkeypatch.setattr(storage.tempfile, "gettempdir", lambda: str(tmp_path / "temp"))
    found, states = fsspec.filesystem("memory"), []

    def look(stage: str, step: int, num_steps: int) -> None:
        if stage == "train":
            states.append(len([file for file in found.find("/states") if "/state-" in file]))

    run_job(job, look, "memory://states")
    assert states == [0, 1, 1, 1, 1, 1]
    assert not [file for file in found.find("/states") if "/state-" in file]


def test_other_pictures_and_judges_do_not_train_again(
    jobs_file: Path, detector: FaceDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = str(jobs_file.parent / "results")
    told = run_job(read_jobs(jobs_file)[1][0], silent, results)
    write_jobs(jobs_file.parent, JOBS.replace("images = 2", "images = 1") + "[evaluate]\n")
    [job, *_] = read_jobs(jobs_file)[1]
    stages: list[str] = []
    again = run_job(job, lambda stage, step, num_steps: stages.append(stage), results)
    assert set(stages) == {"pictures", "evaluate"}
    assert (again["loss"], again["lora"]) == (told["loss"], told["lora"])
    assert again["figures"]["detection"] in (0, 1)
    place = Path(results, job.folder)
    assert (place / job.evaluation / "evaluation.json").is_file()
    assert (place / again["images"][0]).read_bytes() == (place / told["images"][0]).read_bytes()


def test_means_are_of_each_method() -> None:
    figures = [{"csim": 0.2}, {"csim": 0.4, "style": 0.5}, {"csim": 0.1}]
    told = [{"method": method, "figures": of} for method, of in zip(("a", "a", "b"), figures, strict=True)]
    assert means(told) == {"a": {"csim": 0.3, "style": 0.5}, "b": {"csim": 0.1}}


def test_half_a_result_is_none(tmp_path: Path) -> None:
    place = Place(str(tmp_path), "job")
    place.fetch()
    (place.work / "result.json").write_text('{"key": "a"', encoding="utf-8")
    assert place.read_result("a") is None
    place.finish({"key": "a"})
    assert place.read_result("a") == {"key": "a"}
    assert place.read_result("b") is None


def test_two_commands_do_not_share_results(jobs_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(jobs_file.parent / "results", 0, "free"):
        assert main(["fleet", str(jobs_file)]) == 2
    assert "another fleet command" in capsys.readouterr().err
    with (
        pytest.raises(MagiCaptureError, match="taken"),
        locked(jobs_file.parent, 0, ""),
        locked(jobs_file.parent, 0, "taken"),
    ):
        pass


# -- the terminal ------------------------------------------------------------------------------------------------------


def test_a_plan_runs_nothing(jobs_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = read_jobs(jobs_file)[1][0]
    place = Place(str(jobs_file.parent / "results"), first.folder)
    place.fetch()
    place.finish({"key": first.keys.all})
    assert main(["fleet", str(jobs_file), "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["done"] == [first.name]
    assert len(plan["waiting"]) == 3


def test_workers_are_for_this_machine(jobs_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (["--workers", "0"], ["--workers", "2", "--address", "10.0.0.1:6379"]):
        assert main(["fleet", str(jobs_file), *more]) == 2
        assert "--workers" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_the_table_tells_what_happens(stream: io.StringIO) -> None:
    """On a terminal the rows are drawn again in place; a log gets what happens alone."""
    row = Row(stage="train", step=3, num_steps=9, attempt=1, where="one")
    table = Table(["a", "b", "c"], 1, stream)
    table.look({"a": row, "b": row})
    table.look({"a": replace(row, attempt=2, where="two"), "b": replace(row, silent=60)})
    table.end("a")
    table.end("b", "bad photo")
    said = stream.getvalue()
    for line in ("a: starts on one\n", "a: starts on two, attempt 2\n", "a: done\n", "b: bad photo\n"):
        assert said.count(line) == 1
    assert ("b: train 3 of 9, no word for 60 s" in said) == ("\x1b[3F" in said) == stream.isatty()
    assert table.summary().startswith("2 of 4 done, 1 failed, 1 waiting")
