/* Text to words: the steps of a pre-tokenizer, one inside the other. Each step cuts what it is
   given and hands the pieces to the next; the last hands them to the caller. A pattern sees one
   piece and nothing around it. */
#include <string.h>
#include "tokenizer_parts.h"

/* What the steps need to know while a text runs through them. */
struct Run {
    struct Splitter *splitter;
    WordFunction word;
    void *context;
};

static bool run_step(const struct Run *run, int step, const char *text, size_t length);

/* A piece that may still grow: what the behaviour joins is handed on together. */
struct Piece {
    bool any, match;
    size_t begin, end;
};

/* Does a piece go with the one that follows it? */
static bool joins(enum SplitBehavior behavior, bool match, bool next_match) {
    switch (behavior) {
    case SPLIT_TO_PREVIOUS: return !match && next_match;
    case SPLIT_TO_NEXT: return match && !next_match;
    case SPLIT_CONTIGUOUS: return match == next_match;
    default: return false;
    }
}

static bool hand_on(const struct Run *run, int step, const char *text, const struct Piece *piece) {
    bool removed = run->splitter->step[step].behavior == SPLIT_REMOVED && piece->match;
    if (!piece->any || removed || piece->begin == piece->end) return true;
    return run_step(run, step + 1, text + piece->begin, piece->end - piece->begin);
}

static bool add_piece(const struct Run *run, int step, const char *text, struct Piece *piece,
                      size_t begin, size_t end, bool match) {
    const struct SplitStep *s = &run->splitter->step[step];
    match = match != s->invert;
    if (piece->any && joins(s->behavior, piece->match, match)) {
        piece->end = end;
        piece->match = match;
        return true;
    }
    struct Piece done = *piece;
    *piece = (struct Piece){true, match, begin, end};
    return hand_on(run, step, text, &done);
}

/* Matches from left to right; an empty one right behind another match does not count. */
static bool split_by_pattern(const struct Run *run, int step, const char *text, size_t length) {
    struct SplitStep *s = &run->splitter->step[step];
    const char *view = pattern_view(text, length, &s->scratch);
    struct Piece piece = {0};
    size_t from = 0, last = 0, begin, end;
    bool matched = false;
    while (from <= length) {
        int found = pattern_find(s->pattern, view, length, from, &begin, &end);
        if (found < 0) return false;
        if (found == 0) break;
        if (begin == end && matched && end == last) {
            from += from < length ? utf8_length(text + from, length - from) : 1;
            continue;
        }
        if (last < begin && !add_piece(run, step, text, &piece, last, begin, false)) return false;
        if (!add_piece(run, step, text, &piece, begin, end, true)) return false;
        from = last = end;
        matched = true;
    }
    if (last < length && !add_piece(run, step, text, &piece, last, length, false)) return false;
    return hand_on(run, step, text, &piece);
}

static bool run_step(const struct Run *run, int step, const char *text, size_t length) {
    if (step == run->splitter->count) return run->word(run->context, text, length);
    struct SplitStep *s = &run->splitter->step[step];
    if (s->kind == SPLIT_PATTERN) return split_by_pattern(run, step, text, length);
    if (s->kind == SPLIT_PREFIX && text[0] == ' ') return run_step(run, step + 1, text, length);
    text_clear(&s->scratch);
    if (s->kind == SPLIT_PREFIX) {
        text_append(&s->scratch, " ", 1);
        text_append(&s->scratch, text, length);
    } else {
        spell_bytes(&s->scratch, text, length);
    }
    return run_step(run, step + 1, s->scratch.bytes, s->scratch.length);
}

bool splitter_run(struct Splitter *splitter, const char *text, size_t length, WordFunction word,
                  void *context) {
    struct Run run = {splitter, word, context};
    return length == 0 || run_step(&run, 0, text, length);
}

void splitter_free(struct Splitter *splitter) {
    for (int i = 0; i < splitter->count; i++) {
        pattern_close(splitter->step[i].pattern);
        text_free(&splitter->step[i].scratch);
    }
}
