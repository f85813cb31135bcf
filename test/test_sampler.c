/* Rollouts of a small random model whose sizes are no powers of two. They have the same bits in
   every layout; and each token is the one that the Gumbel-max rule, computed here in double from
   the training path's log-probabilities, gives. */
#include "sampler_rig.h"

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
            /* groups of one: with 7 rows more of them than there are prompt slots, so some wait */
            struct RolloutRequest alone = request;
            alone.group = 1;
            other = generate(layout, &alone);
            for (int p = 0; p < PROMPTS; p++)
                assert_same_completion(&reference, p * GROUP, &other, p);
            rollout_free(&other);
        }
        rollout_free(&reference);
    }
}

/* Seed, purpose and ordinal each change what is drawn. */
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
    struct Batch batch = {.rows = put_rows(row_start, NULL, rollout->count),
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
    double bound = strcmp(ops->products, "fp32") == 0 ? 1e-4 : 0.15;
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
            assert_false(ends_has(&request->ends, rollout->token[t]));
        int last = rollout->token[rollout->start[i + 1] - 1];
        assert_int_equal(rollout->ended[i], ends_has(&request->ends, last));
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

/* With several ends a completion is what it was without any, up to the first of them. */
static void test_several_ends(void **state) {
    (void)state;
    struct Prompts prompts = make_prompts(in_order);
    struct RolloutRequest request = make_request(&prompts, 1);
    request.ends.count = 0;
    struct Rollout whole = generate(1, &request);
    request.ends = (struct Ends){{end_of_text, (end_of_text + 1) % V, (end_of_text + 2) % V}, 3};
    for (int layout = 0; layout < LAYOUTS; layout++) {
        struct Rollout rollout = generate(layout, &request);
        int by[3] = {0};
        check_form(&rollout, &request);
        for (int i = 0; i < rollout.count; i++) {
            const int *is = whole.token + whole.start[i];
            int n = 0, length = rollout.start[i + 1] - rollout.start[i];
            while (n < MAX_TOKENS && (is[n] - end_of_text + V) % V > 2) n++;
            assert_int_equal(length, n < MAX_TOKENS ? n + 1 : n);
            assert_memory_equal(rollout.token + rollout.start[i], is, (size_t)length * sizeof *is);
            assert_int_equal(rollout.ended[i], n < MAX_TOKENS);
            if (n < MAX_TOKENS) by[(is[n] - end_of_text + V) % V]++;
        }
        for (int k = 0; k < 3; k++) assert_true(by[k] > 0);
        rollout_free(&rollout);
    }
    rollout_free(&whole);
}

/* Completions that end with their first token, beside others that do not; one at a time; none. */
static void test_edges(void **state) {
    (void)state;
    struct Prompts prompts = make_prompts(in_order);
    struct RolloutRequest request = make_request(&prompts, 0);
    struct Rollout rollout = generate(1, &request);
    int first = rollout.token[rollout.start[3 * GROUP]];
    rollout_free(&rollout);
    request.ends = (struct Ends){{first}, 1};
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

/* With weights of NaN the sampler still returns: completions end and hold tokens of the
   vocabulary. */
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
        /* where the host is a step ahead, who has ended draws once more */
        long late = ops->asynchronous ? rollout.count / rows : 0;
        assert_in_range(rollout.steps, busy, busy + late + MAX_TOKENS);
        rollout_free(&rollout);
        prompts = make_prompts(in_order);
    }
}

/* A host that is a step ahead sees one step late what a token has ended, which costs steps; what is
   cut by its length is known before, and costs none. */
static void test_a_step_ahead(void **state) {
    (void)state;
    struct Prompts prompts = make_prompts(in_order);
    struct RolloutRequest request = make_request(&prompts, 1);
    int ahead = ops->asynchronous ? 1 : OTHER, other = OTHER + 1 - ahead;
    for (int ends = 0; ends < 2; ends++) {
        request.ends.count = ends;
        struct Rollout late = generate(ahead, &request), reference = generate(other, &request);
        for (int i = 0; i < reference.count; i++)
            assert_same_completion(&reference, i, &late, i);
        if (ends) assert_in_range(late.steps, reference.steps + 1, 2 * reference.steps);
        else assert_int_equal(late.steps, reference.steps);
        rollout_free(&late);
        rollout_free(&reference);
    }
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
        cmocka_unit_test(test_several_ends),
        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_weights_that_are_nan),
        cmocka_unit_test(test_batching_is_continuous),
        cmocka_unit_test(test_a_step_ahead),
    };
    return cmocka_run_group_tests_name("rollout", tests, setup, teardown);
}
