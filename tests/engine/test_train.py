"""The training loop: steps of several batches, and skipped steps."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs.schema import OptimConfig
from datasets.structures import Batch, Target
from engine.checkpoints.checkpoint import Progress
from engine.distributed.processes import Processes
from engine.meter import Meter
from engine.optim import WeightAverage, build_optimizer
from engine.step_errors import NonFiniteLossError, StepMemoryError
from engine.train import Learner, train_one_epoch

CPU = torch.device("cpu")
ALONE = Processes(rank=0, world_size=1, device=CPU)


@dataclass
class Output:
    values: Tensor
    num_queries: Tensor


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, images: Tensor, mask: Tensor, targets: list[Target]) -> Output:
        return Output(self.layer(images[0]), torch.tensor([7]))


def criterion(output: Output, targets: list[Target]) -> dict[str, Tensor]:
    return {"square": output.values.square().sum()}


def batches(count: int, *, seed: int = 0, bad: dict[int, float] | None = None) -> list[Batch]:
    """Image i has id i; `bad` values replace an input."""
    pixels = torch.rand(count, 1, 3, generator=torch.Generator().manual_seed(seed)).unbind()
    for i, value in (bad or {}).items():
        pixels[i][0, 0] = value
    return [batch(image, i) for i, image in enumerate(pixels)]


def batch(image: Tensor, number: int) -> Batch:
    """One image, (rows, 3), of two objects; the rows are the input of a linear layer."""
    size = (len(image), 3)
    target = Target(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), number, size, size)
    return Batch(image[None], torch.zeros(1, *size, dtype=torch.bool), [target])


@dataclass
class Run:
    """A detector after an epoch, and what the loop reported."""

    detector: Detector
    progress: Progress
    meter: Meter
    warnings: list[str]
    average: WeightAverage

    def weights(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.detector.parameters()).detach()


def run(
    data: list[Batch],
    config: OptimConfig,
    *,
    loss: object = criterion,
    processes: Processes = ALONE,
    scaler: torch.amp.GradScaler | None = None,
    stop_after: int = 1000,
) -> Run:
    torch.manual_seed(0)
    detector = Detector()
    found = Run(detector, Progress(), Meter(), [], WeightAverage(detector, decay=0.5))
    train_one_epoch(
        Learner(
            detector=DistributedDataParallel(detector) if processes.world_size > 1 else detector,
            criterion=loss,  # type: ignore[arg-type]
            optimizer=build_optimizer(detector, config),
            scaler=scaler or torch.amp.GradScaler("cpu", enabled=False),
            average=found.average,
        ),
        data,
        config=config,
        progress=found.progress,
        num_batches=len(data),
        processes=processes,
        meter=found.meter,
        warn=found.warnings.append,
        after_step=lambda: found.progress.step == stop_after,
    )
    return found


PLAIN = OptimConfig(lr=0.1, clip_grad_norm=0.0)


def test_a_step_of_several_batches_takes_their_mean_gradient_and_the_last_those_left_over() -> None:
    """Five batches, two per step: compared with three steps of one batch with the mean loss."""
    data = batches(5)
    found = run(data, replace(PLAIN, accumulate_steps=2))
    assert (found.progress.step, found.progress.batch, found.meter.steps) == (3, 5, 3)

    def mean_loss(output: Output, targets: list[Target]) -> dict[str, Tensor]:
        return {"square": output.values.square().mean()}

    joined = [batch(torch.cat([b.images[0] for b in data[i : i + 2]]), i) for i in (0, 2, 4)]
    assert torch.allclose(found.weights(), run(joined, PLAIN, loss=mean_loss).weights(), atol=1e-6)
    assert found.meter.means()["objects_per_image"] == 2
    single = run(data, PLAIN)
    assert (single.progress.step, single.progress.batch) == (5, 5)


def test_it_stops_between_steps_only() -> None:
    found = run(batches(5), replace(PLAIN, accumulate_steps=2), stop_after=1)
    assert (found.progress.step, found.progress.batch) == (1, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing(value: float, accumulate: int) -> None:
    config = replace(PLAIN, accumulate_steps=accumulate)
    data = batches(6, bad={accumulate: value})  # in the second step
    found, without = run(data, config), run(data[:accumulate] + data[2 * accumulate :], config)
    assert (found.progress.skipped, found.progress.skipped_in_row, found.meter.skipped) == (1, 0, 1)
    assert found.progress.step == 6 // accumulate
    assert found.warnings == [
        f"warning: skipping step 2: the loss or its gradient is not finite (images [{accumulate}])"
    ]
    assert torch.equal(found.weights(), without.weights())
    assert all(math.isfinite(value) for value in found.meter.means().values())


def test_a_loss_that_is_not_finite_counts_even_with_a_finite_gradient() -> None:
    def jump(output: Output, targets: list[Target]) -> dict[str, Tensor]:
        wrong = torch.tensor(math.inf if targets[0].image_id == 1 else 0.0)
        return {"square": output.values.square().sum(), "constant": wrong}

    assert run(batches(3), PLAIN, loss=jump).progress.skipped == 1


def test_predictions_that_the_criterion_refuses() -> None:
    def refuse(output: Output, targets: list[Target]) -> dict[str, Tensor]:
        if targets[0].image_id == 2:
            raise FloatingPointError
        return criterion(output, targets)

    found = run(batches(6), replace(PLAIN, accumulate_steps=3), loss=refuse)
    assert (found.progress.skipped, found.progress.batch) == (1, 6)
    assert "images [2]" in found.warnings[0]


def test_too_many_in_a_row_end_the_run() -> None:
    config = replace(PLAIN, max_skipped_steps=2)
    bad = dict.fromkeys((1, 2, 4, 5), math.nan)
    assert run(batches(7, bad=bad), config).progress.skipped == 4
    with pytest.raises(NonFiniteLossError, match=r"step 7: .*\(images \[6\]\), as in the 2 skipped steps before it"):
        run(batches(7, bad=bad | {6: math.nan}), config)


def test_a_scale_that_is_too_large_is_lowered_and_no_failure() -> None:
    """float16: gradients overflow until the scale fits; a loss that never is finite counts all the same."""
    config = replace(PLAIN, max_skipped_steps=0)

    def large(output: Output, targets: list[Target]) -> dict[str, Tensor]:
        return {"square": 100 * output.values.square().sum()}

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**124, growth_interval=10**6)
    found = run(batches(12), config, loss=large, scaler=scaler)
    assert found.progress.skipped == 0
    assert 0 < found.meter.skipped < 12
    assert scaler.get_scale() == 2.0 ** (124 - found.meter.skipped)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with pytest.raises(NonFiniteLossError, match="step 2"):
        run(batches(4, bad=dict.fromkeys(range(4), math.nan)), config, scaler=scaler)


def test_an_average_ignores_skipped_steps() -> None:
    found = run(batches(4, bad=dict.fromkeys((2, 3), math.nan)), PLAIN)
    expected = run(batches(4)[:2], PLAIN)
    assert all(torch.equal(found.average.state()[name], value) for name, value in expected.average.state().items())


@pytest.mark.parametrize(
    "exhaust",
    [lambda: torch.empty(2**62, dtype=torch.uint8), lambda: bytearray(2**62), lambda: raise_cuda()],
    ids=["torch on a CPU", "Python", "CUDA"],
)
def test_too_little_memory_names_the_images_and_what_helps(exhaust: object) -> None:
    def heavy(output: Output, targets: list[Target]) -> dict[str, Tensor]:
        exhaust()  # type: ignore[operator]
        return {}

    with pytest.raises(StepMemoryError) as caught:
        run(batches(1), PLAIN, loss=heavy)
    for part in ("image 0 with 2 objects", "1 x 3 px", "7 queries", "data.crop_size", "runtime.recompute"):
        assert part in str(caught.value)


def raise_cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_other_errors_stay_as_they_are() -> None:
    def broken(output: Output, targets: list[Target]) -> dict[str, Tensor]:
        raise RuntimeError("sizes differ")

    with pytest.raises(RuntimeError, match="sizes differ"):
        run(batches(1), PLAIN, loss=broken)


def in_process(rank: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    config = replace(PLAIN, accumulate_steps=2)

    def refuse(output: Output, targets: list[Target]) -> dict[str, Tensor]:
        if targets[0].image_id == 7:  # as the matcher does: on both
            raise FloatingPointError
        return criterion(output, targets)

    data = batches(10, seed=rank, bad={2: math.nan} if rank == 1 else None)
    found = run(data, config, loss=refuse, processes=Processes(rank=rank, world_size=2, device=CPU))
    torch.save((found.weights(), found.warnings), f"{folder}/{rank}.pth")
    dist.destroy_process_group()


def test_two_processes_skip_the_same_steps_and_average_over_all_batches(tmp_path: Path) -> None:
    """Batch 2 of one process is not finite; both refuse batch 7: steps 2 and 4 of five are skipped."""
    mp.spawn(in_process, args=(str(tmp_path),), nprocs=2)
    (first, warnings), (second, warned) = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    assert torch.equal(first, second)
    assert warnings == warned
    assert [text.split(": ")[1] for text in warnings] == ["skipping step 2", "skipping step 4"]
    assert "(images [2])" in warnings[0]
    assert "(images [7, 7])" in warnings[1]
    good = [0, 1, 4, 5, 8, 9]
    parts = [batches(10, seed=rank) for rank in (0, 1)]
    data = [parts[rank][i] for start in good[::2] for rank in (0, 1) for i in (start, start + 1)]
    assert torch.allclose(first, run(data, replace(PLAIN, accumulate_steps=4)).weights(), atol=1e-6)
