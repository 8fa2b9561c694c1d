"""The closing lines of scripts/demo.sh: whether the resumed run agrees with its evaluation, the count, the time.

python scripts/support/demo_story.py RUN_FOLDER SECONDS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.console import guard_console


def tell(run: Path, seconds: float) -> tuple[bool, list[str]]:
    """Whether both evaluations have the same numbers, and the lines.

    run       with evaluation/ (of the run) and evaluation_last/ (of its checkpoint), and config.yaml
    seconds   since set-up
    """
    trained, alone = (json.loads((run / name / "evaluation.json").read_text()) for name in FOLDERS)
    same = trained["detection"] == alone["detection"] and trained["counts"] == alone["counts"]
    ceiling = yaml.safe_load((run / "config.yaml").read_text())["model"]["num_queries"]
    verdict = "the checkpoint gives exactly the numbers of the run" if same else "NUMBERS DIFFER"
    return same, [f"resume check  {verdict}", _count(alone, ceiling), _time(alone, seconds)]


FOLDERS = ("evaluation", "evaluation_last")


def _count(report: dict[str, Any], ceiling: int) -> str:
    counts = report["counts"]
    objects = sum(each["objects"] for each in report["classes"]) / counts["images"]
    return (
        f"count         off by {counts['count_MAE']:.1f} objects of {objects:.0f} per image (bias "
        f"{counts['count_bias']:+.1f}); {counts['mean_queries']:.0f} queries per image, where a fixed budget has "
        f"{ceiling}, and enough of them in {100 * counts['coverage']:.0f} % of the images"
    )


def _time(report: dict[str, Any], seconds: float) -> str:
    rate = 1 / report["seconds_per_image"]
    return f"time          {seconds / 60:.0f} minutes since set-up; {rate:.1f} images/s in the evaluation"


if __name__ == "__main__":
    guard_console()
    agrees, lines = tell(Path(sys.argv[1]), float(sys.argv[2]))
    print("\n".join(lines))
    sys.exit(not agrees)
