"""The closing report of a training run."""

import json
from collections.abc import Mapping
from pathlib import Path

from engine.checkpoints.checkpoint import Progress
from engine.evaluation.report import column_heading, format_percent, format_table
from engine.meter import duration
from engine.wording import counted

HELD = ("best.pth", "last.pth", "metrics.jsonl", "metrics.csv", "samples.jpg", "log.txt", "evaluation", "tensorboard")


def closing_report(folder: Path, progress: Progress, *, untrained: Mapping[str, int]) -> str:
    """Best and last evaluation, time, what was skipped, and the commands to continue with.

    folder      of the run, with its metrics log
    untrained   annotations that were skipped or dropped, by reason
    """
    annotations = sum(untrained.values())
    held = [name for name in HELD if (folder / name).exists()]
    more = f"--set optim.epochs={progress.epoch + 1}"
    return "\n".join(
        [
            f"done: {counted(progress.epoch, 'epoch')}, {counted(progress.step, 'step')} "
            f"in {duration(progress.seconds)}",
            *_evaluations(folder / "metrics.jsonl"),
            f"skipped: {counted(progress.skipped, 'step')} not finite, {counted(annotations, 'annotation')}; "
            f"replaced: {counted(progress.replaced, 'image')} that could not be read",
            *([f"evaluate: python main.py --eval --resume {folder / 'best.pth'}"] if "best.pth" in held else []),
            *([f"train on: python main.py --resume {folder / 'last.pth'} {more}"] if "last.pth" in held else []),
            f"{folder} holds {', '.join(held)}",
        ]
    )


def _evaluations(path: Path) -> list[str]:
    """A table of the best and the last evaluation; empty if none was recorded."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    found = [record for record in records if record["kind"] == "evaluation"]
    if not found:
        return []
    best = max(found, key=lambda record: record.get("mAP") or -1.0)
    names = [name for name in found[-1] if name.startswith("mAP")]
    rows = [
        [title, str(record["step"]), *(_percent(record.get(name)) for name in names)]
        for title, record in (("best", best), ("last", found[-1]))
    ]
    return [format_table(["precision, %", "step", *map(column_heading, names)], rows)]


def _percent(value: float | None) -> str:
    return "-" if value is None or value < 0 else format_percent(value)
