#include "experience.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "../base/time.h"
#include "round.h"

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
        e->completion_start = grown(e->completion_start, n, sizeof *e->completion_start);
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
    text_list_cut(&e->prompt, 0);
    text_list_cut(&e->completion, 0);
    text_list_cut(&e->turns, 0);
    e->sum_entropy = e->sum_reward = e->reward_std = e->frac_reward_zero_std = 0;
    e->sum_length = e->truncated = 0;
    e->generated = e->scored = e->generated_tokens = 0;
    e->texts = e->text_tokens = e->texts_cut = 0;
    e->pages_peak = e->preempted = 0;
    e->seconds_generate = e->seconds_reward = 0;
}

/* Appends one sequence whose loss_mask is still to be set: room for `loss` tokens with loss.
   Returns where its per-loss-token arrays begin. */
static int append_tokens(struct Experience *e, const int *prompt, int prompt_length,
                         const int *completion, int length, int loss) {
    int i = e->count++, at = e->start[i], loss_at = e->loss_start[i];
    experience_grow(e, 2 * e->count, 2 * (size_t)(at + prompt_length + length));
    memcpy(e->token + at, prompt, (size_t)prompt_length * sizeof(int));
    memcpy(e->token + at + prompt_length, completion, (size_t)length * sizeof(int));
    e->completion_start[i] = at + prompt_length;
    e->start[i + 1] = at + prompt_length + length;
    e->loss_start[i + 1] = loss_at + loss;
    e->length[i] = loss, e->active[i] = 1, e->ended[i] = 1;
    e->advantage[i] = e->reward[i] = 0;
    return loss_at;
}

/* The usual sequence: a prompt without loss, a completion with it, but for what an environment said
   in it (exchange; may be NULL). */
static int experience_append(struct Experience *e, const int *prompt, int prompt_length,
                             const int *completion, int length, const struct Exchange *exchange) {
    int at = e->start[e->count];
    int loss_at = append_tokens(e, prompt, prompt_length, completion, length,
                                length - exchange_tokens(exchange));
    memset(e->loss_mask + at, 0, (size_t)prompt_length);
    exchange_mask(e->loss_mask + at + prompt_length, length, exchange);
    return loss_at;
}

/* ---- demonstrations -------------------------------------------------------------------------- */

/* The rows of a task that has lessons; what of them is learnt they say themselves. */
static void append_lesson(struct Experience *e, const struct Lesson *lesson) {
    for (int r = 0, from = 0; r < lesson->end.count; from = lesson->end.id[r++]) {
        int at = e->start[e->count], length = lesson->end.id[r] - from, loss = 0;
        const char *mask = lesson->loss.bytes + from;
        for (int t = 0; t < length; t++) loss += mask[t];
        append_tokens(e, lesson->ids.id, 0, lesson->ids.id + from, length, loss);
        memcpy(e->loss_mask + at, mask, (size_t)length);
    }
}

/* A demonstration in the making. */
struct Demonstration {
    struct Example example;
    struct Ids prompt, completion;
    struct Text text;
    struct Exchange exchange;
    struct TurnList turns;
};

static void demonstration_free(struct Demonstration *d) {
    example_free(&d->example);
    ids_free(&d->prompt), ids_free(&d->completion);
    text_free(&d->text);
    exchange_free(&d->exchange);
    turn_list_free(&d->turns);
}

/* Appends d->text to the completion as a turn of the model. */
static void add_model_turn(struct Demonstration *d, const struct Tokenizer *tokenizer) {
    int end_of_text = tokenizer_role(tokenizer, TOKENIZER_ENDS_TEXT);
    encode_text(tokenizer, &d->text, &d->completion);
    ids_append(&d->completion, &end_of_text, 1);
}

/* What was said so far, as the task reads it. */
static struct Completion said_so_far(struct Demonstration *d, const struct Tokenizer *tokenizer) {
    turn_list_make(&d->turns, tokenizer, d->completion.id, d->completion.count, true,
                   &d->exchange);
    int at = d->exchange.at.count;
    bool answered = at > 0 && d->exchange.at.id[at - 1] == d->completion.count;
    return (struct Completion){.example = &d->example, .text = d->turns.whole.bytes,
                               .length = d->turns.whole.length, .ended = true,
                               .turn = d->turns.turn,
                               .num_turns = d->turns.count - answered};   /* no turn began */
}

/* All turns of a task with an environment: what a right completion says, and what it is
   answered. */
static bool demonstrate_turns(struct Demonstration *d, const struct CollectOptions *o,
                              struct Rng *rng) {
    const struct Task *task = o->task;
    struct Completion so_far = {.example = &d->example, .text = "", .ended = true};
    for (int turn = 1;; turn++) {
        text_clear(&d->text);
        if (!task->demonstrate_turn(task, &d->text, &so_far, rng)) return false;
        add_model_turn(d, o->tokenizer);
        so_far = said_so_far(d, o->tokenizer);
        text_clear(&d->text);
        if (turn == task->max_turns || !task->reply(task, &d->text, &so_far)) return true;
        int begin = d->completion.count;
        encode_text(o->tokenizer, &d->text, &d->completion);
        exchange_add(&d->exchange, "tool", d->text.bytes, d->text.length, begin,
                     d->completion.count);
        so_far = said_so_far(d, o->tokenizer);
    }
}

/* A prompt with a random right answer; false: there is none. */
static bool demonstrate(struct Demonstration *d, const struct CollectOptions *o,
                        uint64_t ordinal) {
    struct Rng rng;
    example_draw(&d->example, o->task, o->seed, RNG_DEMONSTRATION, ordinal);
    /* A stream of its own: example_draw used the one whose number has the top bit clear. */
    rng_open(&rng, o->seed, RNG_DEMONSTRATION, ordinal | (uint64_t)1 << 63);
    text_clear(&d->text);
    d->prompt.count = d->completion.count = 0;
    exchange_clear(&d->exchange);
    encode_text(o->tokenizer, &d->example.prompt, &d->prompt);
    if (o->task->demonstrate_turn) return demonstrate_turns(d, o, &rng);
    if (!o->task->demonstrate(o->task, &d->text, &d->example, &rng)) return false;
    add_model_turn(d, o->tokenizer);
    return true;
}

void experience_demonstrate(struct Experience *e, const struct CollectOptions *o, int count,
                            int64_t *ordinal) {
    struct Demonstration d = {.text = {0}};
    struct Lesson lesson = {0};
    experience_clear(e, 1);
    for (int i = 0; i < count; i++, ++*ordinal) {
        if (o->task->teach) {
            lesson.ids.count = lesson.end.count = 0;
            text_clear(&lesson.loss);
            o->task->teach(o->task, &lesson, o->seed, (uint64_t)*ordinal);
            append_lesson(e, &lesson);
        } else if (demonstrate(&d, o, (uint64_t)*ordinal)) {
            experience_append(e, d.prompt.id, d.prompt.count, d.completion.id, d.completion.count,
                              &d.exchange);
        }
    }
    demonstration_free(&d), lesson_free(&lesson);
}

/* ---- rollouts -------------------------------------------------------------------------------- */

/* The rollout's numbers of completion i, without those of an environment's text. */
static void copy_drawn(float *logp, float *entropy, const struct Rollout *rollout, int i) {
    const struct Exchange *exchange = rollout->exchange ? &rollout->exchange[i] : NULL;
    int texts = exchange ? exchange->said.role.count : 0;
    const int *at = texts > 0 ? exchange->at.id : NULL;
    int begin = 0, first = rollout->start[i], length = rollout->start[i + 1] - first;
    for (int k = 0; k <= texts; k++) {
        size_t drawn = (size_t)((k < texts ? at[2 * k] : length) - begin);
        memcpy(logp, rollout->logp + first + begin, drawn * sizeof(float));
        memcpy(entropy, rollout->entropy + first + begin, drawn * sizeof(float));
        logp += drawn, entropy += drawn;
        if (k < texts) begin = at[2 * k + 1];
    }
}

/* Appends group g of the rollout to the experience, with its rewards and texts. */
static void append_group(struct Experience *e, const struct Examples *prompts, int group,
                         const struct Round *round, int g) {
    const struct Rollout *rollout = &e->rollout;
    const struct Text *prompt = &prompts->example[g].prompt;
    for (int i = g * group; i < (g + 1) * group; i++) {
        int begin = rollout->start[i], length = rollout->start[i + 1] - begin, k = e->count;
        int at = experience_append(e, prompts->ids.id + prompts->start[g],
                                   prompts->start[g + 1] - prompts->start[g],
                                   rollout->token + begin, length,
                                   rollout->exchange ? &rollout->exchange[i] : NULL);
        copy_drawn(e->logp + at, e->entropy + at, rollout, i);
        e->ended[k] = rollout->ended[i];
        e->reward[k] = round->reward[i].value;
        text_list_add(&e->prompt, prompt->bytes, prompt->length);
        text_list_add(&e->completion, text_list_at(&round->completion, i),
                      text_list_length(&round->completion, i));
        text_list_add(&e->turns, text_list_at(&round->turns, i),
                      text_list_length(&round->turns, i));
    }
}

/* Removes the last group again. It stays in the statistics (add_group_sums). */
static void drop_last_group(struct Experience *e) {
    e->count -= e->group_size;
    text_list_cut(&e->prompt, e->count);
    text_list_cut(&e->completion, e->count);
    text_list_cut(&e->turns, e->count);
}

/* Adds the last group to the statistics. reward_std and frac_reward_zero_std are sums here, which
   experience_collect divides. Returns true if a completion of the group is scored. */
static bool add_group_sums(struct Experience *e) {
    int first = e->count - e->group_size, scored = 0;
    double sum = 0, square = 0;
    float reference = NAN;
    bool equal = true;
    for (int i = first; i < e->count; i++) {
        scored += !isnan(e->reward[i]);
        e->sum_length += e->length[i];
        e->truncated += !e->ended[i];
    }
    for (int i = first; i < e->count; i++) {
        if (isnan(e->reward[i])) continue;
        if (isnan(reference)) reference = e->reward[i];
        sum += e->reward[i];
        equal &= e->reward[i] == reference;
    }
    for (int i = first; i < e->count; i++)
        if (!isnan(e->reward[i])) square += pow(e->reward[i] - sum / scored, 2);
    for (int t = e->loss_start[first]; t < e->loss_start[e->count]; t++)
        e->sum_entropy += e->entropy[t];
    e->sum_reward += sum;
    e->reward_std += scored > 1 ? sqrt(square / (scored - 1)) : 0;
    e->frac_reward_zero_std += equal;
    e->generated += e->group_size;
    e->scored += scored;
    e->generated_tokens += e->loss_start[e->count] - e->loss_start[first];
    return scored > 0;
}

/* True if the filter drops the last group, because its rewards are all equal. */
static bool last_group_is_flat(const struct Experience *e) {
    unsigned char keep;
    int first = e->count - e->group_size;
    struct RewardBatch batch = {.count = e->group_size, .group_size = e->group_size,
                                .reward = e->reward + first, .length = e->length + first,
                                .ended = e->ended + first};
    return objective_filter_groups(&batch, &keep) == 0;
}

/* Adds all the round's groups to the statistics, and keeps those that the filter lets pass, up to
   the number wanted. Returns how many groups have a scored completion. */
static int take_round(struct Experience *e, const struct CollectOptions *o,
                      const struct Examples *prompts, const struct Round *round) {
    int wanted = o->prompts * o->group, groups_scored = 0;
    const struct Rollout *rollout = &e->rollout;
    e->texts += rollout->texts, e->text_tokens += rollout->text_tokens;
    e->texts_cut += rollout->texts_cut;
    e->preempted += rollout->preempted;
    if (rollout->pages_peak > e->pages_peak) e->pages_peak = rollout->pages_peak;
    for (int g = 0; g < prompts->count; g++) {
        bool full = e->count == wanted;
        append_group(e, prompts, o->group, round, g);
        groups_scored += add_group_sums(e);
        if (full || (o->filter && last_group_is_flat(e))) drop_last_group(e);
    }
    return groups_scored;
}

/* One round: samples, judges and takes completions of the prompts from number `ordinal` on. Returns
   as take_round; -1, and the experience is not to be used: there are none. */
static int collect_round(struct Experience *e, struct Sampler *sampler,
                         const struct Weights *weights, const struct CollectOptions *o,
                         int64_t ordinal, void *workspace) {
    double begin = seconds();
    struct Examples prompts = examples_draw(o->task, o->tokenizer, o->seed, RNG_PROMPT,
                                            (uint64_t)ordinal, o->prompts);
    struct RoundOptions options = {
        .prompts = &prompts, .group = o->group, .max_tokens = o->max_tokens, .seed = o->seed,
        .purpose = RNG_SAMPLE, .temperature = o->temperature, .ends = o->ends, .turns = true,
        .replay = o->replay, .step = o->step, .world = o->world};
    struct Round round;
    double drawn = seconds();
    bool there = round_play(&round, &e->rollout, sampler, weights, &options, workspace);
    double played = seconds();
    int scored = there ? take_round(e, o, &prompts, &round) : -1;
    e->seconds_generate += drawn - begin + round.seconds_generate;
    e->seconds_reward += round.seconds_reward + seconds() - played;
    round_free(&round);
    examples_free(&prompts);
    return scored;
}

bool experience_collect(struct Experience *e, struct Sampler *sampler,
                        const struct Weights *weights, const struct CollectOptions *o,
                        int64_t *ordinal, void *workspace) {
    int wanted = o->prompts * o->group, groups = 0, groups_scored = 0;
    int64_t first = *ordinal;
    experience_clear(e, o->group);
    for (int round = 0; e->count < wanted && round < (o->filter ? o->filter_rounds : 1); round++) {
        int scored = collect_round(e, sampler, weights, o, *ordinal, workspace);
        if (scored < 0) {
            *ordinal = first;
            return false;
        }
        groups_scored += scored;
        groups += o->prompts, *ordinal += o->prompts;
    }
    e->frac_reward_zero_std /= groups;
    e->reward_std /= groups_scored;
    return true;
}

/* ---- views ----------------------------------------------------------------------------------- */

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
                     e->logp_ref, e->logp_scored, e->reward,  e->advantage, e->ended,  e->active,
                     e->length, e->completion_start};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
    text_list_free(&e->prompt);
    text_list_free(&e->completion);
    text_list_free(&e->turns);
    rollout_free(&e->rollout);
    *e = (struct Experience){0};
}
