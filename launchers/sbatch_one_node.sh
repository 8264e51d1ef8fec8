#!/usr/bin/env bash
# One run on one node without submitit: sbatch launchers/sbatch_one_node.sh method=odm trainer=ddp trainer.devices=8
#SBATCH --job-name=regimen
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=regimen-%j.log
# --ntasks-per-node must equal trainer.devices. Five minutes before the limit the run saves and goes back into the queue.
set -euo pipefail
srun --kill-on-bad-exit=1 regimen train "$@"
