/* --dump-hidden: from the file's hidden states and head weight, softmax in double gives the
   log-probabilities and entropies that the sampler noted in rollouts.jsonl, token by token; one
   micro-batch or many, one rank or two; and what is refused. */
#include <cjson/cJSON.h>
#include <math.h>
#include "../llmc/io/safetensors.h"
#include "program_rig.h"

#define ONE_STEP "$T --quiet --backend cpu --threads 2 --eval-every 0 --rollouts-every 1 --steps 1 "

struct Dumped {
    int64_t N, C, V;
    float *hidden, *head;
    int32_t *target;
};

static float *read_matrix(const struct Safetensors *file, const char *name, int64_t *rows,
                          int64_t *columns) {
    const struct SafetensorsEntry *entry = safetensors_find(file, name);
    assert_non_null(entry);
    assert_true(entry->type == ST_F32 && entry->num_dims == 2);
    *rows = entry->shape[0], *columns = entry->shape[1];
    float *x = malloc(entry->count * sizeof *x);
    assert_int_equal(safetensors_read(file, entry, x, 0, entry->count), entry->count);
    return x;
}

static struct Dumped read_dump(const char *name) {
    struct Dumped d;
    struct Safetensors file;
    char path[4096];
    int64_t columns;
    snprintf(path, sizeof path, "%s/%s", place, name);
    const char *problem = safetensors_open(&file, path);
    if (problem) fail_msg("%s: %s", path, problem);
    assert_int_equal(file.count, 3);
    d.hidden = read_matrix(&file, "hidden", &d.N, &d.C);
    d.head = read_matrix(&file, "head", &d.V, &columns);
    assert_int_equal(columns, d.C);
    const struct SafetensorsEntry *target = safetensors_find(&file, "target");
    assert_true(target && target->type == ST_I32 && target->num_dims == 1 &&
                target->shape[0] == d.N);
    d.target = malloc((size_t)d.N * sizeof *d.target);
    assert_int_equal(pread(file.descriptor, d.target, (size_t)d.N * 4,
                           (off_t)(file.data_begin + target->begin)), d.N * 4);
    safetensors_close(&file);
    return d;
}

static void dump_free(struct Dumped *d) { free(d->hidden), free(d->head), free(d->target); }

/* Row i's logits to log p of its target and the entropy. */
static double softmax_of(const struct Dumped *d, int64_t i, double *entropy) {
    double z[4096], most = -INFINITY, sum = 0, first = 0;
    assert_true(d->V <= 4096);
    for (int64_t v = 0; v < d->V; v++) {
        z[v] = 0;
        for (int64_t c = 0; c < d->C; c++)
            z[v] += (double)d->hidden[i * d->C + c] * d->head[v * d->C + c];
        most = fmax(most, z[v]);
    }
    for (int64_t v = 0; v < d->V; v++) sum += exp(z[v] - most), first += exp(z[v] - most) * z[v];
    *entropy = most + log(sum) - first / sum;
    return z[d->target[i]] - most - log(sum);
}

static double item(const cJSON *object, const char *key, int k) {
    return cJSON_GetArrayItem(cJSON_GetObjectItem(object, key), k)->valuedouble;
}

/* Both passes are float32: sums of C = 64 terms in three layers, in another order, and a softmax.
   1e-4 is some hundred roundings of a logit of size 10; other hidden states give errors of size
   1. */
static void compare_with_rollouts(const char *dump, const char *log) {
    struct Dumped d = read_dump(dump);
    cJSON *lines = read_log(log), *line;
    int64_t i = 0;
    cJSON_ArrayForEach(line, lines) {
        int n = cJSON_GetArraySize(cJSON_GetObjectItem(line, "tokens"));
        for (int k = 0; k < n; k++, i++) {
            double entropy, logp;
            assert_true(i < d.N);
            assert_int_equal(d.target[i], (int)item(line, "tokens", k));
            logp = softmax_of(&d, i, &entropy);
            if (fabs(logp - item(line, "logp", k)) > 1e-4 ||
                fabs(entropy - item(line, "entropy", k)) > 1e-4)
                fail_msg("token %d of the log: logp %g, entropy %g; in %s %g and %g", (int)i,
                         item(line, "logp", k), item(line, "entropy", k), dump, logp, entropy);
        }
    }
    assert_int_equal(i, d.N);
    cJSON_Delete(lines);
    dump_free(&d);
}

/* One micro-batch of more tokens than are brought to the host at once; and many. */
static void test_what_the_head_gets(void **state) {
    (void)state;
    RUN_OK(ONE_STEP "--warm-start 4 --micro-tokens 4096 --run large "
           "--dump-hidden large.safetensors");
    compare_with_rollouts("large.safetensors", "large/rollouts.jsonl");
    RUN_OK(ONE_STEP "--warm-start 4 --untied --micro-tokens 64 --prompts 8 --run small "
           "--dump-hidden small.safetensors");
    compare_with_rollouts("small.safetensors", "small/rollouts.jsonl");
}

/* The first rank writes all of them; the other one waits. */
static void test_ranks(void **state) {
    (void)state;
    RUN_OK(ONE_STEP "--warm-start 0 --prompts 4 --run one --dump-hidden one.safetensors");
    RUN_OK(ONE_STEP "--warm-start 0 --prompts 4 --ranks 2 --run two "
           "--dump-hidden two.safetensors");
    compare_with_rollouts("two.safetensors", "one/rollouts.jsonl");
}

static void refused(const char *line, const char *says) {
    int code = run("%s", line);
    if (code != 2 || !strstr(output, says))
        fail_msg("%s: exit code %d instead of 2 with \"%s\", said: %s", line, code, says, output);
}

static void test_refusals(void **state) {
    (void)state;
    RUN_OK("echo mine > there");
    refused(ONE_STEP "--run a --dump-hidden there", "there: the file exists");
    RUN_OK("test \"$(cat there)\" = mine && test ! -e a");
    refused(ONE_STEP "--run a --dump-hidden none/file", "there is no directory none");
    refused("$T --quiet --steps 0 --run a --dump-hidden b", "no rollout");
    refused("$T --eval-only --model one/checkpoints/step_000001 --dump-hidden b",
            "does nothing with --eval-only");
    RUN_OK(ONE_STEP "--warm-start 0 --prompts 1 --run a --overwrite --dump-hidden there");
    compare_with_rollouts("there", "a/rollouts.jsonl");
    RUN_OK("! ls | grep tmp");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_the_head_gets),
        cmocka_unit_test(test_ranks),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests_name("dump hidden", tests, make_place, remove_place);
}
