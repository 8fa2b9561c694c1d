"""Train or evaluate a detector.

    python main.py --config configs/dino_d3q_scenes.yaml              train, evaluate, draw
    python main.py --config X --set optim.lr=2e-4 data.batch_size=2   with other values
    python main.py --resume runs/X/last.pth                           resume in runs/X, wherever that is now
    python main.py --resume runs/X/last.pth --set runtime.output_dir=runs/Y   a branch of the run, in a new folder
    python main.py --config X --resume auto                           go on if there is something to go on from
    python main.py --eval --resume runs/X/best.pth                    evaluate; needs nothing else
    torchrun --nproc_per_node=2 main.py --config X                    two processes
    python main.py --config X --check                                 look at everything first; train nothing

SIGTERM, SIGINT (Ctrl-C) or SIGHUP stops a training after the step in hand: last.pth holds it, and --resume goes on to
the same weights as a run that was not stopped. With --resume auto a cluster can repeat one command until it returns 0.
status.json in the run folder tells the state and the exit code, also under torchrun, which returns 1 for all of them.

Exit codes: 0 done, 2 usage, config, run folder or start of the processes, 3 data, 4 checkpoint or weights, 5 the loss
is not finite, 6 out of memory, 75 stopped by a signal and saved, 1 unexpected, or a process that the others waited for
in vain.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.loader import dump_config
from configs.paths import check_paths, path_argument
from configs.schema import Config
from engine.commands.exit_codes import UsageError, exit_code
from engine.commands.resolve import continue_config, find_last, resolve_checkpoint, resolve_config, resolve_resumed
from engine.console import guard_console
from engine.distributed.signals import interruptible

AUTO = Path("auto")
"""Of --resume"""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--config", type=path_argument, help="experiment file; with --resume it must equal the checkpoint's"
    )
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="other values")
    parser.add_argument(
        "--resume",
        type=path_argument,
        metavar="CHECKPOINT",
        help="go on from, or evaluate, a checkpoint; auto: go on from last.pth of the run folder where there is one",
    )
    parser.add_argument(
        "--allow-config-change",
        action="store_true",
        help="go on with a --config or training data other than the checkpoint's",
    )
    parser.add_argument("--eval", action="store_true", help="evaluate the checkpoint given by --resume")
    parser.add_argument(
        "--check", action="store_true", help="look at config, data, image headers, weights and disk, and try one step"
    )
    parser.add_argument("--check-full", action="store_true", help="the same, and decode every image")
    parser.add_argument("--print-config", action="store_true", help="show the resolved config and stop")
    return parser.parse_args(arguments)


def require_usage(arguments: argparse.Namespace) -> None:
    """Raises UsageError for arguments that do not go together."""
    asked = [name for name in ("eval", "check", "check_full", "print_config") if getattr(arguments, name)]
    if len(asked) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in asked[:2])
        raise UsageError(f"{first} and {second} exclude each other; give one of them")
    if arguments.eval and arguments.resume in (None, AUTO):
        raise UsageError("--eval needs --resume CHECKPOINT: the checkpoint to evaluate")
    if arguments.config is None and arguments.resume is None:
        raise UsageError("give --config FILE to start a run, or --resume CHECKPOINT to go on with one")
    if arguments.config is None and arguments.resume == AUTO:
        raise UsageError("--resume auto needs --config FILE: the run to start, or to go on with")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and return the exit code; expected errors are one message, without a traceback."""
    guard_console()

    def work() -> int | None:
        with interruptible():
            return run(parse_arguments(arguments))

    return exit_code(work)


def run(arguments: argparse.Namespace) -> int | None:
    """Whatever the arguments ask for; returns the exit code of a check."""
    require_usage(arguments)
    config, resume = None, arguments.resume
    if arguments.config is not None:
        config = resolve_config(arguments.config, arguments.set)
        if resume == AUTO:
            resume = find_last(config)
        if resume is None:
            if arguments.print_config:
                print(dump_config(config), end="")
                return None
            check_paths(config, str(arguments.config), evaluation=False, resumed=False)
    return perform(arguments, config, resume)


def perform(arguments: argparse.Namespace, config: Config | None, resume: Path | None) -> int | None:
    """All that needs torch, whose import takes seconds: mistakes in the arguments and the file are told before.

    config   of the file, where one is given
    resume   the checkpoint, where there is one
    """
    from engine.checkpoints.checkpoint import CheckpointError, load_checkpoint
    from engine.checkpoints.run_folder import Resumption, load_newest
    from engine.commands.check import check
    from engine.commands.train import evaluate_checkpoint, start_runtime, train
    from engine.distributed.watchdog import HangWatch
    from ops import tune_allocation

    tune_allocation()
    checking = arguments.check or arguments.check_full
    start: Resumption | None = None
    problem: CheckpointError | None = None
    if resume is not None:
        try:
            start = Resumption(load_checkpoint(resume), resume) if arguments.eval else load_newest(resume)
        except CheckpointError as error:
            if not checking or config is None:
                raise
            problem = error
    if resume is not None and start is not None:
        text = start.checkpoint.config
        resolve = resolve_checkpoint if arguments.eval else resolve_resumed
        config = resolve(resume, text, arguments.set, file=arguments.config)
        if arguments.config is not None and not arguments.eval:
            config = continue_config(config, text, resume, allow_change=arguments.allow_config_change)
    assert config is not None  # of the file or of the checkpoint
    if arguments.print_config:
        print(dump_config(config), end="")
        return None
    source = str(arguments.config or f"{resume} (config)")
    check_paths(config, source, evaluation=arguments.eval, resumed=resume is not None)
    if checking:
        return check(config, problem or start, start_runtime(config), full=arguments.check_full)
    if start is not None and not arguments.eval:
        start.checkpoint.require_training_state(start.path)
    processes = start_runtime(config)
    with HangWatch(processes, limit=config.runtime.hang_timeout):
        if arguments.eval and start is not None:
            evaluate_checkpoint(config, start.checkpoint, start.path, processes)
        else:
            train(config, start, processes, allow_other_data=arguments.allow_config_change)
    return None


if __name__ == "__main__":
    sys.exit(main())
