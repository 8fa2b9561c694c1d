#!/usr/bin/env bash
# The first day on a GPU, in one command: builds and tests the kernels, measures operator and training steps, trains an
# epoch, resumes exactly; one folder with a log per step and a summary to be posted as an issue. docs/gpu.md says more.
#
#   bash scripts/gpu_day.sh                        20 minutes at most, the most telling steps first
#   bash scripts/gpu_day.sh --minutes 8            what fits into 8
#   bash scripts/gpu_day.sh --only build check     some steps
#   bash scripts/gpu_day.sh --rehearse             tiny, on a CPU: that the way to the end is free
#
# D3Q_PYTHON names the interpreter; one that has the packages is taken as it is, without a network.
# Without it, scripts/setup.sh makes .venv.
set -euo pipefail

if [[ ${D3Q_PYTHON-} == */* ]]; then
    D3Q_PYTHON=$(cd -- "$(dirname -- "$D3Q_PYTHON")" > /dev/null && pwd)/$(basename -- "$D3Q_PYTHON")
    export D3Q_PYTHON
fi
from=$PWD
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." > /dev/null

python=${D3Q_PYTHON:-.venv/bin/python}
needed='import numpy, PIL, pycocotools, scipy, tensorboard, torch, torchvision, tqdm, yaml'
if [[ -z ${D3Q_PYTHON-} ]] || ! "$python" -c "$needed" 2> /dev/null; then
    bash scripts/setup.sh
fi
exec "$python" scripts/gpu_day.py --from "$from" "$@"
