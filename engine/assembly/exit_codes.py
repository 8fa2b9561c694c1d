"""Exit codes of main.py and of the scripts that share its errors."""

import sys
from collections.abc import Callable, Mapping

import torch

from configs.loader import ConfigError
from datasets.structures import DataError
from engine.checkpoint import CheckpointError
from engine.distributed import StartError, stop_processes
from engine.hang_watch import HangError
from engine.interruption import Interrupted
from engine.run_folder import RunFolderError
from engine.step_failures import NonFiniteLossError, StepMemoryError
from models.backbone_weights import WeightsError
from models.matcher import NonFiniteCostError

EXIT_CODES: dict[type[Exception], int] = {
    ConfigError: 2,
    StartError: 2,
    RunFolderError: 2,
    DataError: 3,
    CheckpointError: 4,
    WeightsError: 4,
    NonFiniteLossError: 5,
    NonFiniteCostError: 5,
    StepMemoryError: 6,
    torch.OutOfMemoryError: 6,
    MemoryError: 6,
    HangError: 1,
    Interrupted: 75,
}


class UsageError(ConfigError):
    """Arguments that do not go together."""

    def __init__(self, problem: str) -> None:
        super().__init__([problem])


def exit_code(work: Callable[[], object], codes: Mapping[type[Exception], int]) -> int:
    """The int that the work returns, or 0; after one of the errors of `codes`, whose message is printed, its code."""
    try:
        result = work()
        return result if isinstance(result, int) else 0
    except tuple(codes) as error:
        message = error.summary() if isinstance(error, DataError) else str(error)
        print(f"error: {message}", file=sys.stderr, flush=True)
        return next(code for kind, code in codes.items() if isinstance(error, kind))
    finally:
        stop_processes()
