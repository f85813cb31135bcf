#include "evaluate.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "entropy.h"
#include "round.h"

const int evaluation_k[4] = {1, 4, 16, 64};

/* The completions of one prompt: how many are scored, how many right, how many different texts the
   right ones have; and the sum of rewards. */
struct Tally {
    int scored, right, distinct;
    double reward;
};

static bool same_text(const struct TextList *text, int a, int b) {
    size_t length = text_list_length(text, a);
    return length == text_list_length(text, b) &&
           memcmp(text_list_at(text, a), text_list_at(text, b), length) == 0;
}

/* Counts completions [first, first + samples). seen [samples] is scratch: the numbers of right
   completions with different texts. */
static struct Tally tally_group(int *seen, const struct Reward *reward, const struct TextList *text,
                                int first, int samples) {
    struct Tally tally = {0};
    for (int i = first; i < first + samples; i++) {
        int k = 0;
        if (isnan(reward[i].value)) continue;
        tally.scored++;
        tally.reward += reward[i].value;
        if (!reward[i].right) continue;
        tally.right++;
        while (k < tally.distinct && !same_text(text, seen[k], i)) k++;
        if (k == tally.distinct) seen[tally.distinct++] = i;
    }
    return tally;
}

/* pass@k, distinct_correct and reward: means over the prompts with enough scored completions. */
static void add_tally_means(struct Evaluation *result, const struct Tally *tally) {
    int n = result->num_prompts, scored = 0;
    for (int p = 0; p < n; p++) {
        scored += tally[p].scored > 0;
        result->unscored += result->samples - tally[p].scored;
    }
    for (int p = 0; p < n; p++) {
        if (tally[p].scored == 0) continue;
        result->distinct_correct += (double)tally[p].distinct / scored;
        result->reward += tally[p].reward / tally[p].scored / scored;
    }
    if (scored == 0) result->distinct_correct = result->reward = NAN;
    for (int i = 0; i < 4; i++) {
        int k = evaluation_k[i], enough = 0;
        for (int p = 0; p < n; p++) enough += tally[p].scored >= k;
        for (int p = 0; p < n; p++)
            if (tally[p].scored >= k)
                result->pass_at[i] += pass_at_k(tally[p].scored, tally[p].right, k) / enough;
        if (enough == 0) result->pass_at[i] = NAN;
    }
}

/* Mean entropy over the rollout's tokens; mean length and share of truncated completions. */
static void add_rollout_means(struct Evaluation *result, const struct Rollout *rollout) {
    int ended = 0;
    long tokens = rollout->start[rollout->count] - rollout->text_tokens;
    for (int i = 0; i < rollout->count; i++) ended += rollout->ended[i];
    /* an environment's tokens have entropy 0 and do not count */
    result->entropy = mean_of(rollout->entropy, rollout->start[rollout->count]) *
                      (rollout->start[rollout->count] / (double)tokens);
    result->mean_length = (double)tokens / rollout->count;
    result->truncated = 1 - (double)ended / rollout->count;
}

/* Of completions that are judged already. */
static struct Evaluation evaluation_from(const struct Reward *reward, const struct TextList *text,
                                         const struct Rollout *rollout, int n, int samples) {
    struct Evaluation result = {.num_prompts = n, .samples = samples, .loss = NAN};
    int *seen = check_alloc((size_t)samples, sizeof *seen, "evaluation answers");
    struct Tally *tally = check_alloc((size_t)n, sizeof *tally, "evaluation answers");
    for (int p = 0; p < n; p++) tally[p] = tally_group(seen, reward, text, p * samples, samples);
    add_tally_means(&result, tally);
    add_rollout_means(&result, rollout);
    free(seen), free(tally);
    return result;
}

struct Evaluation evaluation_of(const struct Examples *held_out, const struct Rollout *rollout,
                                int samples) {
    struct TextList text = {0};
    struct Reward *reward =
        check_alloc((size_t)rollout->count, sizeof *reward, "evaluation rewards");
    struct Completed completed = rollout_completed(rollout);
    bool judged = examples_judge(reward, &text, NULL, held_out, samples, &completed);
    struct Evaluation result = evaluation_from(reward, &text, rollout, held_out->count, samples);
    result.interrupted = !judged;
    text_list_free(&text);
    free(reward);
    return result;
}

struct Evaluation evaluate(struct Sampler *sampler, const struct Weights *weights,
                           const struct Task *task, const struct Tokenizer *tokenizer,
                           const struct Ends *ends, uint64_t seed, int num_prompts, int samples,
                           float temperature, int max_tokens, const struct World *world,
                           void *workspace) {
    assert(num_prompts >= 1 && samples >= 1);
    struct Examples held_out =
        examples_draw(task, tokenizer, seed, RNG_EVAL_PROMPT, 0, num_prompts);
    struct RoundOptions options = {
        .prompts = &held_out, .group = samples, .max_tokens = max_tokens, .seed = seed,
        .purpose = RNG_EVAL_SAMPLE, .temperature = temperature, .ends = *ends, .world = world};
    struct Evaluation result = {.num_prompts = num_prompts, .samples = samples, .loss = NAN,
                                .interrupted = true};
    struct Rollout rollout = {0};
    struct Round round;
    if (round_play(&round, &rollout, sampler, weights, &options, workspace))
        result = evaluation_from(round.reward, &round.completion, &rollout, num_prompts, samples);
    round_free(&round);
    rollout_free(&rollout);
    examples_free(&held_out);
    return result;
}

double evaluate_lesson(struct Trainer *trainer, const struct Lesson *lesson) {
    int rows = lesson->end.count, n = lesson->ids.count;
    int *ints = check_alloc(3 * ((size_t)rows + 1), sizeof *ints, "held-out lessons");
    int *start = ints, *loss_start = start + rows + 1, *pick = loss_start + rows + 1;
    float *logp = check_alloc((size_t)n + 1, sizeof *logp, "held-out lessons");
    const unsigned char *mask = (const unsigned char *)lesson->loss.bytes;
    for (int r = 0; r < rows; r++) {
        start[r + 1] = lesson->end.id[r], loss_start[r + 1] = loss_start[r], pick[r] = r;
        for (int t = start[r]; t < start[r + 1]; t++) loss_start[r + 1] += mask[t];
    }
    struct TrainingSet set = {.count = rows, .start = start, .token = lesson->ids.id,
                              .loss_mask = mask, .loss_start = loss_start};
    struct HeadStats out = {.logp = logp};
    trainer_score(trainer, trainer_weights(trainer), &set, pick, rows, 1, &out);
    double loss = -mean_of(logp, loss_start[rows]);
    free(ints), free(logp);
    return loss;
}
