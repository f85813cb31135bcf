/* What data.c (training) and data_survey.c (what is done once, at start) share. Only they include
   it. */
#ifndef LLMC_DATA_PARTS_H
#define LLMC_DATA_PARTS_H

#include "blocks.h"
#include "data.h"
#include "record.h"
#include "template.h"
#include "verify.h"

/* Why a line is passed over. Bad ones have a limit; too long is a prompt, or a row in which nothing
   is left to learn. */
enum DataFault { FAULT_BAD, FAULT_LONG, FAULTS };

struct Data {
    struct DataOptions options;
    const struct Tokenizer *tokenizer;
    struct Template *template;       /* NULL: none */
    struct Chat *chat;
    struct Verify *verify;
    struct LineReader reader;
    int64_t size, checksum;          /* which file it is */
    struct Blocks prompts, lessons;  /* two readings of it */
    int idle_passes[2];              /* of each: passes over the file that gave nothing */
    int max_prompt, max_tokens, row; /* tokens; row: the most of a lesson's rows */
    /* held out */
    bool threshold_set;
    uint64_t threshold;              /* prompts with at most this hash */
    uint64_t *eval_hash;             /* or those of another file, ascending */
    size_t num_eval_hashes;
    struct Example *held_out;
    int num_held_out;
    struct Lesson held_out_lessons;  /* where the run is supervised */
    bool reads_held_out;             /* the line in hand may be of any use: a prompt to evaluate on,
                                        or something to learn */
    /* counts */
    int64_t faults[FAULTS], cut_rows;
    int64_t surveyed_lines;          /* lines whose faults were noted at start */
    bool surveyed_tokens;            /* ... prompts that are too long among them */
    int64_t lines_with_lesson;
    /* of the line in hand */
    struct Record record;
    struct Turns turns;
    struct Text filled, scratch, help;
    char problem[256];
};

/* What a line can be used for. */
struct Line {
    bool prompt, answer, lesson;
    uint64_t hash;                   /* of the prompt */
};

/* Printable ASCII, newline and tab: the vocabulary of a model that is begun with random weights. */
extern const char data_alphabet[];

/* Counts a line that is passed over and names it if it is among the first; die_input if it is one
   bad line too many. */
void data_note(struct Data *d, enum DataFault fault, const char *path, int64_t line,
               const char *problem);
/* Reads a line into d->record and d->turns. NULL, or what is wrong with it for this run. */
const char *data_read(struct Data *d, const char *line, size_t length, struct Line *out);
/* Appends the line in hand to an empty example; likewise. */
const char *data_example(struct Data *d, struct Example *example);
/* Appends the rows of the line in hand to a lesson; likewise, and then nothing is appended. */
const char *data_lesson(struct Data *d, struct Lesson *lesson);
/* Says that a prompt has too many tokens. */
const char *data_too_long(const struct Data *d, int tokens);
uint64_t data_hash(const char *bytes, size_t length);
bool data_holds_out(const struct Data *d, uint64_t hash);
/* Fills in all that data_prepare promises. */
void data_survey(struct Data *d, const char *directory, int context);

#endif
