#include "scorer.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include "../base/check.h"
#include "../base/console.h"
#include "../base/time.h"
#include "../io/jsonl.h"
#include "scorer_reply.h"
#include "scorer_worker.h"

enum {
    WINDOW = 8,               /* items that a process has in hand at most */
    FLOOD = 8 << 20,          /* bytes without an answer in them, after which it is lost */
    STARTS_TRIED = 3,         /* at the program's start */
};
static const double STOP_WAIT = 2;       /* seconds for a batch when asked to stop */
static const double END_WAIT = 1;        /* seconds that processes have to end by themselves */

/* Lines that are no answers: what scorer_reply finds, and what only the asking knows. */
enum Fault { LINE_TOO_LONG = REPLY_KINDS, LINE_UNASKED, LINE_TWICE, LINE_CONTINUES, FAULT_KINDS };

enum ItemState { WAITING, ASKED, DONE };

struct Item {
    enum ItemState state;
    int slot;                 /* ASKED: of which process */
    int losses, faults;       /* processes that were lost with it; wrong answers */
    const struct Completion *completion;   /* NULL: the request is in `line` */
    struct Text line;         /* without a completion: the request; then, DONE, the text to go on
                                 behind, if there is one (answer.goes_on) */
    bool final;               /* no text is wanted */
    struct Answer answer;     /* DONE */
};

/* A process, or the place of one that is to be started. */
struct Slot {
    struct Worker worker;
    int asked[WINDOW], count; /* items in hand, in the order of asking */
    bool alone;               /* the one in hand was lost before: no other beside it */
    double head_since;        /* since when the first item in hand is that */
    double first_asked;       /* when it got its first item since the start */
    bool answered;            /* ... and has answered one */
    size_t noise;             /* bytes since the last answer */
    int barren;               /* starts in a row without an answer */
    double start_at;          /* not before that time */
    bool was_started;
};

struct Scorer {
    struct ScorerOptions options;
    struct Slot *slot;        /* [options.workers] */
    struct pollfd *poll_for;  /* [3 options.workers] */
    struct Voice voice;
    struct Jsonl request;
    double first_answer;      /* seconds from a start to the answer, the longest; < 0: none yet */
    bool trying;
    struct ScorerCounts counts;
    int64_t faults[FAULT_KINDS], losses;
    int losses_in_a_row;      /* without an answer between */
    bool warned, interrupted;
    /* the batch */
    bool begun, given_up;
    struct ScorerCounts before;         /* when it began */
    struct Item *item;                  /* [num_items], room for `capacity` */
    int num_items, capacity;
    int left, next;                     /* not done; the first that was never asked */
    int *again, again_first, num_again; /* a ring [capacity]: to be asked again, alone */
    int *done, done_first, num_done;    /* [capacity], in the order they were: those that
                                           scorer_answer has yet to give are done_first and on */
    double attended;                    /* when the processes were last looked after */
    int64_t first_id, next_id;
    double stop_seen;         /* 0: not asked to stop */
};

/* ---- words ----------------------------------------------------------------------------------- */

/* The first, the 10th, the 100th ... of something is told. */
static bool is_told(int64_t count) {
    while (count >= 10 && count % 10 == 0) count /= 10;
    return count == 1;
}

static const char *so_far(int64_t count, const char *what) {
    static char text[64];
    snprintf(text, sizeof text, " (%lld %s so far)", (long long)count, what);
    return count > 1 ? text : "";
}

/* A line that is no answer; text NULL: too long to be kept. */
static void note_fault(struct Scorer *s, const struct Worker *w, int fault, const char *text) {
    static const char *const words[FAULT_KINDS] = {
        [REPLY_NOT_JSON] = "a line that is no JSON object (standard output is for answers only)",
        [REPLY_NO_ID] = "an object without the id of an item",
        [REPLY_NO_REWARD] = "an answer whose reward is neither a finite number nor null",
        [LINE_TOO_LONG] = "a line of more than 1 MB",
        [LINE_CONTINUES] = "a text to continue with where a reward is wanted (final, or "
                           "--max-turns 1)",
        [LINE_UNASKED] = "an answer with an id that was never asked",
        [LINE_TWICE] = "an answer for an item that it does not have in hand (a second one?)"};
    s->counts.bad_lines++;
    int64_t count = ++s->faults[fault];
    if (!is_told(count)) return;
    warn("scorer %d wrote %s: \"%s\"%s", w->number, words[fault], text ? quote(text) : "...",
         so_far(count, "such lines"));
}

/* ---- items ----------------------------------------------------------------------------------- */

static void finish(struct Scorer *s, int i, float reward, bool failed) {
    struct Item *item = &s->item[i];
    item->state = DONE;
    item->answer.score = reward;
    s->done[s->num_done++] = i;
    s->left--;
    s->counts.unscored += isnan(reward) && !item->answer.goes_on;
    s->counts.failed += failed;
}

/* It is to go on behind a text. */
static void finish_with_text(struct Scorer *s, int i, const struct Reply *reply) {
    struct Item *item = &s->item[i];
    text_clear(&item->line);
    text_append(&item->line, reply->text, reply->length);
    item->answer.goes_on = true, item->answer.role = reply->role;
    item->answer.text = item->line.bytes, item->answer.length = item->line.length;
    finish(s, i, NAN, false);
}

static void ask_again(struct Scorer *s, int i) {
    s->item[i].state = WAITING;
    s->again[(s->again_first + s->num_again++) % s->capacity] = i;
}

/* The item is not in the process's hands any more. */
static void take_back(struct Slot *slot, int i) {
    int k = 0;
    while (slot->asked[k] != i) k++;
    if (k == 0) slot->head_since = seconds();
    slot->count--;
    memmove(slot->asked + k, slot->asked + k + 1, (size_t)(slot->count - k) * sizeof(int));
    if (slot->count == 0) slot->alone = false;
}

/* What was said in several turns, and whether it may go on. */
static void write_turns(struct Jsonl *line, const struct Completion *c) {
    struct Text list = {0};
    struct Jsonl one = {0};
    text_append(&list, "[", 1);
    for (int i = 0; i < c->num_turns; i++) {
        size_t length;
        jsonl_begin(&one);
        jsonl_string(&one, "role", c->turn[i].role, strlen(c->turn[i].role));
        jsonl_string(&one, "content", c->turn[i].text, c->turn[i].length);
        const char *text = jsonl_line(&one, &length);
        if (i > 0) text_append(&list, ", ", 2);
        text_append(&list, text, length - 1);   /* without its newline */
    }
    text_append(&list, "]", 1);
    jsonl_integer(line, "turn", c->num_turns / 2);
    jsonl_raw(line, "turns", list.bytes, list.length);
    jsonl_boolean(line, "final", c->final);
    jsonl_close(&one);
    text_free(&list);
}

static void write_request(struct Scorer *s, struct Text *out, int i, const struct Completion *c) {
    const struct Example *e = c->example;
    struct Jsonl *line = &s->request;
    size_t length;
    jsonl_begin(line);
    jsonl_integer(line, "id", s->first_id + i);
    jsonl_string(line, "prompt", e->prompt.bytes, e->prompt.length);
    jsonl_string(line, "completion", c->text, c->length);
    jsonl_boolean(line, "ended", c->ended);
    if (e->answer.length > 0) jsonl_string(line, "answer", e->answer.bytes, e->answer.length);
    else jsonl_null(line, "answer");
    if (e->metadata.length > 0) jsonl_raw(line, "metadata", e->metadata.bytes, e->metadata.length);
    else jsonl_raw(line, "metadata", "{}", 2);
    if (c->num_turns > 0) write_turns(line, c);
    const char *text = jsonl_line(line, &length);
    text_append(out, text, length);
}

static void ask(struct Scorer *s, struct Slot *slot, int i) {
    s->item[i].state = ASKED;
    s->item[i].slot = (int)(slot - s->slot);
    if (slot->count == 0) slot->head_since = seconds();
    if (slot->count == 0 && !slot->answered) slot->first_asked = slot->head_since;
    slot->asked[slot->count++] = i;
    const struct Item *item = &s->item[i];
    if (item->completion) write_request(s, &slot->worker.out, i, item->completion);
    else text_append(&slot->worker.out, item->line.bytes, item->line.length);
}

/* May it have another item beside those in hand? Not where the first is late: it may be lost. */
static bool takes_more(const struct Scorer *s, const struct Slot *slot, int window, double now) {
    bool runs = slot->worker.process.pid != 0;
    if (!runs || slot->alone || slot->count >= window) return false;
    return slot->count == 0 || now - slot->head_since < s->options.timeout / 2;
}

/* New items first, to the process with the fewest; towards the end of a batch no process gets more
   than its share. Then those that are asked again, each to a process that has no other. */
static void hand_out(struct Scorer *s) {
    double now = seconds();
    int workers = s->options.workers;
    while (s->next < s->num_items) {
        int window = 1 + (s->trying ? 0 : (s->num_items - s->next) / workers);
        struct Slot *free_one = NULL;
        for (int k = 0; k < workers; k++) {
            struct Slot *slot = &s->slot[k];
            if (!takes_more(s, slot, window < WINDOW ? window : WINDOW, now)) continue;
            if (!free_one || slot->count < free_one->count) free_one = slot;
        }
        if (!free_one) break;
        ask(s, free_one, s->next++);
    }
    for (int k = 0; k < workers && s->num_again > 0; k++) {
        struct Slot *slot = &s->slot[k];
        if (!takes_more(s, slot, 1, now)) continue;
        slot->alone = true;
        ask(s, slot, s->again[s->again_first]);
        s->again_first = (s->again_first + 1) % s->capacity, s->num_again--;
    }
}

/* ---- answers --------------------------------------------------------------------------------- */

static void take_answer(struct Scorer *s, struct Slot *slot, const struct Reply *reply,
                        const char *text) {
    int64_t i = reply->id - s->first_id;
    bool known = i < s->num_items && i >= 0;
    struct Item *item = known ? &s->item[i] : NULL;
    if (!known || item->state != ASKED || item->slot != slot - s->slot) {
        note_fault(s, &slot->worker, reply->id < s->next_id ? LINE_TWICE : LINE_UNASKED, text);
        return;
    }
    double took = seconds() - slot->first_asked;
    if (!slot->answered && took > s->first_answer) s->first_answer = took;
    slot->answered = true;
    slot->noise = 0, slot->barren = 0, s->losses_in_a_row = 0;
    take_back(slot, (int)i);
    bool goes_on = reply->kind == REPLY_CONTINUE, may = !item->final || s->trying;
    if (goes_on && may) {
        finish_with_text(s, (int)i, reply);
        return;
    }
    if (reply->kind != REPLY_NO_REWARD && !goes_on) {
        finish(s, (int)i, reply->reward, false);
        return;
    }
    note_fault(s, &slot->worker, goes_on ? (int)LINE_CONTINUES : (int)REPLY_NO_REWARD, text);
    if (++item->faults < 2 && !s->trying) ask_again(s, (int)i);
    else finish(s, (int)i, NAN, true);
}

static void take_line(void *context, struct Worker *worker, const char *text, size_t length) {
    struct Scorer *s = context;
    struct Slot *slot = &s->slot[worker->number - 1];
    if (!text) {
        note_fault(s, worker, LINE_TOO_LONG, NULL);
        return;
    }
    struct Reply reply = scorer_reply(text, length);
    if (reply.id >= 0) take_answer(s, slot, &reply, text);
    else note_fault(s, worker, (int)reply.kind, text);
}

/* ---- processes that start, and are lost ------------------------------------------------------ */

/* Those that do not run and may be started again. */
static void start_workers(struct Scorer *s) {
    double now = seconds();
    for (int k = 0; k < s->options.workers; k++) {
        struct Slot *slot = &s->slot[k];
        if (slot->worker.process.pid != 0 || slot->start_at > now) continue;
        if (!worker_start(&slot->worker, s->options.command)) {
            if (s->trying) die_machine("cannot start --scorer: %s", strerror(errno));
            s->losses++, s->losses_in_a_row++;
            if (is_told(s->losses)) warn("cannot start --scorer again: %s", strerror(errno));
            slot->start_at = now + 5;
            continue;
        }
        s->counts.restarts += slot->was_started;
        slot->was_started = true;
        slot->answered = false;
        slot->noise = 0;
    }
}

/* At the program's start a command that cannot be run, or only ever ends, is a mistake. */
static void check_start(struct Scorer *s, const struct Slot *slot, int status) {
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    const char *said = slot->worker.last_said;
    if (!s->trying || s->first_answer >= 0) return;
    if (code == 126 || code == 127)
        die_input("--scorer \"%s\": the command %s (exit code %d)%s%s", quote(s->options.command),
                  code == 127 ? "is not found" : "may not be run", code, said[0] ? ": " : "", said);
    if (s->losses + 1 >= STARTS_TRIED)
        die_input("--scorer \"%s\" ends (%s) before it answers a first item, an example with an "
                  "empty completion%s%s", quote(s->options.command), process_status(status),
                  said[0] ? "; it said last: " : "", said);
}

/* How a process was lost. CLOSED: it ended by itself with code 0 after an answer, as one that takes
   only so many items does; that is no item's fault. */
enum Loss { ENDED, CLOSED, USELESS };

/* Puts what it had in hand back. The first item is taken for the one that it was lost with, and
   when it is lost for the second time, alone now, it stays unscored. At the program's start it is
   asked again as long as processes end (check_start), and else is not. */
static void put_back(struct Scorer *s, struct Slot *slot, enum Loss loss) {
    bool only = slot->count == 1;
    for (int k = 0; k < slot->count; k++) {
        struct Item *item = &s->item[slot->asked[k]];
        item->losses += k == 0 && loss != CLOSED;
        bool last = item->losses >= 2 && only;
        if (s->trying && s->first_answer < 0) last = loss == USELESS;
        if (last) finish(s, slot->asked[k], NAN, true);
        else ask_again(s, slot->asked[k]);
    }
    slot->count = 0, slot->alone = false;
}

/* The process is of no use any more. */
static void lose(struct Scorer *s, struct Slot *slot, const char *why, enum Loss loss) {
    int in_hand = slot->count;
    worker_stop(&slot->worker, &s->voice);
    put_back(s, slot, loss);
    slot->barren = slot->answered ? 0 : slot->barren + 1;
    int doublings = slot->barren < 4 ? slot->barren : 4;
    slot->start_at = seconds() + (doublings ? 0.05 * (1 << doublings) : 0);
    s->losses_in_a_row++;
    if (is_told(++s->losses))
        warn("scorer %d %s with %d items in hand: it is started again%s", slot->worker.number, why,
             in_hand, so_far(s->losses, "times"));
}

/* Its shell has ended, or its output is closed, which come together but for a moment. */
static void lose_ended(struct Scorer *s, struct Slot *slot) {
    char why[128];
    int status;
    bool ended = process_ended(&slot->worker.process, &status);
    for (int i = 0; i < 50 && !ended; i++) {
        nanosleep(&(struct timespec){0, 1000000}, NULL);
        ended = process_ended(&slot->worker.process, &status);
    }
    if (!ended) {
        lose(s, slot, "closed its output", USELESS);
        return;
    }
    worker_listen(&slot->worker, &s->voice);
    check_start(s, slot, status);
    snprintf(why, sizeof why, "ended (%s)", process_status(status));
    lose(s, slot, why, status == 0 && slot->answered ? CLOSED : ENDED);
}

/* Seconds that a process may need to start: twice the time of the slowest of them so far. */
static double start_within(const struct Scorer *s) {
    return s->first_answer < 0 ? s->options.start : 2 * s->first_answer + 1;
}

/* Seconds that the first item in hand may take. */
static double patience(const struct Scorer *s, const struct Slot *slot) {
    return s->options.timeout + (slot->answered ? 0 : start_within(s));
}

double scorer_within(const struct Scorer *s, int64_t items) {
    double rounds = 2 * ((double)items / s->options.workers + 1);
    return rounds * (s->options.timeout + start_within(s));
}

/* Takes what it wrote. False: its output is closed. */
static bool read_answers(struct Scorer *s, struct Slot *slot, bool all) {
    size_t got, sum = 0;
    bool open;
    do {
        got = 0;
        open = worker_read(&slot->worker, &got, take_line, s);
        sum += got;
    } while (all && open && got > 0 && sum < FLOOD);
    slot->noise += sum;   /* an answer has set it to 0 */
    return open;
}

/* Reads, writes, and looks whether the process is still of use. */
static void attend(struct Scorer *s, struct Slot *slot) {
    struct Worker *w = &slot->worker;
    int status;
    char why[128];
    if (w->process.pid == 0) return;
    bool ended = process_ended(&w->process, &status);   /* before reading: so nothing is missed */
    worker_listen(w, &s->voice);
    if (!read_answers(s, slot, ended) || ended) {
        lose_ended(s, slot);
    } else if (!worker_write(w)) {
        lose(s, slot, "closed its input", USELESS);
    } else if (slot->noise > FLOOD) {
        lose(s, slot, "wrote 8 MB that are no answer", USELESS);
    } else if (slot->count > 0 && seconds() - slot->head_since > patience(s, slot)) {
        snprintf(why, sizeof why, "gave no answer in %.3g s", patience(s, slot));
        lose(s, slot, why, USELESS);
    }
}

/* ---- a batch --------------------------------------------------------------------------------- */

/* Until a process has something to say or takes more, a tenth of a second at most. */
static void wait_for_workers(struct Scorer *s, bool wait) {
    int n = 0;
    struct pollfd *poll_for = s->poll_for;
    for (int k = 0; k < s->options.workers; k++) {
        const struct Process *p = &s->slot[k].worker.process;
        bool writes = s->slot[k].worker.out.length > 0;
        if (p->pid == 0) continue;
        poll_for[n++] = (struct pollfd){p->out, POLLIN, 0};
        poll_for[n++] = (struct pollfd){p->err, POLLIN, 0};
        if (writes) poll_for[n++] = (struct pollfd){p->in, POLLOUT, 0};
    }
    poll(poll_for, (nfds_t)n, wait ? 100 : 0);   /* EINTR is as good as anything */
}

/* What is not answered yet stays so: the processes that have it in hand are stopped. */
static void give_up(struct Scorer *s, bool failed) {
    for (int k = 0; k < s->options.workers; k++) {
        struct Slot *slot = &s->slot[k];
        if (slot->count == 0) continue;
        worker_stop(&slot->worker, &s->voice);
        slot->count = 0, slot->alone = false;
    }
    for (int i = 0; i < s->num_items; i++)
        if (s->item[i].state != DONE) finish(s, i, NAN, failed);
    s->next = s->num_items, s->num_again = 0;
    s->given_up = true;
}

/* A batch ends early if the program is asked to stop, or if nothing but losses comes. */
static bool is_hopeless(struct Scorer *s) {
    double now = seconds();
    if (s->options.stops && s->options.stops()) {
        if (s->stop_seen == 0) s->stop_seen = now;
        s->interrupted = now - s->stop_seen > STOP_WAIT;
        if (s->interrupted) give_up(s, false);
    }
    if (s->interrupted || s->losses_in_a_row < 2 * s->options.workers + 8) return s->interrupted;
    warn("the scorer was lost %d times without an answer: %d completions of this batch stay "
         "unscored", s->losses_in_a_row, s->left);
    give_up(s, true);
    return true;
}

void scorer_begin(struct Scorer *s) {
    int limit = 2 * s->options.workers + 8;
    if (s->begun) return;
    s->begun = true, s->given_up = false;
    s->before = s->counts;
    s->num_items = s->left = s->next = s->again_first = s->num_again = 0;
    s->done_first = s->num_done = 0;
    s->first_id = s->next_id;
    s->interrupted = false, s->stop_seen = 0;
    s->attended = seconds();
    /* where a batch was given up, the next shows soon whether that is over */
    if (s->losses_in_a_row > limit - 2) s->losses_in_a_row = limit - 2;
}

/* Room for another item. */
static void grow_batch(struct Scorer *s) {
    int capacity = 2 * s->capacity + 64;
    int *again = check_alloc((size_t)capacity, sizeof *again, "items to score");
    for (int i = 0; i < s->num_again; i++)
        again[i] = s->again[(s->again_first + i) % s->capacity];
    free(s->again);
    s->again = again, s->again_first = 0;
    s->done = check_realloc(s->done, (size_t)capacity, sizeof *s->done, "items to score");
    s->item = check_realloc(s->item, (size_t)capacity, sizeof *s->item, "items to score");
    for (int i = s->capacity; i < capacity; i++) s->item[i] = (struct Item){.state = WAITING};
    s->capacity = capacity;
}

/* Adds an item; the completion must stay what it is until the item is done, or its request is made
   now (`keep`). */
static void add_item(struct Scorer *s, const struct Completion *completion, int number,
                     bool keep) {
    if (s->num_items == s->capacity) grow_batch(s);
    int i = s->num_items++;
    struct Item *item = &s->item[i];
    *item = (struct Item){.state = WAITING, .completion = keep ? completion : NULL,
                          .line = item->line, .final = completion->final ||
                                                       completion->num_turns == 0,
                          .answer = {.number = number, .judged = true}};
    text_clear(&item->line);
    if (!keep) write_request(s, &item->line, i, completion);
    s->left++;
    s->next_id++;
    s->counts.items++;
    if (!s->given_up) return;
    finish(s, i, NAN, !s->interrupted);
    s->next = s->num_items;
}

/* Tells it once if most of a batch has no reward. */
static void warn_of_unscored(struct Scorer *s) {
    enum { FEW = 8 };
    const struct ScorerCounts *before = &s->before;
    int64_t items = s->counts.items - before->items;
    int64_t unscored = s->counts.unscored - before->unscored;
    int64_t failed = s->counts.failed - before->failed;
    if (s->warned || s->interrupted || items < FEW || 2 * unscored <= items) return;
    s->warned = true;
    warn("%lld of %lld completions have no reward: the scorer said null for %lld, and gave no "
         "valid answer for %lld; they are not learnt from (said once; see scorer/unscored)",
         (long long)unscored, (long long)items, (long long)(unscored - failed), (long long)failed);
}

/* Time in which nobody looked after the processes is not theirs. */
static void forgive_absence(struct Scorer *s) {
    double now = seconds(), away = now - s->attended;
    for (int k = 0; k < s->options.workers && away > 0.2; k++)
        s->slot[k].head_since += away, s->slot[k].first_asked += away;
    s->attended = now;
}

/* Does what there is to do for the processes; with `wait` not before one has something to say, but
   for a tenth of a second at most. */
static void serve(struct Scorer *s, bool wait) {
    forgive_absence(s);
    if (s->left == 0 || is_hopeless(s)) return;
    start_workers(s);
    hand_out(s);
    for (int k = 0; k < s->options.workers; k++) worker_write(&s->slot[k].worker);
    wait_for_workers(s, wait);
    for (int k = 0; k < s->options.workers; k++) attend(s, &s->slot[k]);
    hand_out(s);   /* to those that have answered */
    for (int k = 0; k < s->options.workers; k++) worker_write(&s->slot[k].worker);
    s->attended = seconds();
}

void scorer_ask(struct Scorer *s, const struct Completion *completion, int number) {
    add_item(s, completion, number, false);
}

bool scorer_answer(struct Scorer *s, struct Answer *answer, bool wait) {
    serve(s, false);
    while (wait && s->done_first == s->num_done && s->left > 0) serve(s, true);
    if (s->done_first == s->num_done) return false;
    *answer = s->item[s->done[s->done_first++]].answer;
    return true;
}

void scorer_score(struct Scorer *s, float *reward, const struct Completion *completion, int count) {
    struct Answer answer;
    /* what a conversation before it took counts with it */
    struct ScorerCounts before = s->begun ? s->before : s->counts;
    if (!s->begun || !s->interrupted) s->begun = false;
    scorer_begin(s);
    s->before = before;
    for (int i = 0; i < count; i++) {
        reward[i] = completion[i].score;
        if (!completion[i].judged) add_item(s, &completion[i], i, true);
    }
    while (scorer_answer(s, &answer, true)) reward[answer.number] = answer.score;
    s->begun = false;
    if (!s->trying) warn_of_unscored(s);
}

/* ---- the whole ------------------------------------------------------------------------------- */

struct Scorer *scorer_open(const struct ScorerOptions *options) {
    struct Scorer *s = check_alloc(1, sizeof *s, "a scorer");
    s->options = *options;
    s->first_answer = -1;
    s->slot = check_alloc((size_t)options->workers, sizeof *s->slot, "a scorer");
    s->poll_for = check_alloc(3 * (size_t)options->workers, sizeof *s->poll_for, "a scorer");
    for (int k = 0; k < options->workers; k++) s->slot[k].worker.number = k + 1;
    return s;
}

void scorer_try(struct Scorer *s, const struct Example *example) {
    int n = s->options.workers;
    double begin = seconds();
    struct Completion *completion = check_alloc((size_t)n, sizeof *completion, "a scorer");
    float *reward = check_alloc((size_t)n, sizeof *reward, "a scorer");
    for (int i = 0; i < n; i++)
        completion[i] = (struct Completion){.example = example, .text = "", .ended = true};
    s->trying = true;
    scorer_score(s, reward, completion, n);
    s->trying = false;
    s->counts = (struct ScorerCounts){0};
    if (s->first_answer >= 0)
        say("scorer    %d processes: first answers after %.2f s", n, seconds() - begin);
    else if (!s->interrupted)
        warn("the scorer gave no valid answer to a first item in %.0f s; it must write a line for "
             "each that it reads, and flush it (Python: print(..., flush=True))",
             seconds() - begin);
    free(completion), free(reward);
}

static void drop_line(void *context, struct Worker *worker, const char *text, size_t length) {
    (void)context, (void)worker, (void)text, (void)length;
}

/* Those that run are asked to end, and have a second for it. */
static void end_workers(struct Scorer *s) {
    double begin = seconds();
    int running = 1;
    for (int k = 0; k < s->options.workers; k++) process_close_input(&s->slot[k].worker.process);
    while (running > 0 && seconds() - begin < END_WAIT) {
        running = 0;
        for (int k = 0; k < s->options.workers; k++) {
            struct Worker *w = &s->slot[k].worker;
            size_t bytes = 0;
            int status;
            if (w->process.pid == 0 || process_ended(&w->process, &status)) continue;
            running++;
            worker_listen(w, &s->voice);   /* so that it is not blocked */
            worker_read(w, &bytes, drop_line, NULL);
        }
        if (running > 0) nanosleep(&(struct timespec){0, 2000000}, NULL);
    }
    for (int k = 0; k < s->options.workers; k++) worker_stop(&s->slot[k].worker, &s->voice);
}

void scorer_close(struct Scorer *s) {
    if (!s) return;
    end_workers(s);
    process_dismiss_guard();
    for (int k = 0; k < s->options.workers; k++) worker_free(&s->slot[k].worker);
    jsonl_close(&s->request);
    for (int i = 0; i < s->capacity; i++) text_free(&s->item[i].line);
    free(s->item), free(s->again), free(s->done);
    free(s->poll_for), free(s->slot), free(s);
}

bool scorer_interrupted(const struct Scorer *s) { return s->interrupted; }

struct ScorerCounts scorer_counts(const struct Scorer *s) {
    return s ? s->counts : (struct ScorerCounts){0};
}

struct ScorerCounts scorer_counts_since(const struct Scorer *s, const struct ScorerCounts *before) {
    struct ScorerCounts now = scorer_counts(s);
    return (struct ScorerCounts){now.items - before->items, now.unscored - before->unscored,
                                 now.failed - before->failed, now.restarts - before->restarts,
                                 now.bad_lines - before->bad_lines};
}
