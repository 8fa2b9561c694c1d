"""The list of steps, the most informative first: with little time the last ones are dropped."""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scripts.gpu_steps import figures
from scripts.gpu_steps.step import Step

DETECTORS = ("dino_d3q", "deformable_detr_d3q", "dino", "deformable_detr")
WEIGHTS = Path("weights/efficientnet_lite0.pth")
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
NO_GPU = "needs a GPU"
TINY = [
    "model.hidden_dim=16",
    "model.backbone.name=resnet18",
    "model.backbone.base_width=4",
    "model.neck.num_groups=4",
    "model.encoder.num_layers=1",
    "model.decoder.num_layers=2",
    "model.encoder.num_heads=2",
    "model.decoder.num_heads=2",
    "model.encoder.ffn_dim=24",
    "model.decoder.ffn_dim=24",
]
"""Settings of the rehearsal's detectors"""


@dataclass(frozen=True)
class Day:
    """Options and machine that the steps depend on."""

    folder: Path
    """Gets logs and figures"""
    work: Path
    """Gets data and run folders"""
    root: Path
    """Of the code"""
    rehearsal: bool

    @property
    def facts(self) -> dict[str, Any]:
        """Of the machine; once the first step has passed."""
        found: dict[str, Any] = json.loads((self.folder / "machine.json").read_text())
        return found

    @property
    def gpus(self) -> int:
        return len(self.facts["gpus"])

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def module(self, name: str, *arguments: object) -> list[str]:
        return [sys.executable, "-m", name, *map(str, arguments)]

    def script(self, name: str, *arguments: object) -> list[str]:
        return [sys.executable, name, *map(str, arguments)]


def first_step(day: Day) -> Step:
    return Step(name="machine", command=day.module("scripts.gpu_steps.facts", day.folder / "machine.json"), limit=90)


def steps(day: Day) -> Iterator[Step]:
    """All steps but the first; each is created after the previous one has ended."""
    yield Step(name="build", command=day.module("ops.build"), limit=300, read=figures.built)
    yield from _checks(day)
    yield _gpu_tests(day)
    yield from _operator(day, "float32")
    yield from _training(day)
    yield from _epoch(day)
    yield _predict(day)
    yield _resume(day, processes=1)
    yield _sanitizer(day, "memcheck")
    yield from _operator(day, "bfloat16")
    yield _resume(day, processes=2)
    for tool in SANITIZERS[1:]:
        yield _sanitizer(day, tool)
    yield from _operator(day, "float16")


def _checks(day: Day) -> Iterator[Step]:
    """A step per device, in a process that sees only this device."""
    command = day.module("ops.build", "--check")
    if not day.gpus:
        yield Step(name="check", command=command, limit=120, read=figures.backends)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(i) for i in range(day.gpus)]
    for number, name in enumerate(names[: day.gpus]):
        environment = {"CUDA_VISIBLE_DEVICES": name.strip()}
        yield Step(name=f"check_{number}", command=command, limit=120, environment=environment, read=figures.backends)


def _gpu_tests(day: Day) -> Step:
    report = day.folder / "gpu_tests.xml"
    files = [path for path in sorted((day.root / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    missing = "" if importlib.util.find_spec("pytest") else "pytest is not installed"
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short", "--show-capture=no", f"--junitxml={report}"]
    command = day.module("pytest", *options, *(path.relative_to(day.root) for path in files))
    return Step(
        name="gpu_tests",
        command=command,
        limit=300,
        missing=missing if day.gpus else NO_GPU,
        read=lambda _: figures.tests(report),
    )


def _operator(day: Day, dtype: str) -> Iterator[Step]:
    name, file = f"operator_{dtype}", day.folder / f"operator_{dtype}.json"
    tiny = ["--device", "cpu", "--queries", 4, "--repeats", 1, "--threads", 1] if day.rehearsal else []
    command = day.script("scripts/benchmark.py", "ops", "--dtype", dtype, "--json", file, *tiny)
    missing = NO_GPU if day.rehearsal and dtype != "float32" else ""
    yield Step(name=name, command=command, limit=120, missing=missing, read=lambda _: figures.tables(file))


def _training(day: Day) -> Iterator[Step]:
    """A process for each detector; in the rehearsal one process for all, which starts faster."""
    for names in [DETECTORS] if day.rehearsal else [[name] for name in DETECTORS]:
        name = "training" if day.rehearsal else f"training_{names[0]}"
        file = day.folder / f"{name}.json"
        arguments: list[object] = ["--repeats", 1 if day.rehearsal else 3, "--json", file]
        arguments += ["--configs", *(f"configs/{each}_aitodv2.yaml" for each in names)]
        if day.rehearsal:
            arguments += ["--device", "cpu", "--threads", 1, "--side", 64, "--objects", 5]
            arguments += ["--batches", 1, "--amp", "none", "--set", *TINY]
        command = day.script("scripts/benchmark.py", "detectors", *arguments)
        yield Step(name=name, command=command, limit=240, read=partial(_tables, file))


def _tables(file: Path, _: Path) -> figures.Figures:
    return figures.tables(file)


def _epoch(day: Day) -> Iterator[Step]:
    """One epoch of the demo's detector and its AP; with ImageNet weights if available."""
    there = (day.root / WEIGHTS).is_file()
    patience = {"PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "10", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    yield Step(
        name="weights",
        command=day.script("scripts/fetch_weights.py", "--out", WEIGHTS.parent),
        limit=60,
        environment=patience,
        missing="a rehearsal downloads nothing" if day.rehearsal and not there else "",
        optional=True,
        read=figures.last_line,
    )
    data, run = day.work / "scenes", day.work / "epoch"
    sizes = ["--train", 4, "--val", 2, "--size", 64, "--workers", 1] if day.rehearsal else ["--workers", _workers()]
    crowd = ["--max-count", 12 if day.rehearsal else 150]
    command = day.script("scripts/make_scenes.py", "--out", data, *sizes, *crowd)
    yield Step(name="scenes", command=command, limit=180, read=figures.last_line)
    made = (data / "annotations" / "val.json").is_file()
    weights = (day.root / WEIGHTS).is_file() and not day.rehearsal
    settings = [f"data.root={data}", f"runtime.output_dir={run}", "optim.epochs=1", "optim.lr_drop_epochs=[]"]
    settings += [] if weights else ["model.backbone.weights=null"]
    if day.rehearsal:
        settings += ["data.image_size=[64,64]", "runtime.num_threads=1", *TINY]
    else:
        settings += [f"data.num_workers={min(_workers(), 4)}"]
    yield Step(
        name="epoch",
        command=day.script("main.py", "--config", "configs/dino_d3q_scenes.yaml", "--set", *settings),
        limit=240,
        missing="" if made else "there are no scenes",
        read=partial(_evaluation, day, run, "ImageNet's" if weights else "random"),
    )


def _predict(day: Day) -> Step:
    """Tiles through the detector of the epoch: the scenes' own images, at half their size."""
    trained, out = day.work / "epoch" / "last.pth", day.work / "predicted"
    tile = 32 if day.rehearsal else 128
    options = ["--tile", tile, "--out", out, "--formats", "coco,csv", "--conf", "0.1"]
    return Step(
        name="predict",
        command=day.script("scripts/predict.py", "--resume", trained, day.work / "scenes" / "val", *options),
        limit=120,
        missing="" if trained.is_file() else "there is no trained detector",
        read=figures.prediction,
    )


def _evaluation(day: Day, run: Path, weights: str, log: Path) -> figures.Figures:
    """Copy the useful files of the run folder."""
    kept = day.folder / "epoch"
    kept.mkdir(exist_ok=True)
    for name in ("evaluation/evaluation.txt", "evaluation/evaluation.json", "evaluation/gallery.png", "metrics.jsonl"):
        if (run / name).is_file():
            shutil.copy(run / name, kept)
    found = figures.detection(kept / "evaluation.json")
    found.line += f", backbone's weights {weights}"
    return found


def _workers() -> int:
    return min(os.cpu_count() or 1, 16)


def _resume(day: Day, *, processes: int) -> Step:
    name = "resume" if processes == 1 else "two_processes"
    missing = "needs two GPUs" if processes > 1 and day.gpus < processes else ""
    arguments = [day.work / name, "--device", day.device, "--processes", processes]
    command = day.module("scripts.gpu_steps.resume", *arguments)
    environment = {"OMP_NUM_THREADS": "1"}
    return Step(name=name, command=command, limit=150, environment=environment, missing=missing, read=figures.last_line)


def _sanitizer(day: Day, tool: str) -> Step:
    program = _find_sanitizer()
    command: Sequence[str] = ()
    if program:
        options = ["--tool", tool, "--error-exitcode", "9"]
        command = [program, *options, *day.module("scripts.gpu_steps.sanitized")]
    return Step(
        name=tool,
        command=command,
        limit=150,
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},  # one allocation per tensor, to detect accesses beyond it
        missing=NO_GPU if not day.gpus else "" if program else "compute-sanitizer is not installed",
        read=figures.sanitizer,
    )


def _find_sanitizer() -> str | None:
    folders = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    places = os.pathsep.join([os.environ.get("PATH", ""), *(f"{folder}/bin" for folder in folders if folder)])
    return shutil.which("compute-sanitizer", path=places)
