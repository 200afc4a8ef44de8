#!/usr/bin/env bash
# A training on a Cloud TPU slice, or on several as one job, that nobody else manages: ask for the
# machines, install, run, stop, give back.
#
#   export PROJECT=... ZONE=us-west4-a NAME=quark TYPE=v5litepod-256 BUCKET=gs://BUCKET
#   launch/tpu_vm.sh create      # ask for the slice, and wait until it is there
#   launch/tpu_vm.sh install     # what is committed here, on every worker
#   launch/tpu_vm.sh run launch/train_lm.py --config ... --workdir "$BUCKET/runs/x"
#   launch/tpu_vm.sh logs        # of worker 0
#   launch/tpu_vm.sh stop        # saves the step under way; `run` goes on from there
#   launch/tpu_vm.sh delete
#
# --dry-run before the first word prints the commands in place of running them. SLICES=2 asks for
# two slices that train as one job, SPOT=1 for machines that may be taken away, RUNTIME for
# another image than that of the type. The bucket's files are at /bucket on every worker, for the
# datasets, which ArrayRecord reads from folders alone. VARIABLES="A=1 B=2" go into the environment.
#
# Each worker runs the program as the systemd unit `quark`, which outlives the connection. When one
# of them dies JAX ends the others, and systemd starts all of them again, until they end with 0, or
# with 2 because of what only a person can put right.
#
# Needed: gcloud, the Cloud TPU API, and a service account of the machines that may write to the
# bucket. Not tried: this project has no TPUs to run it on. The tests run --dry-run and put the
# program for the workers through bash and shellcheck; the options are those of
# https://cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources/create.
set -euo pipefail
cd "$(dirname "$0")/.."

DRY_RUN=
[ "${1:-}" != --dry-run ] || { DRY_RUN=1 && shift; }
: "${PROJECT:?set it, to a project of Google Cloud}" "${ZONE:?set it, as us-west4-a}"
: "${NAME:?set it, to a name for the slice}" "${TYPE:?set it, as v5litepod-256, v5p-512, v6e-256}"
: "${BUCKET:?set it, as gs://NAME}" "${SLICES:=1}"
place=(--project="$PROJECT" --zone="$ZONE")

case $TYPE in
  v4-*) : "${RUNTIME:=tpu-ubuntu2204-base}" ;;
  v5litepod-*) : "${RUNTIME:=v2-alpha-tpuv5-lite}" ;;
  v5p-*) : "${RUNTIME:=v2-alpha-tpuv5}" ;;
  v6e-*) : "${RUNTIME:=v2-alpha-tpuv6e}" ;;
  *) : "${RUNTIME:?set it, to the image of the machines of $TYPE}" ;;
esac

if [ "$SLICES" = 1 ]; then
  nodes=("$NAME")
else
  mapfile -t nodes < <(seq -f "$NAME-%.0f" 0 $((SLICES - 1)))
fi

# Run a command, or print it.
run() {
  if [ -n "$DRY_RUN" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Run a program of bash on every worker of every slice.
on_all() {
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm ssh "$node" "${place[@]}" --worker=all --command="$1"
  done
}

create() {
  local options=(--accelerator-type="$TYPE" --runtime-version="$RUNTIME" --scopes=cloud-platform)
  if [ "$SLICES" = 1 ]; then
    options+=(--node-id="$NAME")
  else
    options+=(--node-prefix="$NAME" --node-count="$SLICES")
  fi
  [ -z "${SPOT:-}" ] || options+=(--spot)
  run gcloud compute tpus queued-resources create "$NAME" "${place[@]}" "${options[@]}"
  local describe=(gcloud compute tpus queued-resources describe "$NAME" "${place[@]}"
    "--format=value(state.state)") state=
  if [ -n "$DRY_RUN" ]; then
    run "${describe[@]}"
    return
  fi
  until [ "$state" = ACTIVE ]; do
    [ -z "$state" ] || sleep 60
    state=$("${describe[@]}")
    echo "$NAME: $state" >&2
    case $state in FAILED | SUSPENDED) exit 1 ;; esac
  done
}

install() {
  local code
  code="$BUCKET/code/$(git rev-parse HEAD).tar.gz"
  run bash -c "git archive --format=tar.gz HEAD | gcloud storage cp - $code"
  # The machines' Python may be older than 3.11.
  on_all "set -euo pipefail
rm -rf ~/quark-jax && mkdir ~/quark-jax && cd ~/quark-jax
gcloud storage cat $code | tar xz
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv -e '.[tpu,text]'
if ! command -v gcsfuse; then
  curl -fsSLO https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v3.6.0/gcsfuse_3.6.0_amd64.deb
  sudo apt-get install -y -q fuse ./gcsfuse_3.6.0_amd64.deb
fi
sudo mkdir -p /bucket && sudo chown \"\$(id -u)\" /bucket
mountpoint -q /bucket || gcsfuse --implicit-dirs -o ro ${BUCKET#gs://} /bucket"
}

start() {
  [ $# -gt 0 ] || { echo "launch/tpu_vm.sh run: no program; give launch/train_lm.py ..." >&2; exit 2; }
  local program variables=""
  program=$(printf '%q ' "$@")
  for variable in ${VARIABLES:-}; do
    variables+=" --setenv=$(printf %q "$variable")"
  done
  on_all "set -euo pipefail
sudo systemctl reset-failed quark 2>/dev/null || true
sudo systemd-run --quiet --unit=quark --uid=\"\$(id -u)\" --working-directory=\"\$HOME/quark-jax\" \
--setenv=HOME=\"\$HOME\"$variables --property=TimeoutStopSec=900 --property=Restart=on-failure \
--property=RestartSec=30 --property=RestartPreventExitStatus=2 --property=StartLimitIntervalSec=0 \
\"\$HOME/quark-jax/.venv/bin/python\" $program"
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
  create) create ;;
  install) install ;;
  run) start "$@" ;;
  stop) on_all "sudo systemctl stop quark" ;;
  logs) run gcloud compute tpus tpu-vm ssh "${nodes[0]}" "${place[@]}" --worker=0 \
    --command="journalctl --unit=quark --follow" ;;
  delete) run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force --quiet ;;
  *)
    echo "launch/tpu_vm.sh: ${command:-nothing}; say create, install, run, stop, logs or delete" >&2
    exit 2
    ;;
esac
