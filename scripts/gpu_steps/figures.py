"""Read figures from the files and logs of the steps."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from scripts.benchmarks.harness import Table
from scripts.gpu_steps.step import Figures


def last_line(log: Path) -> Figures:
    lines = [line for line in log.read_text(errors="replace").splitlines()[1:] if line.strip()]
    return Figures(lines[-1].strip() if lines else "")


def prediction(log: Path) -> Figures:
    """Of `scripts/predict.py`: detections and time."""
    lines = log.read_text(errors="replace").splitlines()
    return Figures(
        "; ".join(" ".join(line.split()) for line in lines if line.startswith(("detections", "tiles", "time")))
    )


def built(log: Path) -> Figures:
    """Of `python -m ops.build`: time, devices, and the reason for missing ones."""
    lines = [line.removeprefix("ops: ") for line in log.read_text(errors="replace").splitlines() if "built" in line]
    return Figures("; ".join(lines))


def backends(log: Path) -> Figures:
    """Of `python -m ops.build --check`: how many rows agree, rows that do not or were not run, and the chosen
    backend."""
    text = log.read_text(errors="replace")
    rows = re.findall(r"^(\S+) +(\S+) .*(FAILED|not run).*$", text, re.MULTILINE)
    agree = len(re.findall(r"  ok$", text, re.MULTILINE))
    chosen = re.findall(r"runs with (.+)$", text, re.MULTILINE)
    return Figures("; ".join([f"{agree} rows ok", *map(" ".join, rows), *chosen]))


def tests(report: Path) -> Figures:
    """Of a JUnit report of pytest."""
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    count = {name: sum(int(suite.get(name, "0")) for suite in suites) for name in ("tests", "failures", "errors")}
    skipped = sum(int(suite.get("skipped", "0")) for suite in suites)
    failed = count["failures"] + count["errors"]
    return Figures(f"{count['tests'] - failed - skipped} passed, {failed} failed, {skipped} skipped")


def tables(file: Path) -> Figures:
    """Of a benchmark's --json."""
    content = json.loads(file.read_text())
    found = [Table(title, rows) for title, rows in content["tables"].items()]
    return Figures(_headline(found), [table.markdown() for table in found])


def detection(file: Path) -> Figures:
    """Of an evaluation.json."""
    found: dict[str, Any] = json.loads(file.read_text())["detection"]
    shown = {"AP": found["mAP"], "AP50": found["mAP_50"]}
    return Figures(", ".join(f"{name} {100 * share:.3g} %" for name, share in shown.items() if share is not None))


def sanitizer(log: Path) -> Figures:
    """Of compute-sanitizer."""
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.+)$", log.read_text(errors="replace"), re.MULTILINE)
    return Figures(summaries[-1] if summaries else "no summary")


def _headline(found: list[Table]) -> str:
    """How close the fastest backend of the first table is to its limits, or how accurate the memory estimate is."""
    rows = [row for table in found for row in table.rows]
    if any("forward, share of L2 limit" in row for row in rows):
        best = min(found[0].rows, key=lambda row: float(row["forward, ms"] or 0))
        shares = [f"{best[f'forward, share of {limit} limit']:.2f} of the {limit} limit" for limit in ("memory", "L2")]
        return f"{found[0].title}: {best['backend']}, forward {best['forward, ms']:.3g} ms, {' and '.join(shares)}"
    ratios = [float(ratio) for row in rows if (ratio := row.get("predicted / measured"))]
    if ratios:
        return f"{len(ratios)} cases, memory predicted / measured {min(ratios):.2f} to {max(ratios):.2f}"
    return ""
