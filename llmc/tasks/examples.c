#include "examples.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"

/* ---- the split into training and held-out prompts ------------------------------------------- */

/* splitmix64's output function (Steele, Lea, Flood 2014). */
static uint64_t mix64(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* A hash of the text and the seed, from 0 to 7. Texts that differ in any byte are different:
   `357:22=` may be held out while `735:22=`, the same digits in another order, is not. */
static int text_class(const struct Text *text, uint64_t seed) {
    uint64_t hash = mix64(seed + 0x9E3779B97F4A7C15u);
    for (size_t i = 0; i < text->length; i++)
        hash = mix64(hash + 0x9E3779B97F4A7C15u * (unsigned char)text->bytes[i]);
    return (int)(hash >> 61);
}

static void clear(struct Example *example) {
    text_clear(&example->prompt);
    text_clear(&example->answer);
    text_clear(&example->metadata);
    example->ids.count = 0;
}

static void next(struct Example *example, const struct Task *task, struct Rng *rng) {
    clear(example);
    task->next(task, example, rng);
}

/* The held-out prompts are those with the same text_class as one prompt that the seed draws. So
   there is at least one, however few prompts a task has. */
void example_draw(struct Example *example, const struct Task *task, uint64_t seed,
                  enum RngPurpose purpose, uint64_t ordinal) {
    enum { TRIES = 100000 };   /* as 1 in 8 is held out, a few dozen are nearly always enough */
    struct Rng rng;
    const struct Task *like = task->held_out_like ? task_find(task->held_out_like) : task;
    bool want_held_out = purpose == RNG_EVAL_PROMPT;
    if (task->draw) {
        clear(example);
        example->id = ordinal;
        task->draw(task, example, seed, purpose, ordinal);
        return;
    }
    example->id = 0;
    rng_open(&rng, seed, RNG_EVAL_PROMPT, 0);
    next(example, like, &rng);
    int held_out = text_class(&example->prompt, seed);

    example->id = ordinal;
    rng_open(&rng, seed, purpose, ordinal);
    for (int i = 0; i < TRIES; i++) {
        next(example, task, &rng);
        if ((text_class(&example->prompt, seed) == held_out) == want_held_out) return;
    }
    die_input("task %s: none of %d draws gave a prompt %s; it needs more different prompts",
              task->name, TRIES, want_held_out ? "to hold out" : "that is not held out");
}

void example_free(struct Example *example) {
    text_free(&example->prompt);
    text_free(&example->answer);
    text_free(&example->metadata);
    ids_free(&example->ids);
}

void lesson_free(struct Lesson *lesson) {
    ids_free(&lesson->ids);
    ids_free(&lesson->end);
    text_free(&lesson->loss);
}

/* ---- batches --------------------------------------------------------------------------------- */

void encode_text(const struct Tokenizer *tokenizer, const struct Text *text, struct Ids *ids) {
    if (!tokenizer_encode(tokenizer, text->bytes, text->length, 0, ids))
        die_input("the model's vocabulary has no ids for the text \"%s\"", quote(text->bytes));
}

/* Appends the prompt's ids: its own, or its text's. */
static void add_prompt(const struct Tokenizer *tokenizer, const struct Example *example,
                       struct Ids *ids) {
    if (example->ids.count == 0) encode_text(tokenizer, &example->prompt, ids);
    else ids_append(ids, example->ids.id, example->ids.count);
}

struct Examples examples_draw(const struct Task *task, const struct Tokenizer *tokenizer,
                              uint64_t seed, enum RngPurpose purpose, uint64_t first, int count) {
    size_t n = (size_t)count;
    struct Examples e = {.task = task, .tokenizer = tokenizer, .count = count,
                         .example = check_alloc(n, sizeof *e.example, "prompts"),
                         .start = check_alloc(n + 1, sizeof *e.start, "prompts"),
                         .ordinal = check_alloc(n, sizeof *e.ordinal, "prompts")};
    for (int i = 0; i < count; i++) {
        example_draw(&e.example[i], task, seed, purpose, first + (uint64_t)i);
        add_prompt(tokenizer, &e.example[i], &e.ids);
        e.start[i + 1] = e.ids.count;
        if (e.start[i + 1] == e.start[i]) die_input("task %s: prompt %d is empty", task->name, i);
        e.ordinal[i] = (uint32_t)e.example[i].id;
    }
    return e;
}

void examples_free(struct Examples *e) {
    for (int i = 0; i < e->count; i++) example_free(&e->example[i]);
    free(e->example), free(e->start), free(e->ordinal);
    ids_free(&e->ids);
    *e = (struct Examples){0};
}

/* Completion i, whose turns are in `list`. */
static struct Completion completion_of(const struct Examples *examples, int group,
                                       const struct Completed *c, int i,
                                       const struct TurnList *list) {
    const struct Exchange *exchange = c->exchange ? &c->exchange[i] : NULL;
    bool converses = task_converses(examples->task);
    return (struct Completion){
        .example = &examples->example[i / group], .text = list->whole.bytes,
        .length = list->whole.length, .ended = c->ended[i],
        .tokens = c->start[i + 1] - c->start[i] - exchange_tokens(exchange),
        .turn = converses ? list->turn : NULL, .num_turns = converses ? list->count : 0,
        .final = true, .judged = exchange && exchange->judged,
        .score = exchange ? exchange->score : 0};
}

bool examples_judge(struct Reward *reward, struct TextList *text, struct TextList *turns,
                    const struct Examples *examples, int group, const struct Completed *c) {
    size_t count = (size_t)examples->count * (size_t)group;
    const struct Task *task = examples->task;
    struct Completion *completion = check_alloc(count, sizeof *completion, "completions");
    struct TurnList *list = check_alloc(count, sizeof *list, "completions");
    struct Text json = {0};
    text_list_cut(text, 0);
    if (turns) text_list_cut(turns, 0);
    for (int i = 0; i < (int)count; i++) {
        const struct Exchange *exchange = c->exchange ? &c->exchange[i] : NULL;
        int length = c->start[i + 1] - c->start[i];
        turn_list_make(&list[i], examples->tokenizer, c->token + c->start[i], length, c->ended[i],
                       exchange);
        text_list_add(text, list[i].whole.bytes, list[i].whole.length);
        text_clear(&json);
        if (turns && task_converses(task)) exchange_json(&json, &list[i], exchange, length);
        if (turns) text_list_add(turns, json.bytes, json.length);
        completion[i] = completion_of(examples, group, c, i, &list[i]);
    }
    task->judge(task, reward, completion, (int)count);
    for (int i = 0; i < (int)count; i++) {
        bool failed = completion[i].judged && isnan(completion[i].score);
        if (failed || !isfinite(reward[i].value)) reward[i] = (struct Reward){.value = NAN};
    }
    for (int i = 0; i < (int)count; i++) turn_list_free(&list[i]);
    text_free(&json);
    free(completion), free(list);
    return !task->interrupted || !task->interrupted(task);
}
