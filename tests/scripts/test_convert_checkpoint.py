"""scripts/convert_checkpoint.py: from and to mmdetection, from the original repositories, and its refusals."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import main
from configs.loader import load_config, parse_config
from engine.checkpoints.checkpoint import load_checkpoint
from engine.checkpoints.key_mapping import mmdetection_naming, to_mmdetection
from models.build import build_detector
from scripts import convert_checkpoint
from tests.support.foreign_files import save_like_mmengine
from tests.support.original_detectors import original_state
from tests.support.tiny_run import write_experiment

CLASSES = ["square", "other"]
BASELINE = [
    "model.d3q=null",
    "model.num_queries=20",
    "criterion.box_distance=l1",
    "criterion.decoder.classification=focal",
]


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_experiment(tmp_path, train=[3, 1], val=[4, 0, 2])


def detector_state(config: Path, *settings: str) -> dict[str, Tensor]:
    """Random weights, none at its initial value."""
    torch.manual_seed(1)
    state = build_detector(load_config(config, settings)).state_dict()
    return {name: value + 0.01 * torch.rand_like(value) for name, value in state.items()}


def published(config: Path, *settings: str) -> dict[str, Tensor]:
    """The same under mmdetection's names."""
    model = load_config(config, settings).model
    naming = mmdetection_naming(detector=model.detector, num_layers=model.decoder.num_layers)
    return to_mmdetection(detector_state(config, *settings), naming)


def convert(*arguments: object) -> int:
    return convert_checkpoint.main([str(argument) for argument in arguments])


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def numbers(folder: Path) -> dict:
    record = json.loads((folder / "evaluation.json").read_text())
    return {key: record[key] for key in ("detection", "classes", "counts")}


def test_to_mmdetection_and_back_gives_the_same_weights_and_numbers(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["runtime.output_dir=run", "optim.epochs=1"]
    assert main.main(["--config", str(experiment), "--set", *settings]) == 0
    assert convert("run/last.pth", "--to", "mmdetection", "--out", "there.pth") == 0
    content = torch.load("there.pth", weights_only=True)
    assert list(content["meta"]["dataset_meta"]["classes"]) == CLASSES
    counters = [name for name in content["state_dict"] if name.endswith("num_batches_tracked")]
    assert len(counters) == len([name for name in content["state_dict"] if name.endswith("running_var")]) > 0

    save_like_mmengine(Path("published.pth"), content["state_dict"], CLASSES)
    arguments = ["published.pth", "--from", "mmdetection", "--config", experiment, "--out", "weights/here.pth"]
    capsys.readouterr()
    assert convert(*arguments) == 0
    out = capsys.readouterr().out
    before, after = load_checkpoint(Path("run/last.pth")), load_checkpoint(Path("weights/here.pth"))
    assert equal(before.model, after.model)
    assert f"{len(before.model):5d}  loaded: backbone.conv1.weight" in out
    assert f"{len(counters):5d}  skipped, batch counters" in out
    assert "    0  kept at initial values" in out
    assert hashlib.sha256(Path("weights/here.pth").read_bytes()).hexdigest() in out
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["here.pth"]
    assert parse_config(after.config, "x").data.mean is not None

    assert main.main(["--eval", "--resume", "run/last.pth"]) == 0
    assert main.main(["--eval", "--resume", "weights/here.pth"]) == 0
    assert numbers(Path("runs/eval_here")) == numbers(Path("run/evaluation_last"))


def test_the_result_starts_a_run_but_is_none_to_go_on_with(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_like_mmengine(Path("x.pth"), published(experiment), CLASSES)
    assert convert("x.pth", "--from", "mmdetection", "--config", experiment, "--out", "here.pth") == 0
    capsys.readouterr()
    assert main.main(["--resume", "here.pth"]) == 4
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert "init_from=here.pth" in message
    start = ["init_from=here.pth", "runtime.output_dir=run", "optim.epochs=1", "optim.lr=1e-12"]
    assert main.main(["--config", str(experiment), "--set", *start]) == 0
    first, second = load_checkpoint(Path("here.pth")).model, load_checkpoint(Path("run/last.pth")).model
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_heads_of_another_size_are_reset_only_when_asked(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in starting D3Q from a trained DINO: softmax heads, density branch and a longer query table are new."""
    save_like_mmengine(Path("dino.pth"), published(experiment, *BASELINE), CLASSES)
    arguments = ["dino.pth", "--from", "mmdetection", "--config", experiment, "--out", "here.pth"]
    assert convert(*arguments) == 4
    message = capsys.readouterr().err
    assert "4 tensors missing, 0 unexpected, 4 of another shape; first: query_budget.density_branch" in message
    assert "--reset-head" in message
    assert not Path("here.pth").exists()

    assert convert(*arguments, "--reset-head") == 0
    out = capsys.readouterr().out
    assert "    8  kept at initial values: " in out
    assert "    1  loaded in part: content_queries.weight: all 20 trained rows, 10 more at initial values\n" in out
    model, trained = load_checkpoint(Path("here.pth")).model, detector_state(experiment, *BASELINE)
    assert torch.equal(model["content_queries.weight"][:20], trained["content_queries.weight"])
    config = load_config(experiment)
    torch.manual_seed(config.runtime.seed)
    initial = build_detector(config).state_dict()
    for name in ("decoder.heads.classifiers.1.weight", "query_budget.density_branch.output.bias"):
        assert torch.equal(model[name], initial[name]), name
    assert torch.equal(model["proposal_head.classifier.weight"], trained["proposal_head.classifier.weight"])

    save_like_mmengine(Path("d3q.pth"), published(experiment), CLASSES)
    back = ["d3q.pth", "--from", "mmdetection", "--config", experiment, "--out", "back.pth", "--reset-head"]
    assert convert(*back, "--set", *BASELINE) == 0
    out = capsys.readouterr().out
    assert "    4  skipped, of which this config's detector has none: query_budget.density_branch" in out


PREFIXES = [
    "module.",
    "model.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.module._orig_mod.model.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_that_all_names_share_are_taken_off(
    experiment: Path, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = published(experiment)
    save_like_mmengine(Path("x.pth"), {prefix + name: value for name, value in state.items()}, CLASSES)
    arguments = ["--from", "mmdetection", "--config", experiment, "--out"]
    assert convert("x.pth", *arguments, "here.pth") == 0
    assert f"weights: under state_dict, all names without their {prefix}\n" in capsys.readouterr().out
    assert equal(load_checkpoint(Path("here.pth")).model, detector_state(experiment))
    bare, *others = state
    partly = {bare: state[bare], **{prefix + name: state[name] for name in others}}
    save_like_mmengine(Path("y.pth"), partly, CLASSES)
    assert convert("y.pth", *arguments, "there.pth") == 4
    assert re.search(r"y.pth: another architecture: \d+ tensors missing, \d+ unexpected, 0 of", capsys.readouterr().err)


def test_a_backbone_file_may_have_prefixes_too(experiment: Path) -> None:
    state = {k.removeprefix("backbone."): v for k, v in detector_state(experiment).items() if k.startswith("backbone.")}
    torch.save({f"module._orig_mod.{name}": value for name, value in state.items()}, "resnet.pth")
    start = ["model.backbone.weights=resnet.pth", "runtime.output_dir=run", "optim.epochs=1", "optim.lr=1e-12"]
    assert main.main(["--config", str(experiment), "--set", *start]) == 0
    model = load_checkpoint(Path("run/last.pth")).model
    assert all(torch.allclose(model[f"backbone.{name}"], value, atol=1e-6) for name, value in state.items())


def test_trained_query_rows_are_kept_in_a_longer_table(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_like_mmengine(Path("x.pth"), published(experiment, "model.num_queries=20"), CLASSES)
    assert convert("x.pth", "--from", "mmdetection", "--config", experiment, "--out", "here.pth") == 0
    assert "    1  loaded in part: content_queries.weight: all 20 trained rows, 10 more" in capsys.readouterr().out
    trained = detector_state(experiment, "model.num_queries=20")["content_queries.weight"]
    assert torch.equal(load_checkpoint(Path("here.pth")).model["content_queries.weight"][:20], trained)


def test_from_the_original_repositories(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [*BASELINE, "model.neck.bias=true"]
    state = original_state(load_config(experiment, settings), num_classes=2, label_rows=3)
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 11}, "dino.pth")
    arguments = ["dino.pth", "--from", "original", "--config", experiment, "--out", "here.pth"]
    names = ["--categories", ", ".join(CLASSES)]
    assert convert(*arguments, *names, "--set", *BASELINE) == 4
    assert "model.neck.bias=true" in capsys.readouterr().err
    assert convert(*arguments, *names, "--set", *settings) == 0
    out = capsys.readouterr().out
    assert "    1  skipped, rows of the label table" in out
    checkpoint = load_checkpoint(Path("here.pth"))
    assert torch.equal(
        checkpoint.model["decoder.layers.0.cross_norm.bias"], state["transformer.decoder.layers.0.norm1.bias"]
    )
    assert checkpoint.categories == CLASSES
    assert main.main(["--eval", "--resume", "here.pth"]) == 0

    plain = {name: value for name, value in state.items() if not name.startswith("transformer.decoder.bbox_embed")}
    torch.save(plain, "plain.pth")
    arguments = ["plain.pth", "--from", "original", "--config", experiment, "--out", "plain_here.pth"]
    assert convert(*arguments, *names, "--set", *settings) == 4
    assert "box refinement" in capsys.readouterr().err


def test_classes_of_coco(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """91 rows, label = category id; the label table of the published file has one row more."""
    settings = [*BASELINE, "model.neck.bias=true", "model.num_classes=null"]
    state = original_state(load_config(experiment, settings), num_classes=91, label_rows=92)
    torch.save({"model": state}, "dino.pth")
    arguments = ["dino.pth", "--from", "original", "--config", experiment, "--out", "here.pth"]
    assert convert(*arguments, "--categories", "coco91", "--set", *settings) == 0
    checkpoint = load_checkpoint(Path("here.pth"))
    names = checkpoint.categories
    assert [names[label] for label in (0, 1, 5, 13, 44, 62, 72, 90)] == [
        *("unused 0", "person", "airplane", "stop sign", "bottle", "chair", "tv", "toothbrush")
    ]
    assert len(set(names)) == 91
    assert sum(name.startswith("unused ") for name in names) == 11
    assert len(checkpoint.model["proposal_head.classifier.bias"]) == 91
    assert "  num_classes: 91\n" in checkpoint.config


def test_a_backbone_takes_the_way_of_backbone_weights(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = "backbone."
    state = {k.removeprefix(prefix): v for k, v in detector_state(experiment).items() if k.startswith(prefix)}
    torch.save(state | {"fc.weight": torch.zeros(2, 2)}, "resnet.pth")
    arguments = ["resnet.pth", "--from", "torchvision", "--config", experiment, "--categories", "square,other"]
    assert convert(*arguments, "--out", "here.pth") == 0
    assert f"{len(state):5d}  loaded: backbone.conv1.weight" in capsys.readouterr().out
    model = load_checkpoint(Path("here.pth")).model
    assert equal({k.removeprefix(prefix): v for k, v in model.items() if k.startswith(prefix)}, state)

    torch.save({k: v for k, v in state.items() if k != "bn1.weight"}, "resnet.pth")
    assert convert(*arguments, "--out", "other.pth") == 4
    assert "1 tensors missing" in capsys.readouterr().err
    torch.save(state | {"bn1.weight": state["bn1.weight"] * torch.nan}, "resnet.pth")
    assert convert(*arguments, "--out", "other.pth") == 4
    assert "NaN or infinite values in 1 tensors; first: bn1.weight" in capsys.readouterr().err
    assert not Path("other.pth").exists()


def test_where_the_classes_come_from(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_like_mmengine(Path("named.pth"), published(experiment), ["ship", "car"])
    save_like_mmengine(Path("nameless.pth"), published(experiment), None)
    common = ["--from", "mmdetection", "--config", experiment, "--out"]
    assert convert("named.pth", *common, "a.pth") == 0
    assert load_checkpoint(Path("a.pth")).categories == ["ship", "car"]
    assert convert("nameless.pth", *common, "b.pth", "--annotations", "data/val.json") == 0
    assert load_checkpoint(Path("b.pth")).categories == CLASSES
    assert convert("named.pth", *common, "c.pth", "--categories", "square,other", "--reset-head") == 0
    assert load_checkpoint(Path("c.pth")).categories == CLASSES
    model, trained = load_checkpoint(Path("c.pth")).model, detector_state(experiment)
    for name in model:  # heads of other classes start fresh, although they would fit
        of_classes = "classifier" in name or "label_embedding" in name
        assert torch.equal(model[name], trained[name]) != of_classes, name
    refused = {
        ("named.pth", "--categories", "car,ship"): (4, "its classes are ship, car, not car, ship"),
        ("nameless.pth",): (2, "--annotations"),
        ("nameless.pth", "--categories", "a,b,c"): (4, "model.num_classes=3"),
        ("nameless.pth", "--categories", "a,,b"): (2, "a,,b"),
        ("nameless.pth", "--annotations", "none.json"): (3, "none.json"),
    }
    for (file, *names), (code, fragment) in refused.items():
        assert convert(file, *common, "d.pth", *names) == code
        assert fragment in capsys.readouterr().err
    assert not Path("d.pth").exists()


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo executed > executed.txt",)


def test_bad_files_end_with_one_message_and_nothing_written(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = published(experiment)
    nan = good | {"decoder.norm.weight": torch.full((16,), torch.nan)}
    wider = published(experiment, "model.hidden_dim=32")
    bad = {
        "nan": (nan, "NaN or infinite values in 1 of"),
        "wider": (wider, "of another shape; first: "),
        "one_stage": ({**good, "reference_points.weight": torch.zeros(2, 16)}, "1 unexpected"),
        "unrelated": ({"fc.weight": torch.zeros(2, 2)}, f"{len(detector_state(experiment))} tensors missing"),
    }
    for name, (state, fragment) in bad.items():
        save_like_mmengine(Path(f"{name}.pth"), state, CLASSES)
        command = [f"{name}.pth", "--from", "mmdetection", "--config", experiment, "--out", "new/here.pth"]
        assert convert(*command) == 4, name
        message = capsys.readouterr().err
        assert message.startswith(f"error: {name}.pth: ")
        assert len(message.splitlines()) == 1
        assert fragment in message
    torch.save({"state_dict": good, "meta": RunsCode()}, "hostile.pth")
    assert convert("hostile.pth", "--from", "mmdetection", "--config", experiment, "--out", "new/here.pth") == 4
    assert "names posix.system" in capsys.readouterr().err
    assert not Path("executed.txt").exists()
    Path("cut.pth").write_bytes(Path("nan.pth").read_bytes()[:5000])
    assert convert("cut.pth", "--from", "mmdetection", "--config", experiment, "--out", "new/here.pth") == 4
    assert "cut.pth" in capsys.readouterr().err
    torch.save({"state_dict": good}, "here.pth")
    assert convert("here.pth", "--to", "mmdetection", "--out", "new/here.pth") == 4
    assert "not a checkpoint of this project" in capsys.readouterr().err
    assert not Path("new").exists()


def test_usage(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("there.pth").write_bytes(b"precious")
    config = ["--config", experiment]
    refused = {
        ("x.pth", "--from", "mmdetection", *config, "--out", "there.pth"): "there.pth exists",
        ("x.pth", "--from", "mmdetection", "--out", "new.pth"): "--config",
        ("x.pth", "--to", "mmdetection", *config, "--out", "new.pth"): "the checkpoint's own config",
        ("x.pth", "--from", "mmdetection", *config, "--out", "new.pth", "--set", "model.x=1"): "model.x",
    }
    for arguments, fragment in refused.items():
        assert convert(*arguments) == 2, arguments
        assert fragment in capsys.readouterr().err
    assert Path("there.pth").read_bytes() == b"precious"
