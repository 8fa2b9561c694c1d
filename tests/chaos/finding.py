"""The record of an experiment's results."""

from dataclasses import dataclass, field


@dataclass
class Finding:
    """Passed and failed cases of one experiment."""

    experiment: str
    case: str
    failures: list[str] = field(default_factory=list)
    """One text per failed case"""
    cases: int = 0
    figures: dict[str, str | int | float] = field(default_factory=dict)
    """Other measurements; names contain units"""

    def add(self, place: str, problems: list[str]) -> None:
        """Add a case; it passed if there are no problems."""
        self.cases += 1
        if problems:
            self.failures.append(f"{self.experiment}, {self.case}, {place}: {'; '.join(problems)}")

    def note(self, name: str, seconds: list[float]) -> None:
        """Record median and maximum."""
        if seconds:
            ordered = sorted(seconds)
            self.figures[f"{name}, median s"] = round(ordered[len(ordered) // 2], 3)
            self.figures[f"{name}, maximum s"] = round(ordered[-1], 3)

    def row(self) -> dict[str, str | int | float | None]:
        notes = "; ".join(f"{name} {value}" for name, value in self.figures.items())
        passed = f"{self.cases - len(self.failures)}/{self.cases}"
        return {"experiment": self.experiment, "case": self.case, "passed": passed, "figures": notes}
