# The CUDA backend's files with the simulator, as plug-ins for ./train and the tests, and the tests
# of operations on them. Called by the Makefile (sim, sim-asan, sim-race, sim-train, sim-backends);
# alone: make -f test/cudasim/backend.mk sim-backends
#
#   sim-backends   build/backend_sim.so, backend_sim-asan.so, backend_sim-race.so (clang++ and g++)
#   sim-labs       build/lab_sim.so, ...: the same with the versions of dev/cuda (dev/cuda/lab.h)
#   sim-tests  sim-asan-tests  sim-race-tests   every test of operations on that plug-in

# The lists of files, and what is defined for each element type.
include llmc/kernels/cuda.mk

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

# The laboratory's versions are tested in bf16 alone there: they are compiled in it alone.
SIM_LAB_sim := $(SIM_BACKEND_sim)
SIM_LAB_sim-asan := bf16
SIM_LAB_sim-race := bf16
$(foreach m,$(SIM_MODES),$(eval $(call sim_plugin_rules,$(m),lab,$(SIM_LAB_$(m)),\
    $(CUDA_TYPED) $(LAB_TYPED),$(CUDA_ONCE) $(LAB_ONCE))))

.PHONY: sim-backends sim-labs
sim-labs: $(SIM_MODES:%=$(BUILD)/lab_%.so)
sim-backends: $(SIM_MODES:%=$(BUILD)/backend_%.so)

# ---- the tests of operations on them ----

# One command a word (test/run.sh). In sim also with other orders of threads, blocks and streams,
# and the program itself.
SIM_TESTS := contract ops_basics ops_dense ops_variants matmul_choices attention prefill head \
    decode_ops adamw
sim_command = $(strip $(SIM_RUN_$(1)) $(BUILD)/test/test_$(2))
sim_commands = $(foreach d,$(SIM_BACKEND_$(1)),$(foreach t,$(SIM_TESTS),\
    "$(call sim_command,$(1),$(t)) $(1) $(d)")) \
    "$(call sim_command,$(1),comm) $(1) fp32" \
    "$(call sim_command,$(1),comm_failures) $(1) fp32"
# The laboratory's versions by the same tests: TEST/VERSION, in bf16 (dev/cuda/lab.h). Of a program
# that tests other slots too, or takes long, only the tests whose names match the pattern of the
# program and the ladder, which is the first word of the version's name.
LAB_TESTS := head/head_materialised head/head_hopper_forward head/head_hopper_gradient \
    attention/attention_naive attention/attention_tiled attention/attention_five \
    attention/attention_hopper \
    decode_ops/decode_naive decode_ops/decode_warp decode_ops/decode_tiles \
    decode_ops/sample_materialised decode_ops/sample_one_pass attention/decode_attention_naive \
    ops_dense/matmul_mma ops_dense/matmul_hopper
LAB_PATTERN_attention/attention := *training*
LAB_PATTERN_attention/decode := test_decode
LAB_PATTERN_decode_ops/decode := test_matmul
LAB_PATTERN_decode_ops/sample := test_sample_*
LAB_PATTERN_ops_dense/matmul := test_matmul
lab_test = $(patsubst %/,%,$(dir $(1)))
lab_ladder = $(firstword $(subst _, ,$(notdir $(1))))
lab_commands = $(foreach t,$(LAB_TESTS),"$(call sim_command,$(1),$(call lab_test,$(t))) \
    $(1)/$(notdir $(t)) bf16 $(or $(LAB_PATTERN_$(dir $(t))$(call lab_ladder,$(t))),*)")
SIM_ORDERS := order=descending,copies=early order=random,seed=7,resident=3,streams=random
comma := ,
# Of several ranks: the order between the two streams of each, in which an event may be missing.
SIM_STREAMS := oldest newest $(patsubst %,random$(comma)seed=%,1 2 3 4 5 6 7 8 9 10)
SIM_MORE_sim := "$(BUILD)/test/test_lab sim" \
    "$(BUILD)/test/test_ops_dense sim/norm_thread bf16 *norm*" \
    "$(BUILD)/test/test_ops_dense sim/norm_block bf16 *norm*" \
    "$(BUILD)/test/test_adamw sim/adamw_element bf16" \
    "$(BUILD)/test/test_world sim bf16" "$(BUILD)/test/test_trainer_ranks sim fp32" \
    "$(BUILD)/test/test_trainer_ranks sim bf16" \
    "$(BUILD)/test/test_trainer_ranks sim fp16 test_loss_scale" \
    "$(BUILD)/test/test_checkpoint_ranks sim bf16" "$(BUILD)/test/test_ranks sim" \
    "$(BUILD)/test/test_backends sim" "$(BUILD)/test/test_model sim fp32" \
    "$(BUILD)/test/test_model sim bf16" "$(BUILD)/test/test_golden sim fp32" \
    "$(BUILD)/test/test_sampler sim bf16 *gumbel*" \
    "$(BUILD)/test/test_sampler sim fp32 *greedy*" \
    $(foreach o,$(SIM_ORDERS),$(foreach t,$(SIM_TESTS),\
    "env CUDASIM=$(o) $(BUILD)/test/test_$(t) sim bf16")) \
    $(foreach o,$(SIM_STREAMS),\
    "env CUDASIM=streams=$(o) $(BUILD)/test/test_trainer_ranks sim fp32 test_families" \
    "env CUDASIM=streams=$(o) $(BUILD)/test/test_comm sim bf16")

# The kernels of a decode step one after the other, which overlap.
SIM_MORE_sim-race := "$(BUILD)/test/test_model sim-race bf16 test_decode_equals_forward"

define sim_test_rules
$(1)-tests: $(BUILD)/backend_$(1).so $(BUILD)/lab_$(1).so
	@sh test/run.sh -j $$$$(nproc) $$(SIM_MORE_$(1)) $$(call sim_commands,$(1)) \
	    $$(call lab_commands,$(1))
.PHONY: $(1)-tests
endef
$(foreach m,$(SIM_MODES),$(eval $(call sim_test_rules,$(m))))
