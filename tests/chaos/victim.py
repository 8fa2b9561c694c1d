"""main.py under torchrun, where one rank kills itself once: victim.py MARK RANK STEP ARGUMENT...

MARK   file that the kill creates and writes its time to; MARK.back gets the time of the first step after the restart
RANK   that sends itself SIGKILL right after its optimiser step number STEP
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import main
from tests.support.hooks import at_step


def die(mark: Path) -> None:
    note(mark)
    os.kill(os.getpid(), signal.SIGKILL)


def note(mark: Path) -> None:
    mark.write_text(str(time.time()))


if __name__ == "__main__":
    mark, rank, step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if mark.exists():
        at_step(1, lambda: note(mark.with_suffix(".back")))
    else:
        at_step(step, lambda: die(mark), rank=rank)
    sys.exit(main.main(sys.argv[4:]))
