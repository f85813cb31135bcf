/* Characters to token ids and back, for the built-in tasks: one id per character of the task's
   alphabet, then <|endoftext|>. Saved as vocab.json + merges.txt with no merges +
   tokenizer_config.json, which Hugging Face's GPT2Tokenizer reads as it is. */
#ifndef LLMC_TOKENIZER_H
#define LLMC_TOKENIZER_H

#include <stddef.h>
#include "../base/checksums.h"

struct Tokenizer {
    int vocab_size;        /* end_of_text included */
    int end_of_text;       /* id */
    short id[256];         /* -1: not in the alphabet */
    char symbol[256];      /* id -> character */
};

/* alphabet: distinct ASCII characters in id order. */
void tokenizer_from_alphabet(struct Tokenizer *tokenizer, const char *alphabet);
/* ids [capacity]; returns how many, or -1 if a character is unknown or there is no room. */
int tokenizer_encode(const struct Tokenizer *tokenizer, const char *text, int *ids, int capacity);
/* Stops before the first end_of_text; unknown ids become '?'. Always terminated; returns length. */
int tokenizer_decode(const struct Tokenizer *tokenizer, const int *ids, int count, char *text,
                     size_t capacity);
/* Writes the three files into the directory; their checksums go into sums (or NULL). */
void tokenizer_save(const struct Tokenizer *tokenizer, const char *directory, int max_length,
                    struct Checksums *sums);
/* Reads vocab.json or, where there is none, tokenizer.json; NULL or one sentence saying what is
   wrong (also for a vocabulary that is not one id per character: those need byte-pair merges, which
   this reader does not do). */
const char *tokenizer_load(struct Tokenizer *tokenizer, const char *directory);

#endif
