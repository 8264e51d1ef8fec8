#!/usr/bin/env bash
# One run on several nodes without submitit; --nodes must equal trainer.num_nodes and --ntasks-per-node trainer.devices:
#   sbatch launchers/sbatch_nodes.sh method=odm trainer=ddp trainer.devices=8 trainer.num_nodes=2
#SBATCH --job-name=regimen
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=regimen-%j.log
set -euo pipefail
srun --kill-on-bad-exit=1 --label regimen train "$@"
