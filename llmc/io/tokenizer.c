#include "tokenizer.h"

#include <assert.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include "../base/check.h"
#include "../base/files.h"
#include "../base/json.h"

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

static void write_json(const char *directory, const char *name, cJSON *root,
                       struct Checksums *sums) {
    char path[4096];
    check_path(path, sizeof path, "%s/%s", directory, name);
    json_write(root, path, sums);
}

/* The vocabulary has no merges; GPT2Tokenizer wants the file all the same. */
static void write_merges(const char *directory, struct Checksums *sums) {
    char path[4096];
    struct AtomicFile file;
    static const char text[] = "#version: 0.2\n";
    check_path(path, sizeof path, "%s/merges.txt", directory);
    atomic_open(&file, path);
    atomic_write(&file, text, sizeof text - 1);
    atomic_commit(&file);
    checksums_add(sums, &file);
}

void tokenizer_save(const struct Tokenizer *tokenizer, const char *directory, int max_length,
                    struct Checksums *sums) {
    cJSON *vocab = cJSON_CreateObject();
    for (int i = 0; i < tokenizer->vocab_size; i++) {
        char spelled[3];
        byte_to_utf8((unsigned char)tokenizer->symbol[i], spelled);
        cJSON_AddNumberToObject(vocab, i == tokenizer->end_of_text ? END_OF_TEXT : spelled, i);
    }
    write_json(directory, "vocab.json", vocab, sums);
    write_merges(directory, sums);
    cJSON *config = cJSON_CreateObject();
    cJSON_AddStringToObject(config, "tokenizer_class", "GPT2Tokenizer");
    cJSON_AddNumberToObject(config, "model_max_length", max_length);
    cJSON_AddStringToObject(config, "bos_token", END_OF_TEXT);
    cJSON_AddStringToObject(config, "eos_token", END_OF_TEXT);
    cJSON_AddStringToObject(config, "unk_token", END_OF_TEXT);
    cJSON_AddBoolToObject(config, "add_prefix_space", false);
    cJSON_AddBoolToObject(config, "clean_up_tokenization_spaces", false);
    write_json(directory, "tokenizer_config.json", config, sums);
}

#define MOST_BYTES ((size_t)64 << 20)

/* A vocabulary while it is read. */
struct Loading {
    struct Tokenizer *tokenizer;
    const char *name;      /* of the file */
    bool taken[256];       /* ids that were given */
};

__attribute__((format(printf, 2, 3)))
static const char *wrong(const struct Loading *l, const char *format, ...) {
    static char text[256];
    va_list arguments;
    int length = snprintf(text, sizeof text, "%s ", l->name);
    va_start(arguments, format);
    vsnprintf(text + length, sizeof text - (size_t)length, format, arguments);
    va_end(arguments);
    return text;
}

static const char *load_token(struct Loading *l, const char *token, const cJSON *number) {
    struct Tokenizer *t = l->tokenizer;
    bool end = strcmp(token, END_OF_TEXT) == 0;
    int byte = end ? -1 : byte_of_utf8(token);
    if (!end && byte < 0)
        return wrong(l, "has a token that is not one ASCII character; only such vocabularies can "
                     "be used");
    double id = cJSON_IsNumber(number) ? number->valuedouble : -1;
    if (!(id >= 0 && id < 256) || id != (int)id || l->taken[(int)id])
        return wrong(l, "has an id that is not a number, too large, or there twice");
    if (!end && t->id[byte] >= 0) return wrong(l, "has a character twice");
    if (end && t->end_of_text >= 0) return wrong(l, "has <|endoftext|> twice");
    l->taken[(int)id] = true;
    t->vocab_size++;
    if (end) {
        t->end_of_text = (int)id;
    } else {
        t->id[byte] = (short)id;
        t->symbol[(int)id] = (char)byte;
    }
    return NULL;
}

/* {"character": id, ...} */
static const char *load_tokens(struct Loading *l, const cJSON *vocabulary) {
    const char *problem = cJSON_IsObject(vocabulary) ? NULL : wrong(l, "has no tokens with ids");
    const cJSON *item = problem ? NULL : vocabulary->child;
    for (; item && !problem; item = item->next) problem = load_token(l, item->string, item);
    return problem;
}

/* tokenizer.json's [{"content": token, "id": id}, ...], which may repeat what the vocabulary
   has. */
static const char *load_added(struct Loading *l, const cJSON *list) {
    const cJSON *item;
    const char *problem = NULL;
    cJSON_ArrayForEach(item, list) {
        const cJSON *content = cJSON_GetObjectItemCaseSensitive(item, "content");
        const cJSON *id = cJSON_GetObjectItemCaseSensitive(item, "id");
        if (!cJSON_IsString(content)) return wrong(l, "has an added token without content");
        bool end = strcmp(content->valuestring, END_OF_TEXT) == 0;
        int byte = byte_of_utf8(content->valuestring);
        int known = end ? l->tokenizer->end_of_text : byte < 0 ? -1 : l->tokenizer->id[byte];
        bool repeated = known >= 0 && cJSON_IsNumber(id) && id->valuedouble == known;
        if (!repeated) problem = load_token(l, content->valuestring, id);
        if (problem) return problem;
    }
    return NULL;
}

/* The file of the tokenizers library, as far as it is a vocabulary of characters. */
static const char *load_library_file(struct Loading *l, const cJSON *root) {
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(root, "model");
    const cJSON *merges = cJSON_GetObjectItemCaseSensitive(model, "merges");
    if (cJSON_GetArraySize(merges) > 0)
        return wrong(l, "joins characters to longer tokens; only vocabularies of one ASCII "
                     "character a token can be used");
    const char *problem = load_tokens(l, cJSON_GetObjectItemCaseSensitive(model, "vocab"));
    if (problem) return problem;
    return load_added(l, cJSON_GetObjectItemCaseSensitive(root, "added_tokens"));
}

static const char *check_ids(const struct Loading *l) {
    if (l->tokenizer->end_of_text < 0) return wrong(l, "has no <|endoftext|>");
    for (int i = 0; i < l->tokenizer->vocab_size; i++)
        if (!l->taken[i]) return wrong(l, "leaves out an id");
    return NULL;
}

const char *tokenizer_load(struct Tokenizer *tokenizer, const char *directory) {
    char path[4096];
    const char *problem;
    struct Loading l = {.tokenizer = tokenizer, .name = "vocab.json"};
    clear(tokenizer);
    tokenizer->end_of_text = -1;
    check_path(path, sizeof path, "%s/vocab.json", directory);
    bool library = !path_exists(path);   /* transformers 5 leaves vocab.json out */
    if (library) {
        check_path(path, sizeof path, "%s/tokenizer.json", directory);
        if (!path_exists(path)) return "there is neither vocab.json nor tokenizer.json";
        l.name = "tokenizer.json";
    }
    problem = file_problem(path);
    cJSON *root = problem ? NULL : json_read(path, MOST_BYTES, &problem);
    if (!root) return wrong(&l, "%s", problem);
    problem = library ? load_library_file(&l, root) : load_tokens(&l, root);
    if (!problem) problem = check_ids(&l);
    cJSON_Delete(root);
    return problem;
}
