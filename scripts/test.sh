#!/usr/bin/env bash
# Run all checks before a change is merged: lint, format, types, tests. Arguments go to pytest:
#
#   bash scripts/test.sh                      all but the slow ones
#   bash scripts/test.sh -k density -n 0      some tests, in one process
#   bash scripts/test.sh -m slow              those that take minutes; scripts/chaos.sh runs them too
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

# For the tests of the extra `geo`, to validate GeoJSON, and for those of a page in a browser.
for package in rasterio geojson selenium; do
    "$python" -c "import $package" 2> /dev/null ||
        "$python" -m pip --disable-pip-version-check install --quiet -c scripts/constraints.txt "$package" ||
        echo "test: no $package; the tests that need it are skipped" >&2
done

# One thread per process: two torch processes with one thread per core slow each other down many times.
export OMP_NUM_THREADS=1

"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
"$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" "$@"
