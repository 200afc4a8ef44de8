#!/usr/bin/env bash
# launch/tokenise.py on an Apache Flink cluster. The flags of tokenise.py are the arguments; its
# folders have to be at the same paths here and in the workers' containers (NFS, Lustre, ...).
#
#   FLINK=http://flink:8081 IMAGE=registry/quark-jax WORKERS=16 launch/tokenise_flink.sh \
#       --manifest /data/corpus.jsonl --codec /data/codec --out /data/tokens --task sr,tse
#
# --dry-run before the flags prints the command and runs nothing.
#
# Needed: `pip install -e '.[beam]'` and Java here; Docker on the task managers, and an image
# with the same and Beam's worker (COPY --from=apache/beam_python3.11_sdk:2.77.0 /opt/apache/beam
# /opt/apache/beam; ENTRYPOINT ["/opt/apache/beam/boot"]), or where they have all that installed
# already, --environment_type=PROCESS and --environment_config='{"command": "/opt/apache/beam/boot"}'.
#
# Not tried: this project has no Flink to run it on. The options are those of Beam 2.77 and of
# https://beam.apache.org/documentation/runners/flink/; the pipeline is the one that the tests run
# on the DirectRunner with two worker processes.
set -euo pipefail
cd "$(dirname "$0")/.."

run=(exec)
[ "${1:-}" != --dry-run ] || { run=(printf "%q ") && shift; }

: "${FLINK:?set it, as http://host:8081}" "${IMAGE:?set it, to a container image}"

"${run[@]}" python launch/tokenise.py "$@" -- \
  --runner=FlinkRunner \
  --flink_master="$FLINK" \
  --flink_version="${FLINK_VERSION:-1.20}" \
  --flink_submit_uber_jar \
  --environment_type=DOCKER \
  --environment_config="$IMAGE" \
  --parallelism="${WORKERS:-8}"
