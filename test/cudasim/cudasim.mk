# The emulator's builds: CUDA files as C++ for the CPU, three ways. Included by backend.mk, or
# used alone: make -f test/cudasim/cudasim.mk sim-selftest
#
#   sim-selftest  sim-asan-selftest  sim-race-selftest   the emulator's own tests, one build each
#   cudasim-nvcc   the sample kernels and tests by nvcc for sm_80 and sm_90a: they are real CUDA
#   cudasim-gpu    the sound cases as a program for a GPU (Hopper): build/cudasim-gpu
#
# To build one's own files, in all three builds at once:
#
#   $(eval $(call sim_program,NAME,SOURCES))             .cu, .cc and .c files -> build/MODE/NAME
#   $(eval $(call sim_plugin,NAME,VARIANTS,SOURCES,ONCE))   -> build/NAME_MODE.so, for dlopen
#
# MODE is sim, sim-asan or sim-race. A plug-in's SOURCES are compiled once per variant, with
# SIM_DEFINES_<variant> on the command line, and the ONCE files once. Programs that load a plug-in
# run as $(SIM_RUN_<mode>) PROGRAM, because AddressSanitizer must be loaded first.

BUILD ?= build
SIM := test/cudasim
SIM_MODES := sim sim-asan sim-race
# g++ for AddressSanitizer: its -fsanitize=alignment also sees copies of whole vectors, clang's does
# not. clang for the race checker: g++ 12 leaves writes of whole structs uninstrumented.
SIM_CXX_sim ?= clang++
SIM_CXX_sim-asan ?= g++
SIM_CXX_sim-race ?= clang++
SIM_CC ?= cc
NVCC ?= nvcc

SIM_FLAGS := -std=c++17 -g -fPIC -fvisibility=hidden -fno-strict-aliasing -fno-threadsafe-statics \
    -Wall -Wextra -Wno-unknown-pragmas -Wno-unused-parameter \
    -Wno-unused-function -Wno-psabi -I$(SIM)/include -iquote .

# Kernels are instrumented; host code and the emulator are not, but for AddressSanitizer.
SIM_KERNEL_sim := -O2 -march=native
SIM_KERNEL_sim-asan := -O1 -fno-omit-frame-pointer -fsanitize=address,undefined \
    -fno-sanitize-recover=undefined
SIM_KERNEL_sim-race := -O1 -fno-omit-frame-pointer -fsanitize=thread -DCUDASIM_RACE \
    -mllvm -tsan-instrument-func-entry-exit=0 -mllvm -tsan-distinguish-volatile=1
SIM_HOST_sim := -O2 -march=native
SIM_HOST_sim-asan := $(SIM_KERNEL_sim-asan)
SIM_HOST_sim-race := -O2 -DCUDASIM_RACE
SIM_LINK_sim-asan := -fsanitize=address,undefined

# clang up to 15 copies structs by plain calls of memcpy; the race checker must see them.
SIM_AFTER_sim-race = objcopy --redefine-sym memcpy=__tsan_memcpy \
    --redefine-sym memmove=__tsan_memmove --redefine-sym memset=__tsan_memset $@
SIM_AFTER_sim := @:
SIM_AFTER_sim-asan := @:

SIM_ASAN_LIBRARY = $(shell $(SIM_CXX_sim-asan) -print-file-name=libasan.so)
SIM_ASAN_OPTIONS := ASAN_OPTIONS=detect_leaks=0
SIM_RUN_sim :=
SIM_RUN_sim-asan = $(SIM_ASAN_OPTIONS) LD_PRELOAD=$(SIM_ASAN_LIBRARY)
SIM_RUN_sim-race :=

$(BUILD)/cu2cpp: $(SIM)/cu2cpp.c
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 -Wall -Wextra -o $@ $<

# Objects of the emulator, and of sources in a mode and variant: build/MODE/VARIANT/path.o
SIM_RUNTIME := $(wildcard $(SIM)/runtime/*.cc)
sim_runtime = $(SIM_RUNTIME:$(SIM)/runtime/%.cc=$(BUILD)/$(1)/runtime/%.o)
sim_objects = $(patsubst %,$(BUILD)/$(1)/$(2)/%.o,$(basename $(3)))

define sim_runtime_rules
$(BUILD)/$(1)/runtime/%.o: $(SIM)/runtime/%.cc
	@mkdir -p $$(@D)
	$(SIM_CXX_$(1)) $(SIM_FLAGS) $(SIM_HOST_$(1)) -MMD -MP -c $$< -o $$@
endef

define sim_source_rules
.PRECIOUS: $(BUILD)/$(1)/$(2)/%.o
$(BUILD)/$(1)/$(2)/%.cc: %.cu $(BUILD)/cu2cpp
	@mkdir -p $$(@D)
	$(BUILD)/cu2cpp $$< $$@ $$@.d
# from the .cu itself, so that an X.c beside X.cu is not taken for it
$(BUILD)/$(1)/$(2)/%.o: %.cu $(BUILD)/cu2cpp
	@mkdir -p $$(@D)
	$(BUILD)/cu2cpp $$< $$(@:.o=.cc) $$(@:.o=.cc).d
	$(SIM_CXX_$(1)) $(SIM_FLAGS) $(SIM_KERNEL_$(1)) $(SIM_DEFINES_$(2)) -DBACKEND_NAME='"$(1)"' \
	    -MMD -MP -c $$(@:.o=.cc) -o $$@
	$$(SIM_AFTER_$(1))
$(BUILD)/$(1)/$(2)/%.o: %.cc
	@mkdir -p $$(@D)
	$(SIM_CXX_$(1)) $(SIM_FLAGS) $(SIM_HOST_$(1)) $(SIM_DEFINES_$(2)) -MMD -MP -c $$< -o $$@
$(BUILD)/$(1)/$(2)/%.o: %.c
	@mkdir -p $$(@D)
	$(SIM_CC) $(CFLAGS) $(filter -f% -O% -m%,$(SIM_HOST_$(1))) -MMD -MP -c $$< -o $$@
endef

define sim_program_rules
$(BUILD)/$(1)/$(2): $(call sim_objects,$(1),plain,$(3)) $(call sim_runtime,$(1))
	$(SIM_CXX_$(1)) $(SIM_LINK_$(1)) -o $$@ $$^ -lrt -ldl
endef

define sim_plugin_rules
$(BUILD)/$(2)_$(1).so: $(foreach v,$(3),$(call sim_objects,$(1),$(v),$(4))) \
    $(call sim_objects,$(1),plain,$(5)) $(call sim_runtime,$(1))
	$(SIM_CXX_$(1)) -shared $(SIM_LINK_$(1)) -o $$@ $$^ -lrt -ldl
endef

sim_program = $(foreach m,$(SIM_MODES),$(eval $(call sim_program_rules,$(m),$(1),$(2))))
sim_plugin = $(foreach m,$(SIM_MODES),$(eval $(call sim_plugin_rules,$(m),$(1),$(2),$(3),$(4))))

SIM_VARIANTS ?=
$(foreach m,$(SIM_MODES),$(eval $(call sim_runtime_rules,$(m))) \
    $(foreach v,plain $(SIM_VARIANTS),$(eval $(call sim_source_rules,$(m),$(v)))))

# ---- the emulator's own tests ----

SIM_SAMPLES := $(addprefix $(SIM)/kernels/,layernorm.cu lse.cu gemm.cu attention.cu hopper_gemm.cu)
SIM_SELFTEST := $(SIM_SAMPLES) $(wildcard $(SIM)/selftest/*.cc) \
    $(addprefix $(SIM)/selftest/,features.cu hopper.cu clusters.cu host_bugs.cu graphs.cu \
    float16.cu)
$(eval $(call sim_program,cudasim-selftest,$(SIM_SELFTEST)))
$(eval $(call sim_plugin,cudasim_plugin,,,$(SIM)/selftest/plugin.cu))

$(BUILD)/cudasim-host: $(SIM)/selftest/plugin_host.c
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 -Wall -Wextra -fopenmp -o $@ $< -ldl

# A C program with OpenMP loads the plug-in: once sound, once with a bug that the build must report.
define sim_selftest_rules
$(1)-selftest: $(BUILD)/$(1)/cudasim-selftest $(BUILD)/cudasim_plugin_$(1).so $(BUILD)/cudasim-host
	$(BUILD)/$(1)/cudasim-selftest
	$$(SIM_RUN_$(1)) $(BUILD)/cudasim-host $(BUILD)/cudasim_plugin_$(1).so 0
	! $$(SIM_RUN_$(1)) $(BUILD)/cudasim-host $(BUILD)/cudasim_plugin_$(1).so 1
.PHONY: $(1)-selftest
endef
$(foreach m,$(SIM_MODES),$(eval $(call sim_selftest_rules,$(m))))

# wgmma needs compute_90a named in full.
SIM_NVCC_OBJECTS := $(patsubst $(SIM)/%,$(BUILD)/nvcc/%.o,$(basename $(SIM_SELFTEST)))
$(BUILD)/nvcc/kernels/hopper_gemm.o $(BUILD)/nvcc/selftest/hopper.o \
    $(BUILD)/nvcc/selftest/clusters.o: SIM_ARCH := -gencode arch=compute_90a,code=sm_90a
SIM_ARCH := -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a
$(BUILD)/nvcc/%.o: $(SIM)/%.cu
	@mkdir -p $(@D)
	$(NVCC) -std=c++17 -O2 $(SIM_ARCH) -Xcompiler -Wall -c $< -o $@
$(BUILD)/nvcc/%.o: $(SIM)/%.cc
	@mkdir -p $(@D)
	$(NVCC) -std=c++17 -O2 -Xcompiler -Wall -c $< -o $@
$(BUILD)/cudasim-gpu: $(SIM_NVCC_OBJECTS)
	$(NVCC) -o $@ $^ -lcuda -lcublas -lcublasLt -lnccl
cudasim-nvcc: $(SIM_NVCC_OBJECTS) $(BUILD)/nvcc/selftest/plugin.o
cudasim-gpu: $(BUILD)/cudasim-gpu
.PHONY: cudasim-nvcc cudasim-gpu

-include $(wildcard $(BUILD)/sim*/*/*.d $(BUILD)/sim*/*/*/*.d $(BUILD)/sim*/*/*/*/*.d \
    $(BUILD)/sim*/*/*/*/*/*.d)
