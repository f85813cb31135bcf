/* Collecting and evaluating over ranks: every rank has the same experience and the same evaluation
   as a single process, bit for bit, for any number of ranks; with conversations, a filter, texts of
   megabytes, completions without a score, ranks without prompts and a scorer of the user's. */
#include "ranks_rig.h"
#include <limits.h>
#include "../llmc/rl/evaluate.h"
#include "../llmc/rl/experience.h"
#include "../llmc/tasks/scorer.h"

static const char *backend = "cpu", *dtype = "auto";

enum { GROUP = 3, MAX_TOKENS = 30, LONGEST_PROMPT = 9, CONTEXT = 44, TURNS = 3, SEED = 7,
       FIRST = 5, STEPS = 2, MEGABYTES = 3 << 20 };

static const char alphabet[] = "0123456789abcdefghijklmnopqrstuvwxyz";   /* with end-of-text: 37 */

/* ---- tasks ----------------------------------------------------------------------------------- */

static uint64_t hash_of(const struct Completion *c) {
    uint64_t hash = 7 + (uint64_t)c->num_turns;
    for (size_t i = 0; i < c->length; i++) hash = rng_mix(hash + (unsigned char)c->text[i]);
    return rng_mix(hash + c->example->id);
}

/* Of 1 to LONGEST_PROMPT characters. */
static void draw(const struct Task *task, struct Example *example, uint64_t seed,
                 enum RngPurpose purpose, uint64_t ordinal) {
    struct Rng rng;
    (void)task;
    rng_open(&rng, seed, purpose, ordinal);
    int length = 1 + (int)rng_below(&rng, LONGEST_PROMPT);
    for (int i = 0; i < length; i++)
        text_append(&example->prompt, alphabet + rng_below(&rng, 36), 1);
}

/* 0 or 1, and one in five unscored. Every fourth group is flat, and one has no score at all. */
static void judge(const struct Task *task, struct Reward *reward,
                  const struct Completion *completion, int count) {
    (void)task;
    for (int i = 0; i < count; i++) {
        uint64_t hash = hash_of(&completion[i]), id = completion[i].example->id;
        bool right = id % 4 == 2 || hash % 2;
        reward[i] = (struct Reward){.value = right, .right = right};
        if (hash / 2 % 5 == 0 || id == 6) reward[i].value = NAN;
    }
}

/* An environment; to example FIRST, of the first rank, it says megabytes. */
static bool reply(const struct Task *task, struct Text *text, const struct Completion *c) {
    uint64_t hash = hash_of(c);
    (void)task;
    if (hash % 4 == 0) return false;
    for (int n = c->example->id == FIRST ? MEGABYTES : 1 + (int)(hash % 50); n > 0; n--)
        text_append(text, n % 7 == 0 ? "" : alphabet + (size_t)n % 36, n % 7 != 0);
    return true;
}

/* Few tokens stand for a text, so that a long one has room. */
static bool wrap(const struct Task *task, struct Ids *ids, const char *role, const char *text,
                 size_t length) {
    (void)task, (void)role;
    for (size_t i = 0; i < 1 + length % 4; i++) ids_add(ids, (text[0] + (int)i) % 36);
    return true;
}

/* The user stops one rank while it judges. */
static int stopped_rank = -1;

static bool interrupted(const struct Task *task) {
    (void)task;
    return rig_world.rank == stopped_rank;
}

static double judges_within(const struct Task *task, int count) {
    (void)task;
    return 1000.0 * count;
}

/* The scorer of this rank. Its reward is what the completion begins with, and has nothing of the
   number that an item has, which differs. */
static struct Scorer *scorer;

static void judge_by_scorer(const struct Task *task, struct Reward *reward,
                            const struct Completion *completion, int count) {
    float *value = malloc((size_t)count * sizeof *value);
    (void)task;
    scorer_score(scorer, value, completion, count);
    for (int i = 0; i < count; i++)
        reward[i] = (struct Reward){.value = value[i], .right = value[i] > .55f};
    free(value);
}

static const struct Task plain = {.name = "plain", .draw = draw, .judge = judge,
                                  .interrupted = interrupted, .judges_within = judges_within};
static const struct Task talks = {.name = "talks", .draw = draw, .judge = judge, .reply = reply,
                                  .wrap = wrap, .max_turns = TURNS};
static const struct Task scored = {.name = "scored", .draw = draw, .judge = judge_by_scorer};

/* ---- in a rank ------------------------------------------------------------------------------- */

struct Case {
    const struct Task *task;
    bool filter;
    int prompts;
    int stopped;      /* the rank that is, + 1 */
};

struct Policy {
    struct Model *model;
    struct Arena arena;
    struct Weights weights;
    struct Sampler *sampler;
    struct Tokenizer *tokenizer;
    void *workspace;
};

static void open_policy(struct Policy *p) {
    enum { V = 37, ROWS = 7 };
    struct ModelConfig config = {.family = "gpt2", .L = 2, .NH = 2, .NKV = 2, .C = 40, .HS = 20,
                                 .F = 60, .V = V, .V_saved = V, .max_T = CONTEXT, .tied = true,
                                 .norm_epsilon = 1e-5};
    config.Vp = (V / rig_ops->vocabulary_multiple + 1) * rig_ops->vocabulary_multiple;
    *p = (struct Policy){.model = model_build(&config, rig_ops),
                         .tokenizer = tokenizer_from_alphabet(alphabet)};
    arena_reserve(&p->arena, &p->weights.data,
                  p->model->num_parameters * rig_ops->element_size, "weights", "w");
    p->sampler = sampler_reserve(p->model, &p->arena, ROWS, GROUP, LONGEST_PROMPT, MAX_TOKENS,
                                 INT_MAX);
    arena_commit(&p->arena, rig_ops);
    struct OpsShape shape = {.N = ROWS, .C = config.C, .F = config.F, .NH = 2, .NKV = 2, .HS = 20,
                             .V = V, .Vp = config.Vp, .max_T = CONTEXT, .max_length = CONTEXT,
                             .R = sampler_step_rows(rig_ops, ROWS, LONGEST_PROMPT)};
    p->workspace = rig_ops->alloc(rig_ops->workspace_size(&shape));
    model_initialise(p->model, &p->weights, 3);
    sampler_load_weights(p->sampler, &p->weights);
}

static struct CollectOptions options_of(const struct Case *c, const struct Policy *p) {
    return (struct CollectOptions){
        .task = c->task, .tokenizer = p->tokenizer, .seed = SEED,
        .ends = {{tokenizer_role(p->tokenizer, TOKENIZER_ENDS_TEXT)}, 1}, .prompts = c->prompts,
        .group = GROUP, .max_tokens = MAX_TOKENS, .temperature = 1.2f, .filter = c->filter,
        .filter_rounds = 3, .world = &rig_world};
}

#define PUT(out, value) text_append(out, (const char *)&(value), sizeof(value))

static void put_list(struct Text *out, const struct TextList *list) {
    PUT(out, list->count);
    for (int i = 0; i < list->count; i++)
        text_append(out, text_list_at(list, i), text_list_length(list, i) + 1);
}

/* All that does not depend on how fast, and in how much memory, it was sampled. */
static void put_experience(struct Text *out, const struct Experience *e, int64_t ordinal) {
    size_t n = (size_t)e->count, tokens = (size_t)e->start[n], loss = (size_t)e->loss_start[n];
    PUT(out, ordinal), PUT(out, e->count), PUT(out, e->group_size);
    PUT(out, e->sum_entropy), PUT(out, e->sum_length), PUT(out, e->truncated);
    PUT(out, e->sum_reward), PUT(out, e->reward_std), PUT(out, e->frac_reward_zero_std);
    PUT(out, e->generated), PUT(out, e->scored), PUT(out, e->generated_tokens);
    PUT(out, e->texts), PUT(out, e->text_tokens), PUT(out, e->texts_cut);
    text_append(out, (const char *)e->start, (n + 1) * sizeof *e->start);
    text_append(out, (const char *)e->loss_start, (n + 1) * sizeof *e->loss_start);
    text_append(out, (const char *)e->completion_start, n * sizeof *e->completion_start);
    text_append(out, (const char *)e->length, n * sizeof *e->length);
    text_append(out, (const char *)e->reward, n * sizeof *e->reward);
    text_append(out, (const char *)e->ended, n);
    text_append(out, (const char *)e->active, n);
    text_append(out, (const char *)e->token, tokens * sizeof *e->token);
    text_append(out, (const char *)e->loss_mask, tokens);
    text_append(out, (const char *)e->logp, loss * sizeof *e->logp);
    text_append(out, (const char *)e->entropy, loss * sizeof *e->entropy);
    put_list(out, &e->prompt), put_list(out, &e->completion), put_list(out, &e->turns);
}

static void put_evaluation(struct Text *out, const struct Evaluation *e) {
    PUT(out, e->num_prompts), PUT(out, e->samples), PUT(out, e->pass_at);
    PUT(out, e->distinct_correct), PUT(out, e->reward), PUT(out, e->entropy);
    PUT(out, e->mean_length), PUT(out, e->truncated), PUT(out, e->interrupted);
    PUT(out, e->unscored);
}

static struct Evaluation evaluate_case(const struct Case *c, const struct Policy *p) {
    struct CollectOptions o = options_of(c, p);
    return evaluate(p->sampler, &p->weights, c->task, p->tokenizer, &o.ends, SEED, c->prompts, 4,
                    1, MAX_TOKENS, &rig_world, p->workspace);
}

/* That a case has what it is there for. */
static void check_experience(const struct Case *c, const struct Experience *e) {
    int shortest = INT_MAX, longest = 0;
    for (int i = 0; i < e->count; i++) {
        if (e->length[i] < shortest) shortest = e->length[i];
        if (e->length[i] > longest) longest = e->length[i];
    }
    RANK_CHECK(c->prompts < 5 || longest > shortest + 5);
    if (c->filter) RANK_CHECK(e->generated > c->prompts * GROUP);
    if (c->task == &talks) RANK_CHECK(e->texts > 0 && e->text_tokens > e->texts);
    if (c->task == &scored)
        RANK_CHECK(e->scored == e->generated && e->sum_reward > .5 * (double)e->scored);
    else if (c->prompts >= 5)
        RANK_CHECK(e->scored > 0 && e->scored < e->generated);
}

/* Two batches, in the same memory, and an evaluation. */
static void collect_and_evaluate(void *context) {
    const struct Case *c = context;
    struct Policy p;
    struct Text out = {0};
    struct Experience e = {0};
    int64_t ordinal = FIRST;
    open_policy(&p);
    struct CollectOptions o = options_of(c, &p);
    scorer = c->task == &scored
                 ? scorer_open(&(struct ScorerOptions){
                       .command = "sed -u 's/.*\"id\": \\([0-9]*\\),.*\"completion\": "
                                  "\"\\([0-9]*\\).*/{\"id\": \\1, \"reward\": 0.5\\2}/'",
                       .workers = 1 + rig_world.rank, .timeout = 100, .start = 100})
                 : NULL;
    for (int step = 0; step < STEPS; step++) {
        RANK_CHECK(experience_collect(&e, p.sampler, &p.weights, &o, &ordinal, p.workspace));
        check_experience(c, &e);
        put_experience(&out, &e, ordinal);
    }
    struct Evaluation evaluation = evaluate_case(c, &p);
    put_evaluation(&out, &evaluation);
    scorer_close(scorer);
    rig_return(out.bytes, out.length);
}

/* ---- the same for any number of ranks -------------------------------------------------------- */

enum { MOST_RANKS = 4 };

static size_t check_case(struct Case c) {
    struct RankResult one, many[MOST_RANKS];
    run_ranks(&one, NULL, 1, backend, dtype, 60, collect_and_evaluate, &c);
    for (int ranks = 2; ranks <= MOST_RANKS; ranks++) {
        run_ranks(many, NULL, ranks, backend, dtype, 60, collect_and_evaluate, &c);
        for (int r = 0; r < ranks; r++) {
            assert_int_equal(many[r].length, one.length);
            assert_memory_equal(many[r].bytes, one.bytes, one.length);
            free(many[r].bytes);
        }
    }
    size_t length = one.length;
    free(one.bytes);
    return length;
}

static void test_plain(void **state) {
    (void)state;
    assert_true(check_case((struct Case){.task = &plain, .prompts = 11}) > 1000);
}

static void test_filter(void **state) {
    (void)state;
    check_case((struct Case){.task = &plain, .prompts = 9, .filter = true});
}

/* Some ranks have nothing to sample. */
static void test_fewer_prompts_than_ranks(void **state) {
    (void)state;
    for (int prompts = 1; prompts <= 3; prompts++)
        check_case((struct Case){.task = &plain, .prompts = prompts});
}

static void test_conversations(void **state) {
    (void)state;
    assert_true(check_case((struct Case){.task = &talks, .prompts = 7}) > MEGABYTES);
    check_case((struct Case){.task = &talks, .prompts = 7, .filter = true});
}

static void test_scorer(void **state) {
    (void)state;
    check_case((struct Case){.task = &scored, .prompts = 5});
}

/* ---- replayed -------------------------------------------------------------------------------- */

static void write_list(FILE *file, const char *key, const float *x, int n) {
    fprintf(file, ", \"%s\": [", key);
    for (int i = 0; i < n; i++) fprintf(file, "%s%.9g", i ? ", " : "", x[i]);
    fprintf(file, "]");
}

/* As rollouts.jsonl has them, as step 1. */
static void write_experience(const char *path, const struct Experience *e) {
    FILE *file = fopen(path, "w");
    RANK_CHECK(file);
    for (int i = 0; i < e->count; i++) {
        int begin = e->completion_start[i], n = e->start[i + 1] - begin, at = e->loss_start[i];
        fprintf(file, "{\"step\": 1, \"prompt\": \"%s\", \"tokens\": [",
                text_list_at(&e->prompt, i));
        for (int t = 0; t < n; t++) fprintf(file, "%s%d", t ? ", " : "", e->token[begin + t]);
        fprintf(file, "]");
        write_list(file, "logp", e->logp + at, n);
        write_list(file, "entropy", e->entropy + at, n);
        fprintf(file, "}\n");
    }
    RANK_CHECK(fclose(file) == 0);
}

/* What was sampled is collected again from a file; and from one that a single rank has not whole,
   nobody collects anything. */
static void replay(void *context) {
    const struct Case *c = context;
    struct Policy p;
    struct Experience e = {0};
    struct Text sampled = {0}, replayed = {0};
    int64_t first = FIRST, again = FIRST;
    char path[64];
    snprintf(path, sizeof path, "/tmp/policy-ranks-%d.jsonl", (int)getpid());
    open_policy(&p);
    struct CollectOptions o = options_of(c, &p);
    RANK_CHECK(experience_collect(&e, p.sampler, &p.weights, &o, &first, p.workspace));
    put_experience(&sampled, &e, first);
    write_experience(path, &e);
    o.replay = replay_open(path), o.step = 1;
    RANK_CHECK(experience_collect(&e, NULL, NULL, &o, &again, NULL));
    put_experience(&replayed, &e, again);
    RANK_CHECK(replayed.length == sampled.length &&
               memcmp(replayed.bytes, sampled.bytes, sampled.length) == 0);
    replay_close(o.replay);
    if (rig_world.rank == rig_world.size - 1) RANK_CHECK(truncate(path, 100) == 0);
    o.replay = replay_open(path), again = FIRST;
    RANK_CHECK(!experience_collect(&e, NULL, NULL, &o, &again, NULL) && again == FIRST);
    replay_close(o.replay);
    RANK_CHECK(unlink(path) == 0);
}

static void test_replay(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= MOST_RANKS; ranks++)
        run_ranks(NULL, NULL, ranks, backend, dtype, 60, replay,
                  &(struct Case){.task = &plain, .prompts = 5});
}

/* ---- a rank that is stopped ------------------------------------------------------------------ */

/* All ranks agree that there is no batch, and can collect the next. */
static void stop_one(void *context) {
    struct Case *c = context;
    struct Policy p;
    struct Experience e = {0};
    int64_t ordinal = FIRST;
    open_policy(&p);
    struct CollectOptions o = options_of(c, &p);
    stopped_rank = c->stopped - 1;
    RANK_CHECK(!experience_collect(&e, p.sampler, &p.weights, &o, &ordinal, p.workspace));
    RANK_CHECK(ordinal == FIRST);
    RANK_CHECK(evaluate_case(c, &p).interrupted);
    stopped_rank = -1;
    RANK_CHECK(experience_collect(&e, p.sampler, &p.weights, &o, &ordinal, p.workspace));
    RANK_CHECK(ordinal == FIRST + c->prompts && e.count == c->prompts * GROUP);
    RANK_CHECK(!evaluate_case(c, &p).interrupted);
}

static void test_interrupted(void **state) {
    (void)state;
    for (int rank = 0; rank < 3; rank++) {
        struct Case c = {.task = &plain, .prompts = 5, .stopped = rank + 1};
        run_ranks(NULL, NULL, 3, backend, dtype, 60, stop_one, &c);
    }
}

/* ---- how long others are waited for ---------------------------------------------------------- */

static double expected[8];
static int num_expected;

static void note_expect(int64_t step, double patience) {
    (void)step;
    RANK_CHECK(num_expected < 8);
    expected[num_expected++] = patience;
}

/* For as long as a judge may take, and no more afterwards; by what the backend is told. */
static void expect_others(void *context) {
    struct Case *c = context;
    struct Policy p;
    struct Experience e = {0};
    struct Ops noting = *rig_ops;
    int64_t ordinal = FIRST;
    open_policy(&p);
    struct CollectOptions o = options_of(c, &p);
    struct World world = rig_world;
    noting.comm_expect = note_expect;
    world.ops = &noting;
    o.world = &world;
    RANK_CHECK(experience_collect(&e, p.sampler, &p.weights, &o, &ordinal, p.workspace));
    bool idle = rig_world.rank >= c->prompts;
    RANK_CHECK(num_expected == 2);
    RANK_CHECK(expected[0] > 60 + 1000 * GROUP && expected[0] < 60 + 1000 * 4 * GROUP + 36000);
    RANK_CHECK(!idle || expected[0] >= 60 + 1000 * GROUP + 3600);
    RANK_CHECK(expected[1] == 60);
}

static void test_patience(void **state) {
    (void)state;
    run_ranks(NULL, NULL, 2, backend, dtype, 60, expect_others,
              &(struct Case){.task = &plain, .prompts = 4});
    run_ranks(NULL, NULL, 2, backend, dtype, 60, expect_others,
              &(struct Case){.task = &plain, .prompts = 1});
}

int main(int argc, char **argv) {
    if (argc > 1) backend = argv[1];
    if (argc > 2) dtype = argv[2];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),         cmocka_unit_test(test_filter),
        cmocka_unit_test(test_fewer_prompts_than_ranks),
        cmocka_unit_test(test_conversations), cmocka_unit_test(test_scorer),
        cmocka_unit_test(test_replay),        cmocka_unit_test(test_interrupted),
        cmocka_unit_test(test_patience),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
