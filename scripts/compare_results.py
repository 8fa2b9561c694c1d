"""Two evaluations side by side; unlike ones are refused, with the difference.

    python scripts/compare_results.py runs/A runs/B
    python scripts/compare_results.py runs/A/evaluation_best runs/B/evaluation_best/evaluation.json --json FILE
    python scripts/compare_results.py runs/A runs/B --html compared.html

Each is a run folder (its last evaluation), the folder of an evaluation, its evaluation.json, or what
scripts/evaluate_results.py wrote by --json. They are alike if classes, protocol, limits, thresholds, kind of scores and
annotations are (docs/evaluation.md).

--html adds intervals of the differences, by a paired bootstrap over the images, and the images that differ most. It
needs predictions.json of both (main.py --eval --dump) and the annotations.

Exit codes: 0 done, 2 usage, 3 a file that cannot be used, or results that are not alike.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.paths import new_file_argument, path_argument
from engine.commands.exit_codes import UsageError, exit_code
from engine.console import guard_console

if TYPE_CHECKING:
    from engine.analysis.report.comparison import Pair
    from engine.metrics.protocols import EvaluationProtocol
    from engine.metrics.records import ImageRecord

PLACES = ("evaluation.json", "evaluation/evaluation.json")
PAIRS = 12
"""Most images of the page"""
SCORE = 0.3
"""What the page shows as a detection"""


def main(arguments: Sequence[str] | None = None) -> int:
    guard_console()
    options = parse(arguments)
    return exit_code(lambda: compare(options))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("results", nargs="+", type=path_argument, metavar="RESULT", help="folder or file, at least two")
    add("--json", type=new_file_argument, metavar="FILE", help="write the figures too")
    add("--html", type=new_file_argument, metavar="FILE", help="a page with intervals and images, of two results")
    add("--annotations", type=path_argument, metavar="FILE", help="COCO annotations of both, for --html")
    add("--images", type=path_argument, metavar="ROOT", help="folder of the images, for the pictures of --html")
    return parser.parse_args(arguments)


def compare(options: argparse.Namespace) -> None:
    from datasets.structures import DataError
    from engine.evaluation.fingerprint import differences
    from engine.evaluation.report import format_table
    from engine.evaluation.side_by_side import column_names, figures, side_by_side

    require_usage(options)
    files = [find_file(path) for path in options.results]
    records = [read_result(file) for file in files]
    for file, record in zip(files[1:], records[1:], strict=True):
        unlike = differences(records[0]["fingerprint"], record["fingerprint"])
        if unlike:
            raise DataError(
                f"{files[0]} and {file} cannot be compared: they differ in\n  " + "\n  ".join(unlike) + "\n"
                "evaluate both on the same annotations with the same protocol, limits and scores"
            )
    names = column_names(options.results)
    columns = [figures(record) for record in records]
    rows = side_by_side(columns)
    print(format_table(["", *names, *(["difference"] if len(names) == 2 else [])], rows))
    if options.json is not None:
        content = {"results": [str(file) for file in files], "figures": dict(zip(names, columns, strict=True))}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if options.html is not None:
        dumps = [find_dump(file) for file in files]
        page = comparison_page(options, dumps, records[0]["fingerprint"], (names[0], names[1]), rows)
        options.html.write_text(page, encoding="utf-8", errors="backslashreplace")
        print(f"wrote {options.html}")


def require_usage(options: argparse.Namespace) -> None:
    if len(options.results) < 2:
        raise UsageError("give at least two results to compare")
    if options.html is not None and len(options.results) != 2:
        raise UsageError(f"--html compares two results, not {len(options.results)}")
    if options.html is not None and options.annotations is None:
        raise UsageError("--html needs --annotations FILE: the objects that both were compared with")
    if options.html is None and (options.annotations or options.images):
        raise UsageError("--annotations and --images go with --html")
    if options.images is not None and not options.images.is_dir():
        raise UsageError(f"--images {options.images}: there is no such folder")


def find_file(path: Path) -> Path:
    """The evaluation.json of a run folder or an evaluation folder. Raises DataError."""
    from datasets.structures import DataError

    if path.is_dir():
        found = [path / place for place in PLACES if (path / place).is_file()]
        if not found:
            raise DataError(f"{path} holds no evaluation.json; make one: python main.py --eval --resume CHECKPOINT")
        return found[0]
    if not path.is_file():
        raise DataError(f"{path}: there is no such file or folder")
    return path


def read_result(file: Path) -> dict[str, Any]:
    """Raises DataError for a file that is none of an evaluation, or too old."""
    from datasets.structures import DataError

    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("detection"), dict):
        raise DataError(f'{file}: not a result of an evaluation: it has no record "detection"')
    if not isinstance(record.get("fingerprint"), dict):
        raise DataError(
            f'{file}: it has no "fingerprint", which says what it is of; evaluate again: python main.py --eval '
            "--resume CHECKPOINT"
        )
    return record


# ---- the page


def find_dump(file: Path) -> Path:
    """predictions.json beside a result. Raises DataError."""
    from datasets.structures import DataError

    dump = file.parent / "predictions.json"
    if not dump.is_file():
        raise DataError(
            f"{file.parent} holds no predictions.json, which --html needs; make it: python main.py --eval --resume "
            "CHECKPOINT --dump, and compare the folder that this writes"
        )
    return dump


def comparison_page(
    options: argparse.Namespace,
    dumps: Sequence[Path],
    fingerprint: dict[str, Any],
    names: tuple[str, str],
    rows: Sequence[Sequence[str]],
) -> str:
    from datasets.structures import DataError
    from engine.analysis.bootstrap import RESAMPLES, ResampledAP, paired_intervals
    from engine.analysis.report.comparison import render_comparison
    from engine.evaluation.fingerprint import annotations_digest
    from engine.metrics.protocols import get_protocol
    from scripts.evaluate_results import listed_images, read_records

    truth, _, results = read_records(options.annotations, dumps)
    if annotations_digest(results[0]) != fingerprint["annotations"]:
        raise DataError(f"--annotations {options.annotations}: the results were not compared with these objects")
    images = listed_images(truth, options.annotations)
    protocol = get_protocol(fingerprint["protocol"], fingerprint["limits"]["detections"][-1])
    num_classes = len(fingerprint["classes"])
    first, second = (ResampledAP(records, num_classes, protocol) for records in results)
    intervals = paired_intervals(first, second, len(images))
    pairs = [] if options.images is None else most_different(images, results, num_classes, protocol, options)
    subtitle = (
        f"{len(images):,} images of {options.annotations.name}, protocol {protocol.name}; {RESAMPLES:,} resamples."
    )
    return render_comparison(names, intervals, rows, pairs, subtitle=subtitle)


def most_different(
    images: dict[int, tuple[str, tuple[int, int]]],
    results: Sequence[Sequence["ImageRecord"]],
    num_classes: int,
    protocol: "EvaluationProtocol",
    options: argparse.Namespace,
) -> list["Pair"]:
    """The images whose misses and false alarms differ most, with their pictures."""
    from engine.analysis.atlas import AtlasBuilder
    from engine.analysis.report.comparison import Pair
    from engine.analysis.report.gallery import Shown, gallery_images
    from engine.metrics.ignored_regions import counted_record
    from scripts.evaluate_results import read_listed

    builders = [AtlasBuilder(num_classes, protocol.max_detections[-1], SCORE) for _ in results]
    results = [[counted_record(record, num_classes, protocol) for record in records] for records in results]
    for builder, records in zip(builders, results, strict=True):
        for record in records:
            builder.add(record, None)
    wrong = [atlas.missed + atlas.false_alarms for atlas in (builder.finish() for builder in builders)]
    change = abs(wrong[1] - wrong[0])
    chosen = [i for i in (-change).argsort(kind="stable")[:PAIRS].tolist() if change[i]]

    def shown(builder: AtlasBuilder, record: "ImageRecord") -> Shown:
        return Shown(
            record,
            *builder.explain(record, None),
            starts=None,
            score_threshold=SCORE,
            image=partial(read_listed, images, record.image_id, root=options.images, annotations=options.annotations),
            name=images[record.image_id][0],
            queries=None,
            estimate=None,
            density=None,
        )

    halves = [
        gallery_images([shown(builder, records[i]) for i in chosen])
        for builder, records in zip(builders, results, strict=True)
    ]
    return [Pair(one, two) for one, two in zip(*halves, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
