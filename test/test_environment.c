/* Completions of several turns. The environment here answers by a hash of what was said: texts of
   any length, some of them too long, or nothing. Rollouts have the same bits in any layout and
   pool, with answers at once or late and in any order; and they are what the training path and the
   Gumbel-max rule give for the whole transcript, computed from its start. */
#include <limits.h>
#include "test_ops.h"
#include "../llmc/rl/experience.h"
#include "../llmc/rl/pages.h"

enum { V = 37, PROMPTS = 6, GROUP = 3, LONGEST_PROMPT = 70, MAX_TOKENS = 140, CONTEXT = 210,
       TURNS = 4, COUNT = PROMPTS * GROUP };

static const char alphabet[] = "0123456789abcdefghijklmnopqrstuvwxyz";   /* with end-of-text: V */
static const int prompt_length[PROMPTS] = {1, 70, 64, 2, 65, 66};
static struct Tokenizer *tokenizer;
static int end_of_turn = -1;   /* a token that is drawn about once in 14 */

/* ---- the environment ------------------------------------------------------------------------ */

static uint64_t hash_of(const struct Completion *c) {
    uint64_t hash = 7 + (uint64_t)c->num_turns;
    for (size_t i = 0; i < c->length; i++) hash = rng_mix(hash + (unsigned char)c->text[i]);
    return rng_mix(hash + c->example->id);
}

/* One in 8 is over, one gets a text that is too long, one an empty one. */
static bool reply(const struct Task *task, struct Text *text, const struct Completion *c) {
    uint64_t hash = hash_of(c);
    (void)task;
    assert_true(c->num_turns % 2 == 1 && c->num_turns < 2 * TURNS && c->ended && !c->final);
    if (hash % 8 == 0) return false;
    int length = hash % 8 == 1 ? MAX_TOKENS : hash % 8 == 2 ? 0 : 1 + (int)(hash / 8 % 30);
    for (int i = 0; i < length; i++) {
        hash = rng_mix(hash);
        text_append(text, alphabet + hash % 36, 1);
    }
    return true;
}

static void judge(const struct Task *task, struct Reward *reward,
                  const struct Completion *completion, int count) {
    (void)task;
    for (int i = 0; i < count; i++) {
        assert_true(completion[i].final && completion[i].num_turns % 2 == 1);
        reward[i] = (struct Reward){.value = (float)(hash_of(&completion[i]) % 3)};
    }
}

/* Prompt number id of the list above. */
static void draw(const struct Task *task, struct Example *example, uint64_t seed,
                 enum RngPurpose purpose, uint64_t ordinal) {
    struct Rng rng;
    (void)task, (void)seed, (void)purpose;
    rng_open(&rng, 9, RNG_TEST, ordinal);
    for (int i = 0; i < prompt_length[ordinal % PROMPTS]; i++)
        text_append(&example->prompt, alphabet + rng_below(&rng, 36), 1);
}

static const struct Task at_once = {.name = "at once", .draw = draw, .judge = judge,
                                    .reply = reply, .max_turns = TURNS};

/* The same, late and in random order: an answer is there at one call in three. */
static struct { struct Answer answer; struct Text text; bool used; } asked[COUNT];
static struct Rng late;
static int num_asked, most_asked;

static void ask_late(const struct Task *task, const struct Completion *c, int number) {
    int k = 0;
    while (asked[k].used) k++;
    asked[k].used = true;
    text_clear(&asked[k].text);
    bool goes_on = reply(task, &asked[k].text, c);
    asked[k].answer = (struct Answer){.number = number, .goes_on = goes_on, .role = "user",
                                      .text = asked[k].text.bytes,
                                      .length = asked[k].text.length};
    if (++num_asked > most_asked) most_asked = num_asked;
}

static bool answer_late(const struct Task *task, struct Answer *answer, bool wait) {
    (void)task;
    if (num_asked == 0 || (!wait && rng_below(&late, 3) > 0)) return false;
    int k;
    do k = (int)rng_below(&late, COUNT);
    while (!asked[k].used);
    asked[k].used = false, num_asked--;
    *answer = asked[k].answer;
    return true;
}

static const struct Task at_leisure = {.name = "late", .draw = draw, .judge = judge,
                                       .ask = ask_late, .answer = answer_late,
                                       .max_turns = TURNS};

/* ---- the model ------------------------------------------------------------------------------ */

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
    struct OpsShape shape = {.N = COUNT * MAX_TOKENS * V, .C = config.C, .F = config.F, .NH = 2,
                             .NKV = 2, .HS = 20, .V = V, .Vp = config.Vp, .max_T = CONTEXT,
                             .max_length = CONTEXT,
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

static struct RolloutRequest request_of(const struct Examples *prompts, float temperature) {
    return (struct RolloutRequest){
        .num_prompts = PROMPTS, .group = GROUP, .prompt_token = prompts->ids.id,
        .prompt_start = prompts->start, .ordinal = prompts->ordinal, .seed = 7,
        .purpose = RNG_SAMPLE, .temperature = temperature, .max_tokens = MAX_TOKENS,
        .ends = {{end_of_turn}, 1}};
}

static struct Rollout generate(struct Rig *rig, const struct Task *task, float temperature) {
    struct Examples prompts = examples_draw(task, tokenizer, 1, RNG_PROMPT, 0, PROMPTS);
    struct RolloutRequest request = request_of(&prompts, temperature);
    struct Rollout rollout = {0};
    request.environment = environment_open(&prompts, GROUP);
    sampler_generate(rig->sampler, &rig->weights, &request, &rollout, rig->workspace);
    environment_close(request.environment);
    examples_free(&prompts);
    return rollout;
}

static int setup(void **state) {
    (void)state;
    static const struct Task silent = {.name = "silent", .draw = draw, .judge = judge};
    struct Rig rig;
    int count[V] = {0}, best = 0;
    tokenizer = tokenizer_from_alphabet(alphabet);
    rng_open(&late, 5, RNG_TEST, 1);
    rig_open(&rig, 7, INT_MAX, true);
    struct Rollout rollout = generate(&rig, &silent, 1.5f);
    assert_int_equal(rollout.texts, 0);
    int wanted = (int)rollout.decoded_tokens / 14;
    for (int t = 0; t < rollout.decoded_tokens; t++) count[rollout.token[t]]++;
    for (int v = 1; v < V; v++)
        if (abs(count[v] - wanted) < abs(count[best] - wanted)) best = v;
    end_of_turn = best;
    rollout_free(&rollout);
    rig_close(&rig);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    tokenizer_free(tokenizer);
    for (int i = 0; i < COUNT; i++) text_free(&asked[i].text);
    return 0;
}

/* ---- one result in every layout ------------------------------------------------------------- */

static void assert_same(const struct Rollout *a, const struct Rollout *b) {
    size_t count = (size_t)a->count, bytes = (size_t)a->start[count] * 4;
    assert_int_equal(a->count, b->count);
    assert_memory_equal(a->start, b->start, (count + 1) * sizeof(int));
    assert_memory_equal(a->ended, b->ended, count);
    assert_memory_equal(a->token, b->token, bytes);
    assert_memory_equal(a->logp, b->logp, bytes);
    assert_memory_equal(a->entropy, b->entropy, bytes);
    assert_int_equal(a->texts, b->texts);
    assert_int_equal(a->texts_cut, b->texts_cut);
    for (size_t i = 0; i < count; i++) {
        const struct Exchange *x = &a->exchange[i], *y = &b->exchange[i];
        assert_int_equal(x->at.count, y->at.count);
        for (int k = 0; k < x->at.count; k++) assert_int_equal(x->at.id[k], y->at.id[k]);
        for (int k = 0; k < x->said.content.count; k++)
            assert_string_equal(text_list_at(&x->said.content, k),
                                text_list_at(&y->said.content, k));
    }
}

/* Full pools store no token twice: of each prompt all but the last, and of each conversation what
   came since its last input. */
static void check_layouts(float temperature, int least_texts) {
    static const int row_counts[] = {1, 7, 64};
    int least = sampler_least_pages(LONGEST_PROMPT, MAX_TOKENS), stored = 0;
    struct Rollout reference = {0};
    for (int p = 0; p < PROMPTS; p++) stored += prompt_length[p] - 1;
    for (int i = 0; i < (is_cpu() ? 3 : 2); i++) {
        int rows = row_counts[i];
        int most = (int)sampler_most_pages(rows, GROUP, LONGEST_PROMPT, MAX_TOKENS);
        const int pools[] = {most, least, least + 1, least + 4, 17};
        for (int j = 0; j < (is_cpu() ? 5 : 2); j++) {
            struct Rig rig;
            if (j > 0 && pools[j] >= most) continue;
            rig_open(&rig, rows, j == 0 ? INT_MAX : pools[j], (i + j) % 2);
            for (int k = 0; k < 4; k++) {
                struct Rollout rollout =
                    generate(&rig, k % 2 ? &at_leisure : &at_once, temperature);
                if (j == 0) assert_int_equal(rollout.prefill_tokens, stored + rollout.text_tokens);
                if (j == 0) assert_int_equal(rollout.preempted, 0);
                if (j == 1 && rows > 1) assert_true(rollout.preempted > 0);
                if (!reference.count) reference = rollout, rollout = (struct Rollout){0};
                else assert_same(&reference, &rollout);
                rollout_free(&rollout);
            }
            rig_close(&rig);
        }
    }
    assert_true(reference.texts >= least_texts);
    rollout_free(&reference);
}

static void test_any_order(void **state) {
    (void)state;
    most_asked = 0;
    check_layouts(1.5f, COUNT);
    assert_true(most_asked > 2);   /* several waited at the same time */
}

static void test_any_order_greedy(void **state) {
    (void)state;
    check_layouts(0, 1);
}

/* ---- form and limits ------------------------------------------------------------------------ */

/* Turns end with the token that ends one; texts stand where they say, with neither log-probability
   nor entropy; a completion is cut only where a text or a token has no room. */
static void test_form(void **state) {
    (void)state;
    struct Rig rig;
    rig_open(&rig, 7, INT_MAX, true);
    struct Rollout r = generate(&rig, &at_once, 1.5f);
    long texts = 0, tokens = 0;
    int cut = 0, most_turns = 0;
    for (int i = 0; i < r.count; i++) {
        const struct Exchange *e = &r.exchange[i];
        int first = r.start[i], length = r.start[i + 1] - first, n = e->said.role.count;
        unsigned char mask[MAX_TOKENS];
        assert_in_range(length, 1, MAX_TOKENS);
        assert_in_range(n, 0, TURNS - 1);
        if (n + 1 > most_turns) most_turns = n + 1;
        exchange_mask(mask, length, e);
        for (int k = 0, drawn = 0; k <= n; k++) {
            int end = k < n ? e->at.id[2 * k] : length, next = k < n ? e->at.id[2 * k + 1] : length;
            struct Ids ids = {0};
            assert_true(end > drawn);   /* the model says at least that its turn ends */
            for (int t = drawn; t < end; t++) {
                assert_true(mask[t] && r.logp[first + t] < 0 && r.entropy[first + t] > 0);
                assert_true(t == end - 1 || r.token[first + t] != end_of_turn);
            }
            if (k < n) {
                const char *text = text_list_at(&e->said.content, k);
                assert_int_equal(r.token[first + end - 1], end_of_turn);
                tokenizer_encode(tokenizer, text, strlen(text), 0, &ids);
                assert_int_equal(ids.count, next - end);
                for (int t = end; t < next; t++) {
                    assert_int_equal(r.token[first + t], ids.id[t - end]);
                    assert_true(!mask[t] && r.logp[first + t] == 0 && r.entropy[first + t] == 0);
                }
                ids_free(&ids);
                texts++, tokens += next - end;
            }
            drawn = next;
        }
        bool closed = r.token[first + length - 1] == end_of_turn;
        cut += closed && !r.ended[i];
        if (r.ended[i]) assert_true(closed);
        if (!closed) assert_int_equal(length, MAX_TOKENS);
    }
    assert_int_equal(most_turns, TURNS);
    assert_int_equal(r.texts, texts);
    assert_int_equal(r.text_tokens, tokens);
    assert_int_equal(r.decoded_tokens, r.start[r.count] - tokens);
    assert_true(cut > 0);
    assert_int_equal(r.texts_cut, cut);
    rollout_free(&r);
    rig_close(&rig);
}

/* ---- against the training path -------------------------------------------------------------- */

/* For every token of every completion: log p of all V words in its place, and the entropy, from
   model_forward and head_forward on the packed transcripts. */
static void score(struct Rig *rig, float *logp, float *entropy, const struct Examples *prompts,
                  const struct Rollout *r, float inv_temperature) {
    int all = r->start[r->count], N = 0, n = 0, capacity = COUNT * CONTEXT;
    int *host = calloc((size_t)capacity * 3 + (size_t)all * V * 2, sizeof *host);
    int *token = host, *position = host + capacity, *row_start = host + 2 * capacity;
    int *row = host + 3 * capacity, *target = row + all * V;
    for (int i = 0; i < r->count; i++) {
        const int *prompt = prompts->ids.id + prompts->start[i / GROUP];
        int P = prompts->start[i / GROUP + 1] - prompts->start[i / GROUP];
        int T = P + r->start[i + 1] - r->start[i] - 1;   /* the last is not an input */
        for (int k = 0; k < T; k++, N++) {
            token[N] = k < P ? prompt[k] : r->token[r->start[i] + k - P];
            position[N] = k;
            for (int v = 0; k >= P - 1 && v < V; v++, n++) row[n] = N, target[n] = v;
        }
        row_start[i + 1] = N;
    }
    struct Arena memory = {0};
    struct Activations *activations = activations_reserve(rig->model, &memory, N, r->count,
                                                          CONTEXT, RECOMPUTE_LAYER);
    arena_commit(&memory, ops);
    struct Batch batch = {.rows = put_rows(row_start, NULL, r->count),
                          .token = put_ints(token, (size_t)N),
                          .position = put_ints(position, (size_t)N),
                          .loss = {put_ints(row, (size_t)n), put_ints(target, (size_t)n), n, N}};
    floatX *E = model_forward(rig->model, &rig->weights, activations, &batch, NULL,
                              rig->workspace);
    struct HeadStats stats = {.logp = logp, .entropy = entropy};
    const struct Head head = {rig->model->config.C, V, rig->model->config.Vp, inv_temperature};
    ops->head_forward(&stats, E, model_head_weight(rig->model, &rig->weights), &batch.loss, &head,
                      rig->workspace);
    activations_free(activations);
    arena_free(&memory);
    free(host);
}

/* -log(-log u) of the noise that belongs to token v drawn at `position`. */
static double gumbel(const struct RolloutRequest *request, int i, int position, int v) {
    uint32_t key[2], out[4], counter[4] = {(uint32_t)v / 4, (uint32_t)position,
                                           (uint32_t)(i % GROUP), request->ordinal[i / GROUP]};
    rng_key(key, request->seed, request->purpose);
    philox(out, counter, key);
    return -log(-log((double)rng_uniform(out[v % 4])));
}

/* Every token that the model drew behind whatever stands there is the largest of log p + noise. */
static void check_against_training(float temperature) {
    double bound = strcmp(ops->products, "fp32") == 0 ? 1e-4 : 0.15;
    struct Rig rig;
    rig_open(&rig, 7, sampler_least_pages(LONGEST_PROMPT, MAX_TOKENS) + 1, true);
    struct Rollout r = generate(&rig, &at_leisure, temperature);
    struct Examples prompts = examples_draw(&at_once, tokenizer, 1, RNG_PROMPT, 0, PROMPTS);
    struct RolloutRequest request = request_of(&prompts, temperature);
    float *logp = malloc((size_t)r.start[r.count] * V * sizeof *logp);
    float *entropy = malloc((size_t)r.start[r.count] * V * sizeof *entropy);
    score(&rig, logp, entropy, &prompts, &r, temperature > 0 ? 1 / temperature : 1);
    int behind_texts = 0;
    for (int i = 0; i < r.count; i++) {
        int P = prompts.start[i / GROUP + 1] - prompts.start[i / GROUP];
        unsigned char mask[MAX_TOKENS];
        exchange_mask(mask, r.start[i + 1] - r.start[i], &r.exchange[i]);
        for (int t = r.start[i]; t < r.start[i + 1]; t++) {
            const float *row = logp + (size_t)t * V;
            double best = -INFINITY, drawn = -INFINITY;
            if (!mask[t - r.start[i]]) continue;
            behind_texts += r.exchange[i].at.count > 0 && t - r.start[i] > r.exchange[i].at.id[0];
            for (int v = 0; v < V; v++) {
                double z = row[v];
                if (temperature > 0) z += gumbel(&request, i, P + t - r.start[i], v);
                if (z > best) best = z;
                if (v == r.token[t]) drawn = z;
            }
            ASSERT_CLOSE("the drawn token's lead", best - drawn, 2 * bound);
            ASSERT_CLOSE("logp", fabs((double)r.logp[t] - row[r.token[t]]), bound);
            ASSERT_CLOSE("entropy", fabs((double)r.entropy[t] - entropy[(size_t)t * V]), bound);
        }
    }
    assert_true(behind_texts > 100);
    free(logp), free(entropy);
    examples_free(&prompts);
    rollout_free(&r);
    rig_close(&rig);
}

static void test_against_training(void **state) {
    (void)state;
    check_against_training(1.5f);
}

static void test_against_training_greedy(void **state) {
    (void)state;
    check_against_training(0);
}

/* ---- what training is given ----------------------------------------------------------------- */

/* Loss stands on what the model drew, and on nothing else; sums count what it drew. */
static void test_experience(void **state) {
    (void)state;
    struct Rig rig;
    struct Experience e = {0};
    int64_t ordinal = 0;
    rig_open(&rig, 7, INT_MAX, true);
    struct CollectOptions o = {.task = &at_leisure, .tokenizer = tokenizer, .seed = 7,
                               .ends = {{end_of_turn}, 1}, .prompts = PROMPTS, .group = GROUP,
                               .max_tokens = MAX_TOKENS, .temperature = 1.5f};
    assert_true(experience_collect(&e, rig.sampler, &rig.weights, &o, &ordinal, rig.workspace));
    struct Rollout r = generate(&rig, &at_once, 1.5f);
    double sum = 0, length = 0;
    assert_int_equal(e.count, COUNT);
    for (int i = 0; i < COUNT; i++) {
        int P = prompt_length[i / GROUP], n = r.start[i + 1] - r.start[i], loss = e.loss_start[i];
        unsigned char mask[MAX_TOKENS];
        exchange_mask(mask, n, &r.exchange[i]);
        assert_int_equal(e.start[i + 1] - e.start[i], P + n);
        assert_int_equal(e.completion_start[i], e.start[i] + P);
        for (int k = 0; k < P; k++) assert_false(e.loss_mask[e.start[i] + k]);
        for (int k = 0; k < n; k++) {
            int t = r.start[i] + k;
            assert_int_equal(e.token[e.start[i] + P + k], r.token[t]);
            assert_int_equal(e.loss_mask[e.start[i] + P + k], mask[k]);
            if (!mask[k]) continue;
            assert_true(e.logp[loss] == r.logp[t] && e.entropy[loss] == r.entropy[t]);
            sum += r.entropy[t], length++;
            loss++;
        }
        assert_int_equal(loss, e.loss_start[i + 1]);
        assert_int_equal(e.length[i], e.loss_start[i + 1] - e.loss_start[i]);
        assert_int_equal(e.ended[i], r.ended[i]);
        assert_memory_equal(text_list_at(&e.turns, i), "[{\"role\": \"assistant\", ", 23);
    }
    ASSERT_CLOSE("entropy", fabs(e.sum_entropy - sum), 1e-9 * sum);
    assert_true(e.sum_length == length && e.generated_tokens == (long)length);
    assert_int_equal(e.texts, r.texts);
    assert_int_equal(e.text_tokens, r.text_tokens);
    assert_int_equal(e.texts_cut, r.texts_cut);
    rollout_free(&r);
    experience_free(&e);
    rig_close(&rig);
}

int main(int argc, char **argv) {
    open_backend(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_order),
        cmocka_unit_test(test_any_order_greedy),
        cmocka_unit_test(test_form),
        cmocka_unit_test(test_against_training),
        cmocka_unit_test(test_against_training_greedy),
        cmocka_unit_test(test_experience),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
