/* What is done once for a data file, at start: the form of prompts, which are held out, how long
   they are, what judges their completions. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "../base/console.h"
#include "data_parts.h"
#include "examples.h"

/* How much of a file is looked through for what is held out; and up to which size every prompt is
   made into tokens. */
#define SURVEY_BYTES ((int64_t)64 << 20)
#define TOKENS_BYTES ((int64_t)8 << 20)

const char data_alphabet[] =
    "\n\t !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`"
    "abcdefghijklmnopqrstuvwxyz{|}~";

/* Where a prompt stands. */
struct Place {
    uint64_t hash;
    int64_t offset, line;
};

struct Survey {
    const char *path;
    bool evaluation;                 /* the file of --eval-data: all of it is held out */
    double share;
    struct Place *place;             /* what may be held out */
    size_t count, capacity;
    struct Place least;              /* the one with the smallest hash */
    bool several;                    /* there are different hashes */
    int64_t places;                  /* lines that they are of */
    int64_t lines, prompts, answers, lessons;
    int shortest, longest;           /* tokens, where they were counted */
    bool over;                       /* the file was longer than was looked at */
    struct Text first_answer;
};

static void add_place(struct Survey *s, struct Place place) {
    if (s->count == s->capacity) {
        s->capacity = 2 * s->capacity + 256;
        s->place = check_realloc(s->place, s->capacity, sizeof *s->place, "held-out prompts");
    }
    s->place[s->count++] = place;
}

/* Prompts whose hashes are below `share` of all. (A share of 1 is not allowed.) */
static uint64_t share_threshold(double share) { return (uint64_t)ldexp(share, 64) - 1; }

/* The template's placeholders must be among the first line's keys: else it is the template that is
   wrong, or the file. */
static void check_template(struct Data *d, const struct Survey *s, int64_t line) {
    struct Text filled = {0}, keys = {0};
    const char *missing = d->template ? template_fill(&filled, d->template, &d->record) : NULL;
    record_keys(&keys, &d->record);
    if (missing)
        die_input("--prompt-template %s: {%s} is no key of %s:%lld; its keys are %s",
                  d->options.template_path, quote(missing), s->path, (long long)line, keys.bytes);
    text_free(&filled), text_free(&keys);
}

/* Counts the prompt's tokens; false: they are too many, or there are none for it. */
static bool count_tokens(struct Data *d, struct Survey *s, int64_t line) {
    struct Example example = {0};
    const char *problem = data_example(d, &example);
    int tokens = example.ids.count;
    example_free(&example);
    if (problem) data_note(d, FAULT_BAD, s->path, line, problem);
    else if (tokens > d->max_prompt) data_note(d, FAULT_LONG, s->path, line,
                                               data_too_long(d, tokens));
    if (problem || tokens > d->max_prompt) return false;
    if (s->prompts == 0 || tokens < s->shortest) s->shortest = tokens;
    if (s->prompts == 0 || tokens > s->longest) s->longest = tokens;
    return true;
}

/* Notes a line that may be held out. */
static void note_place(struct Survey *s, struct Place place) {
    bool first = s->places++ == 0;
    if (!first && place.hash != s->least.hash) s->several = true;
    if (first || place.hash < s->least.hash) s->least = place;
    if (s->evaluation || (s->share > 0 && place.hash <= share_threshold(s->share)))
        add_place(s, place);
}

static void note_prompt(struct Survey *s, const struct Line *line, const struct Record *record) {
    s->prompts++;
    if (line->answer && s->answers++ == 0 && record->answer) {
        text_clear(&s->first_answer);
        record_text(&s->first_answer, record, record->answer);
    }
}

/* Goes through a file. */
static void survey_file(struct Data *d, struct Survey *s, struct LineReader *reader) {
    bool checked = false;
    line_reader_seek(reader, 0, 0);
    while (reader->offset < SURVEY_BYTES && line_reader_next(reader)) {
        struct Line line;
        struct Place place = {.offset = reader->begin, .line = reader->line};
        const char *text = reader->text.bytes, *problem = NULL;
        if (reader->too_long) problem = "is longer than 16 MB";
        else if (text[strspn(text, " \t\r\n")] == 0 && strlen(text) == reader->text.length)
            continue;
        s->lines++;
        if (!problem) problem = data_read(d, text, reader->text.length, &line);
        if (d->record.json && !reader->too_long && !checked) {
            check_template(d, s, reader->line);
            checked = true;
        }
        if (problem) data_note(d, FAULT_BAD, s->path, reader->line, problem);
        if (problem) continue;
        place.hash = line.hash;
        s->lessons += line.lesson;
        bool usable = line.prompt && (!d->surveyed_tokens || d->options.supervised ||
                                      count_tokens(d, s, reader->line));
        if (usable || d->options.supervised) note_place(s, place);
        if (usable) note_prompt(s, &line, &d->record);
    }
    if (!s->evaluation) d->surveyed_lines = reader->line;
    s->over = reader->offset >= SURVEY_BYTES;
}

/* ---- what is held out ------------------------------------------------------------------------ */

static int by_hash(const void *a, const void *b) {
    const struct Place *x = a, *y = b;
    if (x->hash != y->hash) return x->hash < y->hash ? -1 : 1;
    return x->line < y->line ? -1 : x->line > y->line;
}

/* The line in hand as a prompt to evaluate on. */
static void hold_out_example(struct Data *d, const char *path, int64_t line) {
    struct Example *e = &d->held_out[d->num_held_out];
    text_clear(&e->prompt), text_clear(&e->answer), text_clear(&e->metadata);
    e->ids.count = 0;
    const char *problem = data_example(d, e);
    if (!problem && e->ids.count <= d->max_prompt) {
        d->num_held_out++;
        return;
    }
    if (problem) data_note(d, FAULT_BAD, path, line, problem);
    else if (!d->surveyed_tokens)
        data_note(d, FAULT_LONG, path, line, data_too_long(d, e->ids.count));
    example_free(e);
}

/* Reads what is held out, lines with the smallest hashes first, each text once: prompts where
   completions can be judged, and what there is to learn where that is what the run does. */
static void read_held_out(struct Data *d, struct Survey *s, struct LineReader *reader,
                          bool judged) {
    int64_t most = d->options.eval_prompts, lessons = 0;
    d->held_out = check_alloc(s->count + 1, sizeof *d->held_out, "held-out prompts");
    d->reads_held_out = true;
    for (size_t i = 0; i < s->count && d->num_held_out < most && lessons < most; i++) {
        struct Line line;
        if (i > 0 && s->place[i].hash == s->place[i - 1].hash) continue;
        line_reader_seek(reader, s->place[i].offset, s->place[i].line - 1);
        if (!line_reader_next(reader)) continue;
        if (data_read(d, reader->text.bytes, reader->text.length, &line)) continue;
        if (line.prompt && judged) hold_out_example(d, s->path, reader->line);
        if (line.lesson && d->options.supervised && !data_lesson(d, &d->held_out_lessons))
            lessons++;
    }
    d->reads_held_out = false;
}

/* A share of the file's own prompts; of several at least one. */
static void hold_out_share(struct Data *d, struct Survey *s, bool judged) {
    if (s->share == 0 || !s->several) return;
    d->threshold_set = true;
    d->threshold = s->count > 0 || s->over ? share_threshold(s->share) : s->least.hash;
    if (s->count == 0) add_place(s, s->least);
    qsort(s->place, s->count, sizeof *s->place, by_hash);
    read_held_out(d, s, &d->reader, judged);
}

/* All of --eval-data; its prompts are never trained on, where the data has them too. */
static void hold_out_file(struct Data *d) {
    struct LineReader reader;
    struct Survey s = {.path = d->options.eval_path, .evaluation = true};
    line_reader_open(&reader, s.path, "--eval-data");
    d->reads_held_out = d->options.supervised;
    survey_file(d, &s, &reader);
    if (s.count > 0) qsort(s.place, s.count, sizeof *s.place, by_hash);   /* not of NULL */
    read_held_out(d, &s, &reader, !d->options.supervised || s.answers > 0 ||
                                      !verify_needs_answers(d->verify));
    if (d->num_held_out == 0 && d->held_out_lessons.end.count == 0)
        die_input("--eval-data %s: no line of it can be used; the first ones that were passed over "
                  "are named above", s.path);
    d->eval_hash = check_alloc(s.count, sizeof *d->eval_hash, "held-out prompts");
    for (size_t i = 0; i < s.count; i++) d->eval_hash[i] = s.place[i].hash;
    d->num_eval_hashes = s.count;
    line_reader_close(&reader);
    free(s.place), text_free(&s.first_answer);
}

/* ---- sizes, form, verifiers ------------------------------------------------------------------ */

static int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }

/* context: tokens of the longest row. */
static void choose_lengths(struct Data *d, int context) {
    enum { PROMPT = 512, COMPLETION = 256 };   /* what other trainers begin with */
    const struct DataOptions *o = &d->options;
    int64_t tokens = o->max_tokens ? o->max_tokens : least_of(COMPLETION, (context + 1) / 2);
    int64_t prompt = o->max_prompt ? o->max_prompt : least_of(PROMPT, context - tokens);
    if (prompt < 1)
        die_input("--max-tokens %lld leaves no room for a prompt in rows of %d tokens",
                  (long long)tokens, context);
    d->max_tokens = (int)tokens, d->max_prompt = (int)prompt;
}

static void open_verifiers(struct Data *d, const struct Survey *s) {
    const struct DataOptions *o = &d->options;
    struct VerifyOptions options = {o->regex, d->max_tokens, o->scorer};
    const char *problem, *list = o->reward;
    if (strcmp(list, "auto") == 0)
        list = o->scorer ? "scorer"
               : s->first_answer.length > 0
                   ? verifier_for(s->first_answer.bytes, s->first_answer.length)
                   : "exact";
    d->verify = verify_open(list, &options, &problem);
    if (!d->verify) die_input("--reward %s: %s", list, problem);
    bool judged = s->answers > 0 || !verify_needs_answers(d->verify);
    if (!judged && !d->options.supervised)
        die_input("--data %s: no line has an answer (a key answer, label, ground_truth, solution "
                  "or reward_model.ground_truth), which --reward %s needs", o->path, list);
    text_clear(&d->help);
    text_format(&d->help, "%s, %s %s", o->path,
                d->options.supervised ? "held-out prompts judged by" : "rewarded by", list);
}

/* What was found, for a person. */
static void describe(const struct Data *d, const struct Survey *s) {
    char tokens[64] = "", lessons[64] = "";
    if (s->longest > 0)
        snprintf(tokens, sizeof tokens, ", of %d to %d tokens", s->shortest, s->longest);
    if (d->lines_with_lesson > 0)
        snprintf(lessons, sizeof lessons, ", %lld with something to learn",
                 (long long)d->lines_with_lesson);
    say("data      %s: %lld lines%s, %lld prompts%s%s; %lld bad, %lld too long", d->options.path,
        (long long)s->lines, s->over ? " in its first 64 MB" : "", (long long)s->prompts, tokens,
        lessons, (long long)d->faults[FAULT_BAD], (long long)d->faults[FAULT_LONG]);
    char rows[64] = "";
    if (d->held_out_lessons.end.count > 0)
        snprintf(rows, sizeof rows, ", and %d rows for the loss", d->held_out_lessons.end.count);
    if (d->num_held_out == 0 && !rows[0])
        say("          held out: nothing, and so nothing is evaluated");
    else if (d->options.eval_path[0])
        say("          held out: %s; evaluated on %d of its prompts%s", d->options.eval_path,
            d->num_held_out, rows);
    else
        say("          held out: a share of %g, by a hash of the prompt; evaluated on %d prompts%s",
            d->options.eval_share, d->num_held_out, rows);
    const char *system = chat_system(d->chat);
    say("          chat form %s%s%s; prompts of at most %d tokens, completions of %d",
        chat_name(d->chat), system[0] ? ", system prompt " : "", system[0] ? quote(system) : "",
        d->max_prompt, d->max_tokens);
}

void data_survey(struct Data *d, const char *directory, int context) {
    const struct DataOptions *o = &d->options;
    const char *problem;
    struct Survey s = {.path = o->path, .share = o->eval_path[0] ? 0 : o->eval_share};
    d->chat = chat_open(o->chat, o->system, d->tokenizer, directory, &problem);
    if (!d->chat) die_input("%s", problem);
    choose_lengths(d, context + 1);
    d->row = d->max_prompt + d->max_tokens;
    d->surveyed_tokens = d->size <= TOKENS_BYTES && !o->supervised;
    survey_file(d, &s, &d->reader);
    d->lines_with_lesson = s.lessons;
    if ((o->supervised ? s.lessons : s.prompts) == 0)
        die_input("--data %s: no line of it can be %s; the first ones that were passed over are "
                  "named above", o->path, o->supervised ? "learnt from" : "used");
    open_verifiers(d, &s);
    bool judged = s.answers > 0 || (s.prompts > 0 && !verify_needs_answers(d->verify));
    if (o->eval_path[0]) hold_out_file(d);
    else if (judged || o->supervised) hold_out_share(d, &s, judged);
    if (d->surveyed_tokens) {   /* nothing longer will come: a smaller plan of memory */
        d->max_prompt = s.longest;
        for (int i = 0; i < d->num_held_out; i++)
            if (d->held_out[i].ids.count > d->max_prompt)
                d->max_prompt = d->held_out[i].ids.count;
        d->row = d->max_prompt + d->max_tokens;
    }
    describe(d, &s);
    free(s.place), text_free(&s.first_answer);
}
