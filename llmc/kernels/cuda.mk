# The CUDA backend, two ways from the same files: by nvcc as backend_cuda.so, and with the simulator
# as backend_sim*.so. Called by the Makefile; alone: make -f llmc/kernels/cuda.mk cuda
#
#   cuda           backend_cuda.so beside ./train (needs nvcc 12 or newer); STRICT=1: warnings are errors
#   ptxas          registers, spills, stack and shared memory of its kernels
#   sim-backends   build/backend_sim.so, backend_sim-asan.so, backend_sim-race.so (clang++ and g++)

CUDA_FOLDER := llmc/kernels
CUDA_DTYPES := fp32 bf16 fp16
CUDA_DEFINES_fp32 := -DBACKEND_FLOATX=float -DBACKEND_DTYPE=fp32
CUDA_DEFINES_bf16 := -DBACKEND_FLOATX=__nv_bfloat16 -DBACKEND_DTYPE=bf16
CUDA_DEFINES_fp16 := -DBACKEND_FLOATX=__half -DBACKEND_DTYPE=fp16

# Compiled once per element type; and once.
CUDA_ONCE := $(addprefix $(CUDA_FOLDER)/,cuda_device.cu comm.cu)
CUDA_TYPED := $(filter-out $(CUDA_ONCE),$(sort $(wildcard $(CUDA_FOLDER)/*.cu)))

# ---- the simulator's plug-ins ----

SIM_VARIANTS := $(CUDA_DTYPES)
SIM_DEFINES_fp32 := $(CUDA_DEFINES_fp32)
SIM_DEFINES_bf16 := $(CUDA_DEFINES_bf16)
SIM_DEFINES_fp16 := $(CUDA_DEFINES_fp16)
include test/cudasim/cudasim.mk
# The checking builds leave fp16 out: its kernels are bf16's, and sim runs them.
SIM_BACKEND_sim := fp32 bf16 fp16
SIM_BACKEND_sim-asan := fp32 bf16
SIM_BACKEND_sim-race := fp32 bf16
$(foreach m,$(SIM_MODES),$(eval \
    $(call sim_plugin_rules,$(m),backend,$(SIM_BACKEND_$(m)),$(CUDA_TYPED),$(CUDA_ONCE))))

.PHONY: cuda ptxas sim-backends
sim-backends: $(SIM_MODES:%=$(BUILD)/backend_%.so)

# ---- the tests of operations on them ----

# One command a word (test/run.sh). In sim also with other orders of threads, blocks and streams, and the program itself.
SIM_TESTS := ops_dense attention head decode_ops adamw
sim_command = $(strip $(SIM_RUN_$(1)) $(BUILD)/test/test_$(2))
sim_commands = $(foreach d,$(SIM_BACKEND_$(1)),$(foreach t,$(SIM_TESTS),\
    "$(call sim_command,$(1),$(t)) $(1) $(d)")) "$(call sim_command,$(1),comm) $(1) fp32"
SIM_ORDERS := order=descending order=random,seed=7,resident=3,streams=random
SIM_MORE_sim := "$(BUILD)/test/test_backends sim" "$(BUILD)/test/test_model sim fp32" \
    "$(BUILD)/test/test_model sim bf16" "$(BUILD)/test/test_sampler sim bf16 *gumbel*" \
    "$(BUILD)/test/test_sampler sim fp32 *greedy*" \
    $(foreach o,$(SIM_ORDERS),$(foreach t,$(SIM_TESTS),\
    "env CUDASIM=$(o) $(BUILD)/test/test_$(t) sim bf16"))

define sim_test_rules
$(1)-tests: $(BUILD)/backend_$(1).so
	@sh test/run.sh -j $$$$(nproc) $$(SIM_MORE_$(1)) $$(call sim_commands,$(1))
.PHONY: $(1)-tests
endef
$(foreach m,$(SIM_MODES),$(eval $(call sim_test_rules,$(m))))

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
CUDA_LIBRARIES = $(dir $(realpath $(shell command -v $(NVCC))))../lib64

CUDA_OBJECTS := $(foreach t,$(CUDA_DTYPES),$(CUDA_TYPED:$(CUDA_FOLDER)/%.cu=$(BUILD)/cuda/$(t)/%.o)) \
    $(CUDA_ONCE:$(CUDA_FOLDER)/%.cu=$(BUILD)/cuda/once/%.o)

define cuda_rules
$(BUILD)/cuda/$(1)/%.o: $(CUDA_FOLDER)/%.cu $(BUILD)/cuda/flags
	@mkdir -p $$(@D)
	@echo "nvcc $$< $(1)"
	@$$(NVCC) $$(NVCC_FLAGS) $(CUDA_DEFINES_$(1)) -MMD -MP -MF $$@.d -c $$< -o $$@ 2>$$@.ptxas; \
	    status=$$$$?; grep -vE '^ptxas info|bytes stack frame' $$@.ptxas >&2; exit $$$$status
endef
$(foreach t,once $(CUDA_DTYPES),$(eval $(call cuda_rules,$(t))))

# Changes when the compile command does: another GPU, another toolkit.
$(BUILD)/cuda/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(NVCC) $(subst ','\'',$(NVCC_FLAGS))' | cmp -s - $@ || \
	    echo '$(NVCC) $(subst ','\'',$(NVCC_FLAGS))' > $@
.PHONY: FORCE

# The runtime is linked in; of the toolkit's libraries only cuBLASLt is needed at run time. NCCL is
# looked for when there is more than one rank.
CUDA_PLUGIN := $(if $(filter build,$(BUILD)),,$(BUILD)/)backend_cuda.so
$(CUDA_PLUGIN): $(CUDA_OBJECTS)
	$(NVCC) -shared $(CUDA_GENCODE) -o $@ $^ -lcublasLt -ldl \
	    -Xlinker -rpath,$(CUDA_LIBRARIES)
cuda: $(CUDA_PLUGIN)

# What the assembler said of each kernel is kept beside its object.
ptxas: $(CUDA_PLUGIN)
	@sh scripts/ptxas.sh $(CUDA_OBJECTS:%=%.ptxas)

-include $(wildcard $(BUILD)/cuda/*/*.d)
