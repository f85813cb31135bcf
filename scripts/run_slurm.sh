#!/bin/sh
# run_slurm.sh: a job of several machines under Slurm, one process for each GPU (doc/scaling.md).
# Submit it from the root of the tree; what follows the script's name are ./train's options, with a
# --run on a file system that all machines see:
#
#     sbatch --nodes 4 scripts/run_slurm.sh --model DIR --data FILE --run /shared/runs/one
#
# The lines below are for machines of 8 GPUs; sbatch's own options replace them. The job saves and
# ends two minutes before its time is over, and the same line goes on with it.
#SBATCH --job-name=train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=slurm-%j.log
set -eu
if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "run_slurm.sh: submit it with sbatch" >&2
    exit 2
fi
cd "$SLURM_SUBMIT_DIR"

# Where the ranks meet: rank 0's machine, and a port that other jobs on it do not take.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((15000 + SLURM_JOB_ID % 15000))
OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS

# Each process sees all GPUs of its machine and takes the one of its number (SLURM_LOCALID), with
# processors of its own. If one fails, all end, and are started again from the last checkpoint.
exec sh scripts/run_resilient.sh \
    srun --kill-on-bad-exit=1 --gpu-bind=none --cpu-bind=cores ./train "$@"
