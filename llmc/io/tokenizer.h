/* Text to token ids and back, by the files of a Hugging Face directory: byte-level BPE (Sennrich et
   al. 2016, arXiv:1508.07909; Radford et al. 2019) with the semantics of Hugging Face's tokenizers
   library, id for id.

       tokenizer.json               normalizer NFC; pre-tokenizers ByteLevel, Split, Digits and
                                    sequences of them; model BPE; added tokens; begin-of-text
       vocab.json + merges.txt      GPT-2's, where there is no tokenizer.json
       tokenizer_config.json        which tokens end and begin a text, and pad

   What would give other ids than the library's is refused when it is loaded. A tokenizer has
   scratch memory and a cache of words behind it: one thread at a time may encode with it. */
#ifndef LLMC_TOKENIZER_H
#define LLMC_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include "../base/checksums.h"
#include "../base/text.h"

struct Tokenizer;   /* opaque; made by the next two, owned by the caller: tokenizer_free */

/* Reads the directory's tokenizer. NULL, or one sentence saying what is wrong, with the file's name
   (static storage); *out is NULL then. A machine that fails ends the program. */
const char *tokenizer_load(struct Tokenizer **out, const char *directory);
/* One id per character in the alphabet's order (distinct ASCII), then <|endoftext|>: the built-in
   tasks' vocabulary. */
struct Tokenizer *tokenizer_from_alphabet(const char *alphabet);
void tokenizer_free(struct Tokenizer *tokenizer);   /* NULL: nothing to do */

/* Writes its files into the directory: those it was loaded from byte for byte, or for an alphabet
   vocab.json, merges.txt, tokenizer.json and tokenizer_config.json (model_max_length max_length),
   which AutoTokenizer reads. Their checksums go into sums (or NULL). Ends the program if it
   cannot. */
void tokenizer_save(const struct Tokenizer *tokenizer, const char *directory, int max_length,
                    struct Checksums *sums);

/* The largest id + 1. Not every id below it need be a token. */
int tokenizer_vocab_size(const struct Tokenizer *tokenizer);
/* The id of a token by its spelling in the files ("<|im_end|>", a space as U+0120), or -1. */
int tokenizer_id(const struct Tokenizer *tokenizer, const char *content);
/* Is it one of the tokens that stand for no text? (added tokens with "special": true) */
bool tokenizer_is_special(const struct Tokenizer *tokenizer, int id);
/* The tokens with a role in tokenizer_config.json, or -1. Where it names no end of text,
   <|endoftext|> is it, if there is such a token. */
enum TokenizerRole { TOKENIZER_ENDS_TEXT, TOKENIZER_BEGINS_TEXT, TOKENIZER_PADS, TOKENIZER_ROLES };
int tokenizer_role(const struct Tokenizer *tokenizer, enum TokenizerRole role);
/* Gives a token of the vocabulary a role that its files do not name. */
void tokenizer_set_role(struct Tokenizer *tokenizer, enum TokenizerRole role, int id);

/* Ids in a row, owned. Zero-initialise before first use. */
struct Ids {
    int *id;               /* [count] */
    int count, capacity;
};
void ids_append(struct Ids *ids, const int *id, int count);
void ids_free(struct Ids *ids);

enum {
    TOKENIZER_SPECIALS = 1,   /* encode: special tokens written in the text become their ids; else
                                 they are text like any other. (Added tokens that are not special
                                 become their ids in any case.) */
    TOKENIZER_BEGIN = 2,      /* encode: what the post-processor puts before a text is added */
    TOKENIZER_END = 4,        /* encode: what it puts behind (mostly nothing) */
    TOKENIZER_LENIENT = 8,    /* encode: a byte that has no token of its own is left out, or becomes
                                 the files' unk_token, as the library does without a word; else
                                 such a text is refused */
    TOKENIZER_PLAIN = 16      /* decode: special tokens are left out */
};

/* Appends the ids of text [length]. What is not UTF-8 in it is read as U+FFFD, one for each longest
   part of a character, as most readers of files do; zero bytes are characters. False, with nothing
   appended: the vocabulary has no id for a byte of it (the built-in tasks' are small, and SmolLM2's
   lacks some control characters), or the files' pattern needed more steps than it is given
   (millions per match), or the text is larger than 1 GB. */
bool tokenizer_encode(const struct Tokenizer *tokenizer, const char *text, size_t length,
                      int flags, struct Ids *out);

/* Appends the bytes of ids [count]: after encoding UTF-8 these are the text (NFC apart), cut
   anywhere they may end within a character. An id that is no token gives U+FFFD. */
void tokenizer_decode(const struct Tokenizer *tokenizer, const int *ids, int count, int flags,
                      struct Text *out);

/* Decoding token by token, for whoever shows a text while it grows: what comes out is UTF-8 at any
   time, whole characters only. Bytes that can be no character become U+FFFD. Zero-initialise. */
struct TokenizerStream {
    char begun[4];         /* the bytes of a character that is not complete */
    int count;
};
void tokenizer_stream(const struct Tokenizer *tokenizer, struct TokenizerStream *stream, int id,
                      int flags, struct Text *out);
/* No more ids: a character that was begun becomes U+FFFD. */
void tokenizer_stream_end(struct TokenizerStream *stream, struct Text *out);

#endif
