/* Tokenizer files, and behind them a text: what loads encodes and decodes any text within its
   bounds. Parts end at zero bytes: tokenizer.json, the text; or, where the first part is empty:
   vocab.json, merges.txt, tokenizer_config.json, the text. */
#include "fuzz.h"
#include "../../llmc/io/tokenizer_parts.h"

/* Ids are tokens, and streaming gives the bytes of decoding. */
static void check_text(const struct Tokenizer *t, const char *text, size_t length, int flags) {
    struct Ids ids = {0};
    struct Text whole = {0}, shown = {0}, grown = {0};
    struct TokenizerStream stream = {0};
    text_clear(&shown), text_clear(&grown), text_clear(&whole);
    MUST(tokenizer_encode(t, text, length, flags, &ids) || ids.count == 0);
    tokenizer_decode(t, ids.id, ids.count, flags, &whole);
    text_append_utf8(&shown, whole.bytes, whole.length);
    for (int i = 0; i < ids.count; i++) {
        MUST(ids.id[i] >= 0 && ids.id[i] < tokenizer_vocab_size(t));
        tokenizer_stream(t, &stream, ids.id[i], flags, &grown);
    }
    tokenizer_stream_end(&stream, &grown);
    MUST(grown.length == shown.length && memcmp(grown.bytes, shown.bytes, grown.length) == 0);
    ids_free(&ids), text_free(&whole), text_free(&shown), text_free(&grown);
}

enum { LIBRARY_FILE, VOCAB, MERGES, ROLES, TOKENIZER_FILES };
static const char *const tokenizer_names[TOKENIZER_FILES] = {
    "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"};

/* Takes the next part of the input for a file of the directory; true: there is one. */
static bool take_file(const char *directory, int which, const uint8_t **data, size_t *size) {
    static int memory[TOKENIZER_FILES] = {-1, -1, -1, -1};
    char path[128];
    size_t length;
    char *part = fuzz_part(data, size, &length);
    snprintf(path, sizeof path, "%s/%s", directory, tokenizer_names[which]);
    unlink(path);
    if (length > 0) {
        fuzz_file(&memory[which], part, length);
        fuzz_link(directory, tokenizer_names[which], memory[which]);
    }
    free(part);
    return length > 0;
}

static void fuzz_tokenizer(const uint8_t *data, size_t size) {
    enum { MOST_TEXT = 300 };   /* patterns may be slow */
    struct Tokenizer *t;
    static const char *directory;
    if (!directory) directory = fuzz_directory();
    if (!take_file(directory, LIBRARY_FILE, &data, &size))
        for (int i = VOCAB; i < TOKENIZER_FILES; i++) take_file(directory, i, &data, &size);
    const char *problem = tokenizer_load(&t, directory);
    if (problem) {
        must_be_a_line(problem);
        return;
    }
    size_t length = size < MOST_TEXT ? size : MOST_TEXT;
    char *text = malloc(length);   /* of its length: nothing behind it may be read */
    if (length) memcpy(text, data, length);
    check_text(t, text, length, 0);
    check_text(t, text, length, TOKENIZER_SPECIALS | TOKENIZER_BEGIN | TOKENIZER_END);
    check_text(t, text, length, TOKENIZER_LENIENT | TOKENIZER_PLAIN);
    free(text);
    tokenizer_free(t);
}

FUZZ_TARGET(fuzz_tokenizer)
