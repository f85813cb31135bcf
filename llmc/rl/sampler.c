#include "sampler.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "pages.h"
#include "steps.h"

/* The rows of a step: those that draw a token come first, then the prompt tokens that are only
   written to the cache:

       | row 0 | row 1 | ... | row live-1 | prompt a: t0 t1 .. | prompt b: t0 t1 .. |

   A prompt of P tokens has P - 1 entries in its segment. Its last token is the first input of every
   row of the group, stored in the row's own tail, so a row's first step is like all its others. A
   prompt and its rows may enter in one step, because a step writes all keys before it reads any. A
   longer prompt takes several steps.

   Segments are made of pages. When a row needs one and none is free, prompts that no row uses lose
   theirs, then the youngest row leaves. It enters again like a new one, only that its tail up to
   the last token but one is stored first, as prompts are: the same tokens at the same positions, so
   the same bits. The oldest row never leaves, and the pool holds at least one row of the longest
   kind, so there is always progress. */
struct Sampler {
    int rows, slots, max_prompt, max_tokens;
    struct Steps steps;               /* the rows on host and backend */
    int *completion;                  /* [rows] the number of the completion that the row draws */
    int *column;                      /* [rows] the row's number in the steps in flight: rows before
                                         it may have ended since */
    struct Pages pages;
    struct PageTable prompts, tails;  /* by prompt slot and by tail slot, as struct KvCache has */
    bool scarce;                      /* the pool is smaller than all that could be asked for */
    int *free_tails, num_free_tails;  /* [rows] stack of free tail slots */
    int *group_of;                    /* [slots] the prompt that a slot has; -1: none */
    int *stored;                      /* [slots] how many of its entries are, or will be with this
                                         step, in the cache */
    int *users;                       /* [slots] rows that use it, the one that enters included */
    struct Load *loads;               /* [2 rows + 2] what this step stores without drawing */
};

/* Entries [first, end) of a segment, to be stored by one step. */
struct Load {
    int completion;   /* any of the prompt's, or the one whose tail it is */
    int slot, tail;   /* tail: -1 for entries of the prompt */
    int first, end;
};

/* A completion that is no row now, because its environment was asked. */
struct Held {
    int completion, slot;
    int tail;         /* -1: it was put back, and has neither tail nor slot */
    int stored;       /* entries of its tail that are stored */
};

/* One call of sampler_generate. */
struct Generation {
    struct Sampler *sampler;
    const struct RolloutRequest *request;
    struct Rollout *out;
    int next;         /* the first completion that never entered */
    int *back, num_back;   /* [count] stack of completions that were put back */
    struct Held *waiting;  /* [num_waiting] those whose environment has not answered, and */
    struct Held *ready;    /* [num_ready] those that have an answer and kept their tail; [count] */
    int num_waiting, num_ready;
    int entering;     /* the completion that has a slot and a tail, but is not stored so far; -1 */
    int slot, tail;   /* of `entering` */
    int stored;       /* entries of its tail that are stored, or will be with this step */
    int live;         /* rows that draw a token */
    int prefill;      /* rows that only store a token */
    int num_loads;    /* what they are */
};

/* ---- reserve and free ----------------------------------------------------------------------- */

/* A step may store as many tokens of prompts as it has rows, or a whole prompt where that is
   longer; but no more than PREFILL need room, because each takes as much scratch memory as a
   row. */
int sampler_step_rows(const struct Ops *ops, int rows, int max_prompt) {
    enum { PREFILL = 512 };
    int filled = steps_size(ops, rows), stored = max_prompt - 1;
    if (stored > PREFILL) stored = PREFILL;
    int most = rows + (rows > stored ? rows : stored);
    return most > filled ? most : filled;
}

/* How many prompts the cache holds: for the groups that fill the rows, for as many earlier groups
   of which a few rows are not finished, and for the one that is entering. If more would be needed,
   a group waits, which changes no result. */
static int prompt_slots(int rows, int group) {
    int most = 2 * ((rows + group - 1) / group) + 1;
    return most < rows ? most : rows;
}

/* Pages of the longest prompt and of the longest tail. */
static int prompt_width(int max_prompt) { return kv_pages(max_prompt > 1 ? max_prompt - 1 : 1); }
static int tail_width(int max_tokens) { return kv_pages(max_tokens); }

int sampler_least_pages(int max_prompt, int max_tokens) {
    return prompt_width(max_prompt) + tail_width(max_tokens);
}

int64_t sampler_most_pages(int rows, int group, int max_prompt, int max_tokens) {
    return (int64_t)prompt_slots(rows, group) * prompt_width(max_prompt) +
           (int64_t)rows * tail_width(max_tokens);
}

/* The host's side of the cache. */
static void open_tables(struct Sampler *s, const struct CacheSize *size) {
    int rows = s->rows, slots = s->slots;
    pages_open(&s->pages, size->pages);
    page_table_open(&s->prompts, slots, size->prompt_width);
    page_table_open(&s->tails, rows, size->tail_width);
    int **by_row[] = {&s->completion, &s->column, &s->free_tails};
    int **by_slot[] = {&s->group_of, &s->stored, &s->users};
    for (size_t i = 0; i < 3; i++)
        *by_row[i] = check_alloc((size_t)rows, sizeof(int), "the sampler");
    for (size_t i = 0; i < 3; i++)
        *by_slot[i] = check_alloc((size_t)slots, sizeof(int), "the sampler");
    s->loads = check_alloc(2 * (size_t)rows + 2, sizeof *s->loads, "the sampler");
    for (int i = 0; i < rows; i++) s->free_tails[s->num_free_tails++] = i;
    for (int i = 0; i < slots; i++) s->group_of[i] = -1;
}

struct Sampler *sampler_reserve(const struct Model *model, struct Arena *arena, int rows, int group,
                                int max_prompt, int max_tokens, int pages) {
    assert(rows >= 1 && group >= 1 && max_prompt >= 1 && max_tokens >= 1);
    assert(max_prompt + max_tokens - 1 <= model->config.max_T);
    int64_t most = sampler_most_pages(rows, group, max_prompt, max_tokens);
    assert(most <= INT_MAX && pages >= sampler_least_pages(max_prompt, max_tokens));
    struct Sampler *s = check_alloc(1, sizeof *s, "the sampler");
    s->rows = rows, s->slots = prompt_slots(rows, group);
    s->max_prompt = max_prompt, s->max_tokens = max_tokens;
    s->scarce = pages < most;
    struct CacheSize size = {.pages = s->scarce ? pages : (int)most,
                             .prompt_slots = s->slots, .prompt_width = prompt_width(max_prompt),
                             .tail_slots = rows, .tail_width = tail_width(max_tokens)};
    open_tables(s, &size);
    arena->section = ARENA_DECODING;
    steps_reserve(&s->steps, model, arena, sampler_step_rows(model->ops, rows, max_prompt), &size);
    arena->section = ARENA_ALWAYS;
    return s;
}

void sampler_free(struct Sampler *s) {
    if (!s) return;
    steps_free(&s->steps);
    pages_free(&s->pages);
    page_table_free(&s->prompts);
    page_table_free(&s->tails);
    int *arrays[] = {s->completion, s->column, s->free_tails, s->group_of, s->stored, s->users};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
    free(s->loads);
    free(s);
}

/* Training uses the same memory, so the tables are gone too. */
void sampler_load_weights(struct Sampler *s, const struct Weights *weights) {
    decode_load_weights(s->steps.model, s->steps.decode, weights);
    s->prompts.moved = s->tails.moved = true;
}

/* ---- pages ---------------------------------------------------------------------------------- */

/* How many tokens of prompt p are stored in its segment: all but the last. */
static int segment_length(const struct RolloutRequest *request, int p) {
    return request->prompt_start[p + 1] - request->prompt_start[p] - 1;
}

static int drawn_tokens(const struct Generation *g, int completion) {
    return g->out->start[completion + 1];
}

/* The slot that has prompt p, or with p = -1 a free one; -1: none. */
static int slot_of(const struct Sampler *s, int p) {
    for (int slot = 0; slot < s->slots; slot++)
        if (s->group_of[slot] == p) return slot;
    return -1;
}

static void free_slot(struct Sampler *s, int slot) {
    page_table_clear(&s->prompts, &s->pages, slot);
    s->group_of[slot] = -1;
}

/* Takes the pages of a prompt that no row uses, though some of its completions wait; they will
   store it again. Returns false if there is none. */
static bool drop_idle_prompt(struct Sampler *s) {
    for (int slot = 0; slot < s->slots; slot++) {
        if (s->group_of[slot] < 0 || s->users[slot] > 0) continue;
        free_slot(s, slot);
        return true;
    }
    return false;
}

static void free_tail(struct Sampler *s, int tail) {
    page_table_clear(&s->tails, &s->pages, tail);
    s->free_tails[s->num_free_tails++] = tail;
}

/* Frees what a completion has that is no row any more. */
static void let_go(struct Sampler *s, int slot, int tail) {
    free_tail(s, tail);
    s->users[slot]--;
}

/* The completion that enters becomes one that was put back. */
static void stop_entering(struct Generation *g) {
    let_go(g->sampler, g->slot, g->tail);
    g->back[g->num_back++] = g->entering;
    g->entering = -1;
}

/* Puts back the last row, which is the youngest. */
static void put_back_row(struct Generation *g) {
    struct Sampler *s = g->sampler;
    int row = --g->live;
    g->back[g->num_back++] = s->completion[row];
    let_go(s, s->steps.host.prompt_slot[row], s->steps.host.tail_slot[row]);
    g->sampler->steps.changed = true;
    g->out->preempted++;
}

/* Puts back the youngest of those that hold a tail without being rows. False: there is none. */
static bool put_back_held(struct Generation *g) {
    int k = g->num_waiting - 1;
    while (k >= 0 && g->waiting[k].tail < 0) k--;
    if (k < 0 && g->num_ready == 0) return false;
    struct Held *held = k >= 0 ? &g->waiting[k] : &g->ready[--g->num_ready];
    let_go(g->sampler, held->slot, held->tail);
    if (k >= 0) held->tail = -1;
    else g->back[g->num_back++] = held->completion;
    g->out->preempted++;
    return true;
}

/* Gives every live row a page for its next entry, from the oldest row to the youngest. */
static void extend_tails(struct Generation *g) {
    struct Sampler *s = g->sampler;
    for (int row = 0; row < g->live; row++) {
        int tail = s->steps.host.tail_slot[row];
        int count = kv_pages(s->steps.host.position[row] - s->steps.host.prompt_length[row] + 1);
        if (count == s->tails.count[tail]) continue;
        while (row < g->live && !page_table_grow(&s->tails, &s->pages, tail, count)) {
            if (drop_idle_prompt(s)) continue;
            if (g->entering >= 0) stop_entering(g);
            else if (!put_back_held(g)) put_back_row(g);
        }
    }
}

/* ---- rows enter ----------------------------------------------------------------------------- */

/* Makes room for a completion that enters. Where no row is live that could free some, those that
   are held are put back, but not for a completion that has yet to begin: that one waits, too. */
static bool make_room(struct Generation *g, bool has_begun) {
    return drop_idle_prompt(g->sampler) || (has_begun && g->live == 0 && put_back_held(g));
}

/* Pages for a completion that enters, and where they are scarce, for an eighth of the rows, so that
   these find a next page before one must be put back. */
static bool find_pages(struct Generation *g, int needed, bool has_begun) {
    struct Sampler *s = g->sampler;
    if (s->scarce) needed += g->live / 8;
    while (s->pages.num_free < needed)
        if (!make_room(g, has_begun)) return false;
    return true;
}

/* Begins to enter a completion that kept its tail while its environment was asked. */
static bool begin_ready(struct Generation *g) {
    struct Sampler *s = g->sampler;
    struct Held held = g->ready[0];
    int tail = kv_pages(drawn_tokens(g, held.completion) + 1);
    memmove(g->ready, g->ready + 1, (size_t)--g->num_ready * sizeof held);   /* not put back now */
    if (!find_pages(g, tail - s->tails.count[held.tail], true)) {
        memmove(g->ready + 1, g->ready, (size_t)g->num_ready++ * sizeof held);
        g->ready[0] = held;
        return false;
    }
    page_table_grow(&s->tails, &s->pages, held.tail, tail);
    g->entering = held.completion;
    g->slot = held.slot, g->tail = held.tail, g->stored = held.stored;
    return true;
}

/* Begins to enter a completion: it gets a tail, a slot if its prompt has none, and the pages for
   all entries up to the next one. Returns false if there are not enough; then rows are live and
   will free some, for a prompt without rows gives up its slot and pages; or completions wait for
   their environment. */
static bool begin_entering(struct Generation *g, int completion, bool has_begun) {
    struct Sampler *s = g->sampler;
    int p = completion / g->request->group, slot = slot_of(s, p);
    int prompt = kv_pages(segment_length(g->request, p));
    int tail = kv_pages(drawn_tokens(g, completion) + 1);
    assert(segment_length(g->request, p) < s->max_prompt);
    bool has_slot = slot >= 0;
    if (has_slot) s->users[slot]++;   /* so that it is not taken for idle */
    bool room = true;
    while (room && s->num_free_tails == 0)
        room = has_begun && g->live == 0 && put_back_held(g);
    while (room && slot < 0 && (slot = slot_of(s, -1)) < 0) room = make_room(g, has_begun);
    if (!room || !find_pages(g, tail + (has_slot ? 0 : prompt), has_begun)) {
        if (has_slot) s->users[slot]--;
        assert(g->live > 0 || g->num_waiting > 0);
        return false;
    }
    if (!has_slot) {
        s->group_of[slot] = p, s->users[slot] = 1, s->stored[slot] = 0;
        page_table_grow(&s->prompts, &s->pages, slot, prompt);
    }
    g->slot = slot, g->tail = s->free_tails[--s->num_free_tails], g->stored = 0;
    page_table_grow(&s->tails, &s->pages, g->tail, tail);
    g->entering = completion;
    return true;
}

/* Begins to enter the next completion: those that hold a tail first, then those that were put back.
   False: none waits, or there is no room. */
static bool begin_next(struct Generation *g) {
    if (g->num_ready > 0) return begin_ready(g);
    if (g->num_back > 0) {
        if (!begin_entering(g, g->back[g->num_back - 1], true)) return false;
        g->num_back--;
        return true;
    }
    if (g->next == g->out->count || !begin_entering(g, g->next, false)) return false;
    g->next++;
    return true;
}

/* Has this step store entries of a segment, from *stored to `length` as far as it has room. */
static bool load_segment(struct Generation *g, int *stored, int length, int tail) {
    struct Sampler *s = g->sampler;
    int room = s->steps.most - s->rows - g->prefill, count = length - *stored;
    if (count > room) count = room;
    if (count > 0) {
        s->loads[g->num_loads++] =
            (struct Load){g->entering, g->slot, tail, *stored, *stored + count};
        g->prefill += count;
        *stored += count;
    }
    return *stored == length;
}

/* The entering completion becomes a row: its next input is the last token it has. */
static void enter_completion(struct Generation *g) {
    struct Sampler *s = g->sampler;
    const struct RolloutRequest *request = g->request;
    int i = g->entering, p = i / request->group, row = g->live++, drawn = drawn_tokens(g, i);
    size_t at = (size_t)i * (size_t)request->max_tokens + (size_t)drawn;
    s->steps.host.token[row] = drawn ? g->out->token[at - 1]
                               : request->prompt_token[request->prompt_start[p + 1] - 1];
    s->steps.host.prompt_length[row] = segment_length(request, p);
    s->steps.host.position[row] = s->steps.host.prompt_length[row] + drawn;
    s->steps.host.prompt_slot[row] = g->slot;
    s->steps.host.tail_slot[row] = g->tail;
    s->steps.host.ordinal[row] = request->ordinal[p];
    s->steps.host.sample[row] = (uint32_t)(i % request->group);
    s->completion[row] = i;
    g->entering = -1;
}

/* Makes rows from `row` on of the entries of a load. Returns the row after them. */
static int store_load(struct Generation *g, int row, const struct Load *load) {
    struct DecodeRows *host = &g->sampler->steps.host;
    int p = load->completion / g->request->group, length = segment_length(g->request, p);
    const int *prompt = g->request->prompt_token + g->request->prompt_start[p];
    const int *drawn =
        g->out->token + (size_t)load->completion * (size_t)g->request->max_tokens;
    for (int k = load->first; k < load->end; k++, row++) {
        int position = load->tail < 0 ? k : length + k;   /* the tail begins with the last token */
        host->token[row] = position <= length ? prompt[position] : drawn[k - 1];
        host->position[row] = position;
        host->prompt_slot[row] = load->slot;
        host->prompt_length[row] = length;
        host->tail_slot[row] = load->tail < 0 ? 0 : load->tail;
        host->ordinal[row] = host->sample[row] = 0;
    }
    return row;
}

/* Gives the free rows to completions that can go on or begin, and appends the tokens that must be
   stored for them. */
static void enter_rows(struct Generation *g) {
    struct Sampler *s = g->sampler;
    g->prefill = g->num_loads = 0;
    while (g->live < s->rows) {
        if (g->entering < 0 && !begin_next(g)) break;
        int i = g->entering, p = i / g->request->group;
        g->sampler->steps.changed = true;
        if (!load_segment(g, &s->stored[g->slot], segment_length(g->request, p), -1)) break;
        if (!load_segment(g, &g->stored, drawn_tokens(g, i), g->tail)) break;
        enter_completion(g);
    }
    for (int i = 0, row = g->live; i < g->num_loads; i++) row = store_load(g, row, &s->loads[i]);
    g->out->prefill_tokens += g->prefill;
}

/* ---- a step --------------------------------------------------------------------------------- */

/* Uploads the tables in which a segment has got a page. */
static void upload_pages(struct Sampler *s) {
    const int *prompts = s->prompts.moved ? s->prompts.page : NULL;
    const int *tails = s->tails.moved ? s->tails.page : NULL;
    decode_set_pages(s->steps.model, s->steps.decode, prompts, tails);
    s->prompts.moved = s->tails.moved = false;
}

/* Enqueues a step: a token for every live row, and what was loaded. */
static void begin_step(struct Generation *g, const struct Weights *weights, void *workspace) {
    struct Sampler *s = g->sampler;
    for (int row = 0; row < g->live; row++) s->column[row] = row;
    upload_pages(s);
    steps_draw(&s->steps, g->request, weights, g->live, g->prefill, workspace);
    g->out->steps++;
}

/* Gives every live row the page of the entry after the next, if all can have theirs. */
static bool extend_ahead(struct Generation *g) {
    struct Sampler *s = g->sampler;
    const struct DecodeRows *host = &s->steps.host;
    for (int more = 0, row = 0; more < 2; more++, row = 0) {
        int needed = 0;
        for (; row < g->live; row++) {
            int tail = host->tail_slot[row];
            int count = kv_pages(host->position[row] - host->prompt_length[row] + 2);
            if (more) page_table_grow(&s->tails, &s->pages, tail, count);
            else if (count > s->tails.count[tail]) needed += count - s->tails.count[tail];
        }
        if (needed > s->pages.num_free) return false;
    }
    return true;
}

/* Enqueues the step after the one in flight, if the host need not see first what that one draws: no
   row of it ends by its length, and nobody waits for a row that is free. */
static void begin_ahead(struct Generation *g, const struct Weights *weights, void *workspace) {
    struct Sampler *s = g->sampler;
    bool waits = g->entering >= 0 || g->num_ready > 0 || g->num_back > 0 ||
                 g->next < g->out->count;
    if (!s->steps.model->ops->asynchronous || s->steps.changed || s->steps.stores) return;
    if (g->live == 0 || (waits && g->live < s->rows)) return;
    for (int row = 0; row < g->live; row++)
        if (drawn_tokens(g, s->completion[row]) + 1 >= g->request->max_tokens) return;
    if (!extend_ahead(g)) return;
    upload_pages(s);
    steps_draw_ahead(&s->steps, g->request, weights, g->live, workspace);
    g->out->steps++;
}

/* True if completions of prompt p have yet to enter. */
static bool group_waits(const struct Generation *g, int p) {
    int group = g->request->group;
    for (int i = 0; i < g->num_back; i++)
        if (g->back[i] / group == p) return true;
    for (int i = 0; i < g->num_waiting; i++)
        if (g->waiting[i].tail < 0 && g->waiting[i].completion / group == p) return true;
    return g->next < (p + 1) * group;
}

/* Frees the tail of a completion that is finished, and its prompt if it was the last of its
   group. */
static void leave(struct Generation *g, int slot, int tail) {
    struct Sampler *s = g->sampler;
    let_go(s, slot, tail);
    if (s->users[slot] == 0 && !group_waits(g, s->group_of[slot])) free_slot(s, slot);
}

/* ---- the environment ------------------------------------------------------------------------ */

/* Completion i has ended a turn: its environment is asked, if it may say something and there is
   room for it and a next token. The row that drew it waits, and keeps its tail. */
static bool ask_environment(struct Generation *g, int row) {
    struct Sampler *s = g->sampler;
    struct Environment *environment = g->request->environment;
    int i = s->completion[row], length = drawn_tokens(g, i);
    const int *token = g->out->token + (size_t)i * (size_t)g->request->max_tokens;
    if (!environment || length >= g->request->max_tokens) return false;
    if (!environment_ask(environment, i, token, length, &g->out->exchange[i])) return false;
    g->waiting[g->num_waiting++] =   /* the token just drawn is not stored */
        (struct Held){i, s->steps.host.prompt_slot[row], s->steps.host.tail_slot[row], length};
    return true;
}

/* Appends the environment's text to a completion; false: there is no room for it and a next
   token. */
static bool take_text(struct Generation *g, int i, const struct Answer *answer,
                      const struct Ids *ids) {
    struct Rollout *out = g->out;
    int length = drawn_tokens(g, i), end = length + ids->count;
    size_t at = (size_t)i * (size_t)g->request->max_tokens + (size_t)length;
    if (ids->count >= g->request->max_tokens - length) return false;
    for (int k = 0; k < ids->count; k++) {
        out->token[at + (size_t)k] = ids->id[k];
        out->logp[at + (size_t)k] = out->entropy[at + (size_t)k] = 0;
    }
    exchange_add(&out->exchange[i], answer->role, answer->text, answer->length, length, end);
    out->start[i + 1] = end;
    out->ended[i] = 0;
    return true;
}

/* What the environment said about a completion that waits: it is over, or can go on. */
static void take_answer(struct Generation *g, const struct Answer *answer, const struct Ids *ids) {
    int k = 0;
    while (g->waiting[k].completion != answer->number) k++;
    struct Held held = g->waiting[k];
    memmove(g->waiting + k, g->waiting + k + 1, (size_t)(--g->num_waiting - k) * sizeof held);
    if (answer->goes_on && take_text(g, held.completion, answer, ids)) {
        if (held.tail >= 0) g->ready[g->num_ready++] = held;
        else g->back[g->num_back++] = held.completion;
        return;
    }
    if (answer->goes_on) {
        g->out->ended[held.completion] = 0;
        g->out->texts_cut++;
    }
    struct Exchange *exchange = &g->out->exchange[held.completion];
    exchange->judged = !answer->goes_on && answer->judged, exchange->score = answer->score;
    if (held.tail >= 0) leave(g, held.slot, held.tail);
}

/* Takes the answers that have come; with `wait` there is one at least. */
static void take_answers(struct Generation *g, bool wait) {
    struct Answer answer;
    const struct Ids *ids;
    while (g->num_waiting > 0 &&
           environment_answer(g->request->environment, &answer, &ids, wait)) {
        take_answer(g, &answer, ids);
        wait = false;
    }
}

/* ---- what a step leaves --------------------------------------------------------------------- */

/* Moves row `row` to row `to` and makes `token` its next input. */
static void keep_row(struct Sampler *s, int to, int row, int token) {
    struct DecodeRows *host = &s->steps.host;
#define MOVE_FIELD(field) host->field[to] = host->field[row];
    ROW_FIELDS(MOVE_FIELD)
#undef MOVE_FIELD
    s->completion[to] = s->completion[row];
    s->column[to] = s->column[row];
    host->token[to] = token;
    host->position[to]++;
}

/* Stores the tokens of the oldest step in flight and removes finished rows. The others move up and
   keep their order, so that the rows of a group stay next to each other and share their prompt's
   keys in the machine's cache. */
static void store_tokens(struct Generation *g) {
    struct Sampler *s = g->sampler;
    struct Rollout *out = g->out;
    const struct Drawn drawn = steps_read(&s->steps);
    int max_tokens = g->request->max_tokens, kept = 0;
    for (int row = 0; row < g->live; row++) {
        int i = s->completion[row], length = out->start[i + 1]++, column = s->column[row];
        size_t at = (size_t)i * (size_t)max_tokens + (size_t)length;
        int token = out->token[at] = drawn.token[column];
        out->logp[at] = drawn.logp[column];
        out->entropy[at] = drawn.entropy[column];
        out->ended[i] = ends_has(&g->request->ends, token);
        bool over = out->ended[i] || length + 1 == max_tokens;
        if (!over) keep_row(s, kept++, row, token);
        else if (!out->ended[i] || !ask_environment(g, row))
            leave(g, s->steps.host.prompt_slot[row], s->steps.host.tail_slot[row]);
    }
    /* otherwise decode_advance brought them up to date */
    if (kept < g->live || s->steps.stores) s->steps.changed = true;
    g->live = kept;
}

static bool is_unfinished(const struct Generation *g) {
    return g->live > 0 || g->sampler->steps.in_flight > 0 || g->entering >= 0 ||
           g->num_ready > 0 || g->num_waiting > 0 || g->num_back > 0 || g->next < g->out->count;
}

void sampler_generate(struct Sampler *s, const struct Weights *weights,
                      const struct RolloutRequest *request, struct Rollout *out, void *workspace) {
    assert(request->group >= 1);
    assert(request->max_tokens >= 1 && request->max_tokens <= s->max_tokens);
    rollout_clear(out, request);
    struct Generation g = {.sampler = s, .request = request, .out = out, .entering = -1};
    size_t count = (size_t)out->count + 1;
    g.back = check_alloc(count, sizeof *g.back, "the sampler");
    g.waiting = check_alloc(count, sizeof *g.waiting, "the sampler");
    g.ready = check_alloc(count, sizeof *g.ready, "the sampler");
    s->pages.peak = 0;
    while (is_unfinished(&g)) {
        take_answers(&g, false);
        if (s->steps.in_flight == 0) {
            extend_tails(&g);
            enter_rows(&g);
            if (g.live + g.prefill == 0) {   /* all that is left waits */
                take_answers(&g, true);
                continue;
            }
            begin_step(&g, weights, workspace);
        }
        begin_ahead(&g, weights, workspace);
        store_tokens(&g);
    }
    while (drop_idle_prompt(s)) continue;   /* the last of its group may have ended put back */
    free(g.back), free(g.waiting), free(g.ready);
    out->pages_peak = s->pages.peak;
    assert(s->pages.num_free == s->pages.total && s->num_free_tails == s->rows);
    rollout_pack(out, request->max_tokens);
}
