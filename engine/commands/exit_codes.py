"""Exit codes of main.py and of the scripts that share its errors. Imports torch only for an error that needs it."""

import sys
from collections.abc import Callable, Mapping

from configs.loader import ConfigError
from configs.schema import InvalidValueError
from engine.distributed.signals import Interrupted

EARLY_ERRORS: dict[type[Exception], int] = {ConfigError: 2, InvalidValueError: 2, Interrupted: 75, MemoryError: 6}
"""Errors that can occur before torch is imported, which takes seconds"""


def expected_errors() -> dict[type[Exception], int]:
    """The exit code of every expected error; imports torch."""
    import torch

    from datasets.structures import DataError
    from engine.checkpoints.checkpoint import CheckpointError
    from engine.checkpoints.run_folder import RunFolderError
    from engine.distributed.rendezvous import StartError
    from engine.distributed.watchdog import HangError
    from engine.step_errors import NonFiniteLossError, StepMemoryError
    from models.backbones.weights import WeightsError
    from models.matching.hungarian import NonFiniteCostError

    return EARLY_ERRORS | {
        StartError: 2,
        RunFolderError: 2,
        DataError: 3,
        CheckpointError: 4,
        WeightsError: 4,
        NonFiniteLossError: 5,
        NonFiniteCostError: 5,
        StepMemoryError: 6,
        torch.OutOfMemoryError: 6,
        HangError: 1,
    }


class UsageError(ConfigError):
    """Arguments that cannot be combined."""

    def __init__(self, problem: str) -> None:
        super().__init__([problem])


def exit_code(work: Callable[[], object], more: Mapping[type[Exception], int] | None = None) -> int:
    """Run the work; returns its int, or 0, or the code of an expected error, whose message is printed.

    more   further expected errors, with their codes
    """
    try:
        result = work()
        return result if isinstance(result, int) else 0
    except Exception as error:
        codes = EARLY_ERRORS if isinstance(error, tuple(EARLY_ERRORS)) else {**expected_errors(), **(more or {})}
        code = next((code for kind, code in codes.items() if isinstance(error, kind)), None)
        if code is None:
            raise
        summary = getattr(error, "summary", None)  # of a DataError
        print(f"error: {summary() if summary else error}", file=sys.stderr, flush=True)
        return code
    finally:
        if distributed := sys.modules.get("engine.distributed.processes"):  # not imported: no process group was started
            distributed.stop_processes()
