"""Every kind: `auto` recognises its tree, and the experiment that is written loads, trains and evaluates."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import main
from configs.loader import load_config
from scripts import prepare
from scripts.support.experiment import advise_tiles, choose_image_size
from tests.scripts.converters import test_aitod, test_dior, test_geo, test_neon, test_soda, test_tinyperson, test_xview
from tests.scripts.converters.trees import run

TREES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "ai-tod": ("aitod", test_aitod.devkit),
    "ai-tod, text": ("aitod", test_aitod.generator),
    "dior": ("dior", test_dior.tree),
    "geo": ("geo", test_geo.tree),
    "neon": ("neon", test_neon.evaluation),
    "neon, wheel": ("neon", test_neon.wheel),
    "soda-a": ("soda", test_soda.soda_a_flat),
    "soda-d": ("soda", test_soda.soda_d),
    "tinyperson": ("tinyperson", test_tinyperson.tree),
    "xview": ("xview", test_xview.tree),
}


ALL = [(name, ["--small"]) for name in TREES]
ALL += [("geo", []), *(("soda-d", ["--detector", detector]) for detector in prepare.DETECTORS)]


@pytest.mark.parametrize(("name", "more"), ALL)
def test_the_experiment_loads(name: str, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind, tree = TREES[name]
    tree(tmp_path / "any name")
    manifest = run("auto", tmp_path / "any name", tmp_path / "mine", *more)
    printed = capsys.readouterr().out
    assert f"taken for {kind}: " in printed
    assert manifest["options"]["kind"] == kind
    assert printed.splitlines()[-1].startswith("python main.py --config ")
    detector = more[1] if more[1:] else "dino_d3q"
    config = load_config(tmp_path / "mine" / f"{detector}_mine.yaml")
    assert f"{config.model.detector}{'_d3q' if config.model.d3q else ''}" == detector
    assert config.model.num_classes == len(manifest["classes"])
    assert config.data.root == str(tmp_path / "mine")
    assert (tmp_path / "mine" / "samples.jpg").is_file()


@pytest.mark.parametrize("name", TREES)
def test_the_experiment_trains_and_evaluates(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the backbone's weights, and smaller; the other kinds: `test_prepare.py`."""
    monkeypatch.chdir(tmp_path)
    _, tree = TREES[name]
    tree(tmp_path / "any name")
    run("auto", tmp_path / "any name", Path("mine"), "--small")
    settings = ["model.backbone.weights=null", "optim.epochs=2", "optim.lr_drop_epochs=[]", "runtime.device=cpu"]
    settings += ["evaluation.gallery_images=0", "evaluation.every_epochs=2", "data.image_size=[64,64]"]
    settings += ["data.batch_size=1", "data.num_workers=0"]
    assert main.main(["--config", "mine/dino_d3q_mine.yaml", "--set", *settings]) == 0
    report = json.loads(Path("runs/dino_d3q_mine/evaluation/evaluation.json").read_text())
    assert report["step"] >= 2
    assert 0 <= (report["detection"]["mAP"] or 0) <= 1
    classes = json.loads(Path("mine/manifest.json").read_text())["classes"]
    assert report["fingerprint"]["classes"] == classes


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("ai-tod", "aitod/images/trainval/1141__0_0.png"),
        ("soda-a", "Images/00001.jpg"),
        ("soda-d", "Images/train_1.jpg"),
        ("tinyperson", "test/bb_3.jpg"),
        ("xview", "train_images/100.tif"),
    ],
)
def test_missing_images_are_an_error_or_dropped(
    name: str, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, tree = TREES[name]
    tree(tmp_path / "tree")
    for path in (tmp_path / "tree").rglob(Path(image).name):
        path.unlink()
    run("auto", tmp_path / "tree", tmp_path / "out", code=3)
    message = capsys.readouterr().err
    assert Path(image).name in message
    assert "--skip-bad drops" in message
    manifest = run(kind, tmp_path / "tree", tmp_path / "out", "--skip-bad", "--val-share", 0.5)
    assert manifest["fixed_or_dropped"]["missing_image"] >= 1


@pytest.mark.parametrize("name", ["ai-tod", "geo", "neon", "soda-a", "tinyperson", "xview"])
def test_classes_are_chosen_from_those_of_the_tree(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, tree = TREES[name]
    tree(tmp_path / name)
    run(kind, tmp_path / name, tmp_path / "out", "--classes", "unicorn", code=3)
    assert "--classes unicorn: " in capsys.readouterr().err


def test_tiles_are_advised_for_large_images() -> None:
    sizes = np.array([[3000, 3200]])
    assert advise_tiles(sizes, choose_image_size(sizes, small=False)) == [
        "images, and objects, are shrunk by 3.1; to keep their size: --tile 1024"
    ]
    assert advise_tiles(sizes // 3, choose_image_size(sizes // 3, small=False)) == []


def test_no_kind_is_left_out() -> None:
    assert sorted(prepare.AUTO_ORDER) == sorted(prepare.KINDS)
