#include "environment.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "../io/jsonl.h"
#include "examples.h"

/* ---- what was said --------------------------------------------------------------------------- */

void exchange_clear(struct Exchange *e) {
    turns_clear(&e->said);
    e->at.count = 0;
    e->judged = false, e->score = 0;
}

void exchange_free(struct Exchange *e) {
    turns_free(&e->said);
    ids_free(&e->at);
}

void exchange_add(struct Exchange *e, const char *role, const char *text, size_t length, int begin,
                  int end) {
    turns_add(&e->said, role, text, length);
    ids_add(&e->at, begin), ids_add(&e->at, end);
}

int exchange_tokens(const struct Exchange *e) {
    int tokens = 0;
    for (int k = 0; e && k < e->said.role.count; k++)
        tokens += e->at.id[2 * k + 1] - e->at.id[2 * k];
    return tokens;
}

void exchange_mask(unsigned char *mask, int count, const struct Exchange *e) {
    memset(mask, 1, (size_t)count);
    for (int k = 0; e && k < e->said.role.count; k++)
        memset(mask + e->at.id[2 * k], 0, (size_t)(e->at.id[2 * k + 1] - e->at.id[2 * k]));
}

/* ---- turns as texts -------------------------------------------------------------------------- */

void turn_list_free(struct TurnList *list) {
    free(list->turn);
    text_list_free(&list->texts);
    text_free(&list->whole);
    *list = (struct TurnList){0};
}

static void add_turn(struct TurnList *list, const char *role, const char *text, size_t length) {
    if (list->count == list->capacity) {
        list->capacity = 2 * list->capacity + 4;
        list->turn = check_realloc(list->turn, (size_t)list->capacity, sizeof *list->turn, "turns");
    }
    list->turn[list->count++] = (struct Turn){role, text, length};
    text_append(&list->whole, text, length);
}

/* The model's texts first, so that they do not move any more when the turns point to them. */
static void decode_turns(struct TurnList *list, const struct Tokenizer *tokenizer,
                         const int *token, int count, bool ended, const struct Exchange *e) {
    struct Text text = {0};
    int said = e ? e->said.role.count : 0;
    text_list_cut(&list->texts, 0);
    for (int k = 0, begin = 0; k <= said; k++) {
        bool last = k == said;
        int end = last ? count : e->at.id[2 * k], closed = last ? ended : 1;
        text_clear(&text);
        if (end - closed > begin)
            tokenizer_decode(tokenizer, token + begin, end - closed - begin, TOKENIZER_PLAIN,
                             &text);
        text_list_add(&list->texts, text.bytes, text.length);
        if (!last) begin = e->at.id[2 * k + 1];
    }
    text_free(&text);
}

void turn_list_make(struct TurnList *list, const struct Tokenizer *tokenizer, const int *token,
                    int count, bool ended, const struct Exchange *e) {
    int said = e ? e->said.role.count : 0;
    decode_turns(list, tokenizer, token, count, ended, e);
    list->count = 0;
    text_clear(&list->whole);
    for (int k = 0; k <= said; k++) {
        add_turn(list, "assistant", text_list_at(&list->texts, k),
                 text_list_length(&list->texts, k));
        if (k < said)
            add_turn(list, text_list_at(&e->said.role, k), text_list_at(&e->said.content, k),
                     text_list_length(&e->said.content, k));
    }
}

void exchange_json(struct Text *out, const struct TurnList *turns, const struct Exchange *e,
                   int count) {
    struct Jsonl line = {0};
    text_append(out, "[", 1);
    for (int i = 0, begin = 0; i < turns->count; i++) {
        const struct Turn *turn = &turns->turn[i];
        int border = i < turns->count - 1 ? e->at.id[i] : count;   /* begins and ends by turns */
        size_t length;
        jsonl_begin(&line);
        jsonl_string(&line, "role", turn->role, strlen(turn->role));
        jsonl_string(&line, "content", turn->text, turn->length);
        jsonl_integer(&line, "tokens", border - begin);
        const char *text = jsonl_line(&line, &length);
        if (i > 0) text_append(out, ", ", 2);
        text_append(out, text, length - 1);
        begin = border;
    }
    text_append(out, "]", 1);
    jsonl_close(&line);
}

/* ---- asking ---------------------------------------------------------------------------------- */

/* An answer of an environment that gives it at once. */
struct Pending {
    int number;
    bool goes_on;
    struct Text text;
};

struct Environment {
    const struct Examples *examples;
    int group;
    struct TurnList turns;
    struct Pending *pending;         /* a ring of answers: [first], [first + 1] ... are there */
    int first, count, capacity;
    struct Text text;                /* of the last answer */
    struct Ids ids;
};

struct Environment *environment_open(const struct Examples *examples, int group) {
    if (!task_converses(examples->task)) return NULL;
    struct Environment *e = check_alloc(1, sizeof *e, "an environment");
    e->examples = examples, e->group = group;
    return e;
}

void environment_close(struct Environment *e) {
    if (!e) return;
    for (int i = 0; i < e->capacity; i++) text_free(&e->pending[i].text);
    free(e->pending);
    turn_list_free(&e->turns);
    text_free(&e->text);
    ids_free(&e->ids);
    free(e);
}

/* Room at the end of the ring. */
static struct Pending *new_pending(struct Environment *e) {
    if (e->count == e->capacity) {
        int capacity = 2 * e->capacity + 16;
        struct Pending *wider = check_alloc((size_t)capacity, sizeof *wider, "an environment");
        for (int i = 0; i < e->count; i++) wider[i] = e->pending[(e->first + i) % e->capacity];
        free(e->pending);
        e->pending = wider, e->first = 0, e->capacity = capacity;
    }
    return &e->pending[(e->first + e->count++) % e->capacity];
}

bool environment_ask(struct Environment *e, int number, const int *token, int count,
                     const struct Exchange *exchange) {
    const struct Task *task = e->examples->task;
    if (exchange->said.role.count + 1 >= task->max_turns) return false;
    turn_list_make(&e->turns, e->examples->tokenizer, token, count, true, exchange);
    struct Completion completion = {
        .example = &e->examples->example[number / e->group], .text = e->turns.whole.bytes,
        .length = e->turns.whole.length, .ended = true,
        .tokens = count - exchange_tokens(exchange), .turn = e->turns.turn,
        .num_turns = e->turns.count};
    if (task->ask) {
        task->ask(task, &completion, number);
        return true;
    }
    struct Pending *pending = new_pending(e);
    pending->number = number;
    text_clear(&pending->text);
    pending->goes_on = task->reply(task, &pending->text, &completion);
    return true;
}

/* The next of the answers that were given at once. There is no score: judge gives the reward. */
static bool take_pending(struct Environment *e, struct Answer *answer) {
    if (e->count == 0) return false;
    struct Pending *pending = &e->pending[e->first];
    e->first = (e->first + 1) % e->capacity, e->count--;
    text_clear(&e->text);
    text_append(&e->text, pending->text.bytes, pending->text.length);
    *answer = (struct Answer){.number = pending->number, .goes_on = pending->goes_on,
                              .role = "tool", .text = e->text.bytes, .length = e->text.length};
    return true;
}

/* A text for which there are no ids is a failure of the environment: the completion is over. */
bool environment_answer(struct Environment *e, struct Answer *answer, const struct Ids **ids,
                        bool wait) {
    const struct Task *task = e->examples->task;
    bool there = task->answer ? task->answer(task, answer, wait) : take_pending(e, answer);
    if (!there) return false;
    e->ids.count = 0;
    *ids = &e->ids;
    if (!answer->goes_on) return true;
    bool known = task->wrap
                     ? task->wrap(task, &e->ids, answer->role, answer->text, answer->length)
                     : tokenizer_encode(e->examples->tokenizer, answer->text, answer->length, 0,
                                        &e->ids);
    if (!known) answer->goes_on = false, answer->judged = true, answer->score = NAN;
    return true;
}
