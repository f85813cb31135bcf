/* A task and words for tests that give completions by hand. Prompts are 0= to 9=; a completion's
   reward is what its last letter says: r right, h half right, u unscored, all else wrong. In a word
   `.` is the end-of-text token. */
#ifndef LETTERS_H
#define LETTERS_H

#include "test.h"
#include "../llmc/rl/experience.h"
#include "../llmc/tasks/examples.h"

enum { LETTERS_SEED = 3 };

static void letters_next(const struct Task *task, struct Example *example, struct Rng *rng) {
    (void)task;
    text_format(&example->prompt, "%u=", rng_below(rng, 10));
}

static void letters_judge(const struct Task *task, struct Reward *reward,
                          const struct Completion *completion, int count) {
    (void)task;
    for (int i = 0; i < count; i++) {
        char letter = completion[i].length ? completion[i].text[completion[i].length - 1] : 'w';
        reward[i].value = letter == 'r' ? 1 : letter == 'h' ? 0.5f : letter == 'u' ? NAN : 0;
        reward[i].right = letter == 'r';
    }
}

static const struct Task letters = {.name = "letters", .next = letters_next,
                                    .judge = letters_judge};

static inline struct Tokenizer *letters_tokenizer(void) {
    return tokenizer_from_alphabet("0123456789=hruwx");
}

static inline int letter_id(const struct Tokenizer *tokenizer, char letter) {
    return letter == '.' ? tokenizer_role(tokenizer, TOKENIZER_ENDS_TEXT)
                         : tokenizer_id(tokenizer, (char[]){letter, 0});
}

/* The rollout that says `words`; its k-th token of all has entropy k hundredths and logp -k. */
static inline struct Rollout rollout_of(const char *const *words, int count) {
    struct Tokenizer *tokenizer = letters_tokenizer();
    struct Rollout rollout = {.count = count};
    size_t room = 0;
    assert_true(count >= 0);
    for (int i = 0; i < count; i++) room += strlen(words[i]);
    rollout.start = calloc((size_t)count + 1, sizeof *rollout.start);
    rollout.ended = calloc((size_t)(unsigned)count, 1);
    rollout.token = calloc(room, sizeof *rollout.token);
    rollout.logp = calloc(room, sizeof *rollout.logp);
    rollout.entropy = calloc(room, sizeof *rollout.entropy);
    for (int i = 0, at = 0; i < count; i++) {
        for (const char *c = words[i]; *c; c++, at++) {
            rollout.token[at] = letter_id(tokenizer, *c);
            rollout.logp[at] = -(float)(at + 1);
            rollout.entropy[at] = 0.01f * (float)(at + 1);
            rollout.ended[i] = *c == '.';
        }
        rollout.start[i + 1] = at;
    }
    tokenizer_free(tokenizer);
    return rollout;
}

/* Appends `words` to a rollouts.jsonl as step `step`: `group` completions of each training prompt
   from number `first` on, with the numbers of rollout_of. */
static inline void write_step(const char *path, int step, int first, int group,
                              const char *const *words, int count) {
    struct Tokenizer *tokenizer = letters_tokenizer();
    struct Examples prompts = examples_draw(&letters, tokenizer, LETTERS_SEED, RNG_PROMPT,
                                            (uint64_t)first, count / group);
    struct Rollout r = rollout_of(words, count);
    FILE *file = fopen(path, "a");
    assert_non_null(file);
    for (int i = 0; i < count; i++) {
        int begin = r.start[i], end = r.start[i + 1];
        fprintf(file, "{\"step\": %d, \"prompt\": \"%s\", \"tokens\": [", step,
                prompts.example[i / group].prompt.bytes);
        for (int t = begin; t < end; t++) fprintf(file, "%s%d", t > begin ? ", " : "", r.token[t]);
        fprintf(file, "], \"logp\": [");
        for (int t = begin; t < end; t++) fprintf(file, "%s%g", t > begin ? ", " : "", r.logp[t]);
        fprintf(file, "], \"entropy\": [");
        for (int t = begin; t < end; t++)
            fprintf(file, "%s%.9g", t > begin ? ", " : "", r.entropy[t]);
        fprintf(file, "]}\n");
    }
    assert_int_equal(fclose(file), 0);
    rollout_free(&r);
    examples_free(&prompts);
    tokenizer_free(tokenizer);
}

#endif
