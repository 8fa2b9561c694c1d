"""No console ends the work: lacking characters, a reader that left, a terminal that is gone, a full disk, or none."""

import ast
import fcntl
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pytest

import main
from configs.describe import describe_schema
from engine.commands import train
from engine.console import guard_console
from scripts import convert_checkpoint
from tests.support.tiny_run import write_experiment

ROOT = Path(main.__file__).parent
NAMES = ["小型车辆", "\udcff plane"]
"""Of classes: characters that no western console has, and a lone surrogate that no console has"""


class Blocked(io.StringIO):
    """A stream that does not wait for its reader, who is slow once."""

    waits = 1

    def write(self, text: str) -> int:
        if self.waits:
            self.waits -= 1
            raise BlockingIOError(11, "write could not complete without blocking")
        return super().write(text)


def western() -> TextIO:
    return io.TextIOWrapper(io.BytesIO(), encoding="cp1252")


def ascii_only() -> TextIO:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


def left_by_its_reader() -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def gone_terminal() -> TextIO:
    master, slave = pty.openpty()
    os.close(master)
    return open(slave, "w")


def full() -> TextIO:
    return open("/dev/full", "w")


def closed() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


def nothing() -> None:
    """What Python has for a descriptor that was closed at the start."""
    return None


CONSOLES: list[Callable[[], TextIO | None]] = [
    western,
    ascii_only,
    left_by_its_reader,
    gone_terminal,
    full,
    closed,
    nothing,
]
each_console = pytest.mark.parametrize("console", CONSOLES, ids=lambda console: console.__name__)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = write_experiment(tmp_path_factory.mktemp("data"), train=[3, 1], val=[2, 1])
    for name in ("train.json", "val.json"):
        path = config.parent / "data" / name
        content = json.loads(path.read_text())
        content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
        path.write_text(json.dumps(content))
    return config


def begin(experiment: Path, folder: Path) -> list[str]:
    settings = ["optim.epochs=1", "optim.lr_drop_epochs=[]"]
    return ["--config", str(experiment), "--set", f"runtime.output_dir={folder}", *settings]


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Callable[[TextIO | None], None]:
    def replace(stream: TextIO | None) -> None:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)

    return replace


@each_console
def test_nothing_that_is_printed_raises(
    console: Callable[[], TextIO | None], replaced: Callable[[TextIO | None], None]
) -> None:
    stream = console()
    replaced(stream)
    guard_console()
    for _ in range(3):
        print("".join(NAMES), flush=True)
        print("".join(NAMES), file=sys.stderr, flush=True)
        sys.stdout.writelines(NAMES)
        assert not sys.stdout.isatty()
    if isinstance(stream, io.TextIOWrapper) and isinstance(stream.buffer, io.BytesIO):
        assert rb"\u5c0f\u578b\u8f66\u8f86\udcff plane" in stream.buffer.getvalue()
    elif stream is not None and console is not closed:
        stream.close()  # what it still held goes nowhere: without an error


def test_a_stream_that_does_not_wait_loses_a_line_and_stays(replaced: Callable[[TextIO | None], None]) -> None:
    stream = Blocked()
    replaced(stream)
    guard_console()
    print("lost", end="")
    print("there", end="")
    assert stream.getvalue() == "there"


def test_a_full_stdout_is_said_on_stderr_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", full())
    guard_console()
    for _ in range(3):
        print("text", flush=True)
    assert capsys.readouterr().err == "warning: stdout is dropped, it cannot be written (No space left on device)\n"


@pytest.mark.parametrize("console", [western, left_by_its_reader, full, nothing], ids=lambda console: console.__name__)
def test_a_run_continues_and_its_log_is_complete(
    console: Callable[[], TextIO | None],
    replaced: Callable[[TextIO | None], None],
    experiment: Path,
    tmp_path: Path,
) -> None:
    replaced(console())
    assert main.main(begin(experiment, tmp_path / "run")) == 0
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert NAMES[0] in log
    assert r"\udcff plane" in log
    assert "] done: 1 epoch, 1 step in" in log
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 0


@each_console
def test_a_check_an_error_and_a_conversion_keep_their_exit_codes(
    console: Callable[[], TextIO | None],
    replaced: Callable[[TextIO | None], None],
    experiment: Path,
    trained: Path,
    tmp_path: Path,
) -> None:
    replaced(console())
    assert main.main([*begin(experiment, tmp_path / "run"), "--check"]) == 0
    assert main.main([*begin(experiment, tmp_path / "run"), "data.root=小型车辆", "--check"]) == 3
    assert main.main([*begin(experiment, tmp_path / "run"), "data.小=1"]) == 2
    assert main.main([*begin(experiment, tmp_path / "run"), "--print-config"]) == 0
    assert main.main(["--eval", "--resume", str(trained)]) == 0
    there, back = tmp_path / "there.pth", tmp_path / "back.pth"
    assert convert_checkpoint.main([str(trained), "--to", "mmdetection", "--out", str(there)]) == 0
    given = ["--from", "mmdetection", "--config", str(experiment), "--out", str(back)]
    assert convert_checkpoint.main([str(there), *given]) == 0
    assert back.is_file()


@pytest.fixture(scope="module")
def trained(experiment: Path) -> Path:
    folder = experiment.parent / "trained"
    assert main.main(begin(experiment, folder)) == 0
    return folder / "last.pth"


@pytest.mark.parametrize("name", ["log.txt", "config.yaml", "evaluation/evaluation.txt", "evaluation/evaluation.json"])
def test_a_file_of_the_run_that_cannot_be_written_is_an_error_as_before(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "run"

    def fill_disk(*_: object) -> None:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).symlink_to("/dev/full")

    monkeypatch.setattr(train, "require_folder", fill_disk)  # it refuses a folder with files that are not of a run
    assert main.main(begin(experiment, folder)) == 2
    place = (folder / name).parent if "/" in name else folder / name
    assert f"error: {place}: not written (No space left on device" in capsys.readouterr().err


CRASH = [sys.executable, "-c", "'from engine import console; console.guard_console(); raise KeyError'"]
DESCRIBE = [sys.executable, "-m", "configs.describe"]


@pytest.mark.parametrize(
    ("shell", "error"),
    [
        ("{} | true", ""),
        ("{} | head -1", ""),
        ("{} >&-", ""),
        ("{} 2>&-", None),
        ("{} >/dev/full", "warning: stdout is dropped, it cannot be written (No space left on device)\n"),
        ("{} >/dev/full 2>/dev/full", None),
    ],
)
def test_the_end_of_a_program_is_quiet_too(shell: str, error: str | None) -> None:
    """Python writes out what is left, and would exit with 120."""
    command = shell.format(" ".join(DESCRIBE))
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert error is None or done.stderr == error


@pytest.mark.parametrize("broken", ["2>/dev/full", "2>&-", "2>&1 | true"])
def test_an_unexpected_error_keeps_its_exit_code(broken: str) -> None:
    command = f"set -o pipefail; {' '.join(CRASH)} {broken}"
    assert subprocess.run(["bash", "-c", command], cwd=ROOT, timeout=100).returncode == 1


def test_a_pipe_that_does_not_wait_for_its_reader_loses_nothing() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    with subprocess.Popen(DESCRIBE, cwd=ROOT, stdout=writer) as process, open(reader) as pipe:
        os.close(writer)
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)  # the reader is slow
        assert pipe.read() == describe_schema()
    assert process.returncode == 0


def test_no_file_gets_the_number_of_a_closed_descriptor(tmp_path: Path) -> None:
    code = "import os; from engine import console; console.guard_console(); "
    code += "f = open('a', 'w'); g = os.open('b', os.O_CREAT); "
    code += "os.write(2, b'stray'); os.system('echo stray'); open('c', 'w').write(f'{f.fileno()} {g}')"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    script = tmp_path / "program.py"
    script.write_text(code)
    command = f"{sys.executable} program.py <&- >&- 2>&-"
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=True, timeout=100)
    assert min(map(int, (tmp_path / "c").read_text().split())) > 2
    assert (tmp_path / "a").read_text() == ""


def programs() -> list[Path]:
    places = (path for name in ("configs", "ops", "scripts") for path in (ROOT / name).rglob("*.py"))
    return sorted(path for path in [ROOT / "main.py", *places] if '__name__ == "__main__"' in path.read_text())


@pytest.mark.parametrize("path", programs(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_program_guards_its_console_first(path: Path) -> None:
    *_, block = ast.parse(path.read_text()).body
    assert isinstance(block, ast.If)
    functions = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    steps = functions["main"].body if "main" in functions else block.body
    texts = [ast.unparse(node) for node in steps if not isinstance(getattr(node, "value", None), ast.Constant)]
    assert texts[0] == "guard_console()" or "main.main(" in texts[-1]


def test_there_are_programs() -> None:
    found = {path.name for path in programs()}
    assert {"main.py", "convert_checkpoint.py", "describe.py", "build.py", "facts.py"} <= found
