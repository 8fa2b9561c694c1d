"""A data set and an experiment so small that a whole run takes seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CONFIG = """
model:
  detector: dino
  num_classes: 2
  hidden_dim: 16
  num_queries: 30
  backbone: {name: resnet18, base_width: 4, out_strides: [4, 8], frozen_stages: 0}
  neck: {num_levels: 2, num_groups: 4}
  encoder: {num_layers: 1, num_heads: 2, num_points: 2, ffn_dim: 32, dropout: 0.1}
  decoder: {num_layers: 2, num_heads: 2, num_points: 2, ffn_dim: 32, dropout: 0.1}
  denoising: {num_queries: 4}
  d3q: {queries_per_object: 3.0, min_queries: 5, initial_density: 0.02}
criterion:
  box_distance: log_size_l1
  decoder: {classification: softmax, class_cost: 1.0, class_weight: 1.0, box_weight: 0.5}
  encoder: {classification: focal, class_cost: 2.0, class_weight: 2.0, box_weight: 0.5}
data:
  root: ROOT
  train: {annotations: train.json, images: train}
  val: {annotations: val.json, images: val}
  image_size: [48, 48]
  batch_size: 2
  num_workers: 0
optim: {lr: 1e-3, epochs: 3, lr_drop_epochs: [2]}
evaluation: {every_epochs: 2, gallery_images: 0}
runtime: {device: cpu, log_every: 1}
"""


def write_split(root: Path, name: str, counts: list[int], *, seed: int) -> dict[str, Any]:
    """Images of 40x48 px with bright squares, one annotation each; returns the COCO dict that was written."""
    rng = np.random.default_rng(seed)
    (root / name).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, count in enumerate(counts):
        pixels = rng.integers(0, 80, (40, 48, 3), dtype=np.uint8)
        for _ in range(count):
            x, y, side = (int(v) for v in (*rng.integers(0, 30, 2), rng.integers(4, 10)))
            pixels[y : y + side, x : x + side] = 220
            box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
            annotations.append(
                {"id": len(annotations) + 1, "image_id": 10 + i, "category_id": int(rng.integers(1, 3)), **box}
            )
        Image.fromarray(pixels).save(root / name / f"{i}.png")
        images.append({"id": 10 + i, "file_name": f"{i}.png", "height": 40, "width": 48})
    categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "other"}]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{name}.json").write_text(json.dumps(coco))
    return coco


def write_experiment(folder: Path, *, train: list[int], val: list[int]) -> Path:
    """Data and config in the folder; returns the config file."""
    write_split(folder / "data", "train", train, seed=0)
    write_split(folder / "data", "val", val, seed=1)
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.replace("ROOT", str(folder / "data")))
    return path


KILL = """
import os, signal, sys
sys.path.insert(0, {root!r})
import main
from tests.support.hooks import at_step
def die():
    open({last!r} + ".killed", "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
if not os.path.exists({last!r} + ".killed"):
    at_step(3, die, rank=1)
sys.exit(main.main())
"""


def killed_once(folder: Path) -> str:
    """A program in the place of main.py: the second process is killed after its third step, once."""
    return KILL.format(root=str(Path(__file__).parents[2]), last=str(folder / "last.pth"))
