#!/usr/bin/env bash
# Test and measure on a GPU in one command: build and test the kernels, benchmark operator and training steps, train an
# epoch, resume exactly. One folder with a log per step and a summary to post as an issue. See docs/gpu.md.
#
#   bash scripts/gpu_day.sh                        20 minutes at most, the most telling steps first
#   bash scripts/gpu_day.sh --minutes 8            what fits into 8
#   bash scripts/gpu_day.sh --only build check     some steps
#   bash scripts/gpu_day.sh --rehearse             all steps in tiny sizes on a CPU
#
# D3Q_PYTHON names the interpreter; one that has the packages needs no network.
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
exec "$python" -m scripts.gpu_steps --from "$from" "$@"
