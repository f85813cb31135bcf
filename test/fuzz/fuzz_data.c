/* A template, of prompts and of the model's chat form, and behind its zero byte a data file. Of
   each line that can be read every value is found, metadata are JSON, and the conversation becomes
   ids of the vocabulary. */
#include "fuzz.h"
#include "../../llmc/tasks/blocks.h"
#include "../../llmc/tasks/template.h"

static struct Tokenizer *data_tokenizer(void) {
    static struct Tokenizer *t;
    if (t) return t;
    const char *problem = tokenizer_load(&t, "test/golden/chat/chatml");
    if (problem) fprintf(stderr, "%s (run this from the root of the tree)\n", problem);
    MUST(problem == NULL);
    return t;
}

static void check_ids(const struct Ids *ids) {
    for (int i = 0; i < ids->count; i++)
        MUST(ids->id[i] >= 0 && ids->id[i] < tokenizer_vocab_size(data_tokenizer()));
}

/* A directory with this template as the model's, whose default system prompt is taken. */
static const char *template_directory(const char *text, size_t length) {
    static const char *directory;
    static int memory = -1;
    fuzz_file(&memory, text, length);
    if (!directory) {
        directory = fuzz_directory();
        fuzz_link(directory, "chat_template.jinja", memory);
    }
    return directory;
}

/* The record's turns, or its prompt as one, in a chat form. */
static void check_chat(const char *form, const char *directory, const struct Record *r) {
    static const char text[] = "a text";
    const char *problem;
    struct Chat *chat = chat_open(form, "auto", data_tokenizer(), directory, &problem);
    struct Ids ids = {0};
    struct Text whole = {0}, loss = {0};
    struct Turns turns = {0};
    MUST(chat != NULL);
    for (int i = 0; i < r->turns.role.count; i++)
        turns_add(&turns, text_list_at(&r->turns.role, i), text_list_at(&r->turns.content, i),
                  text_list_length(&r->turns.content, i));
    turns_add(&turns, "assistant", text, strlen(text));
    if (!chat_prompt(&ids, &whole, chat, &turns)) check_ids(&ids);
    MUST(utf8_is_valid(whole.bytes, whole.length));
    ids.count = 0;
    if (!chat_lesson(&ids, &loss, chat, &turns)) MUST(loss.length == (size_t)ids.count);
    check_ids(&ids);
    ids_free(&ids), text_free(&whole), text_free(&loss), turns_free(&turns);
    chat_close(chat);
}

/* Text of the value and of all within it; a value that is no text is JSON as it stands. */
static void check_values(const struct Record *r, const cJSON *value, int depth) {
    struct Text text = {0};
    const char *problem;
    record_text(&text, r, value);
    MUST(utf8_is_valid(text.bytes, text.length));
    if (cJSON_IsObject(value)) {
        cJSON *again = json_parse(text.bytes, text.length, &problem);
        MUST(again != NULL && cJSON_GetArraySize(again) == cJSON_GetArraySize(value));
        cJSON_Delete(again);
    } else {
        MUST(cJSON_IsString(value) || text.length > 0);
    }
    text_free(&text);
    if (depth < 3 && (cJSON_IsObject(value) || cJSON_IsArray(value)))
        for (const cJSON *c = value->child; c; c = c->next) check_values(r, c, depth + 1);
}

static void check_record(const struct Record *r, const struct Template *form,
                         const char *directory) {
    struct Text text = {0};
    const char *problem;
    int own = (r->prompt != NULL) + (r->answer != NULL) + (r->completion != NULL);
    record_metadata(&text, r);
    cJSON *metadata = json_parse(text.bytes, text.length, &problem);
    MUST(metadata != NULL && utf8_is_valid(text.bytes, text.length));
    MUST(cJSON_GetArraySize(metadata) + own >= cJSON_GetArraySize(r->json));
    cJSON_Delete(metadata);
    text_clear(&text);
    record_keys(&text, r);
    MUST(utf8_is_valid(text.bytes, text.length));
    text_clear(&text);
    const char *missing = form ? template_fill(&text, form, r) : NULL;
    MUST(missing || utf8_is_valid(text.bytes, text.length));
    check_values(r, r->json, 0);
    check_chat("chatml", directory, r), check_chat("none", directory, r);
    text_free(&text);
}

static void note_long_line(void *context, int64_t line, const char *problem) {
    (void)context, (void)line;
    must_be_a_line(problem);
}

/* Reads the file once in blocks of three lines. Returns the bytes of all of them. */
static size_t check_lines(struct LineReader *reader, const struct Template *form,
                          const char *directory) {
    struct Blocks blocks = {.reader = reader, .most_lines = 3, .seed = 1, .bad = note_long_line};
    struct Record record = {0};
    int64_t line, last = 0;
    size_t length, bytes = 0;
    bool wrapped;
    const char *text;
    while ((text = blocks_next(&blocks, &length, &line, &wrapped)) != NULL && !wrapped) {
        MUST(line >= 1 && strlen(text) <= length);
        last = line > last ? line : last;
        bytes += length;
        char *copy = malloc(length + 1);   /* of its length: nothing behind it may be read */
        memcpy(copy, text, length + 1);
        const char *problem = record_read(&record, copy, length);
        free(copy);
        if (problem) must_be_a_line(problem);
        else check_record(&record, form, directory);
    }
    record_free(&record);
    blocks_free(&blocks);
    return bytes;
}

static void fuzz_data(const uint8_t *data, size_t size) {
    static int memory = -1;
    struct LineReader reader;
    const char *problem;
    size_t length;
    char path[64], *text = fuzz_part(&data, &size, &length);
    struct Template *form = template_parse(text, length, &problem);
    if (!form) must_be_a_line(problem);
    fuzz_file(&memory, data, size);
    fuzz_path(path, memory);
    line_reader_open(&reader, path, "--data");
    MUST(check_lines(&reader, form, template_directory(text, length)) <= size);
    line_reader_close(&reader);
    template_close(form);
    free(text);
}

FUZZ_TARGET(fuzz_data)
