#include "evaluate.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "entropy.h"

const int evaluation_k[4] = {1, 4, 16, 64};

/* The held-out prompts as text and as tokens. */
struct HeldOut {
    char (*text)[TASK_TEXT];
    int *token, *start;
    uint32_t *ordinal;
};

static struct HeldOut draw_held_out(const struct Task *task, const struct Tokenizer *tokenizer,
                                    uint64_t seed, int num_prompts) {
    size_t n = (size_t)num_prompts;
    struct HeldOut h = {check_alloc(n, TASK_TEXT, "evaluation prompts"),
                        check_alloc(n * TASK_TEXT, sizeof(int), "evaluation prompts"),
                        check_alloc(n + 1, sizeof(int), "evaluation prompts"),
                        check_alloc(n, sizeof(uint32_t), "evaluation prompts")};
    for (int p = 0; p < num_prompts; p++) {
        task_prompt(task, h.text[p], seed, RNG_EVAL_PROMPT, (uint64_t)p, SPLIT_HELD_OUT);
        int length = tokenizer_encode(tokenizer, h.text[p], h.token + h.start[p], TASK_TEXT);
        if (length < 1)
            die_input("the vocabulary has no ids for the prompt \"%s\" of task %s", h.text[p],
                      task->name);
        h.start[p + 1] = h.start[p] + length;
        h.ordinal[p] = (uint32_t)p;
    }
    return h;
}

/* The answers to one prompt: how many are right, and how many different texts those are. */
struct Tally {
    int right, distinct;
    double reward;
};

/* text: room for `samples` answers of at most max_tokens characters each. */
static struct Tally tally_group(char *text, const struct Task *task,
                                const struct Tokenizer *tokenizer, const char *prompt,
                                const struct Rollout *rollout, int group, int samples,
                                int max_tokens) {
    struct Tally tally = {0};
    size_t stride = (size_t)max_tokens + 1;
    for (int i = group * samples; i < (group + 1) * samples; i++) {
        const int *token = rollout->token + rollout->start[i];
        int length = rollout->start[i + 1] - rollout->start[i], seen = 0;
        char *answer = text + (size_t)tally.distinct * stride;   /* kept if it is right and new */
        length = tokenizer_decode(tokenizer, token, length, answer, stride);
        float reward = task->reward(prompt, answer, (size_t)length, rollout->ended[i]);
        tally.reward += reward;
        if (reward != 1) continue;
        tally.right++;
        while (strcmp(text + (size_t)seen * stride, answer) != 0) seen++;
        if (seen == tally.distinct) tally.distinct++;
    }
    return tally;
}

/* Means over the tokens and completions of a rollout. */
static void add_rollout_means(struct Evaluation *result, const struct Rollout *rollout) {
    int tokens = rollout->start[rollout->count], ended = 0;
    for (int i = 0; i < rollout->count; i++) ended += rollout->ended[i];
    result->entropy = mean_of(rollout->entropy, tokens);
    result->mean_length = (double)tokens / rollout->count;
    result->truncated = 1 - (double)ended / rollout->count;
}

struct Evaluation evaluate(struct Sampler *sampler, const struct Weights *weights,
                           const struct Task *task, const struct Tokenizer *tokenizer,
                           uint64_t seed, int num_prompts, int samples, float temperature,
                           int max_tokens, void *workspace) {
    assert(num_prompts >= 1 && samples >= 1);
    struct Evaluation result = {.num_prompts = num_prompts, .samples = samples};
    struct HeldOut held_out = draw_held_out(task, tokenizer, seed, num_prompts);
    struct RolloutRequest request = {
        .num_prompts = num_prompts, .group = samples, .prompt_token = held_out.token,
        .prompt_start = held_out.start, .ordinal = held_out.ordinal, .seed = seed,
        .purpose = RNG_EVAL_SAMPLE, .temperature = temperature, .max_tokens = max_tokens,
        .end_of_text = tokenizer->end_of_text};
    struct Rollout rollout = {0};
    sampler_generate(sampler, weights, &request, &rollout, workspace);

    char *text = check_alloc((size_t)samples, (size_t)max_tokens + 1, "evaluation answers");
    for (int p = 0; p < num_prompts; p++) {
        struct Tally tally = tally_group(text, task, tokenizer, held_out.text[p], &rollout, p,
                                         samples, max_tokens);
        for (int k = 0; k < 4; k++)
            result.pass_at[k] += pass_at_k(samples, tally.right, evaluation_k[k]) / num_prompts;
        result.distinct_correct += (double)tally.distinct / num_prompts;
        result.reward += tally.reward / samples / num_prompts;
    }
    add_rollout_means(&result, &rollout);

    free(text);
    rollout_free(&rollout);
    free(held_out.text), free(held_out.token), free(held_out.start), free(held_out.ordinal);
    return result;
}
