#!/bin/bash
# Starts the command on every host of a Cloud TPU slice: scripts/launch/tpu_pod.sh [options of fer_jax.main]
# JAX finds the other hosts through the slice's own metadata.
set -euo pipefail

# Three lines to change: the slice, its zone and a folder that all hosts see (Filestore or another network file system).
tpu_name=my-tpu
zone=us-west4-a
workdir=/mnt/shared/runs/resnet50

# One-time setup: git clone the repository into ~/fer_jax on every host and
#   cd fer_jax && python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'
options=""
if (($#)); then # without options printf would produce an empty one, which the command refuses
  printf -v options '%q ' "$@"
fi
gcloud compute tpus tpu-vm ssh "$tpu_name" --zone="$zone" --worker=all --command="
  cd fer_jax &&
  .venv/bin/python -m fer_jax.main --config=configs/resnet50.py --workdir=$workdir \
    --config.parallel.distributed=True $options"
