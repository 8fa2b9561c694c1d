"""What an experiment found."""

from dataclasses import dataclass, field


@dataclass
class Finding:
    """How many of how many cases went as they must."""

    experiment: str
    case: str
    failures: list[str] = field(default_factory=list)
    """What went wrong, one text per case that did"""
    cases: int = 0
    figures: dict[str, str | int | float] = field(default_factory=dict)
    """What else was measured; names hold units"""

    def add(self, place: str, problems: list[str]) -> None:
        """One more case; without problems it passed."""
        self.cases += 1
        if problems:
            self.failures.append(f"{self.experiment}, {self.case}, {place}: {'; '.join(problems)}")

    def note(self, name: str, seconds: list[float]) -> None:
        """Median and maximum."""
        if seconds:
            ordered = sorted(seconds)
            self.figures[f"{name}, median s"] = round(ordered[len(ordered) // 2], 3)
            self.figures[f"{name}, maximum s"] = round(ordered[-1], 3)

    def row(self) -> dict[str, str | int | float | None]:
        notes = "; ".join(f"{name} {value}" for name, value in self.figures.items())
        passed = f"{self.cases - len(self.failures)}/{self.cases}"
        return {"experiment": self.experiment, "case": self.case, "passed": passed, "figures": notes}
