#!/usr/bin/env bash
# A training on a SLURM cluster, from the root of the repository:
#
#   sbatch --nodes=2 --gpus-per-node=8 scripts/train_slurm.sh CONFIG RUN_FOLDER [KEY=VALUE ...]
#
# One launcher per machine, one process per GPU. Two minutes before the time limit the run saves and the job is requeued;
# when it starts again, it resumes from RUN_FOLDER/last.pth if that exists. KEY=VALUE as for --set.
# RUN_FOLDER and the data must be on a disk that all machines share. D3Q_PYTHON names the interpreter.
#
#SBATCH --job-name=d3q
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: sbatch [OPTIONS] scripts/train_slurm.sh CONFIG RUN_FOLDER [KEY=VALUE ...]" >&2
    exit 2
fi
config=$1 folder=$2
shift 2

run=(--config "$config" --resume auto --set "runtime.output_dir=$folder" "$@")
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${hosts%%$'\n'*}   # a pipe to head could end scontrol early
launcher=(
    "${D3Q_PYTHON:-.venv/bin/python}" -m torch.distributed.run
    "--nnodes=$SLURM_JOB_NUM_NODES" "--nproc-per-node=${SLURM_GPUS_ON_NODE:-1}"
    --rdzv-backend=c10d "--rdzv-endpoint=$first:$((20000 + SLURM_JOB_ID % 10000))" "--rdzv-id=$SLURM_JOB_ID"
)
# Known only on each machine: whether it hosts the rendezvous, and its own name.
# shellcheck disable=SC2016
on_machine='[[ $SLURM_NODEID == 0 ]] && host=true || host=false
launcher=("${@:1:$1+1}"); main=("${@:$1+2}")
exec "${launcher[@]:1}" --rdzv-conf="is_host=$host" --local-addr="$SLURMD_NODENAME" "${main[@]}"'

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100   # seconds to save in, after SIGTERM
stopped=
trap 'stopped=yes; kill -TERM "$job" 2> /dev/null || true' TERM
srun --kill-on-bad-exit=1 bash -c "$on_machine" machine "${#launcher[@]}" "${launcher[@]}" main.py "${run[@]}" &
job=$!
code=0
wait "$job" || code=$?
while kill -0 "$job" 2> /dev/null; do   # the signal ends the first wait before the job
    code=0
    wait "$job" || code=$?
done
if [[ -n $stopped ]] && grep -qs '"exit_code": 75' "$folder/status.json"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
