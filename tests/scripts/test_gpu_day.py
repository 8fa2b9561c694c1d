"""scripts/gpu_day.sh: the rehearsal runs all steps, steps with GPUs can run, and a failed step stops no other one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import main
from configs.loader import load_config
from scripts import benchmark, make_scenes
from scripts.benchmarks import detectors
from scripts.benchmarks.operator import SHAPES, Bandwidth, limits, make_call
from scripts.gpu_steps import __main__ as gpu_day
from scripts.gpu_steps import figures, plan
from scripts.gpu_steps.step import Figures, Result, Step, run_step
from scripts.gpu_steps.summary import summarise

ROOT = Path(__file__).parents[2]
NEEDS_GPUS = {
    *("gpu_tests", "memcheck", "racecheck", "synccheck", "initcheck"),
    *("operator_bfloat16", "operator_float16", "two_processes"),
}


def test_the_rehearsal_goes_to_the_end(tmp_path: Path) -> None:
    environment = os.environ | {"D3Q_PYTHON": sys.executable}
    script = ["bash", str(ROOT / "scripts/gpu_day.sh"), "--rehearse", "--out", "day"]
    finished = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    lines = dict(line.split(" ... ") for line in finished.stdout.splitlines() if " ... " in line)
    assert {name for name, text in lines.items() if text.startswith("not run")} - {"weights"} == NEEDS_GPUS
    assert all(": " not in lines[name] and "needs" in lines[name] for name in NEEDS_GPUS)
    done = {name for name, text in lines.items() if text.startswith("passed")}
    assert {"machine", "build", "check", "operator_float32", "training", "scenes", "epoch", "predict", "resume"} <= done
    day = tmp_path / "day"
    assert not (day / "work").exists()
    assert {f"{name}.log" for name in done} <= {path.name for path in day.iterdir()}
    summary = (day / "summary.md").read_text()
    assert "stopped and resumed: the same bits" in summary
    assert "AP " in summary
    assert "| deformable_detr_d3q_aitodv2 | none | 1 |" in summary
    assert (day / "epoch/gallery.png").is_file()


def made_day(folder: Path, gpus: int = 2, **options: bool) -> plan.Day:
    """Of a machine with so many GPUs."""
    (folder / "machine.json").write_text(json.dumps({"gpus": [f"Card {i}, sm_90, 80 GiB" for i in range(gpus)]}))
    return plan.Day(folder=folder, work=folder / "work", root=ROOT, rehearsal=options.get("rehearsal", False))


def test_the_steps_of_a_day_with_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command's arguments are those that its program takes."""
    monkeypatch.setattr(plan, "_find_sanitizer", lambda: "compute-sanitizer")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5e")
    made = list(plan.steps(made_day(tmp_path)))
    names = [step.name for step in made]
    assert len(names) == len(set(names))
    assert set(names) >= NEEDS_GPUS
    assert [step.environment for step in made if step.name.startswith("check_")] == [
        {"CUDA_VISIBLE_DEVICES": "3"},
        {"CUDA_VISIBLE_DEVICES": "GPU-5e"},
    ]
    # An epoch needs scenes, which this test does not make, and a prediction the detector of the epoch.
    assert {step.name for step in made if step.missing} == {"epoch", "predict"}
    by_program: dict[str, list[list[str]]] = {}
    for step in made:
        by_program.setdefault(step.command[1], []).append(list(step.command[2:]))
    trained = []
    for arguments in by_program["scripts/benchmark.py"]:
        options = benchmark.parse(arguments)
        trained += options.configs if options.part == "detectors" else []
    assert len(trained) == 4
    for path in trained:
        load_config(ROOT / path, ["model.backbone.weights=null"])
    for arguments in by_program["scripts/make_scenes.py"]:
        make_scenes.parse(arguments)
    (arguments,) = by_program["main.py"]
    parsed = main.parse_arguments(arguments)
    assert load_config(ROOT / parsed.config, parsed.set).optim.epochs == 1
    tests = next(step for step in made if step.name == "gpu_tests")
    assert "tests/ops/cuda/test_cuda_on_gpu.py" in tests.command


def test_a_machine_without_gpus_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = "import json, sys; open(sys.argv[1], 'w').write(json.dumps({'gpus': []}))"

    def first_step(day: plan.Day) -> Step:
        return Step(name="machine", command=[sys.executable, "-c", facts, str(day.folder / "machine.json")])

    monkeypatch.setattr(gpu_day, "first_step", first_step)
    assert gpu_day.main(["--out", str(tmp_path / "day")]) == 2
    assert "1 passed" in (tmp_path / "day/summary.md").read_text()
    assert gpu_day.main(["--out", str(tmp_path / "day")]) == 2  # an earlier day is kept


def test_sigterm_ends_the_step_in_hand_and_keeps_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_day(tmp_path)
    facts = f"import shutil, sys; shutil.copy({str(tmp_path / 'machine.json')!r}, sys.argv[1])"
    stop = "print(os.getpid(), flush=True); os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    wait = f"import os, signal, time; {stop}"

    def first_step(day: plan.Day) -> Step:
        return Step(name="machine", command=[sys.executable, "-c", facts, str(day.folder / "machine.json")])

    monkeypatch.setattr(gpu_day, "first_step", first_step)
    monkeypatch.setattr(gpu_day, "steps", lambda day: [Step(name="hung", command=[sys.executable, "-c", wait])])
    with pytest.raises(KeyboardInterrupt):
        gpu_day.main(["--out", str(made.folder / "day")])
    assert not _runs(int((made.folder / "day/hung.log").read_text().splitlines()[-1]))
    assert "| machine | passed |" in (made.folder / "day/summary.md").read_text()
    assert not (made.folder / "day/work").exists()


@pytest.mark.parametrize(
    ("program", "outcome", "reason"),
    [
        ("print('well')", "passed", ""),
        ("raise SystemExit(7)", "failed", "exit code 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "failed", "killed by SIGSEGV"),
        ("import time; time.sleep(60)", "failed", "timed out after 1 s"),
    ],
)
def test_how_a_step_ends(program: str, outcome: str, reason: str, tmp_path: Path) -> None:
    step = Step(name="step", command=[sys.executable, "-c", program], limit=1.0 if "sleep" in program else 60.0)
    result = run_step(step, tmp_path, root=tmp_path, seconds_left=60)
    assert (result.outcome, result.reason) == (outcome, reason)
    assert result.log == tmp_path / "step.log"


def test_a_step_that_cannot_be_run_is_listed(tmp_path: Path) -> None:
    def result(step: Step, seconds: float = 60) -> Result:
        return run_step(step, tmp_path, root=tmp_path, seconds_left=seconds)

    fails = [sys.executable, "-c", "raise SystemExit(1)"]
    assert result(Step(name="a", command=["no_such_program"])).reason.startswith("cannot be started")
    assert result(Step(name="a", missing="needs a GPU")).outcome == "not run"
    assert result(Step(name="a", command=fails), seconds=1).reason == "no time is left (--minutes)"
    assert result(Step(name="a", command=fails, optional=True)).outcome == "not run"

    def unreadable(log: Path) -> Figures:
        raise KeyError(log.name)

    found = result(Step(name="a", command=[sys.executable, "-c", ""], read=unreadable))
    assert (found.outcome, "figures cannot be read" in found.reason) == ("failed", True)


def test_what_a_step_started_ends_with_it(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    step = Step(name="step", command=[sys.executable, "-c", program], limit=3.0)
    assert run_step(step, tmp_path, root=tmp_path, seconds_left=60).reason == "timed out after 3 s"
    child = int((tmp_path / "step.log").read_text().splitlines()[-1])
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(process: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def test_the_summary_shows_figures_and_the_end_of_failed_logs(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    log.write_text("$ build\n" + "".join(f"line {i}\n" for i in range(50)) + "10 %\r100 %\n```error\n")
    results = [
        Result("build", "failed", "exit code 1", 3.4, Figures(), log),
        Result("operator_float32", "passed", "", 9.0, Figures("a | b", ["### encoder\n\n| x |"]), log),
        Result("memcheck", "not run", "needs a GPU", 0.0, Figures(), None),
    ]
    text = summarise(results, {"gpus": ["A", "B"], "commit": ""}, title="A day", command="x --y", date="today")
    assert text.startswith("# A day\n\n- date: today\n- command: `x --y`\n- gpus: A, B\n\n### 1 passed, 1 failed")
    assert "| build | failed | 3 | exit code 1 |" in text
    assert "| operator float32 | passed | 9 | a / b |" in text
    assert "## build: exit code 1\n\n```text\n" in text
    assert "line 49\n100 %\n'''error\n```" in text
    assert "line 0\n" not in text


def test_figures_of_logs(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "$ python\n"
        "cpp            float32        1.3e-07         1.7e-07  ok\n"
        "cuda           float16        1.3e-01         1.7e-01  FAILED\n"
        "cuda           float32   on cuda:1 not run: the driver is too old\n"
        "ops: deformable attention runs with cpp on CPUs\n"
    )
    assert figures.backends(log).line == "1 rows ok; cuda float16 FAILED; cuda float32 not run; cpp on CPUs"
    log.write_text("$ python\nops: built in 7 s for CPUs: a.so\nops: deformable attention runs with cpp\n")
    assert figures.built(log).line == "built in 7 s for CPUs: a.so"
    log.write_text("$ x\n========= ERROR SUMMARY: 0 errors\n")
    assert figures.sanitizer(log).line == "0 errors"
    log.write_text("$ x\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n")
    assert figures.sanitizer(log).line.startswith("0 hazards")
    log.write_text('<testsuites><testsuite tests="9" failures="1" errors="1" skipped="2"/></testsuites>')
    assert figures.tests(log).line == "5 passed, 2 failed, 2 skipped"
    log.write_text("$ x\nfirst\nlast\n\n")
    assert figures.last_line(log).line == "last"


def test_figures_of_benchmarks(tmp_path: Path) -> None:
    share = {"forward, share of memory limit": 0.2, "forward, share of L2 limit": 0.6}
    rows = [{"backend": "grid_sample", "forward, ms": 9.0} | share, {"backend": "cuda", "forward, ms": 0.3} | share]
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"tables": {"encoder": rows, "limits": [{"copy, GB/s": 1.0}]}}))
    found = figures.tables(file)
    assert found.line == "encoder: cuda, forward 0.3 ms, 0.20 of the memory limit and 0.60 of the L2 limit"
    assert len(found.tables) == 2
    rows = [{"predicted / measured": 0.9}, {"note": "out of memory"}, {"predicted / measured": 1.1}]
    file.write_text(json.dumps({"tables": {"training": rows}}))
    assert figures.tables(file).line == "2 cases, memory predicted / measured 0.90 to 1.10"
    file.write_text(json.dumps({"detection": {"mAP": 0.123, "mAP_50": None}}))
    assert figures.detection(file).line == "AP 12.3 %"


def test_limits_of_the_operator() -> None:
    """One byte per second: the bytes themselves."""
    call = make_call(3, device=torch.device("cpu"), dtype=torch.bfloat16)
    found = limits(call, Bandwidth(memory=1e3, l2=1e3))
    tokens, samples = sum(height * width for height, width in SHAPES), 3 * 8 * len(SHAPES) * 4
    inputs = tokens * 256 * 2 + samples * 2 * 4 + samples * 2
    assert found["forward, memory"] == inputs + 3 * 256 * 2
    assert found["both, memory"] == 3 * inputs + 2 * 3 * 256 * 2
    assert found["forward, L2"] == samples * 4 * 32 * 2


def test_predictions_are_made_beside_the_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose measurements are replaced."""
    monkeypatch.setattr(detectors, "run_case", lambda case, predicted, options: {"case": str(case), "MiB": predicted})
    arguments = ["detectors", "--device", "cuda", "--side", "64", "--objects", "5", "--batches", "1", "--amp", "none"]
    configs = ["--configs", str(ROOT / "configs/dino_d3q_aitodv2.yaml"), "--set", *plan.TINY]
    options = benchmark.parse([*arguments, *configs])
    (row,) = detectors.rows(options)
    assert row["MiB"] == detectors.predict(detectors.Case(*options.configs, "none", 1), options)
