# The CUDA backend: by nvcc as backend_cuda.so, and as the simulator's plug-ins, from the same files.
# Included by the Makefile, or used alone: make -f llmc/kernels/cuda.mk cuda
#
#   cuda           backend_cuda.so beside ./train (needs nvcc)
#   sim-backends   build/backend_sim.so, backend_sim-asan.so, backend_sim-race.so (need clang++, g++)
#   cuda-check     compiles every file for sm_80, sm_90a and the newest architecture nvcc knows, each
#                  element type, warnings as errors
#   ptxas          registers, spills and shared memory of every kernel

CUDA_FOLDER := llmc/kernels
CUDA_DTYPES := fp32 bf16 fp16
CUDA_DEFINES_fp32 := -DBACKEND_FLOATX=float -DBACKEND_DTYPE=fp32
CUDA_DEFINES_bf16 := -DBACKEND_FLOATX=__nv_bfloat16 -DBACKEND_DTYPE=bf16
CUDA_DEFINES_fp16 := -DBACKEND_FLOATX=__half -DBACKEND_DTYPE=fp16

# Compiled once per element type, and once.
CUDA_TYPED := $(filter-out %/cuda_device.cu %/comm.cu,$(sort $(wildcard $(CUDA_FOLDER)/*.cu)))
CUDA_ONCE := $(sort $(wildcard $(CUDA_FOLDER)/cuda_device.cu $(CUDA_FOLDER)/comm.cu))

# ---- the simulator's plug-ins ----

SIM_VARIANTS := $(CUDA_DTYPES)
SIM_DEFINES_fp32 := $(CUDA_DEFINES_fp32)
SIM_DEFINES_bf16 := $(CUDA_DEFINES_bf16)
SIM_DEFINES_fp16 := $(CUDA_DEFINES_fp16)
include test/cudasim/cudasim.mk
$(eval $(call sim_plugin,backend,$(CUDA_DTYPES),$(CUDA_TYPED),$(CUDA_ONCE)))

SIM_BACKENDS := $(SIM_MODES:%=$(BUILD)/backend_%.so)
.PHONY: cuda sim-backends cuda-check ptxas
sim-backends: $(SIM_BACKENDS)
