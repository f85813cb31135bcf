# The CUDA backend: backend_cuda.so by nvcc. Called by the Makefile; alone:
# make -f llmc/kernels/cuda.mk cuda. (The same files with the simulator: test/cudasim/backend.mk.)
#
#   cuda    backend_cuda.so beside ./train (needs nvcc 12 or newer); STRICT=1: warnings are errors
#   lab     build/lab_cuda.so: the backend with the versions of dev/cuda (dev/cuda/lab.h)
#   ptxas   registers, spills, stack and shared memory of its kernels and of those of dev/cuda;
#           fails if one spills that is not named as cold (scripts/ptxas.sh)

BUILD ?= build
CUDA_FOLDER := llmc/kernels
CUDA_DTYPES := fp32 bf16 fp16
CUDA_DEFINES_fp32 := -DBACKEND_FLOATX=float -DBACKEND_DTYPE=fp32
CUDA_DEFINES_bf16 := -DBACKEND_FLOATX=__nv_bfloat16 -DBACKEND_DTYPE=bf16
CUDA_DEFINES_fp16 := -DBACKEND_FLOATX=__half -DBACKEND_DTYPE=fp16

# Compiled once per element type; and once.
CUDA_ONCE := $(addprefix $(CUDA_FOLDER)/,cuda_device.cu comm.cu gemm.cu gemm_choice.cu)
CUDA_TYPED := $(filter-out $(CUDA_ONCE),$(sort $(wildcard $(CUDA_FOLDER)/*.cu)))
LAB_FOLDER := dev/cuda
LAB_ONCE := $(addprefix $(LAB_FOLDER)/,lab.cu lab_device.cu)
LAB_TYPED := $(filter-out $(LAB_ONCE),$(sort $(wildcard $(LAB_FOLDER)/*.cu)))

# ---- the GPU's plug-in ----

# Machine code for the GPUs of this machine; without one, for A100, for Hopper, and for the newest
# GPU this nvcc knows, with PTX for what lies between and after. CUDA_ARCHS="80 90a" overrides.
comma := ,
CUDA_PRESENT = $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | \
    sed -n 's/^\([89]\|[1-9][0-9]\)\.\([0-9]\)$$/\1\2/p' | sed 's/^90$$/90a/' | sort -u)
CUDA_NEWEST = $(shell $(NVCC) --list-gpu-arch | sed -n 's/^compute_\([0-9]*\)$$/\1/p' | sort -n | \
    tail -n 1)
CUDA_ARCHS ?= $(or $(CUDA_PRESENT),80 90a $(CUDA_NEWEST))
CUDA_GENCODE = $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$(a),code=sm_$(a)) \
    $(addprefix -gencode arch=compute_80$(comma)code=compute_,$(filter 80,$(CUDA_ARCHS)))

NVCC_FLAGS = -std=c++17 -O3 -lineinfo $(if $(STRICT),-Werror all-warnings) -DBACKEND_NAME='"cuda"' \
    -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra -Xptxas -v $(CUDA_GENCODE)

# cuBLASLt: the toolkit's, or where pip put it, beside its link without a number or without one.
CUDA_ROOT = $(patsubst %/bin/,%,$(dir $(realpath $(shell command -v $(NVCC)))))
PYTHON_PACKAGES = $(shell python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    2>/dev/null)
CUBLASLT_AT = $(CUDA_ROOT)/lib64 $(CUDA_ROOT)/targets/*/lib /usr/lib/*-linux-gnu \
    $(PYTHON_PACKAGES)/nvidia/*/lib
CUBLASLT ?= $(firstword $(foreach d,$(CUBLASLT_AT),\
    $(wildcard $(d)/libcublasLt.so $(d)/libcublasLt.so.1[0-9])))

CUDA_OBJECTS := \
    $(foreach t,$(CUDA_DTYPES),$(CUDA_TYPED:$(CUDA_FOLDER)/%.cu=$(BUILD)/cuda/$(t)/%.o)) \
    $(CUDA_ONCE:$(CUDA_FOLDER)/%.cu=$(BUILD)/cuda/once/%.o)

# LAB_DTYPES="bf16": only in that type.
LAB_DTYPES ?= $(CUDA_DTYPES)
LAB_OBJECTS := \
    $(foreach t,$(LAB_DTYPES),$(LAB_TYPED:$(LAB_FOLDER)/%.cu=$(BUILD)/cuda/$(t)/lab/%.o)) \
    $(LAB_ONCE:$(LAB_FOLDER)/%.cu=$(BUILD)/cuda/once/lab/%.o)

# $(1) element type, $(2) folder of the objects below its own, $(3) folder of the sources
define cuda_rules
$(BUILD)/cuda/$(1)/$(2)%.o: $(3)/%.cu $(BUILD)/cuda/flags
	@mkdir -p $$(@D)
	@echo "nvcc $$< $(1)"
	@$$(NVCC) $$(NVCC_FLAGS) $(CUDA_DEFINES_$(1)) -MMD -MP -MF $$@.d -c $$< -o $$@ 2>$$@.ptxas; \
	    status=$$$$?; grep -vE '^ptxas info|bytes stack frame' $$@.ptxas >&2; exit $$$$status
endef
$(foreach t,once $(CUDA_DTYPES),$(eval $(call cuda_rules,$(t),,$(CUDA_FOLDER))) \
    $(eval $(call cuda_rules,$(t),lab/,$(LAB_FOLDER))))

# Changes when the compile command does: another GPU, another toolkit.
$(BUILD)/cuda/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(NVCC) $(subst ','\'',$(NVCC_FLAGS))' | cmp -s - $@ || \
	    echo '$(NVCC) $(subst ','\'',$(NVCC_FLAGS))' > $@
.PHONY: FORCE

# The runtime is linked in; of the toolkit's libraries only cuBLASLt is needed at run time. NCCL is
# looked for when there is more than one rank.
CUDA_PLUGIN := $(if $(filter build,$(BUILD)),,$(BUILD)/)backend_cuda.so
LAB_PLUGIN := $(BUILD)/lab_cuda.so
$(CUDA_PLUGIN): $(CUDA_OBJECTS)
$(LAB_PLUGIN): $(CUDA_OBJECTS) $(LAB_OBJECTS)
$(CUDA_PLUGIN) $(LAB_PLUGIN):
	$(NVCC) -shared $(CUDA_GENCODE) -o $@ $^ $(if $(CUBLASLT),-Xlinker $(CUBLASLT) \
	    -Xlinker -rpath$(comma)$(patsubst %/,%,$(dir $(CUBLASLT))),-lcublasLt) -ldl
cuda: $(CUDA_PLUGIN)
lab: $(LAB_PLUGIN)
.PHONY: cuda lab ptxas

# What the assembler said of each kernel is kept beside its object.
ptxas: $(CUDA_OBJECTS) $(LAB_OBJECTS)
	@sh scripts/ptxas.sh $(CUDA_OBJECTS:%=%.ptxas) $(LAB_OBJECTS:%=%.ptxas)

-include $(wildcard $(BUILD)/cuda/*/*.d $(BUILD)/cuda/*/lab/*.d)
