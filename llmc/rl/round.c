#include "round.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "../base/time.h"

/* ---- this rank's piece ----------------------------------------------------------------------- */

/* The examples of a piece; pointers into the whole. */
static struct Examples examples_of(const struct Examples *all, struct Piece piece) {
    struct Examples part = *all;
    part.count = piece.last - piece.first;
    part.example += piece.first, part.start += piece.first, part.ordinal += piece.first;
    return part;
}

static struct RolloutRequest request_of(const struct RoundOptions *o,
                                        const struct Examples *prompts) {
    return (struct RolloutRequest){
        .num_prompts = prompts->count, .group = o->group, .prompt_token = prompts->ids.id,
        .prompt_start = prompts->start, .ordinal = prompts->ordinal, .seed = o->seed,
        .purpose = o->purpose, .temperature = o->temperature, .max_tokens = o->max_tokens,
        .ends = o->ends};
}

/* Samples the piece's completions. Of a replayed file every rank reads the whole step, since the
   lines before its own must be read anyway. */
static bool generate(struct Rollout *rollout, struct Sampler *sampler,
                     const struct Weights *weights, const struct RoundOptions *o,
                     const struct Examples *mine, void *workspace) {
    struct RolloutRequest request = request_of(o, o->replay ? o->prompts : mine);
    if (o->replay)
        return replay_rollout(o->replay, o->step, &request, o->prompts->example,
                              tokenizer_vocab_size(o->prompts->tokenizer), rollout);
    if (mine->count == 0) {
        rollout_clear(rollout, &request);
        return true;
    }
    request.environment = environment_open(mine, o->group);
    sampler_generate(sampler, weights, &request, rollout, workspace);
    environment_close(request.environment);
    return true;
}

/* Judges the piece's completions, which begin at number `first` of the rollout. */
static bool judge(struct Round *out, const struct Rollout *rollout, int first,
                  const struct Examples *mine, const struct RoundOptions *o) {
    size_t count = (size_t)mine->count * (size_t)o->group;
    struct Completed part = rollout_completed(rollout);
    part.start += first, part.ended += first;
    if (part.exchange) part.exchange += first;
    out->reward = check_alloc(count, sizeof *out->reward, "rewards");
    return count == 0 || examples_judge(out->reward, &out->completion,
                                        o->turns ? &out->turns : NULL, mine, o->group, &part);
}

/* ---- as bytes -------------------------------------------------------------------------------- */

/* What a rank's bytes begin with. */
struct PartHead {
    int failed, count, tokens;
    long steps, decoded_tokens, texts, text_tokens, texts_cut, prefill_tokens;
    long pages_peak, preempted;
    double seconds_generate, seconds_reward;
};

static void put(struct Text *out, const void *bytes, size_t n) {
    if (n > 0) text_append(out, bytes, n);
}

static void put_texts(struct Text *out, const struct TextList *list) {
    put(out, &list->count, sizeof list->count);
    for (int i = 0; i < list->count; i++) {
        size_t length = text_list_length(list, i);
        put(out, &length, sizeof length);
        put(out, text_list_at(list, i), length);
    }
}

static void put_exchange(struct Text *out, const struct Exchange *exchange) {
    int judged = exchange->judged;
    put(out, &judged, sizeof judged);
    put(out, &exchange->score, sizeof exchange->score);
    put(out, &exchange->at.count, sizeof exchange->at.count);
    put(out, exchange->at.id, (size_t)exchange->at.count * sizeof(int));
    put_texts(out, &exchange->said.role);
    put_texts(out, &exchange->said.content);
}

/* Completions [first, first + count) of the rollout, and the round's rewards [count] of them. */
static void put_part(struct Text *out, const struct PartHead *head, const struct Round *round,
                     const struct Rollout *rollout, int first) {
    put(out, head, sizeof *head);
    if (head->failed) return;
    size_t count = (size_t)head->count, tokens = (size_t)head->tokens;
    size_t at = (size_t)rollout->start[first];
    for (int i = first; i < first + head->count; i++) {
        int length = rollout->start[i + 1] - rollout->start[i];
        put(out, &length, sizeof length);
    }
    put(out, rollout->token + at, tokens * sizeof *rollout->token);
    put(out, rollout->logp + at, tokens * sizeof *rollout->logp);
    put(out, rollout->entropy + at, tokens * sizeof *rollout->entropy);
    put(out, rollout->ended + first, count);
    put(out, round->reward, count * sizeof *round->reward);
    put_texts(out, &round->completion);
    put_texts(out, &round->turns);
    for (int i = first; i < first + head->count; i++)
        put_exchange(out, &rollout->exchange[i]);
}

/* Reads the bytes of another process of this same program; their end is asserted. */
struct Reader {
    const char *at, *end;
};

static const char *skip(struct Reader *r, size_t n) {
    const char *at = r->at;
    assert(n <= (size_t)(r->end - at));
    r->at += n;
    return at;
}

static void get(struct Reader *r, void *out, size_t n) {
    const char *from = skip(r, n);
    if (n > 0) memcpy(out, from, n);
}

static void get_texts(struct Reader *r, struct TextList *list) {
    int count;
    get(r, &count, sizeof count);
    for (int i = 0; i < count; i++) {
        size_t length;
        get(r, &length, sizeof length);
        text_list_add(list, skip(r, length), length);
    }
}

/* exchange is empty. */
static void get_exchange(struct Reader *r, struct Exchange *exchange) {
    int judged, spans;
    get(r, &judged, sizeof judged);
    exchange->judged = judged;
    get(r, &exchange->score, sizeof exchange->score);
    get(r, &spans, sizeof spans);
    for (int i = 0; i < spans; i++) {
        int at;
        get(r, &at, sizeof at);
        ids_add(&exchange->at, at);
    }
    get_texts(r, &exchange->said.role);
    get_texts(r, &exchange->said.content);
}

/* Appends a rank's part behind the rollout's first *count completions. */
static void get_part(struct Reader *r, const struct PartHead *head, struct Round *round,
                     struct Rollout *rollout, int *count) {
    size_t first = (size_t)*count, n = (size_t)head->count, tokens = (size_t)head->tokens;
    size_t at = (size_t)rollout->start[first];
    *count += head->count;
    for (int i = (int)first; i < *count; i++) {
        int length;
        get(r, &length, sizeof length);
        rollout->start[i + 1] = rollout->start[i] + length;
    }
    get(r, rollout->token + at, tokens * sizeof *rollout->token);
    get(r, rollout->logp + at, tokens * sizeof *rollout->logp);
    get(r, rollout->entropy + at, tokens * sizeof *rollout->entropy);
    get(r, rollout->ended + first, n);
    get(r, round->reward + first, n * sizeof *round->reward);
    get_texts(r, &round->completion);
    get_texts(r, &round->turns);
    for (int i = (int)first; i < *count; i++) get_exchange(r, &rollout->exchange[i]);
}

/* ---- all ranks' ------------------------------------------------------------------------------ */

static struct PartHead head_of(const struct Round *round, const struct Rollout *rollout, int first,
                           int count, bool failed) {
    struct PartHead h = {.failed = failed, .seconds_generate = round->seconds_generate,
                     .seconds_reward = round->seconds_reward};
    if (failed) return h;
    h.count = count, h.tokens = rollout->start[first + count] - rollout->start[first];
    h.steps = rollout->steps, h.prefill_tokens = rollout->prefill_tokens;
    h.texts_cut = rollout->texts_cut;
    h.pages_peak = rollout->pages_peak, h.preempted = rollout->preempted;
    for (int i = first; i < first + count; i++) {
        h.texts += rollout->exchange[i].said.role.count;
        h.text_tokens += exchange_tokens(&rollout->exchange[i]);
    }
    h.decoded_tokens = h.tokens - h.text_tokens;
    return h;
}

static void add_head(struct PartHead *sum, const struct PartHead *h) {
    sum->failed |= h->failed, sum->count += h->count, sum->tokens += h->tokens;
    sum->steps += h->steps, sum->decoded_tokens += h->decoded_tokens;
    sum->texts += h->texts, sum->text_tokens += h->text_tokens, sum->texts_cut += h->texts_cut;
    sum->prefill_tokens += h->prefill_tokens, sum->preempted += h->preempted;
    if (h->pages_peak > sum->pages_peak) sum->pages_peak = h->pages_peak;
    if (h->seconds_generate > sum->seconds_generate) sum->seconds_generate = h->seconds_generate;
    if (h->seconds_reward > sum->seconds_reward) sum->seconds_reward = h->seconds_reward;
}

/* The round and the rollout become all ranks'. False: one of them failed. */
static bool take_parts(struct Round *round, struct Rollout *rollout,
                       const struct Gathered *gathered, int ranks) {
    struct PartHead all = {0}, head;
    int count = 0;
    for (int r = 0; r < ranks; r++) {
        memcpy(&head, gathered->bytes + gathered->start[r], sizeof head);
        add_head(&all, &head);
    }
    round->seconds_generate = all.seconds_generate, round->seconds_reward = all.seconds_reward;
    if (all.failed) return false;
    rollout_reserve(rollout, all.count, (size_t)all.tokens);
    text_list_cut(&round->completion, 0), text_list_cut(&round->turns, 0);
    round->reward = check_realloc(round->reward, (size_t)all.count, sizeof *round->reward,
                                  "rewards");
    for (int r = 0; r < ranks; r++) {
        struct Reader reader = {gathered->bytes + gathered->start[r],
                                gathered->bytes + gathered->start[r + 1]};
        get(&reader, &head, sizeof head);
        get_part(&reader, &head, round, rollout, &count);
    }
    rollout->steps = all.steps, rollout->decoded_tokens = all.decoded_tokens;
    rollout->texts = all.texts, rollout->text_tokens = all.text_tokens;
    rollout->texts_cut = all.texts_cut, rollout->prefill_tokens = all.prefill_tokens;
    rollout->pages_peak = all.pages_peak, rollout->preempted = all.preempted;
    return true;
}

/* Seconds that another rank may be late. */
static double lateness(const struct RoundOptions *o, const struct Round *round,
                       const struct Rollout *rollout, bool failed) {
    enum { SLOWER = 4, IDLE = 3600 };
    const struct Task *task = o->prompts->task;
    int most = o->prompts->count / world_size(o->world) + 1;
    double judging = task->judges_within ? task->judges_within(task, most * o->group) : 0;
    if (failed || rollout->count == 0) return IDLE + judging;
    double longest = (double)rollout->count * o->max_tokens;
    int tokens = rollout->start[rollout->count];
    return SLOWER * round->seconds_generate * longest / (tokens > 0 ? tokens : 1) + judging;
}

/* Exchanges the ranks' parts; first, count: this rank's in the rollout. The same collectives on all
   of them, also on one that failed. */
static bool share(struct Round *round, struct Rollout *rollout, int first, int count, bool failed,
                  const struct RoundOptions *o) {
    struct Text bytes = {0};
    struct Gathered gathered = {0};
    struct PartHead head = head_of(round, rollout, first, count, failed);
    put_part(&bytes, &head, round, rollout, first);
    world_patience(o->world, lateness(o, round, rollout, failed));
    world_gather(o->world, &gathered, bytes.bytes, bytes.length);
    world_patience(o->world, 0);
    text_free(&bytes);
    bool all = take_parts(round, rollout, &gathered, world_size(o->world));
    gathered_free(&gathered);
    return all;
}

bool round_play(struct Round *out, struct Rollout *rollout, struct Sampler *sampler,
                const struct Weights *weights, const struct RoundOptions *o, void *workspace) {
    struct Piece piece = world_piece(o->world, world_rank(o->world), o->prompts->count, NULL);
    struct Examples mine = examples_of(o->prompts, piece);
    int first = o->replay ? piece.first * o->group : 0;
    double begin = seconds();
    *out = (struct Round){.reward = NULL};
    bool there = generate(rollout, sampler, weights, o, &mine, workspace);
    double generated = seconds();
    bool judged = there && judge(out, rollout, first, &mine, o);
    out->seconds_generate = generated - begin;
    out->seconds_reward = seconds() - generated;
    if (world_size(o->world) == 1) return judged;
    return share(out, rollout, first, mine.count * o->group, !judged, o);
}

void round_free(struct Round *round) {
    free(round->reward);
    text_list_free(&round->completion);
    text_list_free(&round->turns);
    *round = (struct Round){.reward = NULL};
}
