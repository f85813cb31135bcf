/* The whole program on a file of prompts: what it says, that a run which was stopped goes on with
   the same bits, and that supervised learning takes the same path. */
#include "program_rig.h"

#define TINY "--quiet --threads 2 --prompts 4 --group 4 --minibatches 2 --eval-prompts 5 " \
             "--eval-samples 4 --save-every 2 --rollouts-every 1 --max-tokens 4 "

/* n sums as lines, some of them bad; completions teach the answer. */
static void write_sums(const char *name, int n) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", place, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (int i = 0; i < n; i++) {
        int a = 1 + i * 7 % 30, b = 1 + i * 11 % 23;
        fprintf(file, "{\"question\": \"%d+%d=\", \"answer\": \"%d\", \"completion\": \"%d\", "
                "\"level\": %d}\n%s", a, b, a + b, a + b, i % 3, i % 50 == 7 ? "oops\n" : "");
    }
    assert_int_equal(fclose(file), 0);
}

/* 23 lines of a block: stops fall inside blocks and passes. */
#define DATA TINY "--data sums.jsonl --shuffle-buffer 23 "

static void test_resume(void **state) {
    (void)state;
    RUN_OK("$T " DATA "--warm-start 20 --warm-batch 16 --steps 40 --eval-every 20 --run whole");
    RUN_OK("$T " DATA "--warm-start 20 --warm-batch 16 --steps 7 --eval-every 20 --run parts");
    RUN_OK("$T --quiet --resume parts --steps 25 && $T --quiet --resume parts --steps 40");
    assert_same_end("whole", "parts", 40);
    assert_same_file("whole/rollouts.jsonl", "parts/rollouts.jsonl");
    assert_same_file("whole/checkpoints/step_000040/trainer_state.json",
                     "parts/checkpoints/step_000040/trainer_state.json");
    RUN_OK("$T --resume whole --eval-only");
    assert_non_null(strstr(output, "data held-out: pass@1"));
}

/* --objective ce: only supervised steps, by the same batches whether it was stopped or not; the
   loss falls. */
static void test_supervised(void **state) {
    (void)state;
    RUN_OK("$T " DATA "--objective ce --lr 1e-3 --prompts 16 --steps 60 --eval-every 0 --run sft");
    RUN_OK("$T " DATA "--objective ce --lr 1e-3 --prompts 16 --steps 33 --eval-every 0 --run cut");
    RUN_OK("$T --quiet --resume cut --steps 60");
    assert_same_end("sft", "cut", 60);
    assert_same_log("sft/metrics.jsonl", "cut/metrics.jsonl");
    cJSON *log = read_log("sft/metrics.jsonl");
    assert_int_equal(cJSON_GetArraySize(log), 60);
    assert_true(logged(log, 60, "loss") < 0.6 * logged(log, 1, "loss"));
    assert_true(isnan(logged(log, 60, "reward")));
    cJSON_Delete(log);
}

/* The warm start with data is the supervised run of as many steps, number for number. */
static void test_warm_start_is_supervised_learning(void **state) {
    (void)state;
    RUN_OK("$T " DATA "--warm-start 5 --warm-batch 16 --warm-lr 1e-3 --steps 0 --eval-every 0 "
           "--max-prompt 20 --micro-tokens 400 --run warm --context 32");
    RUN_OK("$T " DATA "--objective ce --lr 1e-3 --prompts 16 --steps 5 --eval-every 0 "
           "--max-prompt 20 --micro-tokens 400 --run steps --context 32");
    cJSON *warm = read_log("warm/warm_start.jsonl"), *steps = read_log("steps/metrics.jsonl");
    for (int i = 0; i < 5; i++) {
        const cJSON *a = cJSON_GetObjectItem(cJSON_GetArrayItem(warm, i), "loss");
        const cJSON *b = cJSON_GetObjectItem(cJSON_GetArrayItem(steps, i), "loss");
        assert_true(a->valuedouble == b->valuedouble);
    }
    cJSON_Delete(warm), cJSON_Delete(steps);
}

/* Plain text needs no prompts. The loss of what is held out is measured, and falls where it is like
   what is learnt. */
static void test_text(void **state) {
    (void)state;
    RUN_OK("printf '{\"text\": \"the quick brown fox jumps over the lazy dog, and again\"}\\n"
           "{\"text\": \"the dog sleeps\"}\\n' > text.jsonl");
    RUN_OK("$T --threads 2 --data text.jsonl --objective ce --lr 1e-2 --prompts 8 --steps 40 "
           "--eval-share 0 --run text");
    assert_non_null(strstr(output, "held out: nothing, and so nothing is evaluated"));
    cJSON *log = read_log("text/metrics.jsonl");
    assert_true(logged(log, 40, "loss") < 0.3 * logged(log, 1, "loss"));
    assert_true(isnan(logged(log, 40, "eval/loss")));
    cJSON_Delete(log);
    RUN_OK("seq 100 | sed 's/.*/{\"text\": \"& and & again\"}/' >again.jsonl");
    RUN_OK("$T --threads 2 --data again.jsonl --objective ce --lr 5e-3 --prompts 16 --steps 60 "
           "--eval-every 30 --context 32 --max-tokens 20 --max-prompt 4 --run again");
    assert_non_null(strstr(output, "held-out loss"));
    log = read_log("again/metrics.jsonl");
    double loss = logged(log, 60, "eval/loss");
    assert_true(loss < 0.7 * logged(log, 1, "loss") && loss > 0);
    assert_true(fabs(logged(log, 60, "eval/perplexity") - exp(loss)) < 1e-4 * exp(loss));
    assert_true(isnan(logged(log, 60, "eval/pass@1")) && isnan(logged(log, 31, "eval/loss")));
    cJSON_Delete(log);
    RUN_OK("$T --resume again --eval-only");
    char shown[32];
    snprintf(shown, sizeof shown, "loss %.4f", loss);
    assert_non_null(strstr(output, shown));
}

/* What a person is told: the file, what is held out, the first lines that are wrong. */
static void test_what_it_says(void **state) {
    (void)state;
    RUN_OK("$T --threads 2 --data sums.jsonl --dry-run --reward number:1,length:0.5");
    assert_non_null(strstr(output, "sums.jsonl: 204 lines, 200 prompts, of 4 to 6 tokens, 200 "
                           "with something to learn; 4 bad, 0 too long"));
    assert_non_null(strstr(output, "sums.jsonl:9 is not JSON: passed over"));
    assert_non_null(strstr(output, "sums.jsonl, rewarded by number:1,length:0.5"));
    assert_non_null(strstr(output,
                           "held out: a share of 0.1, by a hash of the prompt; evaluated on"));
    /* memory for what is sampled: 2 x 3 completions, or those of 1 held-out prompt; and 2 of 7
       tokens and the answer of 9, and the first token has no input */
    RUN_OK("$T --data sums.jsonl --dry-run --prompts 2 --group 3 --minibatches 3 --eval-every 0 "
           "--warm-start 0");
    assert_non_null(strstr(output, "micro-batch 28 tokens, 6 decode rows"));
    RUN_OK("head -3 sums.jsonl > three.jsonl; $T --data three.jsonl --dry-run --prompts 1 "
           "--group 2 --eval-samples 11 --warm-start 0");
    assert_non_null(strstr(output, "evaluated on 1 prompts"));
    assert_non_null(strstr(output, " 11 decode rows"));
}

static void refused(const char *line, const char *says) {
    int code = run("%s", line);
    if (code != 2 || !strstr(output, says)) fail_msg("%s: exit code %d, %s", line, code, output);
}

static void test_refused(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"$T --data sums.jsonl --task countdown", "leave out --task and --tasks"},
        {"$T --data sums.jsonl --tasks split:3", "leave out --task and --tasks"},
        {"$T --eval-data sums.jsonl", "--eval-data is for --data FILE"},
        {"$T --reward number", "--reward is for --data FILE"},
        {"$T --data sums.jsonl --eval-data sums.jsonl --eval-share 0.5", "leave out --eval-share"},
        {"$T --data sums.jsonl --reward numbr", "unknown; known are exact number choice"},
        {"$T --data sums.jsonl --chat llama3", "the tokenizer has no <|begin_of_text|>"},
        {"$T --data sums.jsonl --max-tokens 16 --max-prompt 10", "do not fit the model's context"},
        {"$T --model whole --data sums.jsonl --eval-share 0 --eval-only", "nothing is held out"},
        {"$T --data no.jsonl", "cannot read --data no.jsonl"},
        {"$T --dataset-name x", "here it is --data"},
        {"echo '{qestion}' > t; $T --data sums.jsonl --prompt-template t",
         "{qestion} is no key of sums.jsonl:1; its keys are question, answer, completion, level"},
        {"echo '{' > t; $T --data sums.jsonl --prompt-template t", "t:1: a { without its }"},
        {"$T " TINY "--steps 0 --warm-start 0 --eval-every 0 --run plain; "
         "$T --resume plain --data sums.jsonl", "was begun without a data file"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) refused(cases[i][0], cases[i][1]);
    RUN_OK("cp sums.jsonl moved.jsonl; $T " TINY "--data moved.jsonl --warm-start 0 --steps 1 "
           "--eval-every 0 --run moved; mkdir elsewhere; mv moved.jsonl elsewhere");
    refused("$T --quiet --resume moved --steps 2", "cannot read --data moved.jsonl");
    RUN_OK("$T --quiet --resume moved --steps 2 --data elsewhere/moved.jsonl");
    RUN_OK("echo '{\"prompt\": 1}' >> elsewhere/moved.jsonl");
    refused("$T --quiet --resume moved --steps 3", "has changed since this run began");
}

static int make_sums(void **state) {
    if (make_place(state) != 0) return -1;
    write_sums("sums.jsonl", 200);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_supervised),
        cmocka_unit_test(test_warm_start_is_supervised_learning),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_what_it_says),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests_name("data program", tests, make_sums, remove_place);
}
