"""Evaluation on several processes: each image once, the numbers of one process bit for bit (gloo)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from configs.loader import load_config
from datasets.build import build_dataset, build_eval_loader
from engine.commands.resolve import fill_input_statistics
from engine.distributed.processes import Processes
from engine.evaluation.evaluate import evaluate_detector, predict_batches
from engine.evaluation.query_starts import query_recorder
from engine.metrics.average_precision import AITOD
from models.build import build_detector, build_postprocess
from tests.support.tiny_run import write_experiment

IMAGES = (0, 1, 2, 5, 7)
OBJECTS = [3, 0, 5, 1, 2, 6, 0]


class First:
    """The first images of a data set."""

    def __init__(self, dataset: Any, count: int) -> None:
        self.dataset, self.count = dataset, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


def evaluations(experiment: Path, processes: Processes) -> list[str]:
    """Every number of every evaluation, exactly."""
    config = fill_input_statistics(load_config(experiment, ["data.batch_size=2"]))
    torch.manual_seed(0)
    detector = build_detector(config)
    dataset = build_dataset(config.data, training=False, seed=0)
    found = []
    for count in IMAGES:
        loader = build_eval_loader(
            First(dataset, count),  # type: ignore[arg-type]
            config.data,
            rank=processes.rank,
            world_size=processes.world_size,
            pin_memory=False,
        )
        evaluation = evaluate_detector(
            predict_batches(
                detector,
                build_postprocess(config),
                loader,
                device=processes.device,
                amp="none",
                record_queries=query_recorder(class_agnostic=config.model.class_agnostic_proposals),
            ),
            [dataset.ground_truth(i) for i in range(count)],
            num_classes=config.model.num_classes,
            protocol=AITOD,
            processes=processes,
        )
        assert evaluation.counts["images"] == count
        starts = evaluation.predictions.query_starts
        assert len(starts) == count
        queried = {i: [x.num_queries, x.centres.tolist(), x.of_detection.tolist()] for i, x in sorted(starts.items())}
        found.append(json.dumps([evaluation.metrics.summary(), evaluation.counts, queried]))
    return found


def work(rank: int, world_size: int, experiment: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    processes = Processes(rank=rank, world_size=world_size, device=torch.device("cpu"))
    Path(folder, f"{rank}.json").write_text(json.dumps(evaluations(Path(experiment), processes)))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("evaluation"), train=[1], val=OBJECTS)


@pytest.fixture(scope="module")
def alone(experiment: Path) -> list[str]:
    return evaluations(experiment, Processes(rank=0, world_size=1, device=torch.device("cpu")))


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_numbers_of_one_process(experiment: Path, alone: list[str], tmp_path: Path, world_size: int) -> None:
    torch.multiprocessing.spawn(work, args=(world_size, str(experiment), str(tmp_path)), nprocs=world_size)
    for rank in range(world_size):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone


def test_nothing_is_pickled_between_processes() -> None:
    for path in Path(__file__).parents[2].glob("[!.]*/**/*.py"):
        if path != Path(__file__) and ".venv" not in path.parts:
            text = path.read_text(encoding="utf-8")
            assert not any(f"{name}_object" in text for name in ("all_gather", "gather", "broadcast", "scatter")), path
