/* The cache's pages: whose they are, and rollouts whose prompts and completions end at and beside
   the borders of pages. They have the same bits in any pool, from one that holds a single longest
   row, where all others are put back again and again, to one that always has room; and whether the
   host is a step ahead or not. */
#include <limits.h>
#include "test_ops.h"
#include "../llmc/model.h"
#include "../llmc/rl/pages.h"
#include "../llmc/rl/sampler.h"

enum { V = 37, GROUP = 3, LONGEST_PROMPT = 131, MAX_TOKENS = 140, CONTEXT = 270 };

static int end_of_text = -1;   /* a token that is drawn about once in 150 */

/* In tokens; one fewer is stored in the segment. */
static const int prompt_length[] = {1, 131, 64, 2, 65, 66, 129, 130, 63, 128};
enum { PROMPTS = sizeof prompt_length / sizeof *prompt_length };

/* ---- the tables ----------------------------------------------------------------------------- */

/* Whatever is taken and given back, no page has two owners or none. */
static void check_owners(const struct Pages *pages, const struct PageTable *table, int tables) {
    int *owners = calloc((size_t)pages->total, sizeof *owners);
    for (int i = 0; i < pages->num_free; i++) owners[pages->free[i]]++;
    for (int t = 0; t < tables; t++)
        for (int slot = 0; slot < table[t].slots; slot++)
            for (int i = 0; i < table[t].count[slot]; i++)
                owners[table[t].page[slot * table[t].width + i]]++;
    for (int i = 0; i < pages->total; i++) assert_int_equal(owners[i], 1);
    free(owners);
}

static void test_pages(void **state) {
    (void)state;
    struct Pages pages;
    struct PageTable table[2];
    struct Rng rng;
    int most = 0;
    pages_open(&pages, 11);
    page_table_open(&table[0], 3, 4);
    page_table_open(&table[1], 5, 2);
    rng_open(&rng, 3, RNG_TEST, 0);
    for (int i = 0; i < 2000; i++) {
        struct PageTable *t = &table[rng_below(&rng, 2)];
        int slot = (int)rng_below(&rng, (uint32_t)t->slots), held = t->count[slot];
        if (rng_below(&rng, 3) == 0) {
            page_table_clear(t, &pages, slot);
            assert_int_equal(t->count[slot], 0);
        } else {
            int want = (int)rng_below(&rng, (uint32_t)t->width + 1), left = pages.num_free;
            bool room = want - held <= left;
            assert_int_equal(page_table_grow(t, &pages, slot, want), room);
            assert_int_equal(t->count[slot], room && want > held ? want : held);
        }
        if (pages.total - pages.num_free > most) most = pages.total - pages.num_free;
        check_owners(&pages, table, 2);
        assert_int_equal(pages.peak, most);
    }
    assert_int_equal(most, 11);
    for (int t = 0; t < 2; t++) {
        for (int slot = 0; slot < table[t].slots; slot++)
            page_table_clear(&table[t], &pages, slot);
        page_table_free(&table[t]);
    }
    assert_int_equal(pages.num_free, 11);
    pages_free(&pages);
}

static void test_pages_of_positions(void **state) {
    (void)state;
    static const int positions[] = {0, 1, 63, 64, 65, 128, 129}, pages[] = {0, 1, 1, 1, 2, 2, 3};
    for (int i = 0; i < 7; i++) assert_int_equal(kv_pages(positions[i]), pages[i]);
    /* segments of 130 and tails of 140: 3 pages each; 10 rows in groups of 3 have 9 segments */
    assert_int_equal(sampler_least_pages(131, 140), 6);
    assert_int_equal(sampler_most_pages(10, 3, 131, 140), 9 * 3 + 10 * 3);
    assert_int_equal(sampler_least_pages(1, 1), 2);
    assert_int_equal(sampler_least_pages(65, 64), 2);
    assert_int_equal(sampler_least_pages(66, 65), 4);
}

/* ---- rollouts ------------------------------------------------------------------------------- */

struct Rig {
    struct Ops ops;   /* the backend's; with `ahead` the host is a step ahead, whatever it is */
    struct Model *model;
    struct Arena arena;
    struct Weights weights;
    struct Sampler *sampler;
    void *workspace;
};

static void fill_weights(struct Rig *rig) {
    const struct Model *model = rig->model;
    float *host = calloc(model->num_parameters, sizeof *host);
    assert_non_null(host);
    for (int t = 0; t < model->num_tensors; t++) {
        const struct Tensor *tensor = &model->tensors[t];
        size_t width = tensor->shape[1] ? (size_t)tensor->shape[1] : 1;
        size_t n = (size_t)tensor->rows_saved * width;
        fill_normal(host + tensor->offset, n, 0.25f, (uint64_t)t);
        for (size_t i = 0; i < n; i++) host[tensor->offset + i] += tensor->init_value;
    }
    elements_upload(ops, rig->weights.data, host, model->num_parameters);
    free(host);
}

static void rig_open(struct Rig *rig, int rows, int pages, bool ahead) {
    struct ModelConfig config = {.family = "gpt2", .L = 2, .NH = 2, .NKV = 2, .C = 40, .HS = 20,
                                 .F = 60, .V = V, .V_saved = V, .max_T = CONTEXT, .tied = true,
                                 .norm_epsilon = 1e-5};
    config.Vp = (V / ops->vocabulary_multiple + 1) * ops->vocabulary_multiple;
    *rig = (struct Rig){.ops = *ops};
    rig->ops.asynchronous = ahead;
    rig->model = model_build(&config, &rig->ops);
    arena_reserve(&rig->arena, &rig->weights.data,
                  rig->model->num_parameters * ops->element_size, "weights", "w");
    rig->sampler = sampler_reserve(rig->model, &rig->arena, rows, GROUP, LONGEST_PROMPT,
                                   MAX_TOKENS, pages);
    arena_commit(&rig->arena, ops);
    struct OpsShape shape = {.N = CONTEXT, .C = config.C, .F = config.F, .NH = 2, .NKV = 2,
                             .HS = 20, .V = V, .Vp = config.Vp, .max_T = CONTEXT,
                             .max_length = LONGEST_PROMPT + MAX_TOKENS,
                             .R = sampler_step_rows(ops, rows, LONGEST_PROMPT)};
    rig->workspace = new_workspace(&shape);
    fill_weights(rig);
    sampler_load_weights(rig->sampler, &rig->weights);
}

static void rig_close(struct Rig *rig) {
    sampler_free(rig->sampler);
    release_all();
    arena_free(&rig->arena);
    model_free(rig->model);
}

/* Prompts [0, count) of the list above. */
static struct Rollout generate(struct Rig *rig, int count, int group, int max_tokens) {
    static int token[PROMPTS * LONGEST_PROMPT], start[PROMPTS + 1];
    static uint32_t ordinal[PROMPTS];
    for (int p = 0; p < PROMPTS; p++) {
        struct Rng rng;
        rng_open(&rng, 9, RNG_TEST, (uint64_t)p);
        start[p + 1] = start[p] + prompt_length[p], ordinal[p] = 50u + (uint32_t)p;
        for (int k = start[p]; k < start[p + 1]; k++) token[k] = (int)rng_below(&rng, V);
    }
    struct RolloutRequest request = {.num_prompts = count, .group = group, .prompt_token = token,
                                     .prompt_start = start, .ordinal = ordinal, .seed = 7,
                                     .purpose = RNG_SAMPLE, .temperature = 1.5f,
                                     .max_tokens = max_tokens, .ends = {{end_of_text}, 1}};
    struct Rollout rollout = {0};
    sampler_generate(rig->sampler, &rig->weights, &request, &rollout, rig->workspace);
    return rollout;
}

static void choose_end_of_text(void) {
    struct Rig rig;
    int count[V] = {0}, best = 0;
    rig_open(&rig, 7, INT_MAX, false);
    struct Rollout rollout = generate(&rig, 3, GROUP, MAX_TOKENS);
    int wanted = (int)rollout.decoded_tokens / 150;
    for (int t = 0; t < rollout.decoded_tokens; t++) count[rollout.token[t]]++;
    for (int v = 1; v < V; v++)
        if (abs(count[v] - wanted) < abs(count[best] - wanted)) best = v;
    end_of_text = best;
    rollout_free(&rollout);
    rig_close(&rig);
}

static void assert_same(const struct Rollout *a, const struct Rollout *b) {
    size_t count = (size_t)a->count, bytes = (size_t)a->start[count] * 4;
    assert_int_equal(a->count, b->count);
    assert_memory_equal(a->start, b->start, (count + 1) * sizeof(int));
    assert_memory_equal(a->ended, b->ended, count);
    assert_memory_equal(a->token, b->token, bytes);
    assert_memory_equal(a->logp, b->logp, bytes);
    assert_memory_equal(a->entropy, b->entropy, bytes);
}

static void check_pools(int count, int group, int max_tokens) {
    static const int row_counts[] = {1, 7, 64};
    int least = sampler_least_pages(LONGEST_PROMPT, MAX_TOKENS);
    struct Rollout reference = {0};
    for (int i = 0; i < 3; i++) {
        int rows = row_counts[i];
        int most = (int)sampler_most_pages(rows, GROUP, LONGEST_PROMPT, MAX_TOKENS);
        const int pools[] = {most, least, least + 1, least + 4, 17, 31};
        for (int j = 0; j < (is_cpu() ? 6 : 2); j++) {
            struct Rig rig;
            if (j > 0 && pools[j] >= most) continue;
            rig_open(&rig, rows, j == 0 ? INT_MAX : pools[j], (i + j) % 2);
            struct Rollout rollout = generate(&rig, count, group, max_tokens);
            assert_in_range(rollout.pages_peak, 1, pools[j]);
            /* one row is never put back; with pages for two longest rows seven are */
            if (j == 0 || rows == 1) assert_int_equal(rollout.preempted, 0);
            else if (j < 4 && max_tokens > 2 * KV_PAGE) assert_true(rollout.preempted > 0);
            if (!reference.count) reference = rollout, rollout = (struct Rollout){0};
            else assert_same(&reference, &rollout);
            rollout_free(&rollout);
            rollout = generate(&rig, count, group, max_tokens);   /* nothing is left of the first */
            assert_same(&reference, &rollout);
            rollout_free(&rollout);
            rig_close(&rig);
        }
    }
    int longest = 0, shortest = INT_MAX;
    for (int i = 0; i < reference.count; i++) {
        int length = reference.start[i + 1] - reference.start[i];
        if (length > longest) longest = length;
        if (length < shortest) shortest = length;
    }
    assert_int_equal(longest, max_tokens);
    if (max_tokens > 65) assert_true(shortest < KV_PAGE);   /* not all are cut */
    rollout_free(&reference);
}

static void test_any_pool(void **state) {
    (void)state;
    choose_end_of_text();
    if (is_cpu()) {
        check_pools(PROMPTS, GROUP, MAX_TOKENS);
        check_pools(PROMPTS, 1, 65);
        check_pools(PROMPTS, 5, 64);
    } else
        check_pools(3, GROUP, MAX_TOKENS);
}

int main(int argc, char **argv) {
    open_backend(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pages),
        cmocka_unit_test(test_pages_of_positions),
        cmocka_unit_test(test_any_pool),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
