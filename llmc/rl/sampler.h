/* The sampler: completes prompts, and notes the log-probability and exact entropy of every token it
   draws.

   It decodes a fixed number of rows at once (continuous batching): when a row's completion ends, a
   waiting one takes the row. A prompt goes through the network once per group, and its keys and
   values are shared by the group's rows. A prompt of P tokens has P - 1 entries in its segment of
   the cache: the last token is the first input of every row, stored in the row's own tail. A tail
   has room for max_tokens entries: that token and the drawn ones but the last, which never is an
   input.

       waiting samples (group 0: s0 s1 .. | group 1: ...)
              |  prefill the prompt if its segment is not loaded
              v
       row slots  [ tail 0 | tail 1 | ... ]   one token each per step -> ended or cut -> out

   The tokens, log-probabilities and entropies of a completion depend only on the weights, the
   prompt, the temperature and (seed, purpose, ordinal, sample index). They have the same bits for
   any number of rows, any order, any completions beside it and any size of the cache.

   Prompts and tails are made of pages of KV_PAGE positions from one pool. A tail gets a page every
   KV_PAGE tokens. When none is free, the youngest row is put back: it leaves, keeps what it has
   drawn, and enters again later; its keys and values are then computed again.

   With an environment (environment.h) a row whose model has ended its turn leaves the step and
   waits for the answer, with its tail; other rows go on, and others enter. With the answer it comes
   back, and only the tokens since are stored. When pages are short, rows that wait are put back
   before others. */
#ifndef LLMC_SAMPLER_H
#define LLMC_SAMPLER_H

#include "../model.h"
#include "../base/rng.h"
#include "../io/ends.h"
#include "../tasks/examples.h"

/* What to generate. Host arrays, owned by the caller. */
struct RolloutRequest {
    int num_prompts, group;        /* num_prompts * group completions */
    const int *prompt_token;       /* flat */
    const int *prompt_start;       /* [num_prompts + 1] */
    const uint32_t *ordinal;       /* [num_prompts] global draw ordinal of each group */
    uint64_t seed;
    enum RngPurpose purpose;
    float temperature;             /* 0 = greedy */
    int max_tokens;
    struct Ends ends;              /* a completion ends with the first of them that is drawn */
    struct Environment *environment;   /* or only a turn does, if this one goes on; NULL: none */
};

/* The result; completion i = prompt * group + sample. Host memory that the struct owns, grown as
   needed and reused by the next call; rollout_free. Zero-initialise before first use. */
struct Rollout {
    int count;                /* completions */
    int *start;               /* [count + 1] into the flat arrays */
    int *token;               /* the one that ends it included, where it was drawn */
    float *logp, *entropy;    /* of each drawn token, at the request's temperature; 0 where the
                                 environment's text stands */
    unsigned char *ended;     /* [count] 1: by a token of `ends`; 0: cut at max_tokens */
    struct Exchange *exchange;   /* [count] what the environment said; NULL: nothing */
    long steps, decoded_tokens;   /* drawn */
    long texts, text_tokens;  /* what the environment said */
    long texts_cut;           /* completions cut because its text had no room */
    long prefill_tokens;      /* tokens stored without a draw, those stored again included */
    long pages_peak;          /* the most pages in use at once */
    long preempted;           /* how often a row was put back */
    size_t capacity_tokens;
    int capacity_count;
};

struct Sampler;   /* the decode state, and the rows' arrays on host and backend; opaque */

/* rows: completions decoded at once. group: the usual size of a request's groups; requests with
   smaller groups give the same results, but may leave rows idle. max_prompt, max_tokens: longest
   prompt and completion; max_prompt + max_tokens - 1 <= the model's max_T (asserted). pages: of the
   cache's pool; at least sampler_least_pages (asserted), and no more than sampler_most_pages are
   reserved. Owned by the caller; sampler_free. */
struct Sampler *sampler_reserve(const struct Model *model, struct Arena *arena, int rows,
                                int group, int max_prompt, int max_tokens, int pages);
/* Pages of one row with the longest prompt and completion; and those with which no row is ever put
   back. */
int sampler_least_pages(int max_prompt, int max_tokens);
int64_t sampler_most_pages(int rows, int group, int max_prompt, int max_tokens);
/* Prepares the weights for decoding. To be called after every update of the weights, and before the
   first rollout after any training or scoring pass, which uses the same memory (arena.h). */
void sampler_load_weights(struct Sampler *sampler, const struct Weights *weights);
/* Completes every prompt of the request. workspace: at least ops->workspace_size() bytes for a
   shape with R = sampler_step_rows(). */
void sampler_generate(struct Sampler *sampler, const struct Weights *weights,
                      const struct RolloutRequest *request, struct Rollout *out, void *workspace);
void sampler_free(struct Sampler *sampler);
/* For code that fills a rollout. rollout_clear makes room for every completion at its longest:
   completion i begins at i * max_tokens, and start[i + 1] is its number of tokens. rollout_pack
   then removes the gaps, so that the arrays are as struct Rollout says. */
void rollout_clear(struct Rollout *out, const struct RolloutRequest *request);
void rollout_pack(struct Rollout *out, int max_tokens);
/* Room for so many completions and tokens in all, nothing of which is set. */
void rollout_reserve(struct Rollout *out, int completions, size_t tokens);
void rollout_free(struct Rollout *rollout);
/* As examples_judge reads it; pointers into the rollout. */
struct Completed rollout_completed(const struct Rollout *rollout);
/* The number of rows of the largest step, prefill included: what R of struct OpsShape must be for
   workspace_size; max_length is max_prompt + max_tokens. */
int sampler_step_rows(const struct Ops *ops, int rows, int max_prompt);

#endif
