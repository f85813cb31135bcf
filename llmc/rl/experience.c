#include "experience.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "../base/time.h"

static void *grown(void *pointer, size_t count, size_t size) {
    return check_realloc(pointer, count, size, "a batch of experience");
}

/* Room for `count` sequences of `tokens` tokens in all. */
static void experience_grow(struct Experience *e, int count, size_t tokens) {
    if (count > e->capacity_count) {
        size_t n = (size_t)count + 1;
        e->start = grown(e->start, n, sizeof *e->start);
        e->loss_start = grown(e->loss_start, n, sizeof *e->loss_start);
        e->reward = grown(e->reward, n, sizeof *e->reward);
        e->advantage = grown(e->advantage, n, sizeof *e->advantage);
        e->ended = grown(e->ended, n, 1);
        e->active = grown(e->active, n, 1);
        e->length = grown(e->length, n, sizeof *e->length);
        e->prompt = grown(e->prompt, n, sizeof *e->prompt);
        e->answer = grown(e->answer, n, sizeof *e->answer);
        e->capacity_count = count;
    }
    if (tokens > e->capacity_tokens) {
        e->token = grown(e->token, tokens, sizeof *e->token);
        e->loss_mask = grown(e->loss_mask, tokens, 1);
        e->logp = grown(e->logp, tokens, sizeof *e->logp);
        e->entropy = grown(e->entropy, tokens, sizeof *e->entropy);
        e->logp_ref = grown(e->logp_ref, tokens, sizeof *e->logp_ref);
        e->logp_scored = grown(e->logp_scored, tokens, sizeof *e->logp_scored);
        e->capacity_tokens = tokens;
    }
}

static void experience_clear(struct Experience *e, int group_size) {
    experience_grow(e, 1, 1);
    e->count = 0, e->group_size = group_size;
    e->start[0] = e->loss_start[0] = 0;
    e->sum_entropy = e->sum_reward = e->sum_reward_std = e->frac_reward_zero_std = 0;
    e->sum_length = e->truncated = 0;
    e->generated = e->generated_tokens = 0;
    e->seconds_generate = e->seconds_reward = 0;
}

/* Appends one sequence: prompt without loss, completion with it. Returns where its completion's
   per-loss-token arrays begin. */
static int experience_append(struct Experience *e, const int *prompt, int prompt_length,
                             const int *completion, int length) {
    int i = e->count++, at = e->start[i], loss_at = e->loss_start[i];
    experience_grow(e, 2 * e->count, 2 * (size_t)(at + prompt_length + length));
    memcpy(e->token + at, prompt, (size_t)prompt_length * sizeof(int));
    memcpy(e->token + at + prompt_length, completion, (size_t)length * sizeof(int));
    memset(e->loss_mask + at, 0, (size_t)prompt_length);
    memset(e->loss_mask + at + prompt_length, 1, (size_t)length);
    e->start[i + 1] = at + prompt_length + length;
    e->loss_start[i + 1] = loss_at + length;
    e->length[i] = length, e->active[i] = 1, e->ended[i] = 1;
    e->advantage[i] = e->reward[i] = 0;
    return loss_at;
}

static int encode_prompt(const struct Tokenizer *tokenizer, const char *prompt, int *ids) {
    int length = tokenizer_encode(tokenizer, prompt, ids, TASK_TEXT);
    if (length < 1) die_input("the vocabulary has no ids for the prompt \"%s\"", prompt);
    return length;
}

/* ---- demonstrations -------------------------------------------------------------------------------- */

void experience_demonstrate(struct Experience *e, const struct CollectOptions *o, int count,
                            int64_t *ordinal) {
    experience_clear(e, 1);
    for (int i = 0; i < count; i++, ++*ordinal) {
        char prompt[TASK_TEXT], answer[TASK_TEXT];
        int prompt_ids[TASK_TEXT], answer_ids[TASK_TEXT];
        struct Rng rng;
        task_prompt(o->task, prompt, o->seed, RNG_DEMONSTRATION, (uint64_t)*ordinal, SPLIT_TRAIN);
        /* the prompt's draw used the stream's lower half */
        rng_open(&rng, o->seed, RNG_DEMONSTRATION, (uint64_t)*ordinal | (uint64_t)1 << 63);
        if (!o->task->demonstrate(answer, prompt, &rng)) continue;
        int prompt_length = encode_prompt(o->tokenizer, prompt, prompt_ids);
        int length = encode_prompt(o->tokenizer, answer, answer_ids);
        answer_ids[length++] = o->tokenizer->end_of_text;
        experience_append(e, prompt_ids, prompt_length, answer_ids, length);
    }
}

/* ---- rollouts -------------------------------------------------------------------------------------- */

/* One round's prompts as the sampler wants them. */
struct Prompts {
    char (*text)[TASK_TEXT];
    int *token, *start;
    uint32_t *ordinal;
};

static struct Prompts draw_prompts(const struct CollectOptions *o, int64_t *ordinal) {
    size_t n = (size_t)o->prompts;
    struct Prompts p = {check_alloc(n, sizeof *p.text, "prompts"),
                        check_alloc(n * TASK_TEXT, sizeof(int), "prompts"),
                        check_alloc(n + 1, sizeof(int), "prompts"),
                        check_alloc(n, sizeof(uint32_t), "prompts")};
    for (size_t i = 0; i < n; i++, ++*ordinal) {
        task_prompt(o->task, p.text[i], o->seed, RNG_PROMPT, (uint64_t)*ordinal, SPLIT_TRAIN);
        p.start[i + 1] = p.start[i] + encode_prompt(o->tokenizer, p.text[i], p.token + p.start[i]);
        p.ordinal[i] = (uint32_t)*ordinal;
    }
    return p;
}

static void prompts_free(struct Prompts *p) {
    free(p->text), free(p->token), free(p->start), free(p->ordinal);
}

/* Copies group g of a rollout into the experience and rewards it. */
static void append_group(struct Experience *e, const struct CollectOptions *o,
                         const struct Prompts *prompts, const struct Rollout *rollout, int g) {
    for (int i = g * o->group; i < (g + 1) * o->group; i++) {
        int begin = rollout->start[i], length = rollout->start[i + 1] - begin, k = e->count;
        int at = experience_append(e, prompts->token + prompts->start[g],
                                   prompts->start[g + 1] - prompts->start[g],
                                   rollout->token + begin, length);
        memcpy(e->logp + at, rollout->logp + begin, (size_t)length * sizeof(float));
        memcpy(e->entropy + at, rollout->entropy + begin, (size_t)length * sizeof(float));
        e->ended[k] = rollout->ended[i];
        memcpy(e->prompt[k], prompts->text[g], TASK_TEXT);
        int chars = tokenizer_decode(o->tokenizer, rollout->token + begin, length, e->answer[k],
                                     TASK_TEXT);
        e->reward[k] = o->task->reward(prompts->text[g], e->answer[k], (size_t)chars, e->ended[k]);
    }
}

/* Adds group [first, count) to the sums over everything generated. */
static void add_group_sums(struct Experience *e, int first) {
    int n = e->count - first;
    double mean = 0, square = 0;
    bool equal = true;
    for (int i = first; i < e->count; i++) {
        mean += e->reward[i] / n;
        equal &= e->reward[i] == e->reward[first];
        e->sum_length += e->length[i];
        e->truncated += !e->ended[i];
    }
    for (int i = first; i < e->count; i++) square += pow(e->reward[i] - mean, 2);
    for (int t = e->loss_start[first]; t < e->loss_start[e->count]; t++)
        e->sum_entropy += e->entropy[t];
    e->sum_reward += mean * n;
    e->sum_reward_std += n > 1 ? sqrt(square / (n - 1)) : 0;
    e->frac_reward_zero_std += equal;
    e->generated += n;
    e->generated_tokens += e->loss_start[e->count] - e->loss_start[first];
}

/* The last group has equal rewards, so the filter wants it gone. */
static bool last_group_is_flat(const struct Experience *e) {
    unsigned char keep;
    int first = e->count - e->group_size;
    struct RewardBatch batch = {.count = e->group_size, .group_size = e->group_size,
                                .reward = e->reward + first, .length = e->length + first,
                                .ended = e->ended + first};
    return objective_filter_groups(&batch, &keep) == 0;
}

void experience_collect(struct Experience *e, struct Sampler *sampler,
                        const struct Weights *weights, const struct CollectOptions *o,
                        int64_t *ordinal, void *workspace) {
    static struct Rollout rollout;   /* its memory is reused from step to step */
    int wanted = o->prompts * o->group, groups = 0;
    experience_clear(e, o->group);
    for (int round = 0; e->count < wanted && round < (o->filter ? o->filter_rounds : 1); round++) {
        double begin = seconds();
        struct Prompts prompts = draw_prompts(o, ordinal);
        struct RolloutRequest request = {
            .num_prompts = o->prompts, .group = o->group, .prompt_token = prompts.token,
            .prompt_start = prompts.start, .ordinal = prompts.ordinal, .seed = o->seed,
            .purpose = RNG_SAMPLE, .temperature = o->temperature, .max_tokens = o->max_tokens,
            .end_of_text = o->tokenizer->end_of_text};
        if (o->replay)
            replay_rollout(o->replay, o->step, &request, prompts.text, o->tokenizer->vocab_size,
                           &rollout);
        else
            sampler_generate(sampler, weights, &request, &rollout, workspace);
        double generated = seconds();
        for (int g = 0; g < o->prompts; g++, groups++) {
            bool full = e->count == wanted;   /* generated and measured, but not learnt from */
            append_group(e, o, &prompts, &rollout, g);
            add_group_sums(e, e->count - o->group);
            if (full || (o->filter && last_group_is_flat(e))) e->count -= o->group;
        }
        prompts_free(&prompts);
        e->seconds_generate += generated - begin;
        e->seconds_reward += seconds() - generated;
    }
    e->frac_reward_zero_std /= groups;
    e->sum_reward_std /= groups;
}

/* ---- views ------------------------------------------------------------------------------------------ */

struct RewardBatch experience_rewards(const struct Experience *e, int max_tokens) {
    return (struct RewardBatch){.count = e->count, .group_size = e->group_size,
                                .max_tokens = max_tokens, .reward = e->reward,
                                .length = e->length, .ended = e->ended};
}

struct TrainingSet experience_training_set(const struct Experience *e) {
    return (struct TrainingSet){.count = e->count, .start = e->start, .token = e->token,
                                .loss_mask = e->loss_mask, .loss_start = e->loss_start,
                                .logp_old = e->logp, .advantage = e->advantage,
                                .active = e->active};
}

void experience_free(struct Experience *e) {
    void *owned[] = {e->start, e->loss_start, e->token,  e->loss_mask, e->logp,   e->entropy,
                     e->logp_ref, e->logp_scored, e->reward,  e->advantage, e->ended,  e->active, e->length,
                     e->prompt, e->answer};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
    *e = (struct Experience){0};
}
