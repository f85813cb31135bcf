/* Times the tokenizer of a directory on a text file, cut into pieces of whole lines:

       make build/bench_tokenizer && build/bench_tokenizer DIR FILE [PIECE_BYTES [ROUNDS]]

   Prints {"load_seconds": , "seconds": , "tokens": } with the best of the rounds. One thread.
   dev/ref/check_tokenizers.py runs it beside the tokenizers library. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../llmc/base/check.h"
#include "../llmc/base/time.h"
#include "../llmc/io/tokenizer.h"

static void read_all(struct Text *text, const char *path) {
    char block[65536];
    size_t got;
    FILE *stream = fopen(path, "rb");
    if (!stream) die_errno("read", path);
    while ((got = fread(block, 1, sizeof block, stream)) > 0) text_append(text, block, got);
    fclose(stream);
}

/* Where the piece that begins at `at` ends: at the first line's end past its size. */
static size_t piece_end(const struct Text *text, size_t at, size_t size) {
    if (text->length - at <= size) return text->length;
    const char *end = memchr(text->bytes + at + size, '\n', text->length - at - size);
    return end ? (size_t)(end + 1 - text->bytes) : text->length;
}

int main(int argc, char **argv) {
    if (argc < 3) die_input("bench_tokenizer DIR FILE [PIECE_BYTES [ROUNDS]]");
    size_t size = argc > 3 ? strtoul(argv[3], NULL, 10) : 4096;
    int rounds = argc > 4 ? atoi(argv[4]) : 3;
    struct Text text = {0};
    struct Tokenizer *tokenizer;
    struct Ids ids = {0};
    read_all(&text, argv[2]);
    double begin = seconds(), best = 1e30;
    const char *problem = tokenizer_load(&tokenizer, argv[1]);
    if (problem) die_input("%s: %s", argv[1], problem);
    double loaded = seconds() - begin;
    for (int round = 0; round < rounds; round++) {
        ids.count = 0;
        begin = seconds();
        for (size_t at = 0, end; at < text.length; at = end) {
            end = piece_end(&text, at, size);
            if (!tokenizer_encode(tokenizer, text.bytes + at, end - at, TOKENIZER_SPECIALS, &ids))
                die_input("no ids for a piece");
        }
        double now = seconds() - begin;
        if (now < best) best = now;
    }
    printf("{\"load_seconds\": %.4f, \"seconds\": %.4f, \"tokens\": %d}\n", loaded, best,
           ids.count);
    tokenizer_free(tokenizer);
    ids_free(&ids), text_free(&text);
    return 0;
}
