/* What the sampler fills: memory and form of a rollout (sampler.h). */
#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "sampler.h"

void rollout_clear(struct Rollout *out, const struct RolloutRequest *request) {
    int count = request->num_prompts * request->group;
    rollout_reserve(out, count, (size_t)count * (size_t)request->max_tokens);
}

void rollout_reserve(struct Rollout *out, int completions, size_t tokens) {
    size_t count = (size_t)completions;
    assert(tokens <= INT_MAX);
    if (out->capacity_count < (int)count || !out->start) {
        out->start = check_realloc(out->start, count + 1, sizeof(int), "rollouts");
        out->ended = check_realloc(out->ended, count + 1, 1, "rollouts");
        out->exchange =
            check_realloc(out->exchange, count + 1, sizeof *out->exchange, "rollouts");
        for (size_t i = (size_t)out->capacity_count; i < count; i++)
            out->exchange[i] = (struct Exchange){.score = 0};
        out->capacity_count = (int)count;
    }
    if (out->capacity_tokens < tokens) {
        out->token = check_realloc(out->token, tokens, sizeof(int), "rollouts");
        out->logp = check_realloc(out->logp, tokens, sizeof(float), "rollouts");
        out->entropy = check_realloc(out->entropy, tokens, sizeof(float), "rollouts");
        out->capacity_tokens = tokens;
    }
    memset(out->start, 0, (count + 1) * sizeof(int));
    for (size_t i = 0; i < count; i++) exchange_clear(&out->exchange[i]);
    out->count = (int)count;
    out->texts = out->text_tokens = out->texts_cut = 0;
    out->steps = out->prefill_tokens = out->decoded_tokens = 0;
    out->pages_peak = out->preempted = 0;
}

/* In place: no completion moves to a later address, so earlier ones are never overwritten. */
void rollout_pack(struct Rollout *out, int max_tokens) {
    for (int i = 0; i < out->count; i++) {
        size_t from = (size_t)i * (size_t)max_tokens, to = (size_t)out->start[i];
        size_t length = (size_t)out->start[i + 1];
        memmove(out->token + to, out->token + from, length * sizeof(int));
        memmove(out->logp + to, out->logp + from, length * sizeof(float));
        memmove(out->entropy + to, out->entropy + from, length * sizeof(float));
        out->start[i + 1] += out->start[i];
        out->texts += out->exchange[i].said.role.count;
        out->text_tokens += exchange_tokens(&out->exchange[i]);
    }
    out->decoded_tokens = out->start[out->count] - out->text_tokens;
}

struct Completed rollout_completed(const struct Rollout *out) {
    return (struct Completed){out->token, out->start, out->ended, out->exchange};
}

void rollout_free(struct Rollout *out) {
    free(out->start);
    free(out->token);
    free(out->logp);
    free(out->entropy);
    free(out->ended);
    for (int i = 0; out->exchange && i < out->capacity_count; i++) exchange_free(&out->exchange[i]);
    free(out->exchange);
    *out = (struct Rollout){0};
}
