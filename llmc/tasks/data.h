/* A task out of a file of JSON lines (--data): prompts with reference answers, prompts with
   completions, conversations, plain text. Keys: record.h. How prompts are put: template.h. Rewards:
   verify.h. doc/data.md has all of it for users.

   The file is streamed: training goes through it in blocks of lines, each shuffled, again and again
   (blocks.h). What is held out for evaluation is found at start, in the file's first 64 MB: the
   prompts with the smallest hashes, a share of them (eval_share), or all of another file
   (eval_path). Whether a prompt is held out depends on its text alone, not on the seed.

   What is wrong with a line is named (the first few), counted, and the line passed over; more bad
   lines than bad_lines end the program (die_input). */
#ifndef LLMC_DATA_H
#define LLMC_DATA_H

#include "../base/fields.h"
#include "../io/ends.h"
#include "task.h"

/* Texts must live as long as the task. */
struct DataOptions {
    const char *path, *eval_path, *template_path;   /* the latter two "" = none */
    const char *chat, *system, *reward, *regex;     /* template.h, verify.h; reward "auto" = by the
                                                       scorer or the first answer */
    double eval_share;           /* of the prompts that are held out; not with eval_path */
    int64_t eval_prompts;        /* the most to evaluate on */
    int64_t shuffle_buffer;      /* lines of a block; 1 = the file's order */
    int64_t max_prompt;          /* tokens; 0 = 512, or what the context leaves */
    int64_t max_tokens;          /* of a completion; 0 = 256, or half the context */
    int64_t bad_lines;
    int64_t max_turns;           /* of a completion; more than 1 only with a scorer, which is the
                                    environment (scorer.h) */
    struct Scorer *scorer;       /* of --scorer, which must outlive the task; NULL: none */
    bool supervised;             /* only lessons are wanted (objective ce) */
    uint64_t seed;
};

/* Opens the files; the task has its name and help, and its functions work after data_prepare. Ends
   the program (die_input) where a file cannot be one of data. data_close frees. */
struct Task *data_open(const struct DataOptions *options);
void data_close(struct Task *task);
/* Chooses form and verifiers, surveys the file, reads what is held out, and says what it found (one
   line for each, console.h); sets max_prompt, max_completion, num_held_out and teach. The tokenizer
   must outlive the task. directory: the model's, for its default system prompt; or "". context: the
   most tokens that a row may have. die_input where nothing in the file can be used. */
void data_prepare(struct Task *task, const struct Tokenizer *tokenizer, const char *directory,
                  int context, uint64_t seed);
/* Is it such a task? */
bool task_is_data(const struct Task *task);
/* The tokens that end a turn in its chat form. */
void data_add_ends(const struct Task *task, struct Ends *ends);

/* Where the two readings of the file stand, and which file it is: part of a checkpoint. */
struct DataState {
    int64_t size, checksum;      /* of the file; of its first 64 KB */
    int64_t epoch, offset, line, block, index, ordinal;                            /* prompts */
    int64_t lesson_epoch, lesson_offset, lesson_line, lesson_block, lesson_index,  /* lessons */
        lesson_ordinal;
};
extern const struct FieldTable data_fields;
struct DataState data_state(const struct Task *task);
/* Goes on from there: the same examples come as in a run that was never stopped. die_input if the
   file is not the one that the state was saved with. */
void data_resume(struct Task *task, const struct DataState *state);

#endif
