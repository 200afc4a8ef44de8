#!/usr/bin/env bash
# A training on the GPUs of a Slurm cluster: one process a GPU, over all nodes of the job.
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm_train.sh \
#       launch/train_lm.py --config configs/lm/published.py:base --workdir /data/runs/base ...
#
# Options of sbatch (--partition, --account, --time, --output) go before the script. --dry-run as
# the script's first word prints the command that each task would run, also outside of a job.
# PYTHON is the interpreter (.venv/bin/python where there is one), CONTAINER an image for Pyxis.
#
# Three minutes before the time is up, or when Slurm wants the nodes, the tasks get SIGTERM: they
# save the step under way, and the job goes back into the queue, to go on from there. When a task
# fails the others are ended, and so is the job; one whose node fails goes back into the queue.
#
# Needed: on each node the same folder with this project and `pip install -e . 'jax[cuda13]'`, and a
# --workdir that all nodes see. The tasks find each other by what srun tells them; do not give
# --gpus-per-task, which would hide the GPUs of the other tasks of the node and their numbers.
# Not tried on a cluster: the tests run it with a stand-in for srun that starts two processes.
#
#SBATCH --job-name=quark
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

DRY_RUN=
[ "${1:-}" != --dry-run ] || { DRY_RUN=1 && shift; }
[ $# -gt 0 ] || { echo "launch/slurm_train.sh: no program; give launch/train_lm.py ..." >&2; exit 2; }
# Slurm runs a copy of this file, in the folder that sbatch was called in.
[ -e "$1" ] || { echo "launch/slurm_train.sh: $1: not found; call sbatch in the project's folder" >&2; exit 2; }

if [ -z "${PYTHON:-}" ]; then
  PYTHON=python
  [ ! -x .venv/bin/python ] || PYTHON=$PWD/.venv/bin/python
fi
export QUARK_STOPPED_EXIT=75

task=(srun --kill-on-bad-exit=1 --export=ALL)
if [ -n "${CONTAINER:-}" ]; then
  task+=(--container-image="$CONTAINER" --container-mounts="$PWD:$PWD" --container-workdir="$PWD")
fi
task+=("$PYTHON" "$@")

if [ -n "$DRY_RUN" ]; then
  printf '%q ' "${task[@]}"
  echo
  exit
fi

code=0
"${task[@]}" || code=$?
if [ "$code" = 75 ]; then
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
