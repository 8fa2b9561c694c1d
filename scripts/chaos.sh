#!/usr/bin/env bash
# Run the slow tests, then fault injection: every experiment of tests/chaos/experiments.py, which prints a table at its
# end. Arguments go to it:
#
#   bash scripts/chaos.sh                     all
#   bash scripts/chaos.sh --json chaos.json   the figures as data too
#
# D3Q_PYTHON names the interpreter; without it, scripts/setup.sh makes .venv.
set -euo pipefail

if [[ ${D3Q_PYTHON-} == */* ]]; then
    D3Q_PYTHON=$(cd -- "$(dirname -- "$D3Q_PYTHON")" > /dev/null && pwd)/$(basename -- "$D3Q_PYTHON")
    export D3Q_PYTHON
fi
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." > /dev/null

bash scripts/setup.sh
python=${D3Q_PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=1

status=0
"$python" -m pytest -m slow || status=$?
"$python" tests/chaos/experiments.py "$@" || status=$?
exit "$status"
