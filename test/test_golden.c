/* Model families against transformers: tiny checkpoints of awkward sizes, in each storage type and
   in the config.json of transformers 4 and 5, and the numbers that transformers computes from them
   in float64 (dev/ref/make_families.py). Logits, log-probability, entropy, attention entropy,
   gradients in every recompute mode, and greedy generation. */
#include <limits.h>
#include "model_rig.h"
#include "../llmc/checkpoint.h"
#include "../llmc/rl/sampler.h"

#define FAMILIES "test/golden/families/"

static const char *const cases[] = {
    "gpt2", "llama", "llama_biases", "llama_old", "mistral", "qwen2", "qwen2_untied", "qwen3",
    "qwen3_biases", "qwen3_wide"};
enum { CASES = sizeof cases / sizeof *cases };

static const int lengths[] = {300, 1, 37, 64};
enum { ROWS = 4, THIRD = 301, THIRD_LENGTH = 37, LISTED = 12, PROMPTS = 3, NEW_TOKENS = 200 };

struct Case {
    const char *name;
    char directory[128];
    struct ModelConfig config;
    struct Safetensors file;
};

static struct Case case_open(const char *name) {
    struct Case c = {.name = name};
    char path[160];
    snprintf(c.directory, sizeof c.directory, FAMILIES "%s", name);
    snprintf(path, sizeof path, FAMILIES "%s.safetensors", name);
    assert_null(safetensors_open(&c.file, path));
    const char *problem = checkpoint_config(c.directory, &c.config);
    if (problem) fail_msg("%s: %s", name, problem);
    int multiple = ops_open(backend, dtype, 0)->vocabulary_multiple;
    c.config.Vp = (c.config.V_saved + multiple - 1) / multiple * multiple;
    return c;
}

/* Where rows begin when each is cut into a prompt and what comes after it: the numbers stay. */
static const int cut_start[] = {0, 131, 300, 301, 302, 338, 401, 402};
static const int cut_prompt[] = {-1, 0, -1, -1, 3, -1, 5};
enum { CUT_ROWS = 7 };

/* The rig with the file's weights, tokens and objective. */
static void case_rig(struct Rig *rig, const struct Case *c, enum Recompute recompute) {
    const struct Safetensors *file = &c->file;
    rig_open_recompute(rig, &c->config, lengths, ROWS, recompute);
    checkpoint_load_weights(c->directory, rig->model, &rig->weights);
    golden_ints(rig->token, file, "token", rig->N);
    golden_ints(rig->row, file, "row", rig->n);
    golden_ints(rig->target, file, "target", rig->n);
    golden_ints(rig->row_start, file, "row_start", rig->B + 1);
    free(rig->dlogp), free(rig->dentropy);
    rig->dlogp = golden(file, "dlogp", (size_t)rig->n);
    rig->dentropy = golden(file, "dentropy", (size_t)rig->n);
    rig_upload(rig);
}

static void check_logits(struct Rig *rig, const struct Case *c) {
    const int V = c->config.V, C = c->config.C;
    size_t hidden_size = (size_t)rig->N * C, head_size = (size_t)V * C;
    float *E = malloc(hidden_size * sizeof *E), *W = malloc(head_size * sizeof *W);
    float *expected = golden(&c->file, "logits", (size_t)LISTED * V);
    int token[LISTED];
    elements_download(rig->ops, E, rig_forward(rig), hidden_size);
    elements_download(rig->ops, W, model_head_weight(rig->model, &rig->weights), head_size);
    golden_ints(token, &c->file, "logit_token", LISTED);
    for (int i = 0; i < LISTED; i++) {
        double largest = 0, worst = 0;
        for (int v = 0; v < V; v++) {
            double z = 0;
            for (int k = 0; k < C; k++)
                z += (double)E[(size_t)token[i] * C + k] * W[(size_t)v * C + k];
            largest = fmax(largest, fabs(expected[i * V + v]));
            worst = fmax(worst, fabs(z - expected[i * V + v]));
        }
        ASSERT_CLOSE(c->name, worst / largest, 1e-5);
    }
    free(E), free(W), free(expected);
}

static void check_attention_entropy(struct Rig *rig, const struct Case *c) {
    const struct ModelConfig *config = &c->config;
    size_t heads = (size_t)config->L * config->NH;
    float *found = rig_download(rig, rig->attention_entropy, heads * (size_t)rig->N);
    float *expected = golden(&c->file, "attention_entropy", heads);
    for (size_t h = 0; h < heads; h++) {
        double mean = 0;
        for (int t = 0; t < THIRD_LENGTH; t++)
            mean += found[h * (size_t)rig->N + THIRD + t] / THIRD_LENGTH;
        ASSERT_CLOSE("attention entropy", fabs(mean - expected[h]), 1e-5);
    }
    free(found), free(expected);
}

static int by_name(const void *a, const void *b) {
    const struct Tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

/* Norm and projections of each tensor's gradient. */
static void check_gradients(struct Rig *rig, const struct Case *c) {
    int count = rig->model->num_tensors;
    const struct Tensor **sorted = malloc((size_t)count * sizeof *sorted);
    float *grads = rig_download(rig, rig->grads, rig->model->num_parameters);
    float *expected = golden(&c->file, "gradient", (size_t)count * 4);
    for (int i = 0; i < count; i++) sorted[i] = &rig->model->tensors[i];
    qsort(sorted, (size_t)count, sizeof *sorted, by_name);
    for (int i = 0; i < count; i++) {
        float *g = gradient_as_saved(sorted[i], grads);
        double found[4] = {0};
        char name[128];
        snprintf(name, sizeof name, "%s: %s", c->name, sorted[i]->name);
        for (size_t j = 0; j < sorted[i]->saved; j++) {
            found[0] += (double)g[j] * g[j];
            for (int k = 0; k < 3; k++) found[1 + k] += g[j] * cos((double)j * 0.7 + k);
        }
        found[0] = sqrt(found[0]);
        for (int k = 0; k < 4; k++)
            ASSERT_CLOSE(name, fabs(found[k] - expected[4 * i + k]),
                         1e-5 * (expected[4 * i] + 1e-3));
        free(g);
    }
    free(sorted), free(grads), free(expected);
}

/* Float32 differs from float64 by some hundred roundings of 6e-8, more for larger numbers. */
static void check_forward(bool cut) {
    for (int i = 0; i < CASES; i++) {
        struct Case c = case_open(cases[i]);
        struct Rig rig;
        case_rig(&rig, &c, RECOMPUTE_NONE);
        if (cut) rig_cut(&rig, cut_start, cut_prompt, CUT_ROWS);
        rig_gradient(&rig);
        bool narrow = is_narrow(rig.ops);
        double bound = narrow ? 40 * rounding_of(rig.ops) : 1e-5;
        check_golden(&c.file, "logp", rig.logp, (size_t)rig.n, bound);
        check_golden(&c.file, "entropy", rig.entropy, (size_t)rig.n, bound);
        if (!narrow) check_logits(&rig, &c);
        if (!narrow) check_attention_entropy(&rig, &c);
        safetensors_close(&c.file);
        rig_close(&rig);
    }
}

static void test_forward(void **state) {
    (void)state;
    check_forward(false);
    check_forward(true);
}

static void check_all_gradients(bool cut) {
    for (int i = 0; i < CASES; i++)
        for (enum Recompute recompute = RECOMPUTE_NONE; recompute <= RECOMPUTE_LAYER; recompute++) {
            struct Case c = case_open(cases[i]);
            struct Rig rig;
            case_rig(&rig, &c, recompute);
            if (cut) rig_cut(&rig, cut_start, cut_prompt, CUT_ROWS);
            rig_gradient(&rig);
            check_gradients(&rig, &c);
            safetensors_close(&c.file);
            rig_close(&rig);
        }
}

static void test_gradients(void **state) {
    (void)state;
    SKIP_IF_NARROW();
    check_all_gradients(false);
    check_all_gradients(true);
}

/* The sampler's memory for the prompts of a case. */
struct Greedy {
    struct Arena arena;
    struct Sampler *sampler;
    void *workspace;
};

static void greedy_open(struct Greedy *g, const struct Rig *rig, int longest) {
    const struct ModelConfig *c = &rig->model->config;
    struct OpsShape shape = {.N = PROMPTS * longest, .C = c->C, .F = c->F, .NH = c->NH,
                             .NKV = c->NKV, .HS = c->HS, .V = c->V, .Vp = c->Vp, .max_T = longest,
                             .R = sampler_step_rows(rig->ops, PROMPTS, longest),
                             .max_length = longest + NEW_TOKENS};
    memset(g, 0, sizeof *g);
    g->sampler = sampler_reserve(rig->model, &g->arena, PROMPTS, 1, longest, NEW_TOKENS, INT_MAX);
    arena_reserve(&g->arena, &g->workspace, rig->ops->workspace_size(&shape), "workspace",
                  "workspace");
    arena_commit(&g->arena, rig->ops);
    sampler_load_weights(g->sampler, &rig->weights);
}

static void check_greedy(const struct Rig *rig, const struct Case *c) {
    int start[PROMPTS + 1], expected[PROMPTS * NEW_TOKENS];
    golden_ints(start, &c->file, "prompt_start", PROMPTS + 1);
    golden_ints(expected, &c->file, "greedy", PROMPTS * NEW_TOKENS);
    int *prompt = new_ints(start[PROMPTS]), longest = start[PROMPTS] - start[PROMPTS - 1];
    golden_ints(prompt, &c->file, "prompt", start[PROMPTS]);
    struct Greedy g;
    greedy_open(&g, rig, longest);
    struct RolloutRequest request = {
        .num_prompts = PROMPTS, .group = 1, .prompt_token = prompt, .prompt_start = start,
        .ordinal = (uint32_t[]){0, 1, 2}, .purpose = RNG_SAMPLE, .max_tokens = NEW_TOKENS,
    };
    struct Rollout rollout = {0};
    sampler_generate(g.sampler, &rig->weights, &request, &rollout, g.workspace);
    for (int p = 0; p < PROMPTS; p++)
        for (int t = 0; t < NEW_TOKENS; t++)
            if (rollout.token[rollout.start[p] + t] != expected[p * NEW_TOKENS + t])
                fail_msg("%s: prompt %d, token %d is %d, not %d", c->name, p, t,
                         rollout.token[rollout.start[p] + t], expected[p * NEW_TOKENS + t]);
    rollout_free(&rollout);
    sampler_free(g.sampler);
    arena_free(&g.arena);
    free(prompt);
}

static void test_greedy_generation(void **state) {
    (void)state;
    SKIP_IF_NARROW();
    for (int i = 0; i < CASES; i++) {
        struct Case c = case_open(cases[i]);
        struct Rig rig;
        case_rig(&rig, &c, RECOMPUTE_NONE);
        check_greedy(&rig, &c);
        safetensors_close(&c.file);
        rig_close(&rig);
    }
}

int main(int argc, char **argv) {
    if (argc > 1) backend = argv[1];
    if (argc > 2) dtype = argv[2];
    if (argc > 3) cmocka_set_test_filter(argv[3]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forward),
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_greedy_generation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
