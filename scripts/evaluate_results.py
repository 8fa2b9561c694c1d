"""Score a COCO results file of any detector by this project's metrics.

    python scripts/evaluate_results.py --annotations val.json --results predictions.json --protocol aitod
    python scripts/evaluate_results.py --annotations val.json --results predictions.json --pycocotools

The results are a list of {"image_id", "category_id", "bbox": [x, y, width, height] px, "score"}: what `main.py --eval
--dump`, `scripts/predict.py`, mmdetection and ultralytics write. All images of the annotation file count, also those
without a result. --pycocotools scores them with the official implementation too, and compares.

Exit codes: 0 done, 2 usage, 3 a file that cannot be used, 7 the two implementations differ.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.paths import new_file_argument, path_argument
from engine.commands.exit_codes import UsageError, exit_code
from engine.console import guard_console

if TYPE_CHECKING:
    from PIL.Image import Image

    from engine.metrics.records import ImageRecord

DIFFERENT_CODE = 7


def main(arguments: Sequence[str] | None = None) -> int:
    guard_console()
    options = parse(arguments)
    return exit_code(lambda: evaluate(options))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--annotations", type=path_argument, required=True, metavar="FILE", help="COCO annotations")
    parser.add_argument("--results", type=path_argument, required=True, metavar="FILE", help="COCO results")
    parser.add_argument(
        "--protocol", choices=("aitod", "coco", "visdrone", "dota"), default="aitod", help="default aitod"
    )
    parser.add_argument("--max-detections", type=int, help="per image and class, in place of the protocol's last limit")
    parser.add_argument("--pycocotools", action="store_true", help="compare with the official implementation")
    parser.add_argument("--json", type=new_file_argument, metavar="FILE", help="write the figures too")
    return parser.parse_args(arguments)


def require_usage(options: argparse.Namespace) -> None:
    if options.max_detections is not None and options.max_detections < 1:
        raise UsageError(f"--max-detections {options.max_detections} is below 1")
    if options.pycocotools and options.protocol == "visdrone":
        raise UsageError(
            "--pycocotools does not know VisDrone's limits and ignored regions; use --protocol coco with it"
        )
    if options.json is not None and not options.json.parent.is_dir():
        raise UsageError(f"--json {options.json}: there is no folder {options.json.parent}; create it first")


def evaluate(options: argparse.Namespace) -> int:
    from engine.evaluation.fingerprint import AS_GIVEN, annotations_digest, fingerprint
    from engine.evaluation.report import column_heading, format_percent, format_table
    from engine.metrics.average_precision import detection_metrics, get_protocol

    require_usage(options)

    def shown(value: float) -> str:
        return "-" if value == -1 else format_percent(value)

    gt, category_ids, (records,) = read_records(options.annotations, [options.results])
    protocol = get_protocol(options.protocol, options.max_detections)
    metrics = detection_metrics(records, num_classes=len(category_ids), protocol=protocol)
    summary = metrics.summary()
    found = sum(len(each.scores) for each in records)
    print(f"{options.results}: {found:,} detections in {len(records):,} images, protocol {protocol.name}")
    names = {each["id"]: str(each.get("name", each["id"])) for each in gt["categories"]}
    mark = fingerprint(protocol, [names[each] for each in category_ids], annotations_digest(records), scores=AS_GIVEN)
    figures: dict[str, Any] = {"protocol": protocol.name, "detection": summary, "fingerprint": mark}
    heading, rows = (
        ["", "%"],
        [[column_heading(name), shown(value)] for name, value in summary.items()],
    )
    verdict, agree = "", True
    if options.pycocotools:
        from scripts.support.official_metrics import LIMIT, official_summary

        official = figures["pycocotools"] = official_summary(gt, read_results(options.results), protocol)
        largest = max(abs(value - summary[name]) for name, value in official.items())
        agree = largest <= LIMIT
        heading.append("pycocotools")
        for row, name in zip(rows, summary, strict=True):
            row.append(shown(official[name]) if name in official else "")
        verdict = f"{'both agree' if agree else 'THEY DIFFER'}: the largest difference is {largest:.1e}"
    print(format_table(heading, rows))
    if verdict:
        print(verdict)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0 if agree else DIFFERENT_CODE


def read_records(
    annotations: Path, results: Sequence[Path]
) -> tuple[dict[str, Any], list[int], list[list["ImageRecord"]]]:
    """Annotation file, its category ids, and the records of each results file. Raises DataError, naming the file."""
    from datasets.structures import DataError
    from engine.metrics.records import records_from_coco

    truth, found = read_annotations(annotations), []
    for path, detections in ((annotations, []), *((path, read_results(path)) for path in results)):
        try:
            records, category_ids = records_from_coco(truth, detections)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: {explained(error)}") from None
        found.append(records)
    return truth, category_ids, found[1:]


def listed_images(truth: dict[str, Any], annotations: Path) -> dict[int, tuple[str, tuple[int, int]]]:
    """Name and (height, width) of each image, by its id. Raises DataError."""
    from datasets.structures import DataError

    try:
        return {each["id"]: (str(each["file_name"]), (each["height"], each["width"])) for each in truth["images"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"{annotations}: {explained(error)}") from None


def read_listed(
    images: dict[int, tuple[str, tuple[int, int]]], image_id: int, *, root: Path, annotations: Path
) -> "Image":
    """An image of `listed_images`. Raises DataError."""
    from datasets.images.decode import ImageFile, read_image

    name, size = images[image_id]
    return read_image(ImageFile(root / name, size=size, entry=f"{annotations}: image {image_id}"))


def explained(error: Exception) -> str:
    return f"an entry has no {error}" if isinstance(error, KeyError) else str(error)


def read_annotations(path: Path) -> dict[str, Any]:
    """Raises DataError unless it is a COCO annotation file."""
    from datasets.structures import DataError

    content = read_json(path)
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f'{path}: not a COCO annotation file: no list "{name}"')
    return dict(content)


def read_results(path: Path) -> list[dict[str, Any]]:
    """Raises DataError unless it is a COCO results file."""
    from datasets.structures import DataError

    content = read_json(path)
    if not isinstance(content, list):
        raise DataError(
            f"{path}: not a COCO results file: it holds a {type(content).__name__}, not a list of detections"
        )
    for index, entry in enumerate(content):
        problem = find_fault(entry)
        if problem:
            raise DataError(f"{path}: detection {index}: {problem}")
    return content


def find_fault(entry: Any) -> str:
    """What is wrong with a detection, and what it should be; or nothing."""
    if not isinstance(entry, dict):
        return f"{entry!r} is not an object"
    for name in ("image_id", "category_id"):
        if not isinstance(entry.get(name), int) or isinstance(entry[name], bool):
            return f"{name} {entry.get(name)!r} is not the id of the annotation file, a whole number"
    box, score = entry.get("bbox"), entry.get("score")
    numbers = box if isinstance(box, list) else []
    if len(numbers) != 4 or not all(is_number(x) for x in numbers):
        return f"bbox {box!r} is not [x, y, width, height] in px"
    if not is_number(score):
        return f"score {score!r} is not a number"
    return ""


def is_number(value: Any) -> bool:
    """Finite, also as a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def read_json(path: Path) -> Any:
    from datasets.structures import DataError

    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None


if __name__ == "__main__":
    sys.exit(main())
