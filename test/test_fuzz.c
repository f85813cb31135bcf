/* The fuzzers' corpora (test/fuzz/fuzz.h): each file once, whatever the compiler. A target that
   finds something wrong aborts; every input that broke a reader is among the files. */
#include <dirent.h>
#include "child.h"
#include "test.h"
#include "../llmc/base/console.h"
#include "fuzz/fuzz_config.c"
#include "fuzz/fuzz_data.c"
#include "fuzz/fuzz_reply.c"
#include "fuzz/fuzz_safetensors.c"
#include "fuzz/fuzz_tokenizer.c"

struct Corpus {
    const char *name;
    void (*target)(const uint8_t *data, size_t size);
    char input[512];   /* the file in hand */
    int count;
};

static void read_input(struct Corpus *corpus) {
    static uint8_t bytes[1 << 16];
    FILE *file = fopen(corpus->input, "rb");
    assert_non_null(file);
    size_t size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    assert_true(size < sizeof bytes);
    /* one that all names, should it end the program */
    fprintf(stderr, "%s\n", corpus->input);
    corpus->target(bytes, size);
}

static void read_corpus(void *argument) {
    struct Corpus *corpus = argument;
    char folder[256];
    snprintf(folder, sizeof folder, "test/fuzz/corpus/%s", corpus->name);
    DIR *directory = opendir(folder);
    if (!directory) fail_msg("there is no %s (run this from the root of the tree)", folder);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        if (entry->d_name[0] == '.') continue;
        snprintf(corpus->input, sizeof corpus->input, "%s/%s", folder, entry->d_name);
        read_input(corpus);
        corpus->count++;
    }
    closedir(directory);
    printf("%d inputs of %s\n", corpus->count, corpus->name);
    if (corpus->count < 20) exit(3);
}

static void test_corpora(void **state) {
    (void)state;
    static char output[1 << 18];
    struct Corpus corpora[] = {
        {.name = "config", .target = fuzz_config},
        {.name = "data", .target = fuzz_data},
        {.name = "reply", .target = fuzz_reply},
        {.name = "safetensors", .target = fuzz_safetensors},
        {.name = "tokenizer", .target = fuzz_tokenizer},
    };
    for (size_t i = 0; i < sizeof corpora / sizeof *corpora; i++) {
        int code = run_in_child(read_corpus, &corpora[i], output, sizeof output);
        size_t length = strlen(output);
        if (code != 0)
            fail_msg("%s: exit code %d; the last lines: %s", corpora[i].name, code,
                     output + (length > 600 ? length - 600 : 0));
    }
}

int main(void) {
    json_memory(malloc);
    console_open(true);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_corpora)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
