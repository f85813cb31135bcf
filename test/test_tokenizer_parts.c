/* The parts of a tokenizer one by one: words, merges, added tokens, the normalizer, each against
   the ids of test/golden/tokenizers/parts.jsonl (dev/ref/make_tokenizer_parts.py, by the tokenizers
   library); and patterns that need too many steps. Whole tokenizers: test_tokenizer.c */
#include "io_rig.h"
#include <cjson/cJSON.h>
#include "../llmc/base/json.h"
#include "../llmc/base/text.h"
#include "../llmc/io/lines.h"
#include "../llmc/io/tokenizer.h"

#define GOLDEN "test/golden/tokenizers/parts.jsonl"

/* ---- a tokenizer.json with some keys of its own ---------------------------------------------- */

static cJSON *line_of(struct Lines *lines, char zero[4]) {
    cJSON *json = json_parse_line(lines->text, lines->length, zero);
    assert_non_null(json);
    return json;
}

/* The keys of `change` in the place of those of `base`. */
static struct Tokenizer *load_changed(const cJSON *base, const cJSON *change) {
    struct Tokenizer *t;
    cJSON *whole = cJSON_Duplicate(base, true);
    const cJSON *part;
    cJSON_ArrayForEach(part, change)
        cJSON_ReplaceItemInObject(whole, part->string, cJSON_Duplicate(part, true));
    char *text = cJSON_PrintUnformatted(whole);
    write_bytes(in_folder("tokenizer.json"), text, strlen(text));
    free(text);
    cJSON_Delete(whole);
    const char *problem = tokenizer_load(&t, folder);
    if (problem) fail_msg("%s", problem);
    remove(in_folder("tokenizer.json"));
    return t;
}

/* Are these the ids of the text, as the library gives them? */
static bool ids_are(const struct Tokenizer *t, const struct Text *text, const cJSON *expected) {
    struct Ids ids = {0};
    const cJSON *item;
    int count = 0;
    bool same = tokenizer_encode(t, text->bytes, text->length,
                                 TOKENIZER_SPECIALS | TOKENIZER_LENIENT, &ids);
    cJSON_ArrayForEach(item, expected) {
        same = same && count < ids.count && ids.id[count] == item->valueint;
        count++;
    }
    same = same && count == ids.count;
    ids_free(&ids);
    return same;
}

/* ---- the parts ------------------------------------------------------------------------------- */

/* How many cases. */
static int check_part(const cJSON *base, const cJSON *part, const char zero[4]) {
    struct Tokenizer *t = load_changed(base, cJSON_GetObjectItem(part, "change"));
    struct Text text = {0};
    const cJSON *pair;
    int count = 0;
    cJSON_ArrayForEach(pair, cJSON_GetObjectItem(part, "cases")) {
        text_clear(&text);
        json_append_string(&text, cJSON_GetArrayItem(pair, 0)->valuestring, zero);
        if (!ids_are(t, &text, cJSON_GetArrayItem(pair, 1)))
            fail_msg("%s: \"%s\"", cJSON_GetObjectItem(part, "name")->valuestring,
                     quote(text.bytes));
        count++;
    }
    text_free(&text);
    tokenizer_free(t);
    return count;
}

static void test_parts_of_the_library(void **state) {
    (void)state;
    struct Lines lines;
    char zero[4];
    int parts = 0, cases = 0;
    lines_open(&lines, GOLDEN, NULL);
    assert_true(lines_next(&lines));
    cJSON *base = line_of(&lines, zero);
    for (; lines_next(&lines); parts++) {
        cJSON *part = line_of(&lines, zero);
        cases += check_part(base, part, zero);
        cJSON_Delete(part);
    }
    assert_true(parts > 90 && cases > 3000);
    cJSON_Delete(base);
    lines_close(&lines);
}

/* ---- by hand --------------------------------------------------------------------------------- */

#define FILE_OF(vocab, merges, more, steps) \
    "{\"model\": {\"type\": \"BPE\", \"vocab\": {" vocab "}, \"merges\": [" merges "]" more "}, " \
    "\"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}, " \
    "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [" steps \
    "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": false}]}}"
#define ABCD "\"a\": 0, \"b\": 1, \"c\": 2, \"d\": 3, \"bc\": 4, \"ab\": 5, \"bcd\": 6, \"abc\": 7"
#define PATTERN(text) \
    FILE_OF(ABCD, "", "", "{\"type\": \"Split\", \"invert\": false, \"behavior\": \"Isolated\", " \
            "\"pattern\": {\"Regex\": \"" text "\"}}, ")

static struct Tokenizer *load_text(const char *text) {
    struct Tokenizer *t;
    write_bytes(in_folder("tokenizer.json"), text, strlen(text));
    const char *problem = tokenizer_load(&t, folder);
    if (problem) fail_msg("%.300s: %s", text, problem);
    remove(in_folder("tokenizer.json"));
    return t;
}

/* bc is joined first. Then "a b" stands no more: a could be joined with bc, but only after bc with
   d, and then that cannot be any more. */
static void test_a_merge_that_was_overtaken(void **state) {
    (void)state;
    struct Tokenizer *t = load_text(
        FILE_OF(ABCD, "\"b c\", \"a b\", \"bc d\", \"a bc\"", "", ""));
    struct Ids ids = {0};
    assert_true(tokenizer_encode(t, "abcd", 4, 0, &ids));
    assert_true(ids.count == 2 && ids.id[0] == 0 && ids.id[1] == 6);   /* a bcd */
    ids.count = 0;
    assert_true(tokenizer_encode(t, "abcabd", 6, 0, &ids));
    assert_true(ids.count == 3 && ids.id[0] == 7 && ids.id[1] == 5 && ids.id[2] == 3);
    ids_free(&ids);
    tokenizer_free(t);
}

/* No merge makes "dcba", "cd", "abcd": with ignore_merges they are found as whole words alone. */
static void test_words_that_no_merge_makes(void **state) {
    (void)state;
#define MORE ABCD ", \"cd\": 8, \"abcd\": 9"
    struct Tokenizer *without = load_text(FILE_OF(MORE, "\"a b\"", "", ""));
    struct Tokenizer *with = load_text(FILE_OF(MORE, "\"a b\"", ", \"ignore_merges\": true", ""));
    static const struct {
        const char *text;
        int without[4], count, with[4], with_count;
    } cases[] = {
        {"abcd", {5, 2, 3}, 3, {9}, 1}, {"cd", {2, 3}, 2, {8}, 1}, {"bcd", {1, 2, 3}, 3, {6}, 1},
        {"cdd", {2, 3, 3}, 3, {2, 3, 3}, 3}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct Ids a = {0}, b = {0};
        assert_true(tokenizer_encode(without, cases[i].text, strlen(cases[i].text), 0, &a));
        assert_true(tokenizer_encode(with, cases[i].text, strlen(cases[i].text), 0, &b));
        assert_int_equal(a.count, cases[i].count);
        assert_int_equal(b.count, cases[i].with_count);
        assert_memory_equal(a.id, cases[i].without, (size_t)a.count * sizeof *a.id);
        assert_memory_equal(b.id, cases[i].with, (size_t)b.count * sizeof *b.id);
        ids_free(&a), ids_free(&b);
    }
    tokenizer_free(without), tokenizer_free(with);
}

/* ---- patterns without an end ----------------------------------------------------------------- */

/* Each would need more steps than there is time for (years), and nothing in the text tells the
   matcher so before: every character of the pattern is there. The text has no ids then, at once. */
static void test_patterns_without_an_end(void **state) {
    (void)state;
    static const char *const files[] = {PATTERN("(a|aa)+d"), PATTERN("(a|aa)+?cd"),
                                        PATTERN("(?:a?){30}(?:a+)*d")};
    char text[4000];
    memset(text, 'a', sizeof text);
    memcpy(text + sizeof text - 5, "bcbdb", 5);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        struct Ids ids = {0};
        struct Tokenizer *t = load_text(files[i]);
        assert_false(tokenizer_encode(t, text, sizeof text, 0, &ids));
        assert_int_equal(ids.count, 0);
        assert_true(tokenizer_encode(t, "aacdaa", 6, 0, &ids));   /* the next text has */
        assert_int_equal(ids.count, 6);
        ids_free(&ids);
        tokenizer_free(t);
    }
}

/* A long word is no such text: its steps grow with its length and not faster. */
static void test_a_long_match(void **state) {
    (void)state;
    enum { LENGTH = 100000 };
    struct Tokenizer *t = load_text(PATTERN("(?:a|bb)+"));
    struct Text text = {0};
    struct Ids ids = {0};
    for (int i = 0; i < LENGTH; i++) text_append(&text, "a", 1);
    assert_true(tokenizer_encode(t, text.bytes, text.length, 0, &ids));
    assert_int_equal(ids.count, LENGTH);
    text_free(&text), ids_free(&ids);
    tokenizer_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts_of_the_library),
        cmocka_unit_test(test_a_merge_that_was_overtaken),
        cmocka_unit_test(test_words_that_no_merge_makes),
        cmocka_unit_test(test_patterns_without_an_end),
        cmocka_unit_test(test_a_long_match),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
