/* The whole program on one backend beside the CPU's: PROGRAM [BACKEND], default sim. The same
   tokens are learnt from on both (--replay), so what differs is arithmetic; and what the backend
   samples by itself is compared token by token. */
#include <math.h>
#include "../llmc/io/safetensors.h"
#include "program_rig.h"

static const char *backend = "sim";

/* Five supervised steps and three of RL on the built-in task, from weights that the CPU has warmed
   up, so that there are rewards to tell apart. Small steps: AdamW gives a weight whose gradient is
   0 but for roundings a whole step of either sign, and two runs must not go apart by that. TASK's
   runs are compared bit by bit, so none chooses its algorithms by a clock; TIMED's is. */
#define RUN "--model base --warm-start 5 --warm-batch 24 --prompts 4 --group 12 --minibatches 2 " \
            "--eval-every 0 --threads 2 --rollouts-every 1 --quiet "
#define TIMED RUN "--warm-lr 1e-4 "
#define TASK TIMED "--matmul first "
enum { WARM_STEPS = 5, STEPS = 3 };

static bool is_simulated(void) { return strncmp(backend, "sim", 3) == 0; }

/* ---- the same tokens ------------------------------------------------------------------------- */

/* |x - y| / |y| of one number of a log's line; where y is a sum of signed terms of size 1 (the loss
   of a policy gradient is near 0), relative to 1. */
static double relative(const cJSON *log, const cJSON *reference, int line, const char *key) {
    double x = cJSON_GetObjectItem(cJSON_GetArrayItem(log, line), key)->valuedouble;
    double y = cJSON_GetObjectItem(cJSON_GetArrayItem(reference, line), key)->valuedouble;
    double size = strcmp(key, "loss") == 0 ? fmax(1, fabs(y)) : fabs(y);
    return fabs(x - y) / size;
}

/* Loss, gradient norm and entropy in the first `lines` lines of two runs' logs. */
static void compare_log(const char *ours_run, const char *reference, const char *log, int lines,
                        double bound) {
    static const char *const keys[] = {"loss", "grad_norm", "entropy"};
    char path[2][256];
    snprintf(path[0], sizeof path[0], "%s/%s", ours_run, log);
    snprintf(path[1], sizeof path[1], "%s/%s", reference, log);
    cJSON *ours = read_log(path[0]), *theirs = read_log(path[1]);
    int gradients = 0;
    assert_true(cJSON_GetArraySize(ours) >= lines && cJSON_GetArraySize(theirs) >= lines);
    for (int i = 0; i < lines; i++) {
        cJSON *line = cJSON_GetArrayItem(theirs, i);
        for (int k = 0; k < 3; k++) {
            char name[400];
            snprintf(name, sizeof name, "%s, line %d, %s", path[0], i + 1, keys[k]);
            if (!cJSON_GetObjectItem(line, keys[k])) continue;
            ASSERT_CLOSE(name, relative(ours, theirs, i, keys[k]), bound);
            if (k == 1) gradients += cJSON_GetObjectItem(line, keys[k])->valuedouble > 0;
        }
    }
    assert_int_equal(gradients, lines); /* or there was nothing to compare */
    cJSON_Delete(ours), cJSON_Delete(theirs);
}

static void run_reference(void) {
    static bool done;
    if (done) return;
    RUN_OK("$T " TASK "--backend cpu --steps 3 --run cpu");
    done = true;
}

/* One tensor of a run's last checkpoint; the caller frees it. */
static float *read_tensor(const char *from, int step, const char *name, size_t *n) {
    struct Safetensors file;
    char path[512];
    snprintf(path, sizeof path, "%s/%s/checkpoints/step_%06d/model.safetensors", place, from, step);
    assert_null(safetensors_open(&file, path));
    const struct SafetensorsEntry *found = safetensors_find(&file, name);
    assert_non_null(found);
    *n = found->count;
    float *x = malloc(*n * sizeof *x);
    safetensors_read(&file, found, x, 0, *n);
    safetensors_close(&file);
    return x;
}

/* ||x - y|| and ||y - start|| over a tensor but for the key biases: to a query all keys' scores
   move together with them, so their true gradient is 0, and AdamW makes steps of noise from its
   roundings. */
static void add_distances(double sums[2], const char *name, const float *x, const float *y,
                          const float *start, size_t n) {
    bool qkv_bias = strstr(name, "c_attn.bias") != NULL;
    for (size_t i = 0; i < n; i++) {
        if (qkv_bias && i >= n / 3 && i < 2 * n / 3) continue;
        sums[0] += pow((double)x[i] - y[i], 2);
        sums[1] += pow((double)y[i] - start[i], 2);
    }
}

/* The distance between the weights of two runs over the way that training has moved them. */
static double weights_apart(const char *ours, const char *reference, int step) {
    static const char *const names[] = {
        "transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.ln_1.weight",
        "transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.bias",
        "transformer.h.1.attn.c_proj.weight", "transformer.h.1.ln_2.bias",
        "transformer.h.2.mlp.c_fc.weight", "transformer.h.2.mlp.c_proj.bias",
        "transformer.ln_f.weight"};
    double sums[2] = {0, 0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t n;
        float *x = read_tensor(ours, step, names[i], &n);
        float *y = read_tensor(reference, step, names[i], &n);
        float *start = read_tensor("base", 0, names[i], &n);
        add_distances(sums, names[i], x, y, start, n);
        free(x), free(y), free(start);
    }
    return sqrt(sums[0] / sums[1]);
}

/* Tensors of stored elements between the tokens and the gradient of the first layer: embedding, 8 a
   layer (two norms, q k v, attention, its projection, two of the feed-forward, its projection),
   last norm; and as many on the way back. */
enum { LAYERS = 3, CHANNELS = 64, TENSORS = 2 * (2 + 8 * LAYERS) };

/* How far two float32 backends may be apart in loss, gradient norm and entropy, from the same
   weights. An element of each tensor is a sum of at most F = 4 C terms of either sign, an element
   of a weight gradient one over the tokens of a batch. A partial sum of i of n such terms is about
   sqrt(i / n) of the whole, and each addition is off by at most u = 2^-24 of it, to either side:
   the sum is off by sqrt(n / 2) u. Two backends add in two orders, so between them it is
   sqrt(n) u; and errors of different tensors add as squares. (The largest difference measured is a
   seventh of this bound: an addition errs by .4 u in the mean square, and many sums are
   shorter.) */
static double float32_bound(void) {
    enum { TERMS = 4 * CHANNELS, TOKENS = 24 * 64 };   /* 24 sequences in a batch, none longer */
    return sqrt(TENSORS * TERMS + TOKENS) * 0x1p-24;
}

/* AdamW divides each gradient by its own size: where one is smaller than its error, which is so for
   a share of about `error` of them, the sign of the weight's step is a matter of rounding. So the
   squares of the weights' distances add up to 4 * error of the squares of their ways, and as much
   again with each step. Such weights have next to no gradient: the next step's loss does not see
   where they are. The next gradient does, in proportion to the step's length; with steps as short
   as here that is less than the roundings, and the bound of the logs stays that of the first
   step. */
#define SHORT_STEPS RUN "--warm-lr 1e-5 --matmul first --steps 3 "
static void test_same_tokens_fp32(void **state) {
    (void)state;
    double error = float32_bound();
    RUN_OK("$T " SHORT_STEPS "--backend cpu --run short");
    RUN_OK("$T " SHORT_STEPS "--backend %s --dtype fp32 --replay short/rollouts.jsonl --run fp32",
           backend);
    compare_log("fp32", "short", "warm_start.jsonl", WARM_STEPS, error);
    compare_log("fp32", "short", "metrics.jsonl", STEPS, error);
    ASSERT_CLOSE("weights", weights_apart("fp32", "short", STEPS),
                 sqrt(4 * error * (WARM_STEPS + STEPS)));
}

/* How far one step in narrow elements may be from float32's, of the same weights; rounding: the
   largest relative error of one, u = 2^-8 (bf16) or 2^-11 (fp16). Each element of each of the K
   TENSORS is off by at most u of itself, to either side, so what the errors add up to grows as
   sqrt(K): the gradient, and with it its norm, is off by sqrt(K) u where every error is as large as
   it can be (rounded numbers err by .4 u in the mean square: another compiler's order of additions
   has a factor of 2.4 to move in). Loss and entropy have the forward half of it. */
static double narrow_bound(double rounding) {
    return sqrt(TENSORS) * rounding;
}

/* Narrow elements. Weights are rounded at every step, so trajectories go apart; but from the same
   weights, those of the narrow run, one step is the CPU's but for rounding. */
static void check_narrow(const char *dtype, double rounding) {
    char warm[32], ours[32], theirs[32];
    snprintf(warm, sizeof warm, "%s-warm", dtype);
    snprintf(ours, sizeof ours, "%s-ours", dtype);
    snprintf(theirs, sizeof theirs, "%s-cpu", dtype);
    RUN_OK("$T " TASK "--backend %s --dtype %s --steps 0 --run %s", backend, dtype, warm);
    compare_log(warm, "cpu", "warm_start.jsonl", 1, narrow_bound(rounding));
    RUN_OK("cp -r %s %s && cp -r %s %s", warm, ours, warm, theirs);
    RUN_OK("$T " TASK "--backend %s --dtype %s --steps 1 --replay cpu/rollouts.jsonl --resume %s",
           backend, dtype, ours);
    RUN_OK("$T " TASK "--backend cpu --dtype fp32 --steps 1 --replay cpu/rollouts.jsonl "
           "--resume %s",
           theirs);
    compare_log(ours, theirs, "metrics.jsonl", 1, narrow_bound(rounding));
}

static void test_same_tokens_bf16(void **state) {
    (void)state;
    run_reference();
    check_narrow("bf16", 0x1p-8);
}

static void test_same_tokens_fp16(void **state) {
    (void)state;
    run_reference();
    check_narrow("fp16", 0x1p-11);
}

/* A loss scale under which every gradient overflows: it shrinks until one does not, no update is
   lost, and the update is the one that the usual scale makes, up to what fp16 rounds. */
static void test_loss_scale(void **state) {
    (void)state;
    run_reference();
    RUN_OK("$T " TASK "--backend %s --dtype fp16 --steps 0 --run scale", backend);
    RUN_OK("cp -r scale overflow");
    RUN_OK("sed -i 's/\"loss_scale\":[^,]*/\"loss_scale\": 1099511627776/' "
           "overflow/checkpoints/step_000000/trainer_state.json");
    RUN_OK("rm overflow/checkpoints/step_000000/checksums"); /* it is damaged on purpose */
    for (int i = 0; i < 2; i++)
        RUN_OK("$T " TASK "--backend %s --dtype fp16 --steps 1 --replay cpu/rollouts.jsonl "
               "--resume %s",
               backend, i ? "overflow" : "scale");
    compare_log("overflow", "scale", "metrics.jsonl", 1, narrow_bound(0x1p-11));
    cJSON *usual = read_log("scale/metrics.jsonl"), *log = read_log("overflow/metrics.jsonl");
    assert_true(logged(usual, 1, "loss_scale_overflows") == 0);
    assert_true(logged(usual, 1, "loss_scale") == 65536);
    assert_in_range((int)logged(log, 1, "loss_scale_overflows"), 5, 20);
    assert_true(logged(log, 1, "loss_scale") < 0x1p30);
    assert_true(logged(log, 1, "updates_skipped") == 0);
    cJSON_Delete(usual), cJSON_Delete(log);
}

/* ---- tokens of its own ----------------------------------------------------------------------- */

/* Its own rollouts in float32, saved on the way. */
static void run_own(void) {
    static bool done;
    if (!done)
        RUN_OK("$T " TASK "--backend %s --dtype fp32 --steps 3 --save-every 2 --run own", backend);
    done = true;
}

/* -log(-log u) of word v for the token at `position` of a sample. */
static double noise(int v, int position, int sample, int ordinal) {
    uint32_t key[2], out[4];
    uint32_t counter[4] = {(uint32_t)v / 4, (uint32_t)position, (uint32_t)sample,
                           (uint32_t)ordinal};
    rng_key(key, 1, RNG_SAMPLE);
    philox(out, counter, key);
    return -log(-log((double)rng_uniform(out[v % 4])));
}

static double entry(const cJSON *line, const char *list, int k) {
    return cJSON_GetArrayItem(cJSON_GetObjectItem(line, list), k)->valuedouble;
}

/* Compares two completions of one prompt until they part; returns the largest difference between
   log-probabilities of equal tokens, and in *gap the difference between the two scores where they
   part (0: they do not): by the Gumbel rule each backend found its own the larger. */
static double compare_completions(const cJSON *a, const cJSON *b, int sample, int ordinal,
                                  double *gap) {
    int prompt = (int)strlen(cJSON_GetObjectItem(a, "prompt")->valuestring);
    int length = cJSON_GetArraySize(cJSON_GetObjectItem(a, "tokens"));
    double error = 0;
    *gap = 0;
    for (int k = 0; k < length; k++) {
        int v = (int)entry(a, "tokens", k), w = (int)entry(b, "tokens", k);
        double x = entry(a, "logp", k), y = entry(b, "logp", k);
        if (v != w) {
            *gap = fabs(x + noise(v, prompt + k, sample, ordinal) -
                        (y + noise(w, prompt + k, sample, ordinal)));
            return error;
        }
        error = fmax(error, fabs(x - y));
    }
    return error;
}

static void test_first_rollout_fp32(void **state) {
    (void)state;
    enum { PROMPTS = 4, GROUP = 12 };
    run_reference();
    run_own();
    cJSON *ours = read_log("own/rollouts.jsonl"), *theirs = read_log("cpu/rollouts.jsonl");
    double error = 0, gap = 0;
    int parted = 0;
    for (int i = 0; i < PROMPTS * GROUP; i++) {
        double here;
        const cJSON *a = cJSON_GetArrayItem(ours, i), *b = cJSON_GetArrayItem(theirs, i);
        assert_int_equal(cJSON_GetObjectItem(a, "step")->valueint, 1);
        assert_string_equal(cJSON_GetObjectItem(a, "prompt")->valuestring,
                            cJSON_GetObjectItem(b, "prompt")->valuestring);
        error = fmax(error, compare_completions(a, b, i % GROUP, i / GROUP, &here));
        gap = fmax(gap, here), parted += here > 0;
    }
    /* the weights went apart a little in the warm start, and the noise is rounded to 1e-6 */
    ASSERT_CLOSE("log-probabilities of equal tokens", error, 1e-3);
    ASSERT_CLOSE("scores where completions part", gap, 2 * error + 4e-6);
    assert_in_range(parted, 0, PROMPTS * GROUP / 8);
    cJSON_Delete(ours), cJSON_Delete(theirs);
}

/* Stopped after two steps and resumed: bit for bit the run that was not. */
static void test_resume(void **state) {
    (void)state;
    for (int narrow = 0; narrow < 2; narrow++) {
        const char *dtype = narrow ? "fp16" : "fp32";
        if (narrow)
            RUN_OK("$T " TASK "--backend %s --dtype fp16 --steps 3 --save-every 2 --run own16",
                   backend);
        else run_own();
        RUN_OK("$T " TASK "--backend %s --dtype %s --steps 2 --run resumed%d", backend, dtype,
               narrow);
        RUN_OK("$T " TASK "--backend %s --dtype %s --steps 3 --resume resumed%d", backend, dtype,
               narrow);
        assert_same_end(narrow ? "resumed1" : "resumed0", narrow ? "own16" : "own", STEPS);
    }
}

/* A run that timed its products and goes on from an earlier checkpoint of its own: bit for bit the
   run that was not stopped, because the checkpoint has the choices and they are final there. */
static void test_resume_timed(void **state) {
    (void)state;
    RUN_OK("$T " TIMED "--backend %s --dtype fp32 --steps 3 --save-every 2 --run timed", backend);
    RUN_OK("cp -r timed again && rm -r again/checkpoints/step_000003 && "
           "echo step_000002 > again/checkpoints/latest");
    RUN_OK("$T " TIMED "--backend %s --dtype fp32 --steps 3 --resume again", backend);
    assert_same_end("again", "timed", STEPS);
    RUN_OK("grep -q '\"matmul_choices\".*cuBLASLt.*fp32' "
           "timed/checkpoints/step_000003/trainer_state.json");
    run_own();
    RUN_OK("grep -q '\"matmul_choices\":[[:space:]]*\"\"' "
           "own/checkpoints/step_000003/trainer_state.json");
    if (!is_simulated()) return;
    /* another algorithm has another rounding, or the above says nothing */
    assert_int_equal(run("cmp -s timed/checkpoints/step_000003/model.safetensors "
                         "own/checkpoints/step_000003/model.safetensors"), 1);
}

/* What is computed again instead of kept gives the same bits through the whole program. */
static void test_recompute(void **state) {
    (void)state;
    run_own();
    RUN_OK("$T " TASK "--backend %s --dtype fp32 --steps 3 --recompute layer --run layer", backend);
    assert_same_end("layer", "own", STEPS);
}

/* Threads, blocks and streams in another order: the same bits, or something was not ordered. */
static void test_orders(void **state) {
    (void)state;
    static const char *const orders[] = {"order=descending",
                                         "order=random,seed=5,resident=3,streams=random"};
    if (!is_simulated()) skip();
    run_own();
    RUN_OK("$T " TASK "--backend %s --dtype bf16 --steps 3 --run own-bf16", backend);
    for (int i = 0; i < 2; i++) {
        RUN_OK("CUDASIM=%s $T " TASK "--backend %s --dtype fp32 --steps 3 --run order%d", orders[i],
               backend, i);
        RUN_OK("CUDASIM=%s $T " TASK "--backend %s --dtype bf16 --steps 3 --run order-bf16-%d",
               orders[i], backend, i);
        assert_same_end(i ? "order1" : "order0", "own", STEPS);
        assert_same_end(i ? "order-bf16-1" : "order-bf16-0", "own-bf16", STEPS);
    }
}

static int open_place(void **state) {
    if (make_place(state) != 0) return -1;
    return run("$T --backend cpu --quiet --warm-start 300 --steps 0 --eval-every 0 --run base");
}

int main(int argc, char **argv) {
    if (argc > 1) backend = argv[1];
    if (argc > 2) cmocka_set_test_filter(argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_tokens_fp32),   cmocka_unit_test(test_same_tokens_bf16),
        cmocka_unit_test(test_same_tokens_fp16),   cmocka_unit_test(test_loss_scale),
        cmocka_unit_test(test_first_rollout_fp32), cmocka_unit_test(test_resume),
        cmocka_unit_test(test_resume_timed),       cmocka_unit_test(test_recompute),
        cmocka_unit_test(test_orders),
    };
    return cmocka_run_group_tests(tests, open_place, remove_place);
}
