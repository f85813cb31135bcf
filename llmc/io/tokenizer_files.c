/* The files of a tokenizer: which are there, what they say, and the same again in another
   directory. */
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "../base/files.h"
#include "../base/json.h"
#include "tokenizer_parts.h"

#define MOST_BYTES ((size_t)128 << 20)

/* What is kept and written again. Others may read what this program does not. */
static const char *const kept[] = {
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"};
_Static_assert(sizeof kept / sizeof *kept <= MOST_FILES, "raise MOST_FILES");

/* ---- loading --------------------------------------------------------------------------------- */

/* Keeps the file's bytes, if it is there. */
static const char *keep_file(struct Tokenizer *t, const char *directory, const char *name) {
    char path[4096];
    const char *problem;
    check_path(path, sizeof path, "%s/%s", directory, name);
    if (!path_exists(path)) return NULL;
    problem = file_problem(path);
    if (problem) return tokenizer_wrong(name, "%s", problem);
    struct TokenizerFile *file = &t->file[t->num_files];
    size_t length;
    char *bytes = json_read_text(path, MOST_BYTES, &length, &problem);
    if (!bytes) return tokenizer_wrong(name, "%s", problem);
    *file = (struct TokenizerFile){name, {bytes, length, length + 1}};
    t->num_files++;
    return NULL;
}

static const struct Text *kept_file(const struct Tokenizer *t, const char *name) {
    for (int i = 0; i < t->num_files; i++)
        if (strcmp(t->file[i].name, name) == 0) return &t->file[i].bytes;
    return NULL;
}

/* The file's object; NULL and no problem: there is no such file. */
static cJSON *parse_kept(const struct Tokenizer *t, const char *name, const char **problem) {
    const struct Text *text = kept_file(t, name);
    *problem = NULL;
    cJSON *json = text ? json_parse(text->bytes, text->length, problem) : NULL;
    if (*problem) *problem = tokenizer_wrong(name, "%s", *problem);
    return json;
}

/* merges.txt: "left right" a line, after lines that begin with #version. */
static const char *read_merges_file(struct Tokenizer *t, const struct Text *text) {
    static const char name[] = "merges.txt";
    const char *line = text->bytes, *end = text->bytes + text->length, *problem = NULL;
    size_t lines = 1;
    for (const char *c = line; c < end; c++) lines += *c == '\n';
    bpe_open(&t->bpe, lines);
    for (int rank = 0; line < end && !problem;) {
        const char *next = memchr(line, '\n', (size_t)(end - line));
        size_t length = (size_t)((next ? next : end) - line);
        if (length > 0 && line[length - 1] == '\r') length--;
        const char *space = memchr(line, ' ', length);
        bool comment = length >= 8 && memcmp(line, "#version", 8) == 0;
        size_t left = space ? (size_t)(space - line) : 0;
        if (!comment && length > 0) {
            if (!space || memchr(space + 1, ' ', length - left - 1))
                return tokenizer_wrong(name, "has a line that is not two tokens (merge %d)", rank);
            problem = tokenizer_add_merge(t, line, left, space + 1, length - left - 1, rank, name);
            rank++;
        }
        line = next ? next + 1 : end;
    }
    return problem;
}

/* The content of a token in tokenizer_config.json: text, or an object with it. */
static const char *content_of(const cJSON *config, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(config, key);
    if (cJSON_IsObject(item)) item = cJSON_GetObjectItemCaseSensitive(item, "content");
    return cJSON_GetStringValue(item);
}

/* With GPT-2's files, tokens with a role are special, as its class makes them. */
static const char *add_role_token(struct Tokenizer *t, const char *content) {
    int id = vocabulary_find(&t->vocabulary, content, strlen(content));
    if (id < 0 || added_find(&t->added, content)) return NULL;
    struct Added added = {.content = check_strdup(content), .length = strlen(content), .id = id,
                          .special = true};
    const char *problem = tokenizer_add_token(t, &added, "vocab.json");
    if (problem) free(added.content);
    return problem;
}

/* GPT-2's vocab.json and merges.txt, split by its pattern. */
static const char *read_gpt2_files(struct Tokenizer *t, const cJSON *config) {
    static const char *const keys[] = {"eos_token", "bos_token", "unk_token", "pad_token"};
    const struct Text *merges = kept_file(t, "merges.txt");
    const char *problem, *class = content_of(config, "tokenizer_class");
    if (class && strncmp(class, "GPT2Tokenizer", 13) != 0)
        return tokenizer_wrong("tokenizer_config.json", "says %s; only GPT2Tokenizer's vocab.json "
                               "and merges.txt can be used, others need a tokenizer.json",
                               quote(class));
    if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(config, "add_prefix_space")))
        return tokenizer_wrong("tokenizer_config.json", "says add_prefix_space, which needs a "
                               "tokenizer.json");
    if (!merges) return "there is vocab.json but no merges.txt";
    cJSON *vocab = parse_kept(t, "vocab.json", &problem);
    if (!problem) problem = tokenizer_read_vocab(t, vocab, "vocab.json");
    cJSON_Delete(vocab);
    if (!problem) problem = read_merges_file(t, merges);
    struct Pattern *pattern = problem ? NULL : pattern_open(GPT2_PATTERN, false, &problem);
    if (problem) return problem;
    t->splitter.step[t->splitter.count++] =
        (struct SplitStep){.kind = SPLIT_PATTERN, .pattern = pattern};
    problem = add_role_token(t, "<|endoftext|>");
    for (size_t i = 0; i < sizeof keys / sizeof *keys && !problem; i++) {
        const char *content = content_of(config, keys[i]);
        if (content) problem = add_role_token(t, content);
    }
    if (!problem) tokenizer_finish(t);
    return problem;
}

static void read_roles(struct Tokenizer *t, const cJSON *config) {
    static const char *const keys[TOKENIZER_ROLES] = {"eos_token", "bos_token", "pad_token"};
    for (int i = 0; i < TOKENIZER_ROLES; i++) {
        const char *content = content_of(config, keys[i]);
        if (content) t->role[i] = tokenizer_id(t, content);
    }
    if (t->role[TOKENIZER_ENDS_TEXT] < 0 && !content_of(config, "eos_token"))
        t->role[TOKENIZER_ENDS_TEXT] = tokenizer_id(t, "<|endoftext|>");
}

static const char *load(struct Tokenizer *t, const char *directory) {
    const char *problem = NULL;
    for (size_t i = 0; i < sizeof kept / sizeof *kept && !problem; i++)
        problem = keep_file(t, directory, kept[i]);
    if (problem) return problem;
    if (!kept_file(t, "tokenizer.json") && !kept_file(t, "vocab.json"))
        return "there is neither vocab.json nor tokenizer.json";
    cJSON *config = parse_kept(t, "tokenizer_config.json", &problem);
    if (problem) return problem;
    cJSON *root = parse_kept(t, "tokenizer.json", &problem);
    if (root) problem = tokenizer_read_json(t, root);
    else if (!problem) problem = read_gpt2_files(t, config);
    if (!problem) read_roles(t, config);
    cJSON_Delete(root);
    cJSON_Delete(config);
    return problem;
}

const char *tokenizer_load(struct Tokenizer **out, const char *directory) {
    struct Tokenizer *t = tokenizer_new();
    const char *problem = load(t, directory);
    *out = problem ? NULL : t;
    if (problem) tokenizer_free(t);
    return problem;
}

/* ---- saving ---------------------------------------------------------------------------------- */

static void write_file(const char *directory, const char *name, const char *bytes, size_t length,
                       struct Checksums *sums) {
    char path[4096];
    struct AtomicFile file;
    check_path(path, sizeof path, "%s/%s", directory, name);
    atomic_open(&file, path);
    atomic_write(&file, bytes, length);
    atomic_commit(&file);
    checksums_add(sums, &file);
}

static void write_json(const char *directory, const char *name, cJSON *root,
                       struct Checksums *sums) {
    char path[4096];
    check_path(path, sizeof path, "%s/%s", directory, name);
    json_write(root, path, sums);
}

/* {"spelling": id} of an alphabet. */
static cJSON *vocab_of(const struct Tokenizer *t) {
    cJSON *vocab = cJSON_CreateObject();
    struct Text spelled = {0};
    for (int id = 0; id < t->vocabulary.size; id++) {
        const struct Token *token = &t->vocabulary.token[id];
        text_clear(&spelled);
        spell_bytes(&spelled, t->vocabulary.bytes.bytes + token->start, token->length);
        cJSON_AddNumberToObject(vocab, spelled.bytes, id);
    }
    text_free(&spelled);
    return vocab;
}

/* An object of flags; the names in `on` are true. */
static cJSON *flags_of(const char *type, const char *const *names, size_t count, const char *on) {
    cJSON *object = cJSON_CreateObject();
    if (type) cJSON_AddStringToObject(object, "type", type);
    for (size_t i = 0; i < count; i++)
        cJSON_AddBoolToObject(object, names[i], strstr(on, names[i]) != NULL);
    return object;
}

/* tokenizer.json of an alphabet: a vocabulary without merges. */
static cJSON *library_file_of(const struct Tokenizer *t) {
    static const char *const byte_level[] = {"add_prefix_space", "trim_offsets", "use_regex"};
    static const char *const added[] = {"single_word", "lstrip", "rstrip", "normalized", "special"};
    static const char *const model_flags[] = {"fuse_unk", "byte_fallback", "ignore_merges"};
    static const char *const nulls[] = {"dropout", "unk_token", "continuing_subword_prefix",
                                        "end_of_word_suffix"};
    cJSON *root = cJSON_CreateObject();
    cJSON_AddStringToObject(root, "version", "1.0");
    cJSON_AddNullToObject(root, "truncation");
    cJSON_AddNullToObject(root, "padding");
    cJSON *tokens = cJSON_AddArrayToObject(root, "added_tokens");
    cJSON *token = flags_of(NULL, added, 5, "special");
    cJSON_AddNumberToObject(token, "id", t->role[TOKENIZER_ENDS_TEXT]);
    cJSON_AddStringToObject(token, "content", t->added.list[0].content);
    cJSON_AddItemToArray(tokens, token);
    cJSON_AddNullToObject(root, "normalizer");
    cJSON_AddItemToObject(root, "pre_tokenizer", flags_of("ByteLevel", byte_level, 3,
                                                          "trim_offsets use_regex"));
    cJSON_AddItemToObject(root, "post_processor", flags_of("ByteLevel", byte_level, 3,
                                                           "use_regex"));
    cJSON_AddItemToObject(root, "decoder", flags_of("ByteLevel", byte_level, 3, "use_regex"));
    cJSON *model = flags_of("BPE", model_flags, 3, "");
    for (size_t i = 0; i < sizeof nulls / sizeof *nulls; i++)
        cJSON_AddNullToObject(model, nulls[i]);
    cJSON_AddItemToObject(model, "vocab", vocab_of(t));
    cJSON_AddArrayToObject(model, "merges");
    cJSON_AddItemToObject(root, "model", model);
    return root;
}

/* GPT2Tokenizer wants to be told that there are no merges. */
static void save_alphabet(const struct Tokenizer *t, const char *directory, int max_length,
                          struct Checksums *sums) {
    static const char no_merges[] = "#version: 0.2\n";
    const char *end_of_text = t->added.list[0].content;
    write_json(directory, "vocab.json", vocab_of(t), sums);
    write_file(directory, "merges.txt", no_merges, sizeof no_merges - 1, sums);
    write_json(directory, "tokenizer.json", library_file_of(t), sums);
    cJSON *config = cJSON_CreateObject();
    cJSON_AddStringToObject(config, "tokenizer_class", "GPT2Tokenizer");
    cJSON_AddNumberToObject(config, "model_max_length", max_length);
    cJSON_AddStringToObject(config, "bos_token", end_of_text);
    cJSON_AddStringToObject(config, "eos_token", end_of_text);
    cJSON_AddStringToObject(config, "unk_token", end_of_text);
    cJSON_AddBoolToObject(config, "add_prefix_space", false);
    cJSON_AddBoolToObject(config, "clean_up_tokenization_spaces", false);
    write_json(directory, "tokenizer_config.json", config, sums);
}

void tokenizer_save(const struct Tokenizer *t, const char *directory, int max_length,
                    struct Checksums *sums) {
    if (t->alphabet) save_alphabet(t, directory, max_length, sums);
    for (int i = 0; i < t->num_files; i++)
        write_file(directory, t->file[i].name, t->file[i].bytes.bytes, t->file[i].bytes.length,
                   sums);
}
