/* The program on directories as they are on the hub, and on those that it writes: 16-bit weights,
   shards, files that it carries. */
#include "program_rig.h"

/* A directory as another program writes it, HUB, from a short supervised run: the weights in
   bfloat16, config.json with keys that this program does not know, and further files. */
#define MAKE_HUB                                                                                 \
    RUN_OK("$T --warm-start 20 --warm-batch 64 --steps 0 --eval-every 0 --save-dtype bf16 "      \
           "--quiet --run seed && cp -r seed/checkpoints/step_000000 hub && cd hub && "          \
           "rm optimizer.safetensors trainer_state.json checksums && "                           \
           "sed -i '1s/{/{ \"theta\": 10000.0, \"torch_dtype\" : \"bfloat16\",/; "               \
           "s/\"torch_dtype\":.*/\"last\": null/' config.json && "                              \
           "printf '{\"eos_token_id\": [3], \"x\": 1e-05}' >generation_config.json && "          \
           "printf '{{ bos }}' >chat_template.jinja && cp -r . ../source")

#define SHORT "--warm-start 3 --warm-batch 32 --prompts 4 --group 4 --minibatches 2 " \
              "--eval-every 0 --lr 1e-3 --threads 2 --quiet "

/* A run that begins in bfloat16 and computes in float32 goes on bit for bit, its reference too,
   when its source is gone; and the checkpoints look like the source. */
static void test_bf16_source(void **state) {
    (void)state;
    static const char *const carried[] = {"config.json", "generation_config.json", "vocab.json",
                                          "merges.txt", "tokenizer_config.json",
                                          "chat_template.jinja"};
    MAKE_HUB;
    assert_int_equal(run("grep -q '\"theta\": 10000.0, \"torch_dtype\" : \"bfloat16\"' "
                         "hub/config.json"), 0);
    RUN_OK("$T --model hub --steps 2 --kl-coef 0.1 " SHORT "--run whole");
    RUN_OK("$T --model hub --steps 1 --kl-coef 0.1 " SHORT "--run halves");
    RUN_OK("rm -r hub; $T --quiet --resume halves --steps 2");
    assert_same_end("whole", "halves", 2);
    assert_same_log("whole/metrics.jsonl", "halves/metrics.jsonl");
    for (size_t i = 0; i < sizeof carried / sizeof *carried; i++) {
        char source[64], copy[128];
        snprintf(source, sizeof source, "source/%s", carried[i]);
        snprintf(copy, sizeof copy, "halves/checkpoints/step_000002/%s", carried[i]);
        assert_same_file(source, copy);
    }
    /* all of the file is 16 bits wide, as the source is */
    RUN_OK("cd halves/checkpoints/step_000002 && ! grep -aq F32 model.safetensors && "
           "grep -aq BF16 model.safetensors && "
           "grep -aq master.transformer.wte optimizer.safetensors");
    size_t size, source_size;
    free(read_file("halves/checkpoints/step_000002/model.safetensors", &size));
    free(read_file("source/model.safetensors", &source_size));
    assert_int_equal(size, source_size);
    /* another type from here on, in the files only */
    RUN_OK("cp -r whole other && $T --quiet --resume whole --steps 3");
    RUN_OK("$T --quiet --resume other --steps 3 --save-dtype fp32 --shard-size 200KB");
    assert_same_log("whole/metrics.jsonl", "other/metrics.jsonl");
    RUN_OK("cd other/checkpoints/step_000003 && grep -q '\"torch_dtype\" : \"float32\"' "
           "config.json && grep -q model-00001-of model.safetensors.index.json");
    RUN_OK("$T --quiet --resume whole --steps 4 && $T --quiet --resume other --steps 4");
    assert_same_log("whole/metrics.jsonl", "other/metrics.jsonl");
    RUN_OK("rm -rf seed source whole halves other");
}

/* A completion ends with any token that config.json or generation_config.json names. */
static void test_ends_of_the_source(void **state) {
    (void)state;
    RUN_OK("$T --warm-start 2 --warm-batch 8 --steps 0 --eval-every 0 --quiet --run seed && "
           "cp -r seed/checkpoints/step_000000 ends && cd ends && "
           "rm checksums optimizer.safetensors trainer_state.json && cd .. && "
           "printf '{\"eos_token_id\": [0,1,2,3,4,5,6,7,8,9]}' "
           ">ends/generation_config.json");
    /* random weights draw one of those in half of the cases: completions are short */
    RUN_OK("$T --model ends --steps 1 --prompts 8 --group 8 --eval-every 0 --quiet --run short");
    RUN_OK("$T --model seed --steps 1 --prompts 8 --group 8 --eval-every 0 --quiet --run long");
    cJSON *few = read_log("short/metrics.jsonl"), *many = read_log("long/metrics.jsonl");
    double a = logged(few, 1, "completions/mean_length");
    double b = logged(many, 1, "completions/mean_length");
    if (!(a < 4 && b > 5)) fail_msg("mean lengths %g and %g", a, b);
    cJSON_Delete(few), cJSON_Delete(many);
    RUN_OK("printf '{\"eos_token_id\": \"x\"}' >ends/generation_config.json");
    assert_int_equal(run("$T --model ends --eval-only"), 2);
    assert_non_null(strstr(output, "ends/generation_config.json: \"eos_token_id\" must be"));
    RUN_OK("rm -rf seed ends short long");
}

/* A tokenizer whose files name no end of text: config.json's or generation_config.json's is it, in
   rollouts, demonstrations and checkpoints; with none at all the directory is refused. */
static void test_end_of_text_from_config(void **state) {
    (void)state;
    RUN_OK("$T --warm-start 2 --warm-batch 8 --steps 0 --eval-every 0 --quiet --run seed && "
           "cp -r seed/checkpoints/step_000000 nameless && cd nameless && "
           "rm checksums optimizer.safetensors trainer_state.json && "
           "sed -i 's/<|endoftext|>/<|done|>/g' *.json && "
           "sed -i '/\"eos_token\"/d; /\"bos_token\"/d; /\"unk_token\"/d' "
           "tokenizer_config.json && cp config.json ../config.json");
    RUN_OK("! grep -q eos_token nameless/tokenizer_config.json");
    RUN_OK("$T --model nameless --warm-start 2 --warm-batch 8 --steps 1 --prompts 4 --group 4 "
           "--eval-every 0 --quiet --run after && $T --model seed --warm-start 2 --warm-batch 8 "
           "--steps 1 --prompts 4 --group 4 --eval-every 0 --quiet --run before");
    assert_same_log("before/metrics.jsonl", "after/metrics.jsonl");
    RUN_OK("sed -i '/\"eos_token_id\"/d; /\"bos_token_id\"/d' nameless/config.json");
    assert_int_equal(run("$T --model nameless --steps 1 --run none"), 2);
    assert_non_null(strstr(output, "eos_token_id in config.json or generation_config.json"));
    RUN_OK("printf '{\"eos_token_id\": [7, 3]}' >nameless/generation_config.json && "
           "$T --model nameless --steps 1 --prompts 4 --group 4 --eval-every 0 --quiet "
           "--run other");
    RUN_OK("rm -rf seed nameless before after other config.json");
}

/* What a shard's name, or another trainer's state, must not break; what is wrong is said. */
static void test_odd_directories(void **state) {
    (void)state;
    static const struct { const char *line; int code; const char *words; } rows[] = {
        {"$T --steps 1 --shard-size 5 --run odd-x", 2, "--shard-size 5"},
        {"$T --steps 1 --save-dtype fp8 --run odd-x", 2, "--save-dtype"},
        {"$T --model odd-hub --eval-only --eval-prompts 2 --eval-samples 2", 0, "pass@1"},
        {"rm odd-hub/model-00002-of*; $T --model odd-hub --eval-only", 2, "model-00002-of"},
    };
    RUN_OK("$T --warm-start 2 --warm-batch 8 --steps 0 --eval-every 0 --shard-size 200KB --quiet "
           "--run odd && cp -r odd/checkpoints/step_000000 odd-hub && rm odd-hub/checksums "
           "odd-hub/optimizer.safetensors && "
           "printf '{\"global_step\": 5, \"log_history\": []}' >odd-hub/trainer_state.json");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int code = run("%s", rows[i].line);
        if (code != rows[i].code || !strstr(output, rows[i].words))
            fail_msg("%s: exit code %d, %s", rows[i].line, code, output);
    }
    RUN_OK("rm -rf odd odd-hub");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16_source),
        cmocka_unit_test(test_ends_of_the_source),
        cmocka_unit_test(test_end_of_text_from_config),
        cmocka_unit_test(test_odd_directories),
    };
    return cmocka_run_group_tests(tests, make_place, remove_place);
}
