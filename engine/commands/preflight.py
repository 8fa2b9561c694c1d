"""Collects the problems of a check, part by part; prints them and writes check.jsonl."""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datasets.findings import Findings, Severity
from datasets.structures import Batch
from engine.runtime import peak_memory_mb
from engine.step_errors import NonFiniteLossError, memory_explained
from engine.train import Criterion, autocast
from engine.wording import counted

RECORD = "check.jsonl"
SHOWN = 20
HEADINGS: dict[Severity, str] = {
    "error": "errors",
    "warning": "warnings",
    "skipped": "skipped",
    "fixed": "fixed in memory",
}
"""In the order of the closing list"""
SINGULAR: dict[Severity, str] = {"error": "error", "warning": "warning"}


@dataclass(frozen=True)
class Problem:
    """A line of check.jsonl."""

    severity: Severity
    part: str
    reason: str
    message: str
    count: int
    exit_code: int
    """Exit code of a run that this stops; 0 if it is no error"""


@dataclass
class Part:
    """One part of the check, and what it looked at."""

    name: str
    notes: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.notes += text.splitlines()


class Preflight:
    """Runs the parts, prints a line for each, and closes with all problems.

    folder         of the run to come; gets check.jsonl and nothing else
    codes          exit code of each expected error; any other one ends the check
    finding_code   exit code of a finding that is an error
    """

    def __init__(self, folder: Path, *, codes: Mapping[type[Exception], int], finding_code: int) -> None:
        self._folder, self._codes, self._finding_code = folder, codes, finding_code
        self._problems: list[Problem] = []
        self._hints: dict[str, None] = {}
        self._counts: Counter[tuple[Severity, str]] = Counter()
        self._parts: list[dict[str, Any]] = []
        self._start = time.monotonic()

    @property
    def failed(self) -> bool:
        return any(problem.severity == "error" for problem in self._problems)

    @contextmanager
    def part(self, name: str, findings: Findings | None = None) -> Iterator[Part]:
        """Turn an expected error inside, and the `findings` at the end, into problems."""
        part, before, start = Part(name), Counter(self._counts), time.monotonic()
        try:
            yield part
        except tuple(self._codes) as error:
            code = next(code for kind, code in self._codes.items() if isinstance(error, kind))
            reason = getattr(error, "reason", type(error).__name__)
            self._add(Problem("error", name, reason, str(error), 1, code))
        if findings is not None:
            self._take(name, findings)
        new: Counter[Severity] = Counter()
        for (severity, _), count in (self._counts - before).items():
            new[severity] += count
        seconds = time.monotonic() - start
        verdict = ", ".join(_found(severity, count) for severity, count in sorted(new.items())) or "ok"
        self._parts.append({"name": name, "looked_at": part.notes, "seconds": round(seconds, 3), "found": dict(new)})
        print("\n  ".join([f"{name}: {verdict} ({seconds:.1f} s)", *part.notes]), flush=True)

    def close(self) -> int:
        """Print all problems and write the record; returns the exit code, that of the first error."""
        with self.part("run folder") as part:
            replaced = (self._folder / RECORD).exists()
            self._write()
            part.say(f"{self._folder / RECORD} lists everything{', in place of an earlier check' if replaced else ''}")
        for severity in HEADINGS:
            self._show(severity)
        errors = [problem for problem in self._problems if problem.severity == "error"]
        code = errors[0].exit_code if errors else 0
        print(f"\n{'not ready: exit code ' + str(code) if code else 'ready'} ({time.monotonic() - self._start:.0f} s)")
        return code

    def _take(self, part: str, findings: Findings) -> None:
        self._hints |= dict.fromkeys(findings.hints)
        for found in findings.kept:
            code = self._finding_code if found.severity == "error" else 0
            self._problems.append(Problem(found.severity, part, found.reason, found.message, found.count, code))
        for severity in HEADINGS:
            for reason, count in findings.counts(severity).items():
                self._counts[severity, reason] += count

    def _add(self, problem: Problem) -> None:
        self._problems.append(problem)
        self._counts[problem.severity, problem.reason] += problem.count

    def _show(self, severity: Severity) -> None:
        """Print each reason with its total and first lines: SHOWN in all, at least one of each reason."""
        reasons = [reason for kind, reason in self._counts if kind == severity]
        if not reasons:
            return
        total = sum(self._counts[severity, reason] for reason in reasons)
        print(f"\n{HEADINGS[severity]}: {total:,}")
        for reason in reasons:
            lines = [p.message for p in self._problems if (p.severity, p.reason) == (severity, reason)]
            shown = lines[: max(SHOWN // len(reasons), 1)]
            print(f"  {reason}: {self._counts[severity, reason]:,}")
            for line in shown:
                print("    " + line.replace("\n", "\n    "))
            if len(lines) > len(shown):
                print(f"    ... and {len(lines) - len(shown):,} more")
        for hint in self._hints if severity == "error" else ():
            print(f"  {hint}")

    def _write(self) -> None:
        errors = sum(count for (severity, _), count in self._counts.items() if severity == "error")
        records = [
            *({"kind": "part", **part} for part in self._parts),
            *({"kind": "problem", **asdict(problem)} for problem in self._problems),
            {"kind": "result", "errors": errors, "seconds": round(time.monotonic() - self._start, 3)},
        ]
        text = "".join(json.dumps(record) + "\n" for record in records)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = self._folder / f"{RECORD}.partial"
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, self._folder / RECORD)
        except OSError as error:
            message = f"{self._folder}: not writable ({error.strerror}); set runtime.output_dir to a folder that is"
            self._add(Problem("error", "run folder", "not_writable", message, 1, 2))


def _found(severity: Severity, count: int) -> str:
    return counted(count, SINGULAR.get(severity, HEADINGS[severity]), HEADINGS[severity])


class TrialError(Exception):
    """A forward or backward pass fails, for a reason that the config checks do not cover."""


@dataclass(frozen=True)
class Trial:
    """Cost of one trial step."""

    seconds: float
    queries: int
    """Largest number of an image"""
    memory_mb: float
    """Peak of this process"""


def try_step(detector: nn.Module, criterion: Criterion, batch: Batch, *, device: torch.device, amp: str) -> Trial:
    """Run a forward and a backward pass; weights do not change.

    Raises NonFiniteLossError for a loss or gradient that is not finite, StepMemoryError, and TrialError.
    """
    ids = [target.image_id for target in batch.targets]
    start = time.perf_counter()
    try:
        with memory_explained(batch):
            batch = batch.to(device)
            detector.train()
            with autocast(device, amp):
                output = detector(batch.images, batch.padding_mask, batch.targets)
            loss = torch.stack(list(criterion(output, batch.targets).values())).sum()
            loss.backward()
        norm = nn.utils.get_total_norm(p.grad for p in detector.parameters() if p.grad is not None)
        values = float(loss.detach()), float(norm)  # sync
    except (RuntimeError, ValueError, IndexError) as error:
        raise TrialError(f"a training step on images {ids} fails: {type(error).__name__}: {error}") from error
    finally:
        detector.zero_grad(set_to_none=True)
    if not all(map(math.isfinite, values)):
        raise NonFiniteLossError(
            f"the loss is {values[0]} and the norm of its gradient {values[1]} on images {ids}; check the weights that "
            "the training starts from, or set runtime.amp: none"
        )
    seconds = time.perf_counter() - start
    return Trial(seconds, queries=int(output.num_queries.max()), memory_mb=peak_memory_mb(device))
