"""Random damage to annotation files, configs, checkpoints and images ends in an expected error or a valid result.

D3Q_FUZZ_INPUTS sets how many mutations; the fixed seed makes a failure repeatable.
"""

import json
import os
import random
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import main
from configs.loader import ConfigError, dump_config, load_config, parse_config
from datasets.build import build_dataset
from datasets.checks import check_classes
from datasets.findings import one_line
from datasets.images.decode import ImageFile, inspect_image, read_image
from datasets.structures import DataError, SampleKey
from engine.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    Progress,
    load_checkpoint,
    load_weights,
    weights_checkpoint,
)
from engine.checkpoints.sealed_file import write_archive
from models.build import build_detector
from tests.support.tiny_run import write_experiment

CASES = int(os.environ.get("D3Q_FUZZ_INPUTS", "300"))
SECONDS = 20
"""After which a case hangs"""
SETTINGS = ["data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]"]
NAN, INF = float("nan"), float("inf")
NUMBERS = (0, -1, 1, 0.5, -0.0, 1e-320, 1e308, 2**31, 2**53 + 1, 2**63, -(2**63), 10**400, NAN, INF)
TEXTS = (
    "", "\0", "../x", "/etc/passwd", "0.png\n", "\ud800", "x" * 5000, "1", "NaN", "0x10", "null", "%s{0}", "\u202e",
)  # fmt: skip
HOSTILE: tuple[Any, ...] = (*NUMBERS, *TEXTS, None, True, [], {}, [[]], [1, 2, 3, 4], [[[[[[1]]]]]], {"id": {}})
SCALARS = (
    "1e400", "-1", "0", ".nan", "0777", "1:30", "yes", "~", "[]", "{}", "[1, 2]", "{a: b}", "&a x", "*a", "'", "|", ">",
    "!!python/none x", '"\\xZZ"', '"\\UFFFFFFFF"', "- x", "? x", "%YAML 3.0", "---", "...", "\t", "\x00", "[" * 40,
    "99999999999999999999", "x: y: z", "@x", "`x", "<<: {lr: 1}", "\ufeff", "é", "2024-01-01", "1_000", "..",
    "a" * 3000,
)  # fmt: skip
EXPECTED = (DataError, ConfigError, CheckpointError)


class HangError(Exception):
    pass


@contextmanager
def alarm() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(use: Callable[[], Any], label: str) -> str | None:
    """None for an accepted input, or the message of an expected error; anything else fails here."""
    with alarm():
        try:
            use()
        except EXPECTED as error:
            message = str(error)
            assert message, label
            assert all(line == one_line(line) for line in message.split("\n")), (label, message)
            return message
        except Exception as error:
            raise AssertionError(f"{label}: {type(error).__name__}: {error}") from error
    return None


def damage(rng: random.Random, content: bytes) -> bytes:
    """Bytes flipped, cut off, removed, repeated, moved or inserted."""
    data = bytearray(content)
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice((1, 2, 16, 300, 5000)))
    kind = rng.randrange(7)
    if kind == 0:
        for _ in range(rng.choice((1, 1, 3, 40))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[start:]
    elif kind == 2:
        del data[start:end]
    elif kind == 3:
        data[end:end] = data[start:end]
    elif kind == 4:
        data[start:end] = bytes(end - start)
    elif kind == 5:
        data += rng.randbytes(rng.choice((1, 2, 71, 4096)))
    else:
        data[start:start] = rng.choice(
            (b"\xff\xfe", b"\x00", b"[" * 2000, b'"', b"{", b"}", b"\xed\xa0\x80", b"1" * 5000)
        )
    return bytes(data)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Container and key of everything inside."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *places(value[key]))]


def change_value(rng: random.Random, document: Any) -> None:
    found = places(document)
    if not found:
        return
    container, key = rng.choice(found)
    kind = rng.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, list):
        container.append(deepcopy(container[key]))
    elif kind == 2 and isinstance(container, dict):
        container[rng.choice(("id", "bbox", "file_name", "x"))] = container.pop(key)
    elif kind == 3:
        other, name = rng.choice(found)
        container[key] = deepcopy(other[name])
    else:
        container[key] = deepcopy(rng.choice(HOSTILE))


def change_text(rng: random.Random, text: str) -> str:
    lines = text.splitlines()
    row = rng.randrange(len(lines))
    head, colon, value = lines[row].partition(": ")
    kind = rng.randrange(7)
    if kind == 0:
        del lines[row]
    elif kind == 1:
        lines.insert(rng.randrange(len(lines)), lines[row])
    elif kind == 2:
        lines[row] = rng.choice(("  ", "\t", " ", "- ")) + lines[row]
    elif kind == 3:
        lines[row] = f"{rng.choice(SCALARS)}: {value}"
    elif kind == 4:
        lines[row] = lines[row].replace(rng.choice(" :[],{}"), rng.choice(SCALARS), 1)
    else:
        lines[row] = f"{head}{colon or ': '}{rng.choice(SCALARS)}"
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("fuzz"), train=[5, 0, 3], val=[2, 1])


def share(name: str, cases: int = -(-CASES // 3)) -> Iterator[tuple[random.Random, str]]:
    """The given number of cases, each with its own random numbers; a third of all by default."""
    for number in range(cases):
        yield random.Random(f"{name} {number}"), f"{name} {number}"


def test_annotation_files(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = experiment.parent / "data" / "train.json"
    valid = path.read_bytes()
    accepted = 0
    for rng, label in share("annotations"):
        content = valid
        if rng.random() < 0.3:
            content = damage(rng, content)
        else:
            document = json.loads(content)
            for _ in range(rng.choice((1, 1, 2, 5))):
                change_value(rng, document)
            content = json.dumps(document).encode()
        path.write_bytes(content)
        policy, training = rng.choice(("error", "skip")), rng.random() < 0.7
        settings = [*SETTINGS, f"data.on_bad_annotation={policy}"]

        def use(settings: list[str] = settings, training: bool = training) -> None:
            config = load_config(experiment, settings)
            if not training:
                settings = [*settings, "data.val.annotations=train.json", "data.val.images=train"]
                config = load_config(experiment, settings)
            dataset = build_dataset(config.data, training=training, seed=0)
            check_classes(dataset, config.model.num_classes)
            assert str(dataset.statistics())
            for index in range(len(dataset)):
                image, target = dataset[SampleKey(1, index)]
                boxes = target.boxes_xyxy
                assert torch.isfinite(image).all()
                assert torch.isfinite(boxes).all()
                assert ((boxes >= 0) & (boxes <= 48)).all()
                assert ((target.labels >= 0) & (target.labels < 2)).all()
                dataset.ground_truth(index)

        accepted += outcome(use, label) is None
        if rng.random() < 0.02:
            arguments = ["--config", str(experiment), "--check", "--set", f"data.on_bad_annotation={policy}"]
            with alarm():
                code = main.main([*arguments, f"runtime.output_dir={experiment.parent / 'run'}"])
            assert code in (0, 3), (label, code)
            assert "Traceback" not in "".join(capsys.readouterr()), label
    path.write_bytes(valid)
    assert CASES / 60 < accepted < CASES / 4


def test_configs(experiment: Path) -> None:
    valid = experiment.read_text()
    shipped = [path.read_text() for path in Path(main.__file__).parent.glob("configs/*.yaml")]
    resolved = dump_config(load_config(experiment))
    path = experiment.with_name("fuzzed.yaml")
    accepted = 0
    for rng, label in share("configs"):
        text = rng.choice((valid, resolved, *shipped))
        if rng.random() < 0.3:
            path.write_bytes(damage(rng, text.encode()))
        else:
            for _ in range(rng.choice((1, 1, 2, 5))):
                text = change_text(rng, text)
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
        override = [f"optim.lr={rng.choice(SCALARS)}"] if rng.random() < 0.1 else []

        def use(override: list[str] = override) -> None:
            config = load_config(path, override)
            assert parse_config(dump_config(config), "again") == config

        accepted += outcome(use, label) is None
    assert accepted < CASES / 5
    path.write_text(valid)
    assert load_config(path) == load_config(experiment)  # what is not damaged is accepted


def test_checkpoints(experiment: Path, tmp_path: Path) -> None:
    config = load_config(experiment)
    detector = build_detector(config)
    checkpoint = weights_checkpoint(detector.state_dict(), config=dump_config(config), categories=["square", "other"])
    path = tmp_path / "fuzzed.pth"
    write_archive(path, checkpoint.content())
    valid = path.read_bytes()
    names = ["format", *(field.name for field in fields(Checkpoint))]
    counts = [field.name for field in fields(Progress)]
    for rng, label in share("checkpoints"):
        if rng.random() < 0.8:
            content = damage(rng, unsealed(valid) if rng.random() < 0.1 else valid)
            path.write_bytes(content)
            assert outcome(lambda: load_checkpoint(path), label) is not None or content == valid, label
            continue
        hostile = checkpoint.content() | {rng.choice(names): rng.choice((*HOSTILE[: len(NUMBERS)], *HOSTILE[-8:], "x"))}
        if rng.random() < 0.3:
            hostile["progress"] = vars(Progress()) | {rng.choice(counts): rng.choice(HOSTILE)}
        if rng.random() < 0.5:  # sealed all the same: no accident, but not a reason for a traceback
            hostile["model"] = {**checkpoint.model, rng.choice(list(checkpoint.model)): torch.zeros(rng.randrange(4))}
        write_archive(path, hostile)

        def use(label: str = label) -> None:
            loaded = load_checkpoint(path)
            load_weights(detector, loaded.model, source=label)
            parse_config(loaded.config, label)

        outcome(use, label)


def test_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    for kind, mode in (("PNG", "RGB"), ("PNG", "P"), ("JPEG", "RGB"), ("TIFF", "CMYK"), ("GIF", "P"), ("WEBP", "RGB")):
        path = tmp_path / f"{mode}.{kind.lower()}"
        Image.fromarray(pixels).convert(mode).save(path)
        valid = path.read_bytes()
        file = ImageFile(path, size=(40, 48), entry="train.json: images[3]")

        def use(file: ImageFile = file) -> None:
            inspect_image(file)
            image = read_image(file)
            assert (image.mode, image.size) == ("RGB", (48, 40))

        for rng, label in share(f"{mode} {kind}", CASES // 18):
            path.write_bytes(damage(rng, valid))
            outcome(use, label)


def unsealed(content: bytes) -> bytes:
    """The same archive without the checksum at its end."""
    end = content.rindex(b"PK\x05\x06")
    return content[: end + 20] + b"\0\0"


def test_the_unsealed_file_is_an_archive(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.pth", {"a": 1})
    (tmp_path / "b.pth").write_bytes(unsealed((tmp_path / "a.pth").read_bytes()))
    assert zipfile.ZipFile(tmp_path / "b.pth").testzip() is None
