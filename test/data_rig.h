/* Data tasks on files that a test writes. The tokenizer has an id for each printable ASCII
   character, so that lengths are those of the texts. */
#ifndef DATA_RIG_H
#define DATA_RIG_H

#include <unistd.h>
#include "child.h"
#include "test.h"
#include "../llmc/base/console.h"
#include "../llmc/tasks/data.h"
#include "../llmc/tasks/data_parts.h"
#include "../llmc/tasks/examples.h"

static char data_path[64], other_path[64];

static inline int make_files(void **state) {
    (void)state;
    strcpy(data_path, "/tmp/policy-data-XXXXXX");
    strcpy(other_path, "/tmp/policy-other-XXXXXX");
    int a = mkstemp(data_path), b = mkstemp(other_path);
    console_open(true);
    return a < 0 || b < 0 || close(a) != 0 || close(b) != 0;
}

static inline int remove_files(void **state) {
    (void)state;
    return unlink(data_path) != 0 || unlink(other_path) != 0;
}

static inline void write_bytes(const char *path, const char *bytes, size_t length) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
}
static inline void write_file(const char *path, const char *text) {
    write_bytes(path, text, strlen(text));
}

/* count lines {"prompt": "pK", "answer": "K"}, K from `first` on. */
static inline void write_numbered(const char *path, int first, int count) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    for (int k = first; k < first + count; k++)
        fprintf(file, "{\"prompt\": \"p%d\", \"answer\": \"%d\"}\n", k, k);
    assert_int_equal(fclose(file), 0);
}

/* What a run is by default, without anything held out. */
static inline struct DataOptions data_options(void) {
    return (struct DataOptions){.path = data_path, .eval_path = "", .template_path = "",
                                .chat = "auto", .system = "auto", .reward = "auto", .regex = "",
                                .eval_prompts = 200, .shuffle_buffer = 1, .max_prompt = 40,
                                .max_tokens = 10, .bad_lines = 100};
}

static inline struct Task *open_data(const struct DataOptions *options) {
    static struct Tokenizer *tokenizer;   /* one for all: tasks have the same alphabet */
    struct Task *task = data_open(options);
    if (!tokenizer) tokenizer = tokenizer_from_alphabet(task->alphabet);
    data_prepare(task, tokenizer, "", 1000, options->seed);
    return task;
}

/* The prompt of a training example; the next call reuses it. */
static inline const struct Example *drawn(const struct Task *task, int ordinal) {
    static struct Example example;
    example_draw(&example, task, 0, RNG_PROMPT, (uint64_t)ordinal);
    return &example;
}
static inline int number_drawn(const struct Task *task, int ordinal) {
    return atoi(drawn(task, ordinal)->prompt.bytes + 1);
}

/* Opens the file in a child, draws `draws` examples, and returns the exit code. */
struct Opening {
    struct DataOptions options;
    int draws;
    bool teaches;
};
static inline void open_and_draw(void *argument) {
    struct Opening *o = argument;
    console_open(false);   /* warnings are what the tests read */
    struct Task *task = open_data(&o->options);
    struct Lesson lesson = {0};
    for (int i = 0; i < o->draws; i++) {
        if (o->teaches) task->teach(task, &lesson, 0, (uint64_t)i);
        else printf("[%s]", drawn(task, i)->prompt.bytes);
    }
    lesson_free(&lesson);
    data_close(task);
}

#endif
