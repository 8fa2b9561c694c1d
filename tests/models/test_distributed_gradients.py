"""Training on several processes: the mean of their gradients is that of one process with all images (gloo)."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs.schema import Config
from datasets.structures import Target
from models.build import build_criterion
from tests.support.shrunken import SIDE, random_images, random_target, small_config, small_detector

LIMIT = 1e-6
"""Of the gradient's norm; rounding comes to 7e-7, with other weights up to 1.3e-6. The density loss outweighs the
others where it is."""
STEPS = {2: 100, 4: 3}

PLAIN = ("model.encoder.dropout=0.0", "model.decoder.dropout=0.0")
NOISELESS = ("model.denoising.label_noise=0.0", "model.denoising.box_noise=0.0")
"""The noise of a process's denoising queries is its own."""
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "dino": ("dino_aitodv2", ("model.denoising=null",)),
    "density": ("dino_d3q_aitodv2", ("model.denoising=null",)),
    "count": ("dino_d3q_aitodv2", ("model.denoising=null", "criterion.count_weight=1.0")),
    "deformable_detr": ("deformable_detr_aitodv2", ()),
    "image by image": ("deformable_detr_d3q_aitodv2", ("criterion.density_weight=0.0",)),
    "denoising": ("dino_d3q_aitodv2", NOISELESS),
}
COUNTS: dict[int, list[list[list[int]]]] = {
    1: [[[4, 0]]],
    2: [[[7, 2], [0, 0]], [[0, 0], [0]], [[5, 0, 3], [1]]],
    4: [[[3], [0], [0], [2]], [[0], [1], [0], [0]]],
}
"""Per number of processes: batches; per process and image the number of objects."""
LIKE_COUNTS = {1: [[[4, 1]]], 2: [[[3, 2], [0, 3]]], 4: [[[2], [2], [2], [2]]]}
"""For denoising: the most objects of an image decide on the layout of a process's denoising queries."""


def gradient(model: nn.Module, config: Config, images: Tensor, targets: list[Target]) -> Tensor:
    """Of the sum of all losses, in all parameters."""
    model.zero_grad()
    mask = torch.zeros(len(images), SIDE, SIDE, dtype=torch.bool)
    losses = build_criterion(config)(model(images, mask, targets), targets)
    torch.stack(list(losses.values())).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def make_batch(counts: list[list[int]], rank: int | None) -> tuple[Tensor, list[Target]]:
    """The images and targets of a process, or of all."""
    flat = [count for own in counts for count in own]
    images, _ = random_images([(SIDE, SIDE)] * len(flat))
    targets = [random_target(count, seed=i) for i, count in enumerate(flat)]
    if rank is None:
        return images, targets
    first = sum(len(own) for own in counts[:rank])
    mine = slice(first, first + len(counts[rank]))
    return images[mine], targets[mine]


def compare(rank: int, world_size: int, folder: Path) -> None:
    """Writes the largest deviation of every case, over the norm of the gradient."""
    batches = {name: (LIKE_COUNTS if name == "denoising" else COUNTS)[world_size] for name in CASES}
    configs = {name: small_config(system, *PLAIN, *changes) for name, (system, changes) in CASES.items()}
    cases = [(name, counts) for name in CASES for counts in batches[name]]
    expected = []
    if rank == 0:  # before there is a group
        for name, counts in cases:
            model = small_detector(configs[name], seed=1).train()
            expected.append(gradient(model, configs[name], *make_batch(counts, None)))
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size)
    deviations = []
    for i, (name, counts) in enumerate(cases):
        model = DistributedDataParallel(small_detector(configs[name], seed=1).train())
        found = gradient(model, configs[name], *make_batch(counts, rank))
        if rank == 0:
            deviations.append((name, counts, float((found - expected[i]).norm() / expected[i].norm())))
    if rank == 0:
        (folder / "deviations.json").write_text(json.dumps(deviations))


def train(rank: int, world_size: int, folder: Path) -> None:
    """Steps with denoising and dropout; the second process never has an object."""
    config = small_config("dino_d3q_aitodv2")
    model = DistributedDataParallel(small_detector(config).train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images, _ = random_images([(SIDE, SIDE)] * 2, seed=rank)
    torch.manual_seed(rank)
    for step in range(STEPS.get(world_size, 0)):
        targets = [random_target(0 if rank == 1 else (step + i) % 4, seed=i) for i in range(2)]
        assert bool(gradient(model, config, images, targets).isfinite().all())
        optimizer.step()
    torch.save(torch.cat([p.detach().flatten() for p in model.parameters()]), folder / f"weights{rank}.pth")


def work(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    compare(rank, world_size, Path(folder))
    train(rank, world_size, Path(folder))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "world_size", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_the_mean_gradient_is_that_of_the_whole_batch(world_size: int, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, args=(world_size, str(tmp_path)), nprocs=world_size)
    deviations = json.loads((tmp_path / "deviations.json").read_text())
    print(world_size, *deviations, sep="\n")
    assert not [deviation for deviation in deviations if deviation[-1] > LIMIT]
    weights = [torch.load(tmp_path / f"weights{rank}.pth") for rank in range(world_size)]
    assert all(torch.equal(weights[0], other) for other in weights[1:])
