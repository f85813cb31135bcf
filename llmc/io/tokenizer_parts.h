/* The parts of a tokenizer, for the files tokenizer_*.c only; everyone else: tokenizer.h.

       tokenizer_vocabulary.c   spelling -> id, id -> bytes; bytes as GPT-2 spells them
       tokenizer_added.c        added tokens are found in the text
       tokenizer_unicode.c      what libraries know differently of Unicode; NFC
       tokenizer_pattern.c      a pattern of the files as PCRE2 code
       tokenizer_split.c        text -> words: the pre-tokenizer
       tokenizer_bpe.c          word -> ids: merges
       tokenizer.c              text -> ids -> text, through all of these
       tokenizer_json.c         tokenizer.json -> all of these
       tokenizer_files.c        the files of a directory, read and written */
#ifndef LLMC_TOKENIZER_PARTS_H
#define LLMC_TOKENIZER_PARTS_H

#include <cjson/cJSON.h>
#include <stdint.h>
#include "tokenizer.h"

/* Ids from a file lie below this, so that a damaged one costs no gigabytes. */
#define MOST_IDS (1 << 22)

/* Sentences: the file's name, a space, what printf would print; static storage. */
const char *tokenizer_wrong(const char *file, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* 64 bits that differ where the bytes do. */
uint64_t hash_bytes(const char *bytes, size_t length);

/* ---- vocabulary ------------------------------------------------------------------------------ */

/* A token is bytes, spelled with one character for each (GPT-2's bytes_to_unicode), or, where its
   spelling has another character, the spelling itself. */
enum TokenKind { TOKEN_NONE, TOKEN_BYTES, TOKEN_TEXT };

struct Vocabulary {
    int size;                  /* largest id + 1 */
    int count;                 /* tokens */
    int capacity;              /* of the arrays by id */
    struct Token {
        size_t start;          /* in bytes */
        uint32_t length;
        unsigned char kind;    /* enum TokenKind */
    } *token;                  /* [size] */
    struct Text bytes;         /* of all tokens */
    int *slot;                 /* [num_slots, a power of 2] id + 1 by hash, or 0 */
    size_t num_slots;
    struct Text spelled;       /* scratch */
};

/* False: the spelling or the id is there already. id in 0..MOST_IDS - 1. */
bool vocabulary_add(struct Vocabulary *v, const char *spelling, size_t length, int id);
/* Ids or -1: by spelling, by the bytes of a TOKEN_BYTES. */
int vocabulary_find(struct Vocabulary *v, const char *spelling, size_t length);
int vocabulary_find_bytes(const struct Vocabulary *v, const char *bytes, size_t length);
void vocabulary_free(struct Vocabulary *v);
/* Bytes as GPT-2 spells them, appended; and back: false if the spelling has another character. */
void spell_bytes(struct Text *out, const char *bytes, size_t length);
bool unspell_bytes(struct Text *out, const char *spelling, size_t length);

/* ---- added tokens ---------------------------------------------------------------------------- */

struct Added {
    char *content;             /* owned, terminated */
    size_t length;
    int id;
    bool special, normalized, lstrip, rstrip, single_word;
};

/* The tokens of one pass over the text, as a trie. */
struct AddedTrie {
    struct AddedNode {
        int child, sibling;    /* 0: none */
        int added;             /* the token that ends here + 1, or 0 */
        unsigned char byte;
    } *node;                   /* node 0 stands for nothing */
    int count, capacity;
    int root[256];             /* node by the first byte */
};

struct AddedTokens {
    struct Added *list;
    int count, capacity;
    struct Vocabulary numbers;                 /* content -> number in the list */
    int size;                                  /* largest id + 1 */
    struct AddedTrie as_written, normalized;   /* before and after the normalizer */
};

#define LONGEST_ADDED 4096     /* bytes: what a search may take per byte of text */

/* Takes its content; none of that content may be there yet. */
void added_append(struct AddedTokens *tokens, const struct Added *added);
/* The token of that content, or NULL. */
const struct Added *added_find(struct AddedTokens *tokens, const char *content);
void added_trie_insert(struct AddedTrie *trie, const char *content, size_t length, int index);
void added_free(struct AddedTokens *tokens);

/* A search for them in text [length]; zero-initialise `at` and `done`. */
struct AddedSearch {
    const struct AddedTokens *tokens;
    const struct AddedTrie *trie;
    const char *text;
    size_t length;
    bool specials;             /* look for the special ones too */
    size_t at;                 /* where the search goes on */
    size_t done;               /* where the text after the last token begins */
    int id;                    /* of it */
};
/* Finds the next; the text between the token before it and this one is *before_begin to
   *before_end - 1, and may be empty. */
bool added_next(struct AddedSearch *search, size_t *before_begin, size_t *before_end);

/* ---- Unicode --------------------------------------------------------------------------------- */

/* An older character of the same kind for one that PCRE2 and utf8proc may not know; else itself. */
unsigned like_recent(unsigned point);
/* White_Space. */
bool is_white_space(unsigned point);
/* \w of Unicode TR 18: Alphabetic, marks, decimal digits, connector punctuation, joiners. */
bool is_word_character(unsigned point);
/* The text as a pattern is to see it: the text itself or a copy in *scratch. */
const char *pattern_view(const char *text, size_t length, struct Text *scratch);
/* NFC of text [length], UTF-8, appended. */
void text_to_nfc(struct Text *out, const char *text, size_t length);

/* ---- splitting ------------------------------------------------------------------------------- */

/* A pattern, compiled. */
struct Pattern;
/* NULL and *problem, a sentence's end (static storage). literal: the text itself, no pattern. */
struct Pattern *pattern_open(const char *text, bool literal, const char **problem);
/* The first match at or behind `from`: 1, *begin and *end; 0: none; -1: too many steps. text must
   be UTF-8. */
int pattern_find(const struct Pattern *pattern, const char *text, size_t length, size_t from,
                 size_t *begin, size_t *end);
void pattern_close(struct Pattern *pattern);

enum SplitKind {
    SPLIT_PREFIX,              /* a space is put before text that does not begin with one */
    SPLIT_PATTERN,
    SPLIT_SPELL                /* bytes become characters, for steps that come after ByteLevel */
};
enum SplitBehavior { SPLIT_ISOLATED, SPLIT_REMOVED, SPLIT_TO_PREVIOUS, SPLIT_TO_NEXT,
                     SPLIT_CONTIGUOUS };
enum { MOST_STEPS = 32 };

struct Splitter {
    struct SplitStep {
        enum SplitKind kind;
        struct Pattern *pattern;
        enum SplitBehavior behavior;
        bool invert;
        struct Text scratch;
    } step[MOST_STEPS];
    int count;
    bool spells;               /* one of the steps is SPLIT_SPELL: words come spelled */
};

/* What is done with each word; false stops. */
typedef bool (*WordFunction)(void *context, const char *word, size_t length);
/* Calls `word` for each word of text (UTF-8) in order; false if one of them did, or a pattern
   needed too many steps. */
bool splitter_run(struct Splitter *splitter, const char *text, size_t length, WordFunction word,
                  void *context);
void splitter_free(struct Splitter *splitter);
#define GPT2_PATTERN \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

/* ---- merging --------------------------------------------------------------------------------- */

struct Merge {
    uint64_t pair;             /* left id << 32 | right id; NO_PAIR: the slot is free */
    int rank, id;
};

enum { NO_UNKNOWN = -2 };

struct Bpe {
    int byte_id[256];          /* -1: the vocabulary lacks the byte */
    int unknown;               /* unk_token: for those; -1: none; NO_UNKNOWN: it is no token */
    bool fuse_unknown;         /* fuse_unk: one for several in a row */
    bool whole_words;          /* ignore_merges: a word that is a token is not taken apart */
    struct Merge *merge;       /* [num_merges, a power of 2] by hash */
    size_t num_merges;
    struct CachedWord *cache;
    struct Symbol *symbol;     /* scratch: the word in hand */
    uint64_t *heap;            /* scratch: rank << 32 | position, the smallest first */
    size_t capacity, heap_count, heap_capacity;
};

void bpe_open(struct Bpe *bpe, size_t num_merges);
/* A later merge of the same pair takes the place of the earlier. */
void bpe_merge(struct Bpe *bpe, int left, int right, int rank, int id);
/* Appends the ids of a word's bytes; false: a byte has none. lenient: as TOKENIZER_LENIENT. */
bool bpe_encode(struct Bpe *bpe, const struct Vocabulary *vocabulary, const char *word,
                size_t length, bool lenient, struct Ids *out);
void bpe_free(struct Bpe *bpe);

/* ---- all of it ------------------------------------------------------------------------------- */

struct TokenizerFile {
    const char *name;
    struct Text bytes;
};
enum { MOST_FILES = 10 };

struct Tokenizer {
    struct Vocabulary vocabulary;
    struct AddedTokens added;
    struct Splitter splitter;
    struct Bpe bpe;
    bool nfc;
    struct Ids begin, end;     /* what the post-processor adds */
    int size;                  /* largest id of vocabulary and added tokens + 1 */
    int role[TOKENIZER_ROLES];
    int *added_number;         /* [size] in the list of added tokens, or -1 */
    char *alphabet;            /* of tokenizer_from_alphabet, or NULL */
    struct TokenizerFile file[MOST_FILES];   /* as they were loaded */
    int num_files;
    struct Text repaired, normal, joined;    /* scratch: text as UTF-8, in NFC, a word's bytes */
};

struct Tokenizer *tokenizer_new(void);
/* Fills what follows from the vocabulary and the added tokens, when all of them are there. */
void tokenizer_finish(struct Tokenizer *t);
/* NULL or a sentence. */
const char *tokenizer_read_json(struct Tokenizer *t, const cJSON *root);
const char *tokenizer_read_vocab(struct Tokenizer *t, const cJSON *vocab, const char *file);
const char *tokenizer_add_merge(struct Tokenizer *t, const char *left, size_t left_length,
                                const char *right, size_t right_length, int rank,
                                const char *file);
/* An added token, its id checked against the rule of the library. */
const char *tokenizer_add_token(struct Tokenizer *t, struct Added *added, const char *file);

#endif
