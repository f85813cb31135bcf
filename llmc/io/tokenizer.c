#include "tokenizer.h"

#include <assert.h>
#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "../base/files.h"

static const char END_OF_TEXT[] = "<|endoftext|>";

static void clear(struct Tokenizer *tokenizer) {
    memset(tokenizer, 0, sizeof *tokenizer);
    for (int c = 0; c < 256; c++) tokenizer->id[c] = -1;
}

void tokenizer_from_alphabet(struct Tokenizer *tokenizer, const char *alphabet) {
    clear(tokenizer);
    int n = 0;
    for (const char *c = alphabet; *c; c++, n++) {
        assert((unsigned char)*c < 128 && tokenizer->id[(unsigned char)*c] < 0);
        tokenizer->id[(unsigned char)*c] = (short)n;
        tokenizer->symbol[n] = *c;
    }
    tokenizer->end_of_text = n;
    tokenizer->vocab_size = n + 1;
}

int tokenizer_encode(const struct Tokenizer *tokenizer, const char *text, int *ids, int capacity) {
    int n = 0;
    for (; text[n]; n++) {
        int id = tokenizer->id[(unsigned char)text[n]];
        if (id < 0 || n == capacity) return -1;
        ids[n] = id;
    }
    return n;
}

int tokenizer_decode(const struct Tokenizer *tokenizer, const int *ids, int count, char *text,
                     size_t capacity) {
    assert(capacity > 0);
    int n = 0;
    while (n < count && (size_t)n + 1 < capacity && ids[n] != tokenizer->end_of_text) {
        bool known = ids[n] >= 0 && ids[n] < tokenizer->vocab_size;
        text[n] = known ? tokenizer->symbol[ids[n]] : '?';
        n++;
    }
    text[n] = 0;
    return n;
}

/* ---- GPT-2's files --------------------------------------------------------------------------- */

/* GPT-2 writes bytes as printable characters: those from '!' to '~' as themselves, 0 to 32 and 127
   as U+0100 onwards. (For bytes from 128 see its bytes_to_unicode; no alphabet here has them.) */
static void byte_to_utf8(unsigned char byte, char out[3]) {
    bool printable = byte >= '!' && byte <= '~';
    int point = printable ? byte : 0x100 + (byte == 127 ? 33 : byte);
    int length = printable ? 1 : 2;
    if (printable) out[0] = (char)point;
    else out[0] = (char)(0xC0 | point >> 6), out[1] = (char)(0x80 | (point & 63));
    out[length] = 0;
}

/* The byte that `text` stands for, or -1. */
static int byte_of_utf8(const char *text) {
    char spelled[3];
    for (int byte = 0; byte < 128; byte++) {
        byte_to_utf8((unsigned char)byte, spelled);
        if (strcmp(text, spelled) == 0) return byte;
    }
    return -1;
}

static void write_file(const char *directory, const char *name, const char *text) {
    char path[4096];
    struct AtomicFile file;
    check_path(path, sizeof path, "%s/%s", directory, name);
    atomic_open(&file, path);
    atomic_write(&file, text, strlen(text));
    atomic_commit(&file);
}

static void write_json(const char *directory, const char *name, cJSON *root) {
    char *text = cJSON_Print(root);
    if (!text) die_machine("out of memory: %s", name);
    write_file(directory, name, text);
    free(text);
    cJSON_Delete(root);
}

void tokenizer_save(const struct Tokenizer *tokenizer, const char *directory, int max_length) {
    cJSON *vocab = cJSON_CreateObject();
    for (int i = 0; i < tokenizer->vocab_size; i++) {
        char spelled[3];
        byte_to_utf8((unsigned char)tokenizer->symbol[i], spelled);
        cJSON_AddNumberToObject(vocab, i == tokenizer->end_of_text ? END_OF_TEXT : spelled, i);
    }
    write_json(directory, "vocab.json", vocab);
    write_file(directory, "merges.txt", "#version: 0.2\n");
    cJSON *config = cJSON_CreateObject();
    cJSON_AddStringToObject(config, "tokenizer_class", "GPT2Tokenizer");
    cJSON_AddNumberToObject(config, "model_max_length", max_length);
    cJSON_AddStringToObject(config, "bos_token", END_OF_TEXT);
    cJSON_AddStringToObject(config, "eos_token", END_OF_TEXT);
    cJSON_AddStringToObject(config, "unk_token", END_OF_TEXT);
    cJSON_AddBoolToObject(config, "add_prefix_space", false);
    cJSON_AddBoolToObject(config, "clean_up_tokenization_spaces", false);
    write_json(directory, "tokenizer_config.json", config);
}

/* The file as terminated text (the caller frees), or NULL. */
static char *read_text(const char *directory, const char *name) {
    enum { LIMIT = 16 << 20 };
    char path[4096];
    check_path(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    char *text = check_alloc(LIMIT + 1, 1, name);
    size_t length = fread(text, 1, LIMIT + 1, file);
    bool bad = ferror(file) || length > LIMIT;
    fclose(file);
    if (!bad) {
        text[length] = 0;
        if (strlen(text) == length) return text;
    }
    free(text);
    return NULL;
}

/* One entry of vocab.json; NULL or what is wrong. taken[id] notes which ids were given. */
static const char *load_entry(struct Tokenizer *tokenizer, const cJSON *item, bool taken[256]) {
    bool end = strcmp(item->string, END_OF_TEXT) == 0;
    int byte = end ? -1 : byte_of_utf8(item->string);
    if (!end && byte < 0)
        return "vocab.json has a token that is not one ASCII character; only such vocabularies "
               "can be used";
    double id = cJSON_IsNumber(item) ? item->valuedouble : -1;
    if (!(id >= 0 && id < 256) || id != (int)id || taken[(int)id])
        return "vocab.json has an id that is not a number, too large, or there twice";
    if (!end && tokenizer->id[byte] >= 0) return "vocab.json has a character twice";
    taken[(int)id] = true;
    if (end) {
        if (tokenizer->end_of_text >= 0) return "vocab.json has <|endoftext|> twice";
        tokenizer->end_of_text = (int)id;
    } else {
        tokenizer->id[byte] = (short)id;
        tokenizer->symbol[(int)id] = (char)byte;
    }
    tokenizer->vocab_size++;
    return NULL;
}

const char *tokenizer_load(struct Tokenizer *tokenizer, const char *directory) {
    clear(tokenizer);
    tokenizer->end_of_text = -1;
    char *text = read_text(directory, "vocab.json");
    if (!text) return "vocab.json cannot be read";
    cJSON *root = cJSON_ParseWithOpts(text, NULL, true);
    free(text);
    const char *wrong = cJSON_IsObject(root) ? NULL : "vocab.json is not a JSON object";
    bool taken[256] = {false};
    if (!wrong)
        for (const cJSON *item = root->child; item && !wrong; item = item->next)
            wrong = load_entry(tokenizer, item, taken);
    cJSON_Delete(root);
    if (wrong) return wrong;
    if (tokenizer->end_of_text < 0) return "vocab.json has no <|endoftext|>";
    for (int i = 0; i < tokenizer->vocab_size; i++)
        if (!taken[i]) return "vocab.json leaves out an id";
    return NULL;
}
