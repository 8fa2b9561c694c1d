"""Why did it miss them? Error types, causes of misses, and a page that shows them.

    python scripts/analyze.py --resume runs/X/best.pth                        the checkpoint's validation split
    python scripts/analyze.py --resume runs/X/best.pth --set data.root=Y      other data, same classes
    python scripts/analyze.py --results R.json --annotations A.json --images ROOT    any detector's COCO results

Writes analysis.json and report.html, one file that needs no server and no network. Definitions: docs/analysis.md. A
results file does not say where queries started; whether an object was ever queried is then unknown.

Exit codes: those of main.py.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.paths import path_argument
from engine.commands.exit_codes import UsageError, exit_code
from engine.console import guard_console
from engine.distributed.signals import interruptible

if TYPE_CHECKING:
    from PIL import Image

    from engine.commands.analyze import Subject
    from engine.distributed.processes import Processes


def main(arguments: Sequence[str] | None = None) -> int:
    guard_console()
    options = parse(arguments)

    def work() -> None:
        with interruptible():
            require_usage(options)
            (of_results if options.resume is None else of_checkpoint)(options)

    return exit_code(work)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--resume", type=path_argument, metavar="CHECKPOINT", help="a trained detector")
    add("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="other values than the checkpoint's")
    add("--results", type=path_argument, metavar="FILE", help="COCO results, in place of a checkpoint")
    add("--annotations", type=path_argument, metavar="FILE", help="COCO annotations, with --results")
    add("--images", type=path_argument, metavar="ROOT", help="folder of the images, with --results; none: no gallery")
    add("--protocol", choices=("aitod", "coco", "visdrone", "dota"), help="with --results (default aitod)")
    add("--max-detections", type=int, help="per image and class, with --results (default: the protocol's)")
    add("--score", type=float, help="threshold of misses and false alarms (default evaluation.gallery_score, or 0.3)")
    add("--gallery", type=int, default=60, metavar="N", help="most images of the page (default 60)")
    add("--out", type=path_argument, metavar="FOLDER", help="must be empty or missing (default evaluation_STEM)")
    return parser.parse_args(arguments)


def require_usage(options: argparse.Namespace) -> None:
    """Raises UsageError for arguments that cannot be combined, or are out of range."""
    if (options.resume is None) == (options.results is None):
        raise UsageError("give either --resume CHECKPOINT or --results FILE with --annotations FILE")
    of_files = ("annotations", "images", "protocol", "max_detections")
    given = [f"--{name.replace('_', '-')}" for name in of_files if getattr(options, name) is not None]
    if options.resume is not None and given:
        raise UsageError(f"{given[0]} goes with --results; a checkpoint has its own data, change them by --set")
    if options.results is not None and options.annotations is None:
        raise UsageError("--results needs --annotations FILE: the objects that the results are compared with")
    if options.results is not None and options.set:
        raise UsageError("--set goes with --resume: a results file has no config")
    if options.score is not None and not 0 <= options.score <= 1:
        raise UsageError(f"--score {options.score:g} is not in 0..1")
    if options.gallery < 0:
        raise UsageError(f"--gallery {options.gallery} is below 0")
    if options.max_detections is not None and options.max_detections < 1:
        raise UsageError(f"--max-detections {options.max_detections} is below 1")


def of_checkpoint(options: argparse.Namespace) -> None:
    from configs.paths import check_paths, expand_path
    from engine.checkpoints.checkpoint import load_checkpoint
    from engine.commands.analyze import analyze_checkpoint
    from engine.commands.resolve import read_checkpoint
    from engine.commands.setup import start_runtime
    from ops import tune_allocation

    tune_allocation()
    checkpoint = load_checkpoint(options.resume)
    score = [] if options.score is None else [f"evaluation.gallery_score={options.score}"]
    config = read_checkpoint(options.resume, checkpoint.config, [*options.set, *score]).evaluated()
    check_paths(config, f"{options.resume} (config)", evaluation=True, resumed=True)
    processes = start_runtime(config)
    named = config.runtime.output_dir
    out = options.out or (None if named is None else expand_path(named, "runtime.output_dir"))
    with new_folder(options.resume, out, processes) as folder:
        found = analyze_checkpoint(config, checkpoint, options.resume, processes, folder, images=options.gallery)
        report(found, folder)


def of_results(options: argparse.Namespace) -> None:
    from engine.commands.analyze import analyze
    from engine.distributed.processes import start_processes

    subject = subject_of_files(options)
    with new_folder(options.results, options.out, start_processes("cpu", start_timeout=60, hang_timeout=60)) as folder:
        report(analyze(subject, folder, images=options.gallery), folder)


def subject_of_files(options: argparse.Namespace) -> "Subject":
    """What a results file and its annotations hold. Raises DataError."""
    from datasets.structures import DataError
    from engine.commands.analyze import Subject
    from engine.metrics.average_precision import detection_metrics, get_protocol
    from scripts.evaluate_results import explained, listed_images, read_listed, read_records

    if options.images is not None and not options.images.is_dir():
        raise UsageError(f"--images {options.images}: there is no such folder")
    truth, category_ids, (records,) = read_records(options.annotations, [options.results])
    try:
        names = {each["id"]: str(each["name"]) for each in truth["categories"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"{options.annotations}: {explained(error)}") from None
    images = listed_images(truth, options.annotations)

    times = Counter(names.values())

    def read(index: int) -> "Image.Image":
        return read_listed(images, records[index].image_id, root=options.images, annotations=options.annotations)

    protocol = get_protocol(options.protocol or "aitod", options.max_detections)
    return Subject(
        records=lambda indices: (records[i] for i in indices),
        class_names=[f"{names[each]} ({each})" if times[names[each]] > 1 else names[each] for each in category_ids],
        metrics=detection_metrics(records, len(category_ids), protocol),
        score_threshold=0.3 if options.score is None else options.score,
        title=options.results.name,
        subtitle=f"compared with {options.annotations.name}",
        read_image=None if options.images is None else read,
        image_names=[images[record.image_id][0] for record in records],
    )


@contextmanager
def new_folder(path: Path, named: Path | None, processes: "Processes") -> Iterator[Path]:
    """The folder of the results, as of an evaluation; it is removed if nothing was written."""
    from engine.checkpoints.folder_use import open_evaluation

    folder = open_evaluation(path, named, processes)
    try:
        yield folder
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


def report(analysis: dict[str, Any], folder: Path) -> None:
    """The answer on the terminal."""
    from engine.analysis.report.sections import sentence

    causes = {name: count for name, count in analysis["causes"]["all"].items() if name not in ("objects", "found")}
    print(f"{sentence(analysis)} (score of at least {analysis['score_threshold']:g})")
    print("  ".join(f"{name} {count:,}" for name, count in causes.items()))
    print(f"wrote {folder / 'report.html'} and {folder / 'analysis.json'}")


if __name__ == "__main__":
    sys.exit(main())
