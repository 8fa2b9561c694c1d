"""hubconf.py: what torch.hub loads, every kind of image, the wrong checkpoint, the README's example."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs.loader import dump_config
from datasets.structures import DataError
from engine.checkpoints.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, weights_checkpoint
from engine.commands.hub import ImageDetector
from engine.distributed.rendezvous import StartError
from tests.support.shrunken import SYSTEMS, small_config, small_detector

ROOT = Path(__file__).parents[2]
NAMES = [f"class {i}" for i in range(8)]


def save(path: Path, system: str) -> Path:
    config = small_config(system, "data.image_size=[96,96]", "data.mean=[0.5,0.5,0.5]", "data.std=[0.2,0.2,0.2]")
    state = small_detector(config).state_dict()
    save_checkpoint(path, weights_checkpoint(state, config=dump_config(config), categories=NAMES, resize_factor=1.0))
    return path


def load(entry: str, checkpoint: Path) -> ImageDetector:
    return torch.hub.load(str(ROOT), entry, source="local", checkpoint=checkpoint, device="cpu")


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_system_has_an_entry_point(system: str, tmp_path: Path) -> None:
    entry = system.removesuffix("_aitodv2")
    detector = load(entry, save(tmp_path / "x.pth", system))
    found = detector.predict(Image.effect_noise((90, 60), 80), conf=0)
    assert len(found) == len(found.scores) == len(found.names) > 0
    assert set(found.names) <= set(NAMES)
    assert (found.boxes[:, 2:] <= torch.tensor([90, 60])).all()
    assert (found.predicted_count is not None) == entry.endswith("_d3q")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> ImageDetector:
    return load("dino_d3q", save(tmp_path_factory.mktemp("hub") / "x.pth", "dino_d3q_aitodv2"))


def test_every_kind_of_image_gives_the_same_detections(detector: ImageDetector, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    images = [tmp_path / "x.png", str(tmp_path / "x.png"), Image.fromarray(pixels), pixels, tensor, tensor / 255]
    boxes = [detector.predict(image, conf=0).boxes for image in images]
    assert all(torch.equal(each, boxes[0]) for each in boxes)
    assert not torch.equal(detector.predict(pixels[:, :, ::-1].copy(), conf=0).boxes, boxes[0])  # BGR is another image


def test_large_images_are_cut_into_tiles(detector: ImageDetector) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (150, 400, 3), dtype=np.uint8)
    whole, tiled = detector.predict(pixels[:96, :96], conf=0), detector.predict(pixels, conf=0)
    assert tiled.num_queries >= 6 * 12
    assert len(whole) <= whole.num_queries
    assert float(tiled.boxes[:, 0].max()) > 300


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((5, 5), np.uint8), ValueError, r"an array of shape \(5, 5\), uint8, is no image; give uint8"),
        (np.zeros((5, 5, 3), np.float32), ValueError, r"float32, is no image"),
        (torch.zeros(5, 5, 3), ValueError, r"a tensor of shape \(5, 5, 3\) is no RGB image; give \(3, H, W\)"),
        (torch.full((3, 5, 5), 2.0), ValueError, r"must lie in \[0, 1\], this one in \[2, 2\]; do not normalise it"),
        ("missing.png", DataError, r"missing\.png: no such image"),
    ],
)
def test_other_input_is_refused(detector: ImageDetector, image: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        detector.predict(image)  # type: ignore[arg-type]


def test_the_program_that_loads_it_keeps_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers and threads, also under torchrun, whose process group is not ours."""
    path = save(tmp_path / "x.pth", "dino_aitodv2")
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    torch.manual_seed(3)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(3)
    load("dino", path)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert not torch.distributed.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", "dino_aitodv2")
    with pytest.raises(StartError, match="device cuda: this machine shows no GPU; use auto or cpu"):
        torch.hub.load(str(ROOT), "dino", source="local", checkpoint=path, device="cuda")


def test_a_checkpoint_of_another_system_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", "dino_aitodv2")
    with pytest.raises(CheckpointError, match=r"holds a dino, not a dino_d3q; use the entry point dino"):
        load("dino_d3q", path)


def test_a_checkpoint_that_names_other_classes_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", "dino_aitodv2")
    save_checkpoint(path, replace(load_checkpoint(path), categories=NAMES[:3]))
    with pytest.raises(CheckpointError, match="names 3 classes, but its detector has 8"):
        load("dino", path)


@pytest.mark.parametrize("document", ["README.md", "docs/prediction.md"])
def test_the_example_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)
    checkpoint = save(tmp_path / "x.pth", "dino_d3q_aitodv2")
    Image.effect_noise((90, 60), 80).convert("RGB").save(tmp_path / "photo.jpg")
    code = re.sub(r'checkpoint="[^"]*"', f"checkpoint={str(checkpoint)!r}", example)
    code = code.replace('"photo.jpg"', repr(str(tmp_path / "photo.jpg"))).replace("conf=0.25", "conf=0.0")
    assert code.count(str(tmp_path)) == 2
    monkeypatch.chdir(ROOT)
    variables: dict[str, object] = {}
    exec(code, variables)  # as a reader would
    assert len(variables["found"]) > 0  # type: ignore[arg-type]
