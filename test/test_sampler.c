/* Rollouts and evaluation on a small random model of odd sizes: bit for bit the same in every
   layout, and token by token what the training path and the Gumbel-max rule, computed here in
   double, say. */
#include "test_ops.h"
#include "../llmc/model.h"
#include "../llmc/rl/evaluate.h"

enum { V = 37, PROMPTS = 13, GROUP = 5, LONGEST_PROMPT = 9, MAX_TOKENS = 12, CONTEXT = 20 };

static const int row_counts[] = {1, 7, 64};
enum { LAYOUTS = 3 };

static struct Model *model;
static struct Weights weights;
static struct Sampler *samplers[LAYOUTS];
static struct Arena arena;
static void *workspace;
static int end_of_text;   /* a token that this model draws often */

/* ---- the model and its prompts -------------------------------------------------------------- */

/* Weights large enough that distributions are far from uniform; padding rows stay zero. */
static void fill_weights(void) {
    float *host = calloc(model->num_parameters, sizeof *host);
    assert_non_null(host);
    for (int t = 0; t < model->num_tensors; t++) {
        const struct Tensor *tensor = &model->tensors[t];
        size_t width = tensor->shape[1] ? (size_t)tensor->shape[1] : 1;
        size_t n = (size_t)tensor->rows_saved * width;
        fill_normal(host + tensor->offset, n, 0.25f, (uint64_t)t);
        for (size_t i = 0; i < n; i++) host[tensor->offset + i] += tensor->init_value;
    }
    elements_upload(ops, weights.data, host, model->num_parameters);
    free(host);
}

struct Prompts {
    int token[PROMPTS * LONGEST_PROMPT], start[PROMPTS + 1];
    uint32_t ordinal[PROMPTS];
};

/* Prompts of 1 to 9 tokens; which one stands at p follows from order[p] alone. */
static struct Prompts make_prompts(const int *order) {
    struct Prompts prompts = {.start = {0}};
    for (int p = 0; p < PROMPTS; p++) {
        struct Rng rng;
        rng_open(&rng, 9, RNG_TEST, (uint64_t)order[p]);
        int length = 1 + order[p] * 4 % LONGEST_PROMPT;
        for (int k = 0; k < length; k++)
            prompts.token[prompts.start[p] + k] = (int)rng_below(&rng, V);
        prompts.start[p + 1] = prompts.start[p] + length;
        prompts.ordinal[p] = 1000u + (uint32_t)order[p] * 7919u;
    }
    return prompts;
}

static const int in_order[PROMPTS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
static const int shuffled[PROMPTS] = {8, 0, 12, 5, 3, 11, 1, 9, 2, 10, 7, 4, 6};

static struct RolloutRequest make_request(const struct Prompts *prompts, float temperature) {
    return (struct RolloutRequest){
        .num_prompts = PROMPTS, .group = GROUP, .prompt_token = prompts->token,
        .prompt_start = prompts->start, .ordinal = prompts->ordinal, .seed = 77,
        .purpose = RNG_SAMPLE, .temperature = temperature, .max_tokens = MAX_TOKENS,
        .end_of_text = end_of_text};
}

static struct Rollout generate(int layout, const struct RolloutRequest *request) {
    struct Rollout rollout = {0};
    sampler_generate(samplers[layout], &weights, request, &rollout, workspace);
    return rollout;
}

/* The token from `lowest` on that is drawn most often. */
static int find_frequent_token(int lowest) {
    int count[V] = {0}, best = lowest;
    struct Prompts prompts = make_prompts(in_order);
    struct RolloutRequest request = make_request(&prompts, 1);
    request.end_of_text = -1;
    struct Rollout rollout = generate(2, &request);
    for (int i = 0; i < rollout.start[rollout.count]; i++) count[rollout.token[i]]++;
    for (int v = lowest; v < V; v++)
        if (count[v] > count[best]) best = v;
    rollout_free(&rollout);
    return best;
}

static int setup(void **state) {
    (void)state;
    struct ModelConfig config = {.family = "gpt2", .L = 3, .NH = 3, .NKV = 3, .C = 60, .HS = 20,
                                 .F = 100, .V = V, .max_T = CONTEXT, .tied = true, .norm_epsilon = 1e-5};
    config.Vp = (V / ops->vocabulary_multiple + 1) * ops->vocabulary_multiple;
    assert_null(model_config_problem(&config));
    model = model_build(&config, ops);
    arena_reserve(&arena, &weights.data, model->num_parameters * ops->element_size, "weights", "w");
    for (int i = 0; i < LAYOUTS; i++)
        samplers[i] = sampler_reserve(model, &arena, row_counts[i], LONGEST_PROMPT, MAX_TOKENS);
    arena_commit(&arena, ops);
    struct OpsShape shape = {
        .N = PROMPTS * GROUP * MAX_TOKENS * V, .C = config.C, /* score() asks for every word */
        .F = config.F, .NH = config.NH, .NKV = config.NKV,
        .HS = config.HS, .V = V, .Vp = config.Vp, .max_T = CONTEXT, .max_length = CONTEXT + 1,
        .R = sampler_step_rows(ops, row_counts[LAYOUTS - 1], LONGEST_PROMPT)};
    workspace = new_workspace(&shape);
    fill_weights();
    for (int i = 0; i < LAYOUTS; i++) sampler_load_weights(samplers[i], &weights);
    end_of_text = find_frequent_token(20);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    for (int i = 0; i < LAYOUTS; i++) sampler_free(samplers[i]);
    release_all();
    arena_free(&arena);
    model_free(model);
    return 0;
}

/* ---- one result in every layout ------------------------------------------------------------- */

static void assert_same_completion(const struct Rollout *a, int i, const struct Rollout *b, int j) {
    int length = a->start[i + 1] - a->start[i];
    size_t bytes = (size_t)length * 4;
    assert_int_equal(length, b->start[j + 1] - b->start[j]);
    assert_int_equal(a->ended[i], b->ended[j]);
    assert_memory_equal(a->token + a->start[i], b->token + b->start[j], bytes);
    assert_memory_equal(a->logp + a->start[i], b->logp + b->start[j], bytes);
    assert_memory_equal(a->entropy + a->start[i], b->entropy + b->start[j], bytes);
}

static void test_layout_does_not_matter(void **state) {
    (void)state;
    for (int greedy = 0; greedy < 2; greedy++) {
        struct Prompts first = make_prompts(in_order), second = make_prompts(shuffled);
        struct RolloutRequest request = make_request(&first, greedy ? 0 : 1);
        struct RolloutRequest moved = make_request(&second, greedy ? 0 : 1);
        moved.group = GROUP + 2;   /* samples 0 .. GROUP-1 must not notice the two more */
        struct Rollout reference = generate(0, &request);
        assert_int_equal(reference.count, PROMPTS * GROUP);
        for (int layout = 0; layout < LAYOUTS; layout++) {
            struct Rollout again = generate(layout, &request), other = generate(layout, &moved);
            for (int i = 0; i < reference.count; i++)
                assert_same_completion(&reference, i, &again, i);
            for (int p = 0; p < PROMPTS; p++)
                for (int k = 0; k < GROUP; k++)
                    assert_same_completion(&reference, shuffled[p] * GROUP + k, &other,
                                           p * (GROUP + 2) + k);
            rollout_free(&again);
            rollout_free(&other);
        }
        rollout_free(&reference);
    }
}

/* Seed, purpose and ordinal each change the draw; nothing but they does. */
static void test_draws_are_keyed(void **state) {
    (void)state;
    struct Prompts prompts = make_prompts(in_order), renumbered = prompts;
    for (int p = 0; p < PROMPTS; p++) renumbered.ordinal[p]++;
    struct RolloutRequest requests[4];
    for (int i = 0; i < 4; i++) requests[i] = make_request(&prompts, 1);
    requests[1].seed++;
    requests[2].purpose = RNG_EVAL_SAMPLE;
    requests[3].ordinal = renumbered.ordinal;
    struct Rollout reference = generate(2, &requests[0]);
    for (int i = 1; i < 4; i++) {
        struct Rollout other = generate(2, &requests[i]);
        int same = 0;
        for (int k = 0; k < other.count; k++)
            same += reference.token[reference.start[k]] == other.token[other.start[k]];
        assert_true(same < other.count * 3 / 4);
        rollout_free(&other);
    }
    rollout_free(&reference);
}

/* ---- against the training path -------------------------------------------------------------- */

/* For every drawn token: log p of all V tokens that could have been drawn, and the entropy, from
   model_forward and head_forward on the packed completions. Caller frees both. */
static void score(float **logp, float **entropy, const struct RolloutRequest *request,
                  const struct Rollout *rollout, float inv_temperature) {
    int drawn = rollout->start[rollout->count], N = 0, n = 0;
    int capacity = rollout->count * CONTEXT;
    int *host = calloc((size_t)capacity * 3 + (size_t)drawn * V * 2, sizeof *host);
    int *token = host, *position = host + capacity, *row_start = host + 2 * capacity;
    int *row = host + 3 * capacity, *target = row + drawn * V;
    for (int i = 0; i < rollout->count; i++) {
        int p = i / request->group, begin = request->prompt_start[p];
        int P = request->prompt_start[p + 1] - begin;
        int T = P + rollout->start[i + 1] - rollout->start[i] - 1;   /* the last is not an input */
        for (int k = 0; k < T; k++, N++) {
            token[N] = k < P ? request->prompt_token[begin + k]
                             : rollout->token[rollout->start[i] + k - P];
            position[N] = k;
            for (int v = 0; k >= P - 1 && v < V; v++, n++) row[n] = N, target[n] = v;
        }
        row_start[i + 1] = N;
    }
    assert_int_equal(n, drawn * V);
    struct Arena memory = {0};
    struct Activations *activations = activations_reserve(model, &memory, N, rollout->count,
                                                          CONTEXT, RECOMPUTE_LAYER);
    arena_commit(&memory, ops);
    struct Batch batch = {.rows = put_rows(row_start, rollout->count),
                          .token = put_ints(token, (size_t)N),
                          .position = put_ints(position, (size_t)N),
                          .loss = {put_ints(row, (size_t)n), put_ints(target, (size_t)n), n, N}};
    floatX *E = model_forward(model, &weights, activations, &batch, NULL, workspace);
    *logp = malloc((size_t)n * sizeof **logp);
    *entropy = malloc((size_t)n * sizeof **entropy);
    struct HeadStats stats = {.logp = *logp, .entropy = *entropy};
    const struct Head head = {model->config.C, V, model->config.Vp, inv_temperature};
    ops->head_forward(&stats, E, model_head_weight(model, &weights), &batch.loss, &head, workspace);
    activations_free(activations);
    arena_free(&memory);
    free(host);
}

/* -log(-log u) of the noise that belongs to token v drawn at `position`. */
static double gumbel(const struct RolloutRequest *request, int p, int sample, int position, int v) {
    uint32_t key[2], counter[4] = {(uint32_t)v / 4, (uint32_t)position, (uint32_t)sample,
                                   request->ordinal[p]}, out[4];
    rng_key(key, request->seed, request->purpose);
    philox(out, counter, key);
    return -log(-log((double)rng_uniform(out[v % 4])));
}

/* Every token is the largest of log p + noise, and its logp and entropy are the training path's.
   The two paths add in different orders: 1e-4 in float32. */
static void check_against_training(float temperature) {
    double bound = strcmp(ops->dtype, "fp32") == 0 ? 1e-4 : 0.15;
    struct Prompts prompts = make_prompts(in_order);
    struct RolloutRequest request = make_request(&prompts, temperature);
    struct Rollout rollout = generate(1, &request);
    float *logp, *entropy;
    score(&logp, &entropy, &request, &rollout, temperature > 0 ? 1 / temperature : 1);
    for (int i = 0; i < rollout.count; i++) {
        int p = i / GROUP, P = prompts.start[p + 1] - prompts.start[p];
        for (int t = rollout.start[i]; t < rollout.start[i + 1]; t++) {
            const float *row = logp + (size_t)t * V;
            double best = -INFINITY, drawn = -INFINITY;
            for (int v = 0; v < V; v++) {
                double z = row[v];
                if (temperature > 0)
                    z += gumbel(&request, p, i % GROUP, P + t - rollout.start[i], v);
                if (z > best) best = z;
                if (v == rollout.token[t]) drawn = z;
            }
            ASSERT_CLOSE("the drawn token's lead", best - drawn, 2 * bound);
            ASSERT_CLOSE("logp", fabs((double)rollout.logp[t] - row[rollout.token[t]]), bound);
            ASSERT_CLOSE("entropy", fabs((double)rollout.entropy[t] - entropy[(size_t)t * V]),
                         bound);
        }
    }
    free(logp);
    free(entropy);
    rollout_free(&rollout);
}

static void test_draws_are_gumbel_max(void **state) {
    (void)state;
    check_against_training(1);
    check_against_training(0.6f);
    check_against_training(1.5f);
}

static void test_greedy(void **state) {
    (void)state;
    check_against_training(0);
}

/* First tokens of 6000 samples follow the softmax: Pearson's chi-square over the cells that expect
   five or more, within five deviations of its mean. */
static void test_frequencies(void **state) {
    (void)state;
    enum { SAMPLES = 6000 };
    struct Prompts prompts = make_prompts(shuffled);
    struct RolloutRequest request = make_request(&prompts, 1);
    request.num_prompts = 1, request.group = SAMPLES, request.max_tokens = 1;
    struct Rollout rollout = generate(2, &request);
    request.group = 1;
    struct Rollout one = generate(2, &request);
    float *logp, *entropy;
    score(&logp, &entropy, &request, &one, 1);
    double chi_square = 0;
    int cells = 0;
    for (int v = 0; v < V; v++) {
        double expected = SAMPLES * exp(logp[v]), count = 0;
        for (int i = 0; i < SAMPLES; i++) count += rollout.token[i] == v;
        if (expected < 5) continue;
        chi_square += pow(count - expected, 2) / expected;
        cells++;
    }
    assert_true(cells > 8);
    ASSERT_CLOSE("chi-square", chi_square, cells - 1 + 5 * sqrt(2.0 * (cells - 1)));
    free(logp);
    free(entropy);
    rollout_free(&rollout);
    rollout_free(&one);
}

/* ---- ends, limits, counts ------------------------------------------------------------------- */

/* The form of any rollout: flat arrays without gaps, end-of-text last or nowhere. */
static void check_form(const struct Rollout *rollout, const struct RolloutRequest *request) {
    assert_int_equal(rollout->count, request->num_prompts * request->group);
    assert_int_equal(rollout->start[0], 0);
    for (int i = 0; i < rollout->count; i++) {
        int length = rollout->start[i + 1] - rollout->start[i];
        assert_in_range(length, 1, request->max_tokens);
        for (int t = rollout->start[i]; t < rollout->start[i + 1] - 1; t++)
            assert_int_not_equal(rollout->token[t], request->end_of_text);
        int last = rollout->token[rollout->start[i + 1] - 1];
        assert_int_equal(rollout->ended[i], last == request->end_of_text);
        assert_true(rollout->ended[i] || length == request->max_tokens);
        for (int t = rollout->start[i]; t < rollout->start[i + 1]; t++) {
            assert_in_range(rollout->token[t], 0, V - 1);
            assert_true(rollout->logp[t] <= 0 && rollout->entropy[t] >= 0);
        }
    }
    assert_int_equal(rollout->decoded_tokens, rollout->start[rollout->count]);
}

static void test_ends_and_limits(void **state) {
    (void)state;
    struct Prompts prompts = make_prompts(in_order);
    for (int layout = 0; layout < LAYOUTS; layout++) {
        for (int max_tokens = 1; max_tokens <= MAX_TOKENS; max_tokens += 3) {
            struct RolloutRequest request = make_request(&prompts, 1);
            request.max_tokens = max_tokens;
            struct Rollout rollout = generate(layout, &request);
            check_form(&rollout, &request);
            int ended = 0;
            for (int i = 0; i < rollout.count; i++) ended += rollout.ended[i];
            if (max_tokens > 6) assert_in_range(ended, 5, rollout.count - 5);
            rollout_free(&rollout);
        }
    }
}

/* Completions that end with their first token, beside others that do not; one at a time; none. */
static void test_edges(void **state) {
    (void)state;
    struct Prompts prompts = make_prompts(in_order);
    struct RolloutRequest request = make_request(&prompts, 0);
    struct Rollout rollout = generate(1, &request);
    int first = rollout.token[rollout.start[3 * GROUP]];
    rollout_free(&rollout);
    request.end_of_text = first;
    for (int layout = 0; layout < LAYOUTS; layout++) {
        rollout = generate(layout, &request);
        check_form(&rollout, &request);
        for (int k = 0; k < GROUP; k++)
            assert_int_equal(rollout.start[3 * GROUP + k + 1] - rollout.start[3 * GROUP + k], 1);
        rollout_free(&rollout);
    }
    request.group = 1;
    rollout = generate(1, &request);
    check_form(&rollout, &request);
    request.num_prompts = 0;   /* into memory that has been used */
    sampler_generate(samplers[1], &weights, &request, &rollout, workspace);
    assert_int_equal(rollout.count, 0);
    assert_int_equal(rollout.steps, 0);
    rollout_free(&rollout);
    rollout_free(&rollout);
}

/* A diverged model is no reason to crash: completions end, with tokens of the vocabulary. */
static void test_weights_that_are_nan(void **state) {
    (void)state;
    struct Prompts prompts = make_prompts(in_order);
    struct RolloutRequest request = make_request(&prompts, 1);
    size_t bytes = model->num_parameters * ops->element_size;
    ops->copy(weights.data, new_poison(bytes), bytes);   /* every byte 255: NaN in every type */
    sampler_load_weights(samplers[1], &weights);
    struct Rollout rollout = generate(1, &request);
    assert_int_equal(rollout.count, PROMPTS * GROUP);
    for (int t = 0; t < rollout.start[rollout.count]; t++)
        assert_in_range(rollout.token[t], 0, V - 1);
    rollout_free(&rollout);
    fill_weights();
    sampler_load_weights(samplers[1], &weights);
}

/* The prompt enters once per group, and no row is idle while a completion waits. */
static void test_batching_is_continuous(void **state) {
    (void)state;
    struct Prompts prompts = make_prompts(in_order);
    for (int layout = 0; layout < LAYOUTS; layout++) {
        struct RolloutRequest request = make_request(&prompts, 1);
        struct Rollout rollout = generate(layout, &request);
        assert_int_equal(rollout.prefill_tokens, prompts.start[PROMPTS] - PROMPTS);
        rollout_free(&rollout);

        /* Prompts of one and two tokens alone, which never wait for room in a step. */
        for (int p = 0; p < PROMPTS; p++) prompts.start[p] = 2 * p;
        prompts.start[PROMPTS] = 2 * PROMPTS - 1;
        request.group = 6;
        rollout = generate(layout, &request);
        long rows = row_counts[layout], busy = rollout.decoded_tokens / rows;
        assert_in_range(rollout.steps, busy, busy + MAX_TOKENS);
        rollout_free(&rollout);
        prompts = make_prompts(in_order);
    }
}

/* ---- evaluation ----------------------------------------------------------------------------- */

/* A task whose prompts are four letters and an equals sign, and whose right answers are those with
   an even sum of bytes. */
static void letters_prompt(char prompt[TASK_TEXT], struct Rng *rng) {
    for (int i = 0; i < 4; i++) prompt[i] = (char)('a' + rng_below(rng, 8));
    strcpy(prompt + 4, "=");
}
static float even_reward(const char *prompt, const char *answer, size_t length, bool ended) {
    unsigned sum = (unsigned char)prompt[0];
    for (size_t i = 0; i < length; i++) sum += (unsigned char)answer[i];
    return ended && sum % 2 == 0;
}
static const struct Task even = {.name = "even", .alphabet = "", .max_prompt = 5,
                                 .max_completion = MAX_TOKENS, .draw_prompt = letters_prompt,
                                 .reward = even_reward};

/* Of all subsets of k of the n samples, the share with a right one: pass@k by its definition. */
static double share_of_subsets(const bool *right, int n, int k) {
    int subsets = 0, passed = 0;
    for (unsigned set = 0; set < 1u << n; set++) {
        bool any = false;
        if (__builtin_popcount(set) != k) continue;
        for (int i = 0; i < n; i++) any |= (set >> i & 1) && right[i];
        subsets++;
        passed += any;
    }
    return k > n ? (double)NAN : (double)passed / subsets;
}

/* What evaluate() must say, from the texts: pairs are compared, subsets are counted. */
static struct Evaluation expected_evaluation(const struct Tokenizer *tokenizer, int num_prompts,
                                             int samples) {
    struct Evaluation expected = {0};
    int ordinals_token[32 * 5], start[33] = {0};
    uint32_t ordinal[32];
    char prompt[32][TASK_TEXT];
    for (int p = 0; p < num_prompts; p++) {
        task_prompt(&even, prompt[p], 21, RNG_EVAL_PROMPT, (uint64_t)p, SPLIT_HELD_OUT);
        assert_int_equal(tokenizer_encode(tokenizer, prompt[p], ordinals_token + 5 * p, 5), 5);
        start[p + 1] = 5 * (p + 1);
        ordinal[p] = (uint32_t)p;
    }
    struct RolloutRequest request = {
        .num_prompts = num_prompts, .group = samples, .prompt_token = ordinals_token,
        .prompt_start = start, .ordinal = ordinal, .seed = 21, .purpose = RNG_EVAL_SAMPLE,
        .temperature = 1, .max_tokens = MAX_TOKENS, .end_of_text = tokenizer->end_of_text};
    struct Rollout rollout = generate(0, &request);
    for (int p = 0; p < num_prompts; p++) {
        char answer[16][MAX_TOKENS + 1];
        bool right[16];
        for (int i = 0; i < samples; i++) {
            int k = p * samples + i, from = rollout.start[k], n = rollout.start[k + 1] - from;
            int length = tokenizer_decode(tokenizer, rollout.token + from, n, answer[i],
                                          sizeof answer[i]);
            right[i] = even_reward(prompt[p], answer[i], (size_t)length, rollout.ended[k]) == 1;
            bool repeated = false;
            for (int j = 0; j < i; j++)
                repeated |= right[j] && strcmp(answer[i], answer[j]) == 0;
            expected.distinct_correct += right[i] && !repeated;
            expected.reward += right[i];
            expected.truncated += !rollout.ended[k];
            expected.mean_length += n;
            for (int t = from; t < from + n; t++) expected.entropy += rollout.entropy[t];
        }
        for (int k = 0; k < 4; k++)
            expected.pass_at[k] += share_of_subsets(right, samples, evaluation_k[k]) / num_prompts;
    }
    expected.entropy /= expected.mean_length;
    expected.distinct_correct /= num_prompts;
    expected.reward /= rollout.count;
    expected.truncated /= rollout.count;
    expected.mean_length /= rollout.count;
    rollout_free(&rollout);
    return expected;
}

static void test_evaluate(void **state) {
    (void)state;
    enum { NUM_PROMPTS = 30, SAMPLES = 10 };
    assert_memory_equal(evaluation_k, ((const int[]){1, 4, 16, 64}), sizeof evaluation_k);
    struct Tokenizer tokenizer;
    char alphabet[V + 1] = "abcdefgh=0123456789+-*:ijklmnopqrstuv";
    alphabet[end_of_text] = 0;   /* ids from there on decode as '?' */
    tokenizer_from_alphabet(&tokenizer, alphabet);
    struct Evaluation expected = expected_evaluation(&tokenizer, NUM_PROMPTS, SAMPLES);
    for (int layout = 0; layout < LAYOUTS; layout++) {
        struct Evaluation got = evaluate(samplers[layout], &weights, &even, &tokenizer, 21,
                                         NUM_PROMPTS, SAMPLES, 1, MAX_TOKENS, workspace);
        assert_int_equal(got.num_prompts, NUM_PROMPTS);
        assert_int_equal(got.samples, SAMPLES);
        for (int k = 0; k < 2; k++)
            ASSERT_CLOSE("pass@k", fabs(got.pass_at[k] - expected.pass_at[k]), 1e-12);
        assert_true(isnan(got.pass_at[2]) && isnan(got.pass_at[3]));
        ASSERT_CLOSE("distinct", fabs(got.distinct_correct - expected.distinct_correct), 1e-12);
        ASSERT_CLOSE("reward", fabs(got.reward - expected.reward), 1e-12);
        ASSERT_CLOSE("entropy", fabs(got.entropy - expected.entropy), 1e-9);
        ASSERT_CLOSE("mean length", fabs(got.mean_length - expected.mean_length), 1e-12);
        ASSERT_CLOSE("truncated", fabs(got.truncated - expected.truncated), 1e-12);
    }
    assert_true(expected.pass_at[0] > 0.1 && expected.pass_at[0] < 0.9);
    assert_true(expected.distinct_correct < expected.reward * SAMPLES);   /* some answers repeat */
}

int main(int argc, char **argv) {
    open_backend(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout_does_not_matter),
        cmocka_unit_test(test_draws_are_keyed),
        cmocka_unit_test(test_draws_are_gumbel_max),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_ends_and_limits),
        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_weights_that_are_nan),
        cmocka_unit_test(test_batching_is_continuous),
        cmocka_unit_test(test_evaluate),
    };
    return cmocka_run_group_tests_name("rollout", tests, setup, teardown);
}
