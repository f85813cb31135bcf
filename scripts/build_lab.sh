#!/bin/sh
# build_lab.sh [BACKEND]: builds the laboratory's plug-in that `make bench` uses here (doc/lab.md):
# build/lab_cuda.so where there are a GPU and nvcc, else build/lab_sim.so where there is clang++.
# BACKEND (cuda, sim, cpu) asks for one. Without any it says so, and the CPU's slots are all.
set -u
cd "$(dirname "$0")/.."
backend=$1
nvcc=${NVCC:-$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)}
jobs=$(nproc)

if [ -z "$backend" ]; then
    if nvidia-smi -L >/dev/null 2>&1 && [ -n "$nvcc" ]; then
        backend=cuda
    elif command -v "${SIM_CXX_sim:-clang++}" >/dev/null || [ -n "${SIM_CXX_sim:-}" ]; then
        backend=sim
    else
        echo "no GPU with nvcc, and no clang++ for the simulator (apt-get install clang):" \
            "the CUDA versions are not checked"
        exit 0
    fi
fi
case $backend in
cuda) exec make --no-print-directory -j"$jobs" -f llmc/kernels/cuda.mk NVCC="$nvcc" lab ;;
sim*) exec make --no-print-directory -j"$jobs" -f test/cudasim/backend.mk "build/lab_$backend.so" ;;
esac
