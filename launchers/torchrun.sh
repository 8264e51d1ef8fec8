#!/usr/bin/env bash
# One run under torchrun. On one node: launchers/torchrun.sh method=odm trainer=ddp trainer.devices=8
# On several, the same line on each with NODES, NODE_RANK (0 on the first) and MASTER_ADDR (the first node) set.
# PROCESSES: processes on this node, as trainer.devices says; NODES: as trainer.num_nodes says.
set -euo pipefail
exec torchrun --nnodes="${NODES:-1}" --node-rank="${NODE_RANK:-0}" --nproc-per-node="${PROCESSES:-8}" \
  --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${MASTER_PORT:-29500}" \
  --module regimen train "$@"
