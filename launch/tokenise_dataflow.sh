#!/usr/bin/env bash
# launch/tokenise.py on Google Cloud Dataflow, a GPU a worker. Set the names below, and give the
# flags of tokenise.py as arguments, with folders in the bucket:
#
#   launch/tokenise_dataflow.sh --manifest gs://BUCKET/corpus.jsonl --codec gs://BUCKET/codec \
#       --out gs://BUCKET/tokens --task sr,tse
#
# --dry-run before the flags prints the command and runs nothing.
#
# Needed: the Dataflow API; here `pip install -e '.[beam]' 'apache-beam[gcp]' gcsfs`, for `vc`
# the extra `voice` too; an image with the same, JAX for CUDA, and Beam's worker
# (COPY --from=apache/beam_python3.11_sdk:2.77.0 /opt/apache/beam /opt/apache/beam;
# ENTRYPOINT ["/opt/apache/beam/boot"]).
# ArrayRecord reads no buckets: copy the finished dataset to disks, or mount the bucket, to train.
#
# Not tried: this project has no Dataflow to run it on. The options are those of Beam 2.77 and of
# https://cloud.google.com/dataflow/docs/gpu/use-gpus; the pipeline is the one that the tests run on
# the DirectRunner with two worker processes.
set -euo pipefail
cd "$(dirname "$0")/.."

run=(exec)
[ "${1:-}" != --dry-run ] || { run=(printf "%q ") && shift; }

: "${PROJECT:?set it, to a project of Google Cloud}" "${REGION:?set it, as us-west4}"
: "${BUCKET:?set it, as gs://NAME}" "${IMAGE:?set it, to a container image}"

# One process a worker, and one shard at a time, so that the GPU holds the codec once.
"${run[@]}" python launch/tokenise.py "$@" -- \
  --runner=DataflowRunner \
  --project="$PROJECT" \
  --region="$REGION" \
  --job_name="tokenise-$(date +%Y%m%d-%H%M%S)" \
  --temp_location="$BUCKET/temp" \
  --staging_location="$BUCKET/staging" \
  --sdk_container_image="$IMAGE" \
  --sdk_location=container \
  --machine_type="${MACHINE:-g2-standard-8}" \
  --disk_size_gb=100 \
  --max_num_workers="${WORKERS:-32}" \
  --dataflow_service_options="worker_accelerator=type:${GPU:-nvidia-l4};count:1;install-nvidia-driver" \
  --experiments=no_use_multiple_sdk_containers \
  --number_of_worker_harness_threads=1
