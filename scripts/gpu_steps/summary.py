"""The summary of all steps, as Markdown that can be posted as an issue."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.benchmarks.harness import Cell, Table
from scripts.gpu_steps.step import Result, tail

SHOWN = 25
"""Lines of the log of a step that failed"""


def summarise(results: Sequence[Result], facts: Mapping[str, Any], *, title: str, command: str, date: str) -> str:
    """All steps in a table, then their figures, then the ends of the logs of failed steps."""
    parts = [f"# {title}", _machine(facts, command, date), _list(results).markdown()]
    for result in results:
        if result.figures.tables:
            parts.append(f"## {_words(result)}")
            parts += result.figures.tables
    failed = [result for result in results if result.outcome == "failed" and result.log is not None]
    for result in failed:
        parts += [f"## {_words(result)}: {result.reason}", f"```text\n{_end(result.log)}\n```"]
    return "\n\n".join(parts) + "\n"


def counted(results: Sequence[Result]) -> str:
    """The number of steps by outcome."""
    outcomes = [result.outcome for result in results]
    return ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in ("passed", "failed", "not run"))


def _list(results: Sequence[Result]) -> Table:
    rows: list[dict[str, Cell]] = [
        {
            "step": _words(result),
            "result": result.outcome,
            "s": round(result.seconds),
            "figures": "; ".join(filter(None, [result.reason, result.figures.line])).replace("|", "/"),
        }
        for result in results
    ]
    return Table(counted(results), rows)


def _machine(facts: Mapping[str, Any], command: str, date: str) -> str:
    stated = {"date": date, "command": f"`{command}`"} | {
        name: ", ".join(value) if isinstance(value, list) else value for name, value in facts.items()
    }
    return "\n".join(f"- {name}: {value}" for name, value in stated.items() if value not in ("", None))


def _words(result: Result) -> str:
    return result.name.replace("_", " ")


def _end(log: Path | None) -> str:
    return tail(log, SHOWN).replace("```", "'''") if log is not None else ""
