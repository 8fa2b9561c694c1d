#!/usr/bin/env bash
# Run everything on one machine: environment, data, training of a small DINO-D3Q, resume, evaluation, gallery.
#
#   bash scripts/demo.sh           procedural scenes, 8 classes
#   bash scripts/demo.sh --real    real aerial images: tree crowns of NEON, trained at one place, tested at another
#
# D3Q_PYTHON names the interpreter; without it, scripts/setup.sh makes .venv. Data and weights are made once and kept.
set -euo pipefail

if [[ ${D3Q_PYTHON-} == */* ]]; then
    D3Q_PYTHON=$(cd -- "$(dirname -- "$D3Q_PYTHON")" > /dev/null && pwd)/$(basename -- "$D3Q_PYTHON")
    export D3Q_PYTHON
fi
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." > /dev/null

case ${1-} in
    "") name=scenes ;;
    --real) name=neon_trees ;;
    *) echo "usage: bash scripts/demo.sh [--real]" >&2; exit 2 ;;
esac
config=configs/dino_d3q_$name.yaml
run=runs/demo_$name
for ((number = 2; ; number++)); do # an earlier demo is kept
    [[ -e $run ]] || break
    run=runs/demo_$name-$number
done

bash scripts/setup.sh
python=${D3Q_PYTHON:-.venv/bin/python}
started=$SECONDS
step() { printf '\n== %s (%d s since set-up)\n' "$1" "$((SECONDS - started))"; }

step "weights and data"
"$python" scripts/fetch_weights.py --out weights
if [[ $name == scenes ]]; then
    "$python" scripts/make_scenes.py --out data/scenes --max-count 150
else
    "$python" scripts/prepare_neon_trees.py --out data/neon_trees
fi

# Stop before the last epoch and resume from the checkpoint, as runs on shared machines do.
epochs=$("$python" main.py --config "$config" --print-config | sed -n 's/^  epochs: //p')
step "training, epochs 1 to $((epochs - 1))"
"$python" main.py --config "$config" --set runtime.output_dir="$run" optim.epochs=$((epochs - 1))
step "resuming for epoch $epochs"
"$python" main.py --resume "$run/last.pth" --set optim.epochs="$epochs"

step "evaluating the checkpoint by itself"
"$python" main.py --eval --resume "$run/last.pth"
step "done"
echo "checkpoints   $run/best.pth, $run/last.pth"
echo "gallery       $run/evaluation_last/gallery.png"
echo "curves        $run/metrics.jsonl; tensorboard --logdir $run"
echo
cat "$run/evaluation_last/evaluation.txt"
echo
"$python" scripts/support/demo_story.py "$run" "$((SECONDS - started))"
