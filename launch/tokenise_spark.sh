#!/usr/bin/env bash
# launch/tokenise.py on an Apache Spark 3 cluster. The flags of tokenise.py are the arguments; its
# folders have to be at the same paths here and in the workers' containers (NFS, Lustre, ...).
#
#   SPARK=spark://spark:7077 SPARK_REST=http://spark:6066 IMAGE=registry/quark-jax \
#       launch/tokenise_spark.sh --manifest /data/corpus.jsonl --codec /data/codec \
#       --out /data/tokens --task sr,tse
#
# --dry-run before the flags prints the command and runs nothing.
#
# Needed: `pip install -e '.[beam]'` and Java here; Docker on the workers, and an image as for
# launch/tokenise_flink.sh. Spark's REST endpoint has to be on (spark.master.rest.enabled).
#
# Not tried: this project has no Spark to run it on. The options are those of Beam 2.77 and of
# https://beam.apache.org/documentation/runners/spark/; the pipeline is the one that the tests run
# on the DirectRunner with two worker processes.
set -euo pipefail
cd "$(dirname "$0")/.."

run=(exec)
[ "${1:-}" != --dry-run ] || { run=(printf "%q ") && shift; }

: "${SPARK:?set it, as spark://host:7077}" "${SPARK_REST:?set it, as http://host:6066}"
: "${IMAGE:?set it, to a container image}"

"${run[@]}" python launch/tokenise.py "$@" -- \
  --runner=SparkRunner \
  --spark_version=3 \
  --spark_master_url="$SPARK" \
  --spark_submit_uber_jar \
  --spark_rest_url="$SPARK_REST" \
  --environment_type=DOCKER \
  --environment_config="$IMAGE"
