/* A vocabulary that was padded beyond its tokenizer's words: what cannot be decoded is never drawn,
   scored or trained, and the file keeps its rows. The whole program, on a directory made here. */
#include <sys/stat.h>
#include "program_rig.h"
#include "../llmc/checkpoint.h"
#include "../llmc/kernels/backends.h"

/* WORDS of the built-in task's tokenizer, ROWS in the file (no other size of the model). */
enum { WORDS = 24, ROWS = 61 };
#define LINE "--quiet --warm-start 0 --prompts 4 --group 4 --minibatches 2 --eval-prompts 3 " \
             "--eval-samples 4 --save-every 2 --threads 2 --rollouts-every 1 --lr 1e-2 " \
             "--weight-decay 0.1 --entropy-control bonus --entropy-coef 0.1 " /* rewards may be 0 */

static const struct Ops *ops;

static const char *place_of(const char *name) {
    static char path[8][4096];
    static int next;
    char *out = path[next++ % 8];
    snprintf(out, sizeof path[0], "%s/%s", place, name);
    return out;
}

/* The weights of a directory as floats [num_parameters]; the caller frees. V_saved: rows to make
   room for, or 0 for what config.json says. */
static float *load(const char *directory, struct Model **model, int V_saved) {
    struct ModelConfig config;
    assert_null(checkpoint_config(directory, &config));
    if (V_saved) config.V_saved = config.Vp = V_saved;
    *model = model_build(&config, ops);
    struct Weights weights = {.data = ops->alloc((*model)->num_parameters * sizeof(float))};
    if (V_saved) weights_clear(*model, &weights);
    else checkpoint_load_weights(directory, *model, &weights);
    float *host = malloc((*model)->num_parameters * sizeof *host);
    elements_download(ops, host, weights.data, (*model)->num_parameters);
    ops->free(weights.data);
    return host;
}

/* A model directory NAME: the run's in `from`, with ROWS rows of vocabulary. Logits of the new ones
   are far larger than those of words: without care they would be all that is ever drawn. */
static void make_padded(const char *from, const char *name) {
    struct Model *small, *large;
    struct Tokenizer *tokenizer;
    struct Progress progress = {.loss_scale = 1};
    float *old = load(from, &small, 0), *new = load(from, &large, ROWS);
    assert_null(tokenizer_load(&tokenizer, from));
    assert_int_equal(tokenizer_vocab_size(tokenizer), WORDS);
    for (int i = 0; i < large->num_tensors; i++) {
        const struct Tensor *to = &large->tensors[i], *t = &small->tensors[i];
        memcpy(new + to->offset, old + t->offset, t->saved * sizeof *new);
        if (to->saved > t->saved)
            fill_normal(new + to->offset + t->saved, to->saved - t->saved, 10, 7);
    }
    struct Weights weights = {.data = ops->alloc(large->num_parameters * sizeof(float))};
    elements_upload(ops, weights.data, new, large->num_parameters);
    assert_int_equal(mkdir(place_of(name), 0777), 0);
    checkpoint_save(place_of(name), large, &weights, NULL, tokenizer, &progress, NULL, NULL, 0,
                    NULL);
    tokenizer_free(tokenizer);
    ops->free(weights.data);
    model_free(small), model_free(large);
    free(old), free(new);
}

/* The rows of `name` from WORDS on are, bit for bit, those of `other`; the others are not. */
static void check_rows(const char *name, const char *other) {
    struct Model *model, *model_other;
    float *a = load(place_of(name), &model, 0), *b = load(place_of(other), &model_other, 0);
    assert_int_equal(model->config.V_saved, ROWS);
    int tables = 0;
    for (int i = 0; i < model->num_tensors; i++) {
        const struct Tensor *t = &model->tensors[i];
        if (t->rows_saved != ROWS) continue;
        size_t words = (size_t)WORDS * (size_t)t->shape[1];
        assert_memory_equal(a + t->offset + words, b + t->offset + words,
                            (t->saved - words) * sizeof *a);
        assert_memory_not_equal(a + t->offset, b + t->offset, words * sizeof *a);
        tables++;
    }
    assert_int_equal(tables, model->config.tied ? 1 : 2);
    model_free(model), model_free(model_other);
    free(a), free(b);
}

static void check_padded(bool tied) {
    const char *untied = tied ? "" : "--untied ", *kind = tied ? "tied" : "untied";
    char name[64], padded[64], from[128], to[128], run_name[64];
    snprintf(name, sizeof name, "%s-plain", kind);
    snprintf(padded, sizeof padded, "%s-padded", kind);
    snprintf(run_name, sizeof run_name, "%s-run", kind);
    RUN_OK("$T --quiet --warm-start 5 --warm-batch 16 --prompts 4 --group 4 --steps 1 %s"
           "--eval-every 0 --run %s", untied, name);
    snprintf(from, sizeof from, "%s/checkpoints/step_000001", name);
    make_padded(place_of(from), padded);

    RUN_OK("$T " LINE "--model %s --steps 3 --run %s", padded, run_name);
    snprintf(from, sizeof from, "%s/rollouts.jsonl", run_name);
    cJSON *rollouts = read_log(from), *line, *token;
    int drawn = 0;
    cJSON_ArrayForEach(line, rollouts)
        cJSON_ArrayForEach(token, cJSON_GetObjectItem(line, "tokens")) {
            assert_true(token->valueint >= 0 && token->valueint < WORDS);
            drawn++;
        }
    assert_true(drawn >= 3 * 16);
    cJSON_Delete(rollouts);

    /* sampling, scoring and learning are of one distribution, over the words alone */
    snprintf(from, sizeof from, "%s/metrics.jsonl", run_name);
    cJSON *metrics = read_log(from);
    for (int step = 1; step <= 3; step++) {
        assert_true(logged(metrics, step, "sampling/sampling_logp_difference/max") < 1e-4);
        double entropy = logged(metrics, step, "entropy");
        assert_true(entropy > 0 && entropy < log(WORDS));
    }
    cJSON_Delete(metrics);
    RUN_OK("$T " LINE "--model %s --steps 3 --run %s-again --replay %s/rollouts.jsonl", padded,
           kind, run_name);

    /* the rows beyond are kept through training, saving and going on */
    snprintf(from, sizeof from, "%s/checkpoints/step_000000", padded);
    snprintf(to, sizeof to, "%s/checkpoints/step_000003", run_name);
    check_rows(to, from);
    RUN_OK("$T --quiet --resume %s --steps 4", run_name);
    snprintf(to, sizeof to, "%s/checkpoints/step_000004", run_name);
    check_rows(to, from);

    /* scoring takes the words; without a tokenizer every row is one */
    RUN_OK("printf '{\"tokens\":[1,2,23]}\\n' > words.jsonl; "
           "$T --score words.jsonl --model %s", from);
    assert_int_equal(run("printf '{\"tokens\":[1,2,24]}\\n' > rows.jsonl; "
                         "$T --score rows.jsonl --model %s", from), 2);
    assert_non_null(strstr(output, "token 2 is not an id in 0..23"));
    RUN_OK("cp -r %s %s-bare && cd %s-bare && rm vocab.json merges.txt tokenizer*.json "
           "checksums* ; cd .. && $T --score rows.jsonl --model %s-bare", from, kind, kind, kind);
}

static void test_tied(void **state) {
    (void)state;
    check_padded(true);
}

static void test_untied(void **state) {
    (void)state;
    check_padded(false);
}

static int set_up(void **state) {
    ops = ops_open("cpu", "auto", 0);
    return make_place(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tied),
        cmocka_unit_test(test_untied),
    };
    return cmocka_run_group_tests(tests, set_up, remove_place);
}
