/* Rollouts: prompts to completions with their log-probabilities and exact entropies.

   Generation is batched and continuous: a finished row leaves and a waiting sample takes its place.
   The prompt enters the network once per group; its keys and values are shared by the group's rows.
   Its last token is every row's own first input, so the prompt segment of P tokens holds P - 1 and
   a row's tail max_tokens (the last token drawn never enters).

       waiting samples (group 0: s0 s1 .. | group 1: ...)
              |  prefill the prompt if its segment is not loaded
              v
       row slots  [ tail 0 | tail 1 | ... ]   one token each per step -> ended or cut -> out

   A sample's tokens and numbers depend on (weights, seed, purpose, ordinal, sample index) only; not
   on the number of rows, the order of arrival or its neighbours, bit for bit. */
#ifndef LLMC_SAMPLER_H
#define LLMC_SAMPLER_H

#include "../model.h"
#include "../base/rng.h"

/* What to generate. Host arrays, owned by the caller. */
struct RolloutRequest {
    int num_prompts, group;        /* num_prompts * group completions */
    const int *prompt_token;       /* flat */
    const int *prompt_start;       /* [num_prompts + 1] */
    const uint32_t *ordinal;       /* [num_prompts] global draw ordinal of each group */
    uint64_t seed;
    enum RngPurpose purpose;
    float temperature;             /* 0 = greedy */
    int max_tokens, end_of_text;
};

/* The result: completion i = prompt * group + sample. Host memory, owned; grows as needed and is
   reused by the next call. Zero-initialise before first use. */
struct Rollout {
    int count;                /* completions */
    int *start;               /* [count + 1] into the flat arrays */
    int *token;               /* end-of-text included where it was drawn */
    float *logp, *entropy;    /* of each drawn token, at the temperature */
    unsigned char *ended;     /* [count] 1: end-of-text was drawn; 0: cut at max_tokens */
    long steps, prefill_tokens, decoded_tokens;
    size_t capacity_tokens;
    int capacity_count;
};

struct Sampler;   /* the decode state, its row arrays on both sides; opaque */

/* rows: completions decoded at once; group: the fewest completions of a prompt in a request that is
   to be fast (a smaller one is right too, but fewer rows may be at work); max_prompt, max_tokens:
   longest of each, together at most max_T + 1. The caller has checked that. */
struct Sampler *sampler_reserve(const struct Model *model, struct Arena *arena, int rows,
                                int group, int max_prompt, int max_tokens);
/* Call after every weight update, and before the first rollout after any pass over training data:
   the two share memory (arena.h). */
void sampler_load_weights(struct Sampler *sampler, const struct Weights *weights);
/* workspace: at least workspace_size() bytes for sampler_step_rows. */
void sampler_generate(struct Sampler *sampler, const struct Weights *weights,
                      const struct RolloutRequest *request, struct Rollout *out, void *workspace);
void sampler_free(struct Sampler *sampler);
/* For whoever fills a rollout: clear makes room for every completion at its longest, of which i
   lies at i * max_tokens while start[i + 1] counts its tokens; pack moves them together. */
void rollout_clear(struct Rollout *out, const struct RolloutRequest *request);
void rollout_pack(struct Rollout *out, int max_tokens);
void rollout_free(struct Rollout *rollout);
/* Rows of the largest step, prefill included: R of the OpsShape for workspace_size. Its max_length
   is max_prompt + max_tokens. */
int sampler_step_rows(const struct Ops *ops, int rows, int max_prompt);

#endif
