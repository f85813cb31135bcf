# policy.c: reinforcement learning of language models in plain C and CUDA.
#
#   make         builds ./train
#   make run     installs what is missing, builds and runs it
#   make check   installs what is missing, builds and runs the CPU's tests
#   make test    the same, and the CUDA kernels' in the simulator
#   make help    says the rest
#
# Overridable: CC (gcc or clang), CFLAGS (speed and debugging), BUILD (where objects go).

CC     ?= cc
CFLAGS ?= -O3 -march=native -g
BUILD  ?= build

# What the code needs whatever CFLAGS is. Never -ffast-math, -Ofast or -ffinite-math-only: they turn
# isnan() off, and with it every guard against a diverging run (llmc/base/finite.h refuses them).
NEEDED := -std=gnu11 -D_GNU_SOURCE -fopenmp -fno-math-errno -fno-trapping-math \
          -include llmc/base/finite.h \
          -Wall -Wextra -Werror=incompatible-pointer-types

# Goals that only call make again. All others include a file that says where the libraries are.
WRAPPERS := run check test asan fuzz bench cuda ptxas sim-backends sim sim-asan sim-race sim-train \
            clean help

ifneq ($(filter-out $(WRAPPERS),$(or $(MAKECMDGOALS),all)),)
include $(BUILD)/found.mk
endif

COMPILE = $(CC) $(NEEDED) $(CFLAGS) $(SANITIZE) $(BLAS_CFLAGS)
LIBS    = $(BLAS_LIBS) -lcjson -lpcre2-8 -lutf8proc -lm -ldl

SOURCES := $(wildcard llmc/*.c llmc/*/*.c)
OBJECTS := $(SOURCES:%.c=$(BUILD)/%.o)
TESTS   := $(patsubst test/%.c,$(BUILD)/test/%,$(wildcard test/test_*.c))
LIBRARY := $(BUILD)/libllmc.a

# The program is made beside the Makefile; that of another BUILD (sanitizers) in that folder.
TRAIN   := $(if $(filter build,$(BUILD)),train,$(BUILD)/train)

# Building uses all processors. Of the CPU's tests one more runs at a time than there are
# processors: many wait for a process, a time limit or a disk. Those that take longest come first.
PARALLEL := -j$(shell nproc)
TESTS_AT_ONCE := $(shell echo $$(($$(nproc) + 1)))
LONGEST  := $(addprefix $(BUILD)/test/test_,ranks ranks_launch environment_program program \
                scorer_program scorer)

# The CUDA compiler, where there is one: then `make` builds the GPU's plug-in too.
NVCC ?= $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)

# These goals build the same programs and use all processors, so they must not run side by side.
ifneq ($(filter check test sim sim-asan sim-race sim-train,$(MAKECMDGOALS)),)
.NOTPARALLEL:
endif

.PHONY: all $(WRAPPERS) tests fuzzers programs syntax FORCE
.DEFAULT_GOAL := all
.SECONDARY:

all: $(TRAIN) $(if $(NVCC),cuda)

# ---- for people --------------------------------------------------------------------------------

run:
	@CC="$(CC)" sh scripts/install_deps.sh
	@$(MAKE) --no-print-directory $(PARALLEL) $(TRAIN)
	@$(if $(NVCC),$(MAKE) --no-print-directory cuda || \
	    echo "the CUDA backend was not built: on with the CPU")
	./train

check:
	@CC="$(CC)" sh scripts/install_deps.sh --check
	@sh scripts/check_style.sh
	@sh test/test_run.sh
	@sh test/test_machine_code.sh
	@CC="$(CC)" sh test/test_flags.sh
	@$(MAKE) --no-print-directory $(PARALLEL) programs
	@$(MAKE) --no-print-directory tests

test:
	@CC="$(CC)" sh scripts/install_deps.sh --tests
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory sim sim-asan sim-race

# The tests and a short training run, with every access, overflow and leak checked. (Tests ask for
# too much memory on purpose: that must fail as it does without a sanitizer.)
ASAN := BUILD=build/asan CFLAGS="-O1 -march=native -g -fno-omit-frame-pointer" \
        SANITIZE="-fsanitize=address,undefined -fno-sanitize-recover=all"
asan: export ASAN_OPTIONS := allocator_may_return_null=1
asan:
	@$(MAKE) --no-print-directory $(PARALLEL) $(ASAN) build/asan/train
	build/asan/train --backend cpu --warm-start 3 --steps 2 --eval-prompts 4 --eval-samples 4 \
	    --quiet --run build/asan/run --overwrite
	@$(MAKE) --no-print-directory $(ASAN) tests

# Random inputs, kept and changed where they reach new code, for each reader of foreign files
# (test/fuzz/fuzz.h), FUZZ_SECONDS each, as many readers at a time as there are processors. An input
# that breaks one is left in build/fuzz, by the name of its fuzzer. Needs clang with libFuzzer.
FUZZ_SECONDS ?= 60
FUZZERS := $(patsubst test/fuzz/fuzz_%.c,%,$(wildcard test/fuzz/fuzz_*.c))
FUZZ    := CC=clang BUILD=build/fuzz CFLAGS="-O1 -g -fno-omit-frame-pointer -DFUZZING" \
           SANITIZE="-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all"
fuzz:
	@NO_INSTALL=1 sh scripts/install_deps.sh --fuzz
	@$(MAKE) --no-print-directory $(PARALLEL) $(FUZZ) fuzzers
	@printf '%s\n' $(FUZZERS) | \
	    xargs -P $$(nproc) -I NAME sh test/fuzz/run.sh NAME $(FUZZ_SECONDS)

# The CUDA backend: backend_cuda.so by nvcc.
cuda ptxas:
	$(if $(NVCC),,$(error no nvcc here: install the CUDA toolkit, or set NVCC))
	@$(MAKE) --no-print-directory $(PARALLEL) -f llmc/kernels/cuda.mk NVCC="$(NVCC)" $@

# The CUDA kernels in the simulator (doc/cudasim.md), in each of its builds: the simulator's own
# tests, then every test of operations against it; sim also runs the whole program on it, as
# sim-train does alone. They need clang++ and g++.
CUDASIM = $(MAKE) --no-print-directory -f test/cudasim/backend.mk
sim sim-asan sim-race:
	@$(MAKE) --no-print-directory $(PARALLEL) programs
	@$(CUDASIM) $(PARALLEL) $(BUILD)/backend_$@.so $(BUILD)/lab_$@.so $@-selftest
	@$(CUDASIM) $@-tests
	@$(if $(filter sim,$@),$(MAKE) --no-print-directory lab-check)

# Every version of every operation against float64 and the CPU; and does doc/lab.md's page hold?
lab-check:
	@$(MAKE) --no-print-directory $(PARALLEL) $(BUILD)/bench $(BUILD)/hidden.safetensors
	@$(BUILD)/bench BACKEND=sim DTYPE=bf16 TIME=none HIDDEN=$(BUILD)/hidden.safetensors \
	    OUT=$(BUILD)/lab-check
	@sh test/test_lab_page.sh
sim-train:
	@$(MAKE) --no-print-directory $(PARALLEL) programs
	@$(CUDASIM) $(PARALLEL) $(BUILD)/backend_sim.so
	@$(BUILD)/test/test_backends sim
sim-backends:
	@$(CUDASIM) $(PARALLEL) $@

# Checks and times every version of every operation (doc/lab.md): the CPU's, and the laboratory's on
# the GPU or, without one, in the simulator. OP= BACKEND= DTYPE= HIDDEN= OUT= TIME= choose: see
# dev/bench/bench.c.
HIDDEN ?= $(BUILD)/hidden.safetensors
bench:
	@$(MAKE) --no-print-directory $(PARALLEL) $(TRAIN) $(BUILD)/bench $(HIDDEN)
	@sh scripts/build_lab.sh "$(BACKEND)"
	@$(BUILD)/bench OP=$(OP) BACKEND=$(BACKEND) DTYPE=$(DTYPE) HIDDEN=$(HIDDEN) OUT=$(OUT) \
	    TIME=$(TIME)

# What the head gets in a run of the built-in task.
$(BUILD)/hidden.safetensors: | $(TRAIN)
	@./$(TRAIN) --quiet --overwrite --run $(BUILD)/hidden-run --warm-start 50 --steps 1 \
	    --eval-every 0 --save-every 0 --dump-hidden $@

clean:
	rm -rf build train backend_cuda.so

help:
	@echo "make         build ./train"
	@echo "make run     install what is missing, build, run ./train"
	@echo "make check   install what is missing, build and run the tests of the CPU backend"
	@echo "make test    the same, then the CUDA kernels in the simulator (sim, sim-asan, sim-race)"
	@echo "make asan    the tests and a short run under the sanitizers"
	@echo "make fuzz    random inputs for the readers of foreign files (clang; FUZZ_SECONDS=60 each)"
	@echo "make bench   check and time every version of every operation (OP=head; doc/lab.md)"
	@echo "make cuda    build backend_cuda.so (plain make does too, where there is nvcc)"
	@echo "make ptxas   registers, spills, shared memory of its kernels; fails where a hot one spills"
	@echo "make sim     the CUDA kernels in the simulator; also sim-asan, sim-race, sim-train"
	@echo "make clean   remove what was built"
	@echo "CC=clang, CFLAGS=..., BUILD=folder change how it is built."

# ---- building ----------------------------------------------------------------------------------

# Libraries are found by compiling, linking and running a probe. Plain make never installs: this
# stops, naming the package and the command.
$(BUILD)/found.mk: scripts/install_deps.sh
	@NO_INSTALL=1 CC="$(CC)" sh scripts/install_deps.sh --found $@

# A file with the compile command. It changes when the command does, and then all objects are made
# again, because they depend on it.
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(COMPILE)' | cmp -s - $@ || echo '$(COMPILE)' > $@

$(BUILD)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(COMPILE) -MMD -MP -c $< -o $@

# The driver is C in a file with CUDA's suffix.
$(BUILD)/train_gpt2.o: train_gpt2.cu $(BUILD)/flags
	@mkdir -p $(@D)
	$(COMPILE) -MMD -MP -x c -c $< -o $@

$(LIBRARY): $(OBJECTS)
	@rm -f $@
	ar rcs $@ $^

$(TRAIN): $(BUILD)/train_gpt2.o $(LIBRARY)
	$(COMPILE) $^ $(LIBS) -o $@

$(BUILD)/bench: $(patsubst %.c,$(BUILD)/%.o,$(wildcard dev/bench/*.c)) $(LIBRARY)
	$(COMPILE) $^ $(LIBS) -o $@

DEV_PROGRAMS := $(addprefix $(BUILD)/,bench_tokenizer bench_turns grad_comm head_numerics)
$(DEV_PROGRAMS): $(BUILD)/%: $(BUILD)/dev/%.o $(LIBRARY)
	$(COMPILE) $^ $(LIBS) -o $@

$(BUILD)/test/%: $(BUILD)/test/%.o $(LIBRARY)
	$(COMPILE) $^ -lcmocka $(LIBS) -o $@

# The fuzzers, with libFuzzer's main; only by `make fuzz`, which chooses compiler and flags.
fuzzers: $(FUZZERS:%=$(BUILD)/fuzz_%)
$(BUILD)/fuzz_%: $(BUILD)/test/fuzz/fuzz_%.o $(LIBRARY)
	$(COMPILE) -fsanitize=fuzzer $^ $(LIBS) -o $@

# Runs every test program on the CPU and counts their tests; fails if any does. Those of operations
# that are products run again with --dtype bf16. (test_backends compares another backend with it.)
BF16_TESTS := ops_dense ops_variants head decode_ops matmul_choices cache model sampler environment
tests: programs
	@sh test/run.sh -j $(TESTS_AT_ONCE) \
	    $(LONGEST) $(filter-out %/test_backends $(LONGEST),$(TESTS)) \
	    $(foreach t,$(BF16_TESTS),"$(BUILD)/test/test_$(t) cpu bf16") \
	    "$(BUILD)/test/test_backends cpu test_same_tokens_bf16"
programs: $(TRAIN) $(TESTS)

# Compiles every file without writing objects; a warning is an error.
syntax:
	$(COMPILE) -Werror -fsyntax-only $(SOURCES) $(wildcard test/*.c dev/*.c dev/bench/*.c) \
	    -x c train_gpt2.cu

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
