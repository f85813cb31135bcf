#include "data.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "../base/check.h"
#include "../base/console.h"
#include "../base/files.h"
#include "blocks.h"
#include "data_parts.h"
#include "examples.h"

/* ---- what is wrong with lines ---------------------------------------------------------------- */

void data_note(struct Data *d, enum DataFault fault, const char *path, int64_t line,
               const char *problem) {
    enum { MOST_NAMED = 5 };
    int64_t count = ++d->faults[fault];
    if (fault == FAULT_BAD && count > d->options.bad_lines)
        die_input("%s:%lld %s, and so there are more than %lld bad lines; mend the file or raise "
                  "--bad-lines", path, (long long)line, problem,
                  (long long)d->options.bad_lines);
    if (count <= MOST_NAMED) warn("%s:%lld %s: passed over", path, (long long)line, problem);
    if (count == MOST_NAMED + 1)
        warn("%s: more lines like that are counted, and no longer named", path);
}

/* The same while training: each line once, whether the survey or the first pass has met it. */
static void note_once(struct Data *d, const struct Blocks *blocks, enum DataFault fault,
                      int64_t line, const char *problem) {
    bool surveyed = line <= d->surveyed_lines && (fault == FAULT_BAD || d->surveyed_tokens);
    if (blocks->cursor.epoch == 0 && !surveyed)
        data_note(d, fault, d->options.path, line, problem);
}

static void note_long_line(void *context, int64_t line, const char *problem) {
    struct Data *d = context;
    if (line > d->surveyed_lines) data_note(d, FAULT_BAD, d->options.path, line, problem);
}

const char *data_too_long(const struct Data *d, int tokens) {
    static char problem[128];
    snprintf(problem, sizeof problem, "has a prompt of %d tokens, and --max-prompt is %d", tokens,
             d->max_prompt);
    return problem;
}

/* ---- one line to an example or a lesson ------------------------------------------------------ */

/* FNV-1a, finished by splitmix64: which prompts are held out must not change between versions. */
uint64_t data_hash(const char *bytes, size_t length) {
    uint64_t hash = 0xCBF29CE484222325u;
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)bytes[i]) * 0x100000001B3u;
    return rng_mix(hash);
}

/* The turns of the prompt: the filled template, or the messages up to the assistant's last ones, or
   the prompt as the user's only turn. */
static const char *find_turns(struct Data *d) {
    struct Record *r = &d->record;
    turns_clear(&d->turns);
    text_clear(&d->filled);
    if (d->template) {
        const char *missing = template_fill(&d->filled, d->template, r);
        snprintf(d->problem, sizeof d->problem, "has no \"%s\", which the template asks for",
                 missing ? quote(missing) : "");
        if (missing) return d->problem;
        turns_add(&d->turns, "user", d->filled.bytes, d->filled.length);
    } else if (r->turns.role.count > 0) {
        int count = r->turns.role.count;
        while (count > 0 && strcmp(text_list_at(&r->turns.role, count - 1), "assistant") == 0)
            count--;
        for (int i = 0; i < count; i++)
            turns_add(&d->turns, text_list_at(&r->turns.role, i),
                      text_list_at(&r->turns.content, i), text_list_length(&r->turns.content, i));
        return count > 0 ? NULL : "has messages of the assistant only";
    } else if (r->prompt) {
        record_text(&d->filled, r, r->prompt);
        turns_add(&d->turns, "user", d->filled.bytes, d->filled.length);
    } else {
        return "has no prompt (a key prompt, input, question, problem or messages)";
    }
    return d->filled.length > 0 ? NULL : "has an empty prompt";
}

/* What decides about holding out: the prompt as the line has it, whatever template or form. */
static uint64_t hash_prompt(struct Data *d) {
    if (!d->record.prompt) return data_hash(d->filled.bytes, d->filled.length);
    text_clear(&d->scratch);
    record_text(&d->scratch, &d->record, d->record.prompt);
    return data_hash(d->scratch.bytes, d->scratch.length);
}

/* The same for a line without a prompt: by its text, or by its first message. */
static uint64_t hash_lesson(struct Data *d) {
    const struct Record *r = &d->record;
    if (!r->text) return data_hash(text_list_at(&r->turns.content, 0),
                                   text_list_length(&r->turns.content, 0));
    text_clear(&d->scratch);
    record_text(&d->scratch, r, r->text);
    return data_hash(d->scratch.bytes, d->scratch.length);
}

/* Does the conversation teach something? */
static bool has_assistant(const struct Turns *turns) {
    for (int i = 0; i < turns->role.count; i++)
        if (strcmp(text_list_at(&turns->role, i), "assistant") == 0) return true;
    return false;
}

const char *data_read(struct Data *d, const char *line, size_t length, struct Line *out) {
    *out = (struct Line){0};
    const char *problem = record_read(&d->record, line, length);
    if (problem) return problem;
    const struct Record *r = &d->record;
    const char *no_prompt = find_turns(d);
    out->prompt = !no_prompt;
    out->lesson = (r->completion && out->prompt) || has_assistant(&r->turns) || r->text;
    out->answer = r->answer != NULL || (r->prompt && has_assistant(&r->turns));
    if (out->prompt) out->hash = hash_prompt(d);
    else if (out->lesson) out->hash = hash_lesson(d);
    if (d->reads_held_out && (out->prompt || out->lesson)) return NULL;
    if (d->options.supervised && out->lesson) return NULL;
    if (d->options.supervised)
        return "has nothing to learn (a prompt with completion or response, messages with a turn "
               "of the assistant, or text)";
    return no_prompt;
}

/* The answer: its key's, or what the assistant says at last. */
static void set_answer(struct Text *answer, const struct Record *r) {
    const struct Turns *t = &r->turns;
    int last = t->role.count - 1;
    if (r->answer) record_text(answer, r, r->answer);
    else if (last >= 0 && strcmp(text_list_at(&t->role, last), "assistant") == 0)
        text_append(answer, text_list_at(&t->content, last), text_list_length(&t->content, last));
}

const char *data_example(struct Data *d, struct Example *example) {
    const char *problem = chat_prompt(&example->ids, &example->prompt, d->chat, &d->turns);
    if (problem) return problem;
    if (example->ids.count == 0) return "has a prompt of no tokens";
    set_answer(&example->answer, &d->record);
    record_metadata(&example->metadata, &d->record);
    return NULL;
}

/* Ends a row of the lesson where the ids now end. Nothing comes before its first token. */
static void end_row(struct Lesson *lesson, int begin) {
    lesson->loss.bytes[begin] = 0;
    ids_add(&lesson->end, lesson->ids.count);
}

/* A document becomes rows of at most d->row tokens; one token alone teaches nothing. */
static const char *document(struct Data *d, struct Lesson *lesson) {
    struct Ids ids = {0};
    text_clear(&d->scratch);
    record_text(&d->scratch, &d->record, d->record.text);
    const char *problem = chat_document(&ids, d->chat, d->scratch.bytes, d->scratch.length);
    for (int from = 0; from + 1 < ids.count && !problem; from += d->row) {
        int begin = lesson->ids.count;
        for (int i = from; i < ids.count && i < from + d->row; i++) {
            ids_add(&lesson->ids, ids.id[i]);
            text_append(&lesson->loss, "\1", 1);
        }
        end_row(lesson, begin);
    }
    if (!problem && ids.count < 2) problem = "has a text of no tokens";
    ids_free(&ids);
    return problem;
}

/* Cuts the row that begins at `begin` to d->row tokens; false, and it is gone, if nothing of it is
   learnt then. */
static bool cut_row(struct Data *d, struct Lesson *lesson, int begin) {
    bool learns = false;
    if (lesson->ids.count - begin > d->row) {
        lesson->ids.count = begin + d->row;
        d->cut_rows++;
    }
    for (int i = begin + 1; i < lesson->ids.count; i++) learns |= lesson->loss.bytes[i] != 0;
    if (!learns) lesson->ids.count = begin;
    lesson->loss.length = (size_t)lesson->ids.count;
    return learns;
}

const char *data_lesson(struct Data *d, struct Lesson *lesson) {
    const struct Record *r = &d->record;
    int begin = lesson->ids.count;
    const char *problem;
    if (r->completion) {
        text_clear(&d->scratch);
        record_text(&d->scratch, r, r->completion_text);
        problem = chat_prompt(&lesson->ids, NULL, d->chat, &d->turns);
        while (lesson->loss.length < (size_t)lesson->ids.count) text_append(&lesson->loss, "", 1);
        if (!problem)
            problem = chat_reply(&lesson->ids, d->chat, d->scratch.bytes, d->scratch.length);
        while (lesson->loss.length < (size_t)lesson->ids.count) text_append(&lesson->loss, "\1", 1);
    } else if (has_assistant(&r->turns)) {
        problem = chat_lesson(&lesson->ids, &lesson->loss, d->chat, &r->turns);
    } else {
        return document(d, lesson);
    }
    if (problem || !cut_row(d, lesson, begin)) {
        lesson->ids.count = begin, lesson->loss.length = (size_t)begin;
        snprintf(d->problem, sizeof d->problem, "has nothing to learn within %d tokens "
                 "(--max-prompt and --max-tokens)", d->row);
        return problem ? problem : d->problem;
    }
    end_row(lesson, begin);
    return NULL;
}

/* ---- the readings ---------------------------------------------------------------------------- */

bool data_holds_out(const struct Data *d, uint64_t hash) {
    if (d->threshold_set) return hash <= d->threshold;
    if (d->num_eval_hashes == 0) return false;
    size_t low = 0, high = d->num_eval_hashes;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (d->eval_hash[middle] < hash) low = middle + 1;
        else high = middle;
    }
    return low < d->num_eval_hashes && d->eval_hash[low] == hash;
}

/* The file is what it was when the run began? */
static void check_same_file(struct Data *d) {
    struct stat status;
    if (stat(d->options.path, &status) != 0) die_errno("read --data", d->options.path);
    if ((int64_t)status.st_size != d->size)
        die_input("--data %s has changed while it was read: it had %lld bytes and has %lld now",
                  d->options.path, (long long)d->size, (long long)status.st_size);
}

/* The next line that can be used, in d->record and d->turns; the reading's cursor counts it once it
   was turned into what is wanted. */
static void next_line(struct Data *d, struct Blocks *blocks, bool lesson, struct Line *line,
                      int64_t *number) {
    for (;;) {
        size_t length;
        bool wrapped;
        const char *text = blocks_next(blocks, &length, number, &wrapped);
        if (wrapped) check_same_file(d);
        if (wrapped) d->idle_passes[lesson]++;
        if (!text || d->idle_passes[lesson] > 1)
            die_input("--data %s: no line of it can be %s; the first ones that were passed over "
                      "are named above", d->options.path,
                      lesson ? "learnt from" : "trained on");
        const char *problem = data_read(d, text, length, line);
        if (problem) note_once(d, blocks, FAULT_BAD, *number, problem);
        bool held_out = !problem && (line->prompt || d->options.supervised) &&
                        data_holds_out(d, line->hash);
        if (!problem && !held_out && (lesson ? line->lesson : line->prompt)) return;
    }
}

static void next_example(struct Data *d, struct Example *example) {
    struct Line line;
    int64_t number;
    for (;;) {
        text_clear(&example->prompt), text_clear(&example->answer), text_clear(&example->metadata);
        example->ids.count = 0;
        next_line(d, &d->prompts, false, &line, &number);
        const char *problem = data_example(d, example);
        bool too_long = !problem && example->ids.count > d->max_prompt;
        if (problem) note_once(d, &d->prompts, FAULT_BAD, number, problem);
        if (too_long)
            note_once(d, &d->prompts, FAULT_LONG, number, data_too_long(d, example->ids.count));
        if (!problem && !too_long) break;
    }
    d->idle_passes[0] = 0;
    d->prompts.cursor.ordinal++;
}

static void next_lesson(struct Data *d, struct Lesson *lesson) {
    struct Line line;
    int64_t number;
    const char *problem;
    do {
        next_line(d, &d->lessons, true, &line, &number);
        problem = data_lesson(d, lesson);
        if (problem) note_once(d, &d->lessons, FAULT_LONG, number, problem);
    } while (problem);
    d->idle_passes[1] = 0;
    d->lessons.cursor.ordinal++;
}

/* ---- the task -------------------------------------------------------------------------------- */

static struct Data *data_of(const struct Task *task) { return task->state; }

static void copy_example(struct Example *to, const struct Example *from) {
    text_append(&to->prompt, from->prompt.bytes, from->prompt.length);
    text_append(&to->answer, from->answer.bytes, from->answer.length);
    text_append(&to->metadata, from->metadata.bytes, from->metadata.length);
    for (int i = 0; i < from->ids.count; i++) ids_add(&to->ids, from->ids.id[i]);
}

/* Usually the number asked for is the next one. Any other is found from the file's beginning: the
   order is a function of the number. */
static void draw(const struct Task *task, struct Example *example, uint64_t seed,
                 enum RngPurpose purpose, uint64_t ordinal) {
    struct Data *d = data_of(task);
    (void)seed;
    if (purpose == RNG_EVAL_PROMPT) {
        copy_example(example, &d->held_out[ordinal % (uint64_t)task->num_held_out]);
        return;
    }
    if (ordinal < (uint64_t)d->prompts.cursor.ordinal)
        blocks_seek(&d->prompts, &(struct Cursor){0});
    do next_example(d, example);
    while ((uint64_t)d->prompts.cursor.ordinal <= ordinal);
}

static void teach(const struct Task *task, struct Lesson *lesson, uint64_t seed,
                  uint64_t ordinal) {
    struct Data *d = data_of(task);
    int ids = lesson->ids.count, rows = lesson->end.count;
    (void)seed;
    if (ordinal < (uint64_t)d->lessons.cursor.ordinal)
        blocks_seek(&d->lessons, &(struct Cursor){0});
    do {
        lesson->ids.count = ids, lesson->end.count = rows, lesson->loss.length = (size_t)ids;
        next_lesson(d, lesson);
    } while ((uint64_t)d->lessons.cursor.ordinal <= ordinal);
}

static void judge(const struct Task *task, struct Reward *reward,
                  const struct Completion *completion, int count) {
    verify_judge(data_of(task)->verify, reward, completion, count);
}

static bool interrupted(const struct Task *task) {
    return verify_interrupted(data_of(task)->verify);
}

static double judges_within(const struct Task *task, int count) {
    int64_t turns = task->max_turns > 1 ? task->max_turns : 1;
    return scorer_within(data_of(task)->options.scorer, turns * count);
}

/* With --max-turns the scorer is an environment. */
static void ask(const struct Task *task, const struct Completion *completion, int number) {
    struct Scorer *scorer = data_of(task)->options.scorer;
    scorer_begin(scorer);
    scorer_ask(scorer, completion, number);
}

static bool answer(const struct Task *task, struct Answer *answer, bool wait) {
    return scorer_answer(data_of(task)->options.scorer, answer, wait);
}

static bool wrap(const struct Task *task, struct Ids *ids, const char *role, const char *text,
                 size_t length) {
    return !chat_answer(ids, data_of(task)->chat, role, text, length);
}

bool task_is_data(const struct Task *task) { return task->draw == draw; }

void data_add_ends(const struct Task *task, struct Ends *ends) {
    chat_add_ends(data_of(task)->chat, ends);
}

/* What a file is that is no JSON lines, by its first bytes; NULL: nothing known. */
static const char *other_format(const char *bytes, size_t length) {
    if (is_lfs_pointer(bytes, length)) return LFS_POINTER;
    if (length >= 4 && memcmp(bytes, "PAR1", 4) == 0)
        return "is a Parquet file; write it as JSON lines (pandas: read_parquet(FILE)"
               ".to_json(OUT, orient=\"records\", lines=True))";
    if (length >= 2 && memcmp(bytes, "\x1F\x8B", 2) == 0)
        return "is compressed; unpack it with gunzip";
    for (size_t i = 0; i < length && strchr(" \t\r\n[", bytes[i]); i++)
        if (bytes[i] == '[') return "is one JSON list; write an object a line (jq -c '.[]' FILE)";
    return NULL;
}

/* Opens the file and notes which it is. */
static void identify(struct Data *d) {
    enum { FIRST = 1 << 16 };
    struct stat status;
    static char first[FIRST];
    line_reader_open(&d->reader, d->options.path, "--data");
    if (fstat(fileno(d->reader.stream), &status) != 0) die_errno("read --data", d->options.path);
    size_t n = fread(first, 1, FIRST, d->reader.stream);
    const char *other = other_format(first, n);
    if (other) die_input("--data %s %s", d->options.path, other);
    if (n == 0) die_input("--data %s is empty", d->options.path);
    d->size = (int64_t)status.st_size;
    d->checksum = crc32c(0, first, n);
}

struct Task *data_open(const struct DataOptions *options) {
    struct Task *task = check_alloc(1, sizeof *task, "a data task");
    struct Data *d = check_alloc(1, sizeof *d, "a data task");
    d->options = *options;
    identify(d);
    if (options->template_path[0]) d->template = template_open(options->template_path);
    d->prompts = (struct Blocks){.reader = &d->reader, .most_lines = options->shuffle_buffer,
                                 .bad = note_long_line, .context = d};
    d->lessons = d->prompts;
    d->lessons.stream = 1;
    text_format(&d->help, "%s", options->path);
    *task = (struct Task){.name = "data", .help = d->help.bytes, .alphabet = data_alphabet,
                          .judge = judge, .draw = draw, .state = d,
                          .interrupted = interrupted,
                          .judges_within = options->scorer ? judges_within : NULL};
    if (options->max_turns > 1) {
        task->max_turns = (int)options->max_turns;
        task->ask = ask, task->answer = answer, task->wrap = wrap;
    }
    return task;
}

void data_prepare(struct Task *task, const struct Tokenizer *tokenizer, const char *directory,
                  int context, uint64_t seed) {
    struct Data *d = data_of(task);
    d->prompts.seed = d->lessons.seed = seed;
    d->tokenizer = tokenizer;
    data_survey(d, directory, context);
    task->help = d->help.bytes;
    task->max_prompt = d->max_prompt;
    task->max_completion = d->max_tokens;
    task->num_held_out = d->num_held_out;
    if (d->held_out_lessons.end.count > 0) task->held_out_lessons = &d->held_out_lessons;
    if (d->lines_with_lesson > 0) task->teach = teach;
}

/* What a run left out, where it did not say so line by line. */
static void say_counts(const struct Data *d) {
    int64_t bad = d->faults[FAULT_BAD], long_ones = d->faults[FAULT_LONG];
    if (bad + long_ones + d->cut_rows == 0) return;
    say("data      passed over: %lld bad lines, %lld too long; %lld rows cut to %d tokens",
        (long long)bad, (long long)long_ones, (long long)d->cut_rows, d->row);
}

void data_close(struct Task *task) {
    if (!task) return;
    struct Data *d = data_of(task);
    say_counts(d);
    line_reader_close(&d->reader);
    blocks_free(&d->prompts), blocks_free(&d->lessons);
    template_close(d->template), chat_close(d->chat), verify_close(d->verify);
    record_free(&d->record), turns_free(&d->turns);
    text_free(&d->filled), text_free(&d->scratch), text_free(&d->help);
    for (int i = 0; i < d->num_held_out; i++) example_free(&d->held_out[i]);
    lesson_free(&d->held_out_lessons);
    free(d->held_out), free(d->eval_hash), free(d);
    free(task);
}

/* ---- the state that is saved ----------------------------------------------------------------- */

#define COUNT(member, name_) \
    {FIELD(FIELD_INTEGER, struct DataState, member, name_), .high = FIELD_EXACT, .optional = true}
static const struct Field fields[] = {
    COUNT(size, "data_size"),          COUNT(checksum, "data_checksum"),
    COUNT(epoch, "data_epoch"),        COUNT(offset, "data_offset"),
    COUNT(line, "data_line"),          COUNT(block, "data_block"),
    COUNT(index, "data_index"),        COUNT(ordinal, "data_ordinal"),
    COUNT(lesson_epoch, "lesson_epoch"),   COUNT(lesson_offset, "lesson_offset"),
    COUNT(lesson_line, "lesson_line"),     COUNT(lesson_block, "lesson_block"),
    COUNT(lesson_index, "lesson_index"),   COUNT(lesson_ordinal, "lesson_ordinal"),
};
const struct FieldTable data_fields = {fields, sizeof fields / sizeof *fields};

struct DataState data_state(const struct Task *task) {
    const struct Data *d = data_of(task);
    const struct Cursor *p = &d->prompts.cursor, *l = &d->lessons.cursor;
    return (struct DataState){
        d->size, d->checksum, p->epoch, p->offset, p->line, p->block, p->index, p->ordinal,
        l->epoch, l->offset, l->line, l->block, l->index, l->ordinal};
}

void data_resume(struct Task *task, const struct DataState *s) {
    struct Data *d = data_of(task);
    if (s->size == 0)
        die_input("--data %s: the run that goes on was not begun with a data file; --model RUN "
                  "begins another from its weights", d->options.path);
    if (s->size != d->size || s->checksum != d->checksum)
        die_input("--data %s has changed since this run began (%lld bytes then, %lld now); put "
                  "the old file back, or begin another run from its weights with --model RUN",
                  d->options.path, (long long)s->size, (long long)d->size);
    blocks_seek(&d->prompts, &(struct Cursor){s->epoch, s->offset, s->line, s->block, s->index,
                                              s->ordinal});
    blocks_seek(&d->lessons, &(struct Cursor){s->lesson_epoch, s->lesson_offset, s->lesson_line,
                                              s->lesson_block, s->lesson_index,
                                              s->lesson_ordinal});
}
