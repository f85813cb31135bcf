/* address_book: a small stateful tool task in the manner of AppWorld (Trivedi et al. 2024,
   arXiv:2407.18901). The model is asked for a change to a book of names and numbers that it does
   not see, and makes it by calls, a turn each. What counts is the book at the end: the change is
   made, and nothing else is.

       prompt   ab:47=    ab has number 47, whether it was in the book or not
                ab:cd=    cd has the number of ab
                ab-=      ab is not in the book
       call     ab=       find: its number, or -
                +ab47     add; fails if ab is there
                *ab47     change; fails if ab is not there
                -ab       delete; likewise
       answer   + done, - failed, : not understood
       (empty)            the model is done                                                    */
#include <string.h>
#include "task.h"

enum { NAMES = 64, ENTRIES = 5 };   /* two letters a-h; how many a book begins with */

/* number[name]: 0 to 99, or -1 where the name is not in the book. */
struct Book {
    int number[NAMES];
};

static int read_name(const char *text) {
    for (int i = 0; i < 2; i++)
        if (text[i] < 'a' || text[i] > 'h') return -1;
    return 8 * (text[0] - 'a') + text[1] - 'a';
}

static int read_two_digits(const char *text) {
    for (int i = 0; i < 2; i++)
        if (text[i] < '0' || text[i] > '9') return -1;
    return 10 * (text[0] - '0') + text[1] - '0';
}

static void write_name(struct Text *out, int name) {
    text_format(out, "%c%c", 'a' + name / 8, 'a' + name % 8);
}

/* ---- the example: a prompt, and the book in its metadata ------------------------------------- */

static const char before_book[] = "{\"book\": \"";

/* The book of an example: ab12cd34... in its metadata. */
static struct Book read_book(const struct Example *example) {
    struct Book book;
    const char *at = example->metadata.bytes;
    for (int i = 0; i < NAMES; i++) book.number[i] = -1;
    if (!at || strncmp(at, before_book, sizeof before_book - 1) != 0) return book;
    for (at += sizeof before_book - 1; strcspn(at, "\"}") >= 4; at += 4)
        if (read_name(at) >= 0) book.number[read_name(at)] = read_two_digits(at + 2);
    return book;
}

static void write_book(struct Text *out, const int *name, const int *number) {
    text_format(out, "%s", before_book);
    for (int i = 0; i < ENTRIES; i++) {
        write_name(out, name[i]);
        text_format(out, "%02d", number[i]);
    }
    text_format(out, "\"}");
}

/* A name that is in the book, or one that most likely is not. */
static int draw_name(struct Rng *rng, const int *name, bool known) {
    return known ? name[rng_below(rng, ENTRIES)] : (int)rng_below(rng, NAMES);
}

static void next(const struct Task *task, struct Example *example, struct Rng *rng) {
    (void)task;
    int name[NAMES], number[ENTRIES], kind = (int)rng_below(rng, 5);
    for (int i = 0; i < NAMES; i++) name[i] = i;
    rng_shuffle(rng, name, NAMES);
    for (int i = 0; i < ENTRIES; i++) number[i] = (int)rng_below(rng, 100);
    write_book(&example->metadata, name, number);
    bool known = rng_below(rng, 2);
    int about = draw_name(rng, name, kind > 1 || known);   /* who is copied is in the book */
    int to = draw_name(rng, name, known);
    write_name(&example->prompt, about);
    if (kind < 2) {
        text_format(&example->prompt, ":%02d=", (int)rng_below(rng, 100));
    } else if (kind < 4) {
        text_append(&example->prompt, ":", 1);
        write_name(&example->prompt, to);
        text_append(&example->prompt, "=", 1);
    } else {
        text_append(&example->prompt, "-=", 2);
    }
}

/* ---- calls ----------------------------------------------------------------------------------- */

/* Carries a turn out and appends the answer. False: it is no call. */
static bool call(struct Text *answer, struct Book *book, const struct Turn *turn) {
    const char *t = turn->text;
    int name = turn->length >= 3 ? read_name(t + (t[2] != '=')) : -1;
    bool sets = turn->length == 5 && (t[0] == '+' || t[0] == '*');
    bool finds = turn->length == 3 && t[2] == '=', deletes = turn->length == 3 && t[0] == '-';
    int number = sets ? read_two_digits(t + 3) : -1;
    if (name < 0 || !(finds || deletes || (sets && number >= 0))) {
        text_append(answer, ":", 1);
        return turn->length > 0;
    }
    bool there = book->number[name] >= 0;
    if (finds) {
        if (there) text_format(answer, "%02d", book->number[name]);
        else text_append(answer, "-", 1);
        return true;
    }
    bool done = t[0] == '+' ? !there : there;
    if (done) book->number[name] = number;   /* -1 where it is deleted */
    text_append(answer, done ? "+" : "-", 1);
    return true;
}

/* The book after the model's turns. */
static struct Book book_after(const struct Completion *c) {
    struct Book book = read_book(c->example);
    struct Text ignored = {0};
    for (int i = 0; i < c->num_turns; i += 2) {
        text_clear(&ignored);
        call(&ignored, &book, &c->turn[i]);
    }
    text_free(&ignored);
    return book;
}

/* What is asked for; name -1: the prompt is none of this task's. */
struct Wish {
    int name, number;        /* -1: deleted */
    int source;              /* whose number it is, or -1: the prompt says it */
};

static struct Wish read_wish(const struct Example *example, const struct Book *before) {
    const struct Text *prompt = &example->prompt;
    const char *t = prompt->bytes;
    struct Wish wish = {-1, -1, -1};
    if (prompt->length == 4 && t[2] == '-') wish.name = read_name(t);
    if (prompt->length != 6 || t[2] != ':') return wish;
    if (read_two_digits(t + 3) >= 0)
        return (struct Wish){read_name(t), read_two_digits(t + 3), -1};
    int source = read_name(t), name = read_name(t + 3);
    if (source >= 0 && name >= 0) wish = (struct Wish){name, before->number[source], source};
    return wish;
}

static bool reply(const struct Task *task, struct Text *text, const struct Completion *c) {
    struct Completion before = *c;
    (void)task;
    before.num_turns--;
    struct Book book = book_after(&before);
    return call(text, &book, &c->turn[c->num_turns - 1]);
}

static bool is_right(const struct Completion *c) {
    struct Book book = read_book(c->example), after = book_after(c);
    struct Wish wish = read_wish(c->example, &book);
    if (!c->ended || wish.name < 0) return false;
    book.number[wish.name] = wish.number;
    return memcmp(&book, &after, sizeof book) == 0;
}

static void judge(const struct Task *task, struct Reward *reward,
                  const struct Completion *completion, int count) {
    (void)task;
    for (int i = 0; i < count; i++) {
        bool right = is_right(&completion[i]);
        reward[i] = (struct Reward){.value = right, .right = right};
    }
}

/* ---- demonstrations -------------------------------------------------------------------------- */

/* The next call of one who does not know the book: finds whose number is to be copied, then finds
   the name to see whether to add or to change it, or just adds it, and changes it where that
   failed. */
static bool demonstrate(const struct Task *task, struct Text *text, const struct Completion *so_far,
                        struct Rng *rng) {
    struct Book before = read_book(so_far->example), now = book_after(so_far);
    struct Wish wish = read_wish(so_far->example, &before);
    int calls = so_far->num_turns / 2, copies = wish.source >= 0;
    (void)task;
    if (wish.name < 0) return false;
    before.number[wish.name] = wish.number;
    if (calls > 0 && memcmp(&before, &now, sizeof now) == 0 && (wish.number < 0 || calls > copies))
        return true;   /* an empty turn: done */
    bool deletes = wish.number < 0, first = calls == copies;
    if (calls < copies || (!deletes && first && rng_below(rng, 2) == 0)) {
        write_name(text, calls < copies ? wish.source : wish.name);
        text_append(text, "=", 1);
        return true;
    }
    bool adds = first || now.number[wish.name] < 0;
    text_append(text, deletes ? "-" : adds ? "+" : "*", 1);
    write_name(text, wish.name);
    if (!deletes) text_format(text, "%02d", wish.number);
    return true;
}

/* max_completion: ab= 47 +cd47 - *cd47 + and an empty turn, with the ends of four turns, times 5/4
   as elsewhere. */
const struct Task address_book_task = {
    .name = "address_book", .help = "ab:47= to calls that give ab number 47: ab= +ab47 *ab47 -ab",
    .alphabet = shared_alphabet, .max_prompt = 6, .max_completion = 27, .max_turns = 6,
    .next = next, .judge = judge, .reply = reply, .demonstrate_turn = demonstrate};
