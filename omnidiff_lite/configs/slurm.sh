#!/bin/bash
# A stage at full size on 8 machines of 8 GPUs: sbatch omnidiff_lite/configs/slurm.sh --stage 1 --init start/ --data ids/
# A job that was cut off goes on where its last checkpoint stands: submit it again.
#SBATCH --job-name=omnidiff
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export processes=$((SLURM_NNODES * 8)) first

# One launcher a machine; $SLURM_NODEID is known only there, hence the single quotes.
srun --kill-on-bad-exit=1 bash -c 'accelerate launch --config_file omnidiff_lite/configs/fsdp2.yaml \
  --num_machines "$SLURM_NNODES" --num_processes "$processes" --machine_rank "$SLURM_NODEID" \
  --main_process_ip "$first" --main_process_port 29500 \
  -m omnidiff_lite train --preset full --expect "$processes" fsdp2 cuda "$@"' train "$@"
