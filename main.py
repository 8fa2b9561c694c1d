"""Train or evaluate a detector.

    python main.py --config configs/dino_d3q_scenes.yaml              train, evaluate, draw
    python main.py --config X --set optim.lr=2e-4 data.batch_size=2   override values
    python main.py --resume runs/X/last.pth                           resume in runs/X, wherever that is now
    python main.py --resume runs/X/last.pth --set runtime.output_dir=runs/Y   a branch of the run, in a new folder
    python main.py --config X --resume auto                           resume if the run folder holds a checkpoint
    python main.py --eval --resume runs/X/best.pth                    evaluate; needs nothing else
    python main.py --eval --resume runs/X/best.pth --dump             and write the detections, COCO results
    torchrun --nproc_per_node=2 main.py --config X                    two processes
    python main.py --config X --check                                 check everything first; train nothing

SIGTERM, SIGINT (Ctrl-C) or SIGHUP stops a training after the current step and saves it in last.pth. A resumed run ends
with the same weights as one that was never stopped. With --resume auto a cluster can repeat one command until it
returns 0. status.json in the run folder holds the state and the exit code, also under torchrun, which returns 1 for
every error.

Exit codes: 0 done, 2 usage, config, run folder or start of the processes, 3 data, 4 checkpoint or weights, 5 the loss
is not finite, 6 out of memory, 75 stopped by a signal and saved, 1 unexpected error, or a rank that timed out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.loader import dump_config
from configs.paths import check_paths, path_argument
from configs.schema import Config
from engine.commands.exit_codes import UsageError, exit_code
from engine.commands.resolve import Experiment, continue_config, fill_from_run, find_last, read_checkpoint, read_file
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
    parser.add_argument(
        "--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override values of the config"
    )
    parser.add_argument(
        "--resume",
        type=path_argument,
        metavar="CHECKPOINT",
        help="the checkpoint to resume from or to evaluate; auto: last.pth of the run folder, if there is one",
    )
    parser.add_argument(
        "--allow-config-change",
        action="store_true",
        help="resume although --config or the training data differ from the checkpoint's",
    )
    parser.add_argument("--eval", action="store_true", help="evaluate the checkpoint given by --resume")
    parser.add_argument("--dump", action="store_true", help="with --eval: write the detections to predictions.json too")
    parser.add_argument(
        "--check", action="store_true", help="check config, data, image headers, weights and disk, and try one step"
    )
    parser.add_argument("--check-full", action="store_true", help="the same, and decode every image")
    parser.add_argument("--print-config", action="store_true", help="show the resolved config and stop")
    return parser.parse_args(arguments)


def require_usage(arguments: argparse.Namespace) -> None:
    """Raises UsageError for arguments that cannot be combined."""
    asked = [name for name in ("eval", "check", "check_full", "print_config") if getattr(arguments, name)]
    if len(asked) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in asked[:2])
        raise UsageError(f"{first} and {second} exclude each other; give one of them")
    if arguments.dump and not arguments.eval:
        raise UsageError("--dump needs --eval: it writes the detections of an evaluation")
    if arguments.eval and arguments.resume in (None, AUTO):
        raise UsageError("--eval needs --resume CHECKPOINT: the checkpoint to evaluate")
    if arguments.config is None and arguments.resume is None:
        raise UsageError("give --config FILE to start a run, or --resume CHECKPOINT to resume one")
    if arguments.config is None and arguments.resume == AUTO:
        raise UsageError("--resume auto needs --config FILE: the run to start or resume")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and return the exit code; expected errors are one message, without a traceback."""
    guard_console()

    def work() -> int | None:
        with interruptible():
            return run(parse_arguments(arguments))

    return exit_code(work)


def run(arguments: argparse.Namespace) -> int | None:
    """Run the command of the arguments; returns the exit code of a check."""
    require_usage(arguments)
    experiment, resume = None, arguments.resume
    if arguments.config is not None:
        experiment = read_file(arguments.config, arguments.set)
        if resume == AUTO:
            resume = find_last(experiment.config)
        if resume is None:
            if arguments.print_config:
                print(dump_config(experiment.config), end="")
                return None
            check_paths(experiment.config, str(arguments.config), evaluation=False, resumed=False)
    return perform(arguments, experiment, resume)


def perform(arguments: argparse.Namespace, experiment: Experiment | None, resume: Path | None) -> int | None:
    """Everything that needs torch, whose import takes seconds: errors in arguments and file are reported before.

    experiment   of --config
    resume       the checkpoint
    """
    from engine.checkpoints.checkpoint import CheckpointError, load_checkpoint
    from engine.checkpoints.run_folder import Resumption, load_newest
    from engine.commands.check import check
    from engine.commands.evaluate import evaluate_checkpoint
    from engine.commands.setup import start_runtime
    from engine.commands.train import train
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
            if not checking or experiment is None:
                raise
            problem = error
    config = resolve_start(arguments, experiment, resume, None if start is None else start.checkpoint.config)
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
            evaluate_checkpoint(config, start.checkpoint, start.path, processes, dump=arguments.dump)
        else:
            train(config, start, processes, allow_other_data=arguments.allow_config_change)
    return None


def resolve_start(
    arguments: argparse.Namespace, experiment: Experiment | None, resume: Path | None, text: str | None
) -> Config:
    """The config before data.

    text   the config that the checkpoint `resume` holds; None without a readable checkpoint
    """
    if resume is None or text is None:
        assert experiment is not None  # of --config, which a run without a checkpoint has
        return experiment.config
    chosen = experiment or read_checkpoint(resume, text, arguments.set)
    if arguments.eval:
        return fill_from_run(chosen.evaluated(), text, resume)
    config = chosen.resumed(resume)
    if experiment is None:
        return config
    return continue_config(config, text, resume, allow_change=arguments.allow_config_change)


if __name__ == "__main__":
    sys.exit(main())
