"""runtime.recompute: the same losses and gradients bit for bit, dropout included, and fewer bytes kept."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.build import build_criterion
from tests.support.shrunken import SIDE, SYSTEMS, random_images, random_target, small_config, small_detector

DROPOUT = ["model.encoder.dropout=0.1", "model.decoder.dropout=0.1"]


def train_step(name: str, recompute: str, *, parallel: bool = False) -> tuple[dict[str, Tensor], list[Tensor], int]:
    """Losses, gradients, and bytes kept for the backward pass, without the weights."""
    config = small_config(name, *DROPOUT, f"runtime.recompute={recompute}")
    detector = small_detector(config).train()
    weights = {p.untyped_storage().data_ptr() for p in [*detector.parameters(), *detector.buffers()]}
    images, mask = random_images([(SIDE, SIDE), (64, 80)])
    targets = [random_target(7), random_target(0, (64, 80))]
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    trained: nn.Module = DistributedDataParallel(detector) if parallel else detector
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = trained(images, mask, targets)
    size = sum(storage.nbytes() for storage in kept.values())
    losses = build_criterion(config)(output, targets)
    torch.stack(list(losses.values())).sum().backward()
    return losses, [p.grad for p in detector.parameters() if p.grad is not None], size


@pytest.mark.parametrize("name", SYSTEMS)
def test_same_numbers_from_less_memory(name: str) -> None:
    losses, gradients, size = train_step(name, "none")
    sizes = [size]
    for recompute in ("feed_forward", "layers"):
        ours, our_gradients, size = train_step(name, recompute)
        assert all(torch.equal(ours[key], loss) for key, loss in losses.items())
        assert len(our_gradients) == len(gradients)
        assert all(map(torch.equal, our_gradients, gradients))
        sizes.append(size)
    assert sizes[0] > 1.1 * sizes[1] > 1.1**2 * sizes[2]


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_under_distributed_training() -> None:
    """Every gradient is reduced once: twice is an error of DistributedDataParallel's."""
    _, expected, _ = train_step("dino_d3q_aitodv2", "none")
    _, gradients, _ = train_step("dino_d3q_aitodv2", "layers", parallel=True)
    assert all(map(torch.equal, gradients, expected))
