"""Record of problems in the data: every finding is counted, the first 100,000 are kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from datasets.errors import DataError

Severity = Literal["error", "skipped", "fixed", "warning"]
SHOWN, KEPT = 20, 100_000


@dataclass(frozen=True)
class Finding:
    """One problem, or `count` problems of a kind.

    severity  error: stops the run; skipped: not used; fixed: corrected in memory; warning: used unchanged
    reason    a short name of the kind, such as unknown_image
    message   one line: file, entry, field, value, remedy
    """

    severity: Severity
    reason: str
    message: str
    count: int = 1


class Findings:
    """Collects findings; `raise_errors` stops with all errors at once."""

    def __init__(self) -> None:
        self.kept: list[Finding] = []
        self.hints: dict[str, None] = {}  # a set that keeps its order
        self._counts: Counter[tuple[Severity, str]] = Counter()

    def add(self, severity: Severity, reason: str, message: str, *, count: int = 1, hint: str = "") -> None:
        """hint   remedy for every finding of this reason; shown once"""
        self._counts[severity, reason] += count
        if len(self.kept) < KEPT:
            self.kept.append(Finding(severity, reason, one_line(message), count))
        if hint and severity == "error":
            self.hints[hint] = None

    def counts(self, severity: Severity) -> dict[str, int]:
        """Number of findings by reason."""
        return {reason: count for (kind, reason), count in self._counts.items() if kind == severity}

    def messages(self, severity: Severity) -> list[str]:
        return [finding.message for finding in self.kept if finding.severity == severity]

    def raise_errors(self) -> None:
        """Raise DataError with the first errors and totals, if there are any."""
        counts = self.counts("error")
        total, shown = sum(counts.values()), self.messages("error")[:SHOWN]
        hints = "".join(f"; {hint}" for hint in self.hints)
        if total == 1:
            raise DataError(f"{shown[0]} [{next(iter(counts))}]{hints}")
        if total:
            more = [f"... and {total - len(shown)} more"] if total > len(shown) else []
            kinds = ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
            raise DataError("\n".join([*shown, *more, f"{total:,} errors in total: {kinds}{hints}"]))


def one_line(text: str) -> str:
    """The text with line ends, control characters and halves of surrogate pairs written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
