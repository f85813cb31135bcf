/* Tokenizers: ids of test/golden/tokenizers (dev/ref/make_tokenizers.py, by the tokenizers library)
   and the way back; the built-in tasks' files; what is refused. --tokenize: test_tokenize.c */
#include "io_rig.h"
#include <cjson/cJSON.h>
#include "../llmc/base/json.h"
#include "../llmc/base/text.h"
#include "../llmc/io/lines.h"
#include "../llmc/io/tokenizer.h"

#define GOLDEN "test/golden/tokenizers/"

static const char *const names[] = {"gpt2", "llama3", "qwen2", "smollm2", "added", "splits",
                                    "unknown"};
enum { NAMES = sizeof names / sizeof *names };

static struct Tokenizer *load(const char *directory) {
    struct Tokenizer *t;
    const char *problem = tokenizer_load(&t, directory);
    if (problem) fail_msg("%s: %s", directory, problem);
    assert_non_null(t);
    return t;
}

static struct Tokenizer *load_golden(const char *name) {
    char path[256];
    snprintf(path, sizeof path, GOLDEN "%s", name);
    return load(path);
}

/* ---- golden cases ---------------------------------------------------------------------------- */

struct Case {
    struct Text text, back;   /* back: what its ids decode to, the post-processor's apart */
    struct Ids ids;
};

typedef void (*CaseFunction)(struct Tokenizer *t, const struct Case *c);

static void read_case(struct Case *c, struct Lines *lines) {
    char zero[4];
    cJSON *json = json_parse_line(lines->text, lines->length, zero);
    const cJSON *item, *back = cJSON_GetObjectItem(json, "back");
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(json, "text"));
    assert_non_null(text);
    text_clear(&c->text), text_clear(&c->back);
    json_append_string(&c->text, text, zero);
    json_append_string(&c->back, back ? back->valuestring : text, zero);
    c->ids.count = 0;
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(json, "ids")) ids_append(&c->ids,
                                                                          &item->valueint, 1);
    cJSON_Delete(json);
}

/* Calls f for every case of every tokenizer; returns how many. */
static int each_case(CaseFunction f) {
    int count = 0;
    for (int i = 0; i < NAMES; i++) {
        char path[256];
        struct Tokenizer *t = load_golden(names[i]);
        struct Lines lines;
        struct Case c = {0};
        snprintf(path, sizeof path, GOLDEN "%s/cases.jsonl", names[i]);
        lines_open(&lines, path, NULL);
        while (lines_next(&lines)) {
            read_case(&c, &lines);
            f(t, &c);
            count++;
        }
        lines_close(&lines);
        text_free(&c.text), text_free(&c.back), ids_free(&c.ids);
        tokenizer_free(t);
    }
    return count;
}

enum { LIBRARY = TOKENIZER_SPECIALS | TOKENIZER_LENIENT, WHOLE = TOKENIZER_BEGIN | TOKENIZER_END };

static void check_ids(struct Tokenizer *t, const struct Case *c) {
    struct Ids ids = {0};
    assert_true(tokenizer_encode(t, c->text.bytes, c->text.length, LIBRARY | WHOLE, &ids));
    bool same = ids.count == c->ids.count &&
                (ids.count == 0 ||
                 memcmp(ids.id, c->ids.id, (size_t)ids.count * sizeof *ids.id) == 0);
    if (!same) fail_msg("%d ids for \"%s\", not %d", ids.count, quote(c->text.bytes),
                        c->ids.count);
    /* again, from the cache of words, behind what is there */
    assert_true(tokenizer_encode(t, c->text.bytes, c->text.length, LIBRARY | WHOLE, &ids));
    assert_int_equal(ids.count, 2 * c->ids.count);
    if (ids.count)
        assert_memory_equal(ids.id + c->ids.count, ids.id, (size_t)c->ids.count * sizeof *ids.id);
    ids_free(&ids);
}

static void check_back(struct Tokenizer *t, const struct Case *c) {
    struct Ids ids = {0};
    struct Text text = {0};
    assert_true(tokenizer_encode(t, c->text.bytes, c->text.length, LIBRARY, &ids));
    tokenizer_decode(t, ids.id, ids.count, 0, &text);
    struct Text shown = {0};
    text_append_utf8(&shown, text.bytes, text.length);
    if (shown.length != c->back.length ||
        memcmp(shown.bytes, c->back.bytes, shown.length) != 0)
        fail_msg("\"%s\" came back as \"%s\"", quote(c->back.bytes), quote(shown.bytes));
    text_free(&shown), text_free(&text), ids_free(&ids);
}

/* Token by token: whole characters at any time, and in the end the same text. */
static void check_stream(struct Tokenizer *t, const struct Case *c) {
    struct TokenizerStream stream = {0};
    struct Text whole = {0}, expected = {0}, grown = {0};
    for (int i = 0; i < c->ids.count; i++) {
        size_t before = grown.length;
        tokenizer_stream(t, &stream, c->ids.id[i], TOKENIZER_PLAIN, &grown);
        for (size_t n; before < grown.length; before += n) {
            n = utf8_length(grown.bytes + before, grown.length - before);
            assert_true(n > 0);
        }
    }
    tokenizer_stream_end(&stream, &grown);
    tokenizer_decode(t, c->ids.id, c->ids.count, TOKENIZER_PLAIN, &whole);
    text_append_utf8(&expected, whole.bytes, whole.length);
    assert_int_equal(grown.length, expected.length);
    assert_memory_equal(grown.bytes, expected.bytes, grown.length);
    text_free(&whole), text_free(&expected), text_free(&grown);
}

static void test_ids_of_the_library(void **state) {
    (void)state;
    assert_true(each_case(check_ids) > 1000);
}

static void test_the_way_back(void **state) {
    (void)state;
    each_case(check_back);
}

static void test_streaming(void **state) {
    (void)state;
    each_case(check_stream);
}

/* Half a character waits for its other half; what cannot become one does not. */
static void test_streaming_by_hand(void **state) {
    (void)state;
    struct Tokenizer *t = load_golden("gpt2");
    struct TokenizerStream stream = {0};
    struct Text out = {0};
    static const struct { const char *spelling, *shown; } steps[] = {
        {"\xC3\xA2", ""}, {"\xC4\xA4", ""}, {"\xC2\xAC", "\xE2\x82\xAC"},    /* E2, 82, AC */
        {"\xC3\xA2", ""}, {"a", "\xEF\xBF\xBD" "a"},                       /* E2, a */
        {"\xC3\xBF", "\xEF\xBF\xBD"}, {"\xC3\xB0", ""}, {"\xC5\x81", ""},  /* FF, F0 9F */
    };
    text_clear(&out);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        size_t before = out.length;
        int id = tokenizer_id(t, steps[i].spelling);
        assert_true(id >= 0);
        tokenizer_stream(t, &stream, id, 0, &out);
        assert_string_equal(out.bytes + before, steps[i].shown);
    }
    size_t before = out.length;
    tokenizer_stream_end(&stream, &out);
    assert_string_equal(out.bytes + before, "\xEF\xBF\xBD");
    text_free(&out);
    tokenizer_free(t);
}

/* ---- flags, roles, special tokens ------------------------------------------------------------ */

static struct Ids encode(const struct Tokenizer *t, const char *text, int flags) {
    struct Ids ids = {0};
    assert_true(tokenizer_encode(t, text, strlen(text), flags, &ids));
    return ids;
}

static void test_special_tokens(void **state) {
    (void)state;
    struct Tokenizer *t = load_golden("llama3");
    int begin = tokenizer_id(t, "<|begin_of_text|>"), end = tokenizer_id(t, "<|eot_id|>");
    assert_true(begin >= 0 && end > begin && end < tokenizer_vocab_size(t));
    assert_true(tokenizer_is_special(t, begin) && !tokenizer_is_special(t, tokenizer_id(t, "a")));
    assert_false(tokenizer_is_special(t, -1) || tokenizer_is_special(t, 1 << 30));
    assert_int_equal(tokenizer_id(t, "<|no_such|>"), -1);

    struct Ids ids = encode(t, "a<|eot_id|>", TOKENIZER_SPECIALS | TOKENIZER_BEGIN);
    assert_int_equal(ids.count, 3);
    assert_int_equal(ids.id[0], begin);
    assert_int_equal(ids.id[2], end);
    struct Text text = {0};
    tokenizer_decode(t, ids.id, ids.count, 0, &text);
    assert_string_equal(text.bytes, "<|begin_of_text|>a<|eot_id|>");
    text_clear(&text);
    tokenizer_decode(t, ids.id, ids.count, TOKENIZER_PLAIN, &text);
    assert_string_equal(text.bytes, "a");
    ids_free(&ids);

    ids = encode(t, "a<|eot_id|>", 0);   /* as any text */
    for (int i = 0; i < ids.count; i++) assert_false(tokenizer_is_special(t, ids.id[i]));
    text_clear(&text);
    tokenizer_decode(t, ids.id, ids.count, TOKENIZER_PLAIN, &text);
    assert_string_equal(text.bytes, "a<|eot_id|>");
    text_clear(&text);
    tokenizer_decode(t, (int[]){-1, 1 << 30}, 2, 0, &text);
    assert_string_equal(text.bytes, UTF8_REPLACEMENT UTF8_REPLACEMENT);
    ids_free(&ids), text_free(&text);
    tokenizer_free(t);
}

/* A byte without a token: refused, or, if asked for, left out as the library does it. */
static void test_bytes_without_a_token(void **state) {
    (void)state;
    struct Tokenizer *t = load_golden("smollm2");
    struct Ids ids = encode(t, "ab", 0);
    int known = ids.count;
    assert_false(tokenizer_encode(t, "a\x04" "b", 3, 0, &ids));
    assert_int_equal(ids.count, known);
    assert_true(tokenizer_encode(t, "a\x04" "b", 3, TOKENIZER_LENIENT, &ids));
    assert_true(ids.count > known);
    assert_false(tokenizer_encode(t, "a\x04" "b", 3, 0, &ids));   /* no cached answer */
    ids_free(&ids);
    tokenizer_free(t);
}

/* A text of marks that are all out of order: their order must not be made by exchanging neighbours,
   which would take minutes. */
static void test_many_marks(void **state) {
    (void)state;
    enum { MARKS = 200000 };
    struct Text text = {0}, ordered = {0};
    struct Tokenizer *t = load_golden("qwen2");
    text_append(&text, "x", 1), text_append(&ordered, "x", 1);
    for (int i = 0; i < MARKS; i++) {
        text_append(&text, i < MARKS / 2 ? "\xCC\x8D" : "\xCC\xB4", 2);   /* classes 230 and 1 */
        text_append(&ordered, i < MARKS / 2 ? "\xCC\xB4" : "\xCC\x8D", 2);
    }
    struct Ids ids = {0};
    struct Text back = {0};
    assert_true(tokenizer_encode(t, text.bytes, text.length, 0, &ids));
    tokenizer_decode(t, ids.id, ids.count, 0, &back);
    assert_int_equal(back.length, ordered.length);
    assert_memory_equal(back.bytes, ordered.bytes, back.length);
    ids_free(&ids), text_free(&back), text_free(&text), text_free(&ordered);
    tokenizer_free(t);
}

/* Bytes that are not UTF-8 are read as U+FFFD, one for each part of a character. */
static void test_invalid_input(void **state) {
    (void)state;
    static const struct { const char *bytes, *read_as; } cases[] = {
        {"a\xFFz", "a\xEF\xBF\xBDz"}, {"\xE2\x82", "\xEF\xBF\xBD"},
        {"\xE2\x82x\xC0\x80", "\xEF\xBF\xBDx\xEF\xBF\xBD\xEF\xBF\xBD"},
        {"\xF0\x9F\x98", "\xEF\xBF\xBD"},
        {"\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"}};
    struct Tokenizer *t = load_golden("qwen2");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct Ids a = encode(t, cases[i].bytes, 0), b = encode(t, cases[i].read_as, 0);
        assert_int_equal(a.count, b.count);
        assert_memory_equal(a.id, b.id, (size_t)a.count * sizeof *a.id);
        ids_free(&a), ids_free(&b);
    }
    tokenizer_free(t);
}

static void test_roles(void **state) {
    (void)state;
    static const struct { const char *config; int ends, begins, pads; } cases[] = {
        {"{\"eos_token\": \"b\", \"bos_token\": {\"content\": \"a\"}, \"pad_token\": null}",
         1, 0, -1},
        {"{}", 3, -1, -1},
        {"{\"eos_token\": \"none of it\", \"pad_token\": \"ab\"}", -1, -1, 2},
    };
    static const char vocab[] = "{\"a\": 0, \"b\": 1, \"ab\": 2, \"<|endoftext|>\": 3}";
    write_bytes(in_folder("vocab.json"), vocab, strlen(vocab));
    write_bytes(in_folder("merges.txt"), "a b\n", 4);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_bytes(in_folder("tokenizer_config.json"), cases[i].config, strlen(cases[i].config));
        struct Tokenizer *t = load(folder);
        assert_int_equal(tokenizer_role(t, TOKENIZER_ENDS_TEXT), cases[i].ends);
        assert_int_equal(tokenizer_role(t, TOKENIZER_BEGINS_TEXT), cases[i].begins);
        assert_int_equal(tokenizer_role(t, TOKENIZER_PADS), cases[i].pads);
        assert_true(tokenizer_is_special(t, 3));
        tokenizer_free(t);
    }
    remove(in_folder("vocab.json")), remove(in_folder("merges.txt"));
    remove(in_folder("tokenizer_config.json"));
}

/* ---- the built-in tasks ---------------------------------------------------------------------- */

static void check_alphabet(const struct Tokenizer *t) {
    static const struct { int ids[4], count; const char *text; } cases[] = {
        {{1, 2, 0}, 3, "1 0"}, {{1, 3}, 2, "1\n"}, {{0}, 0, ""},
    };
    int end = tokenizer_role(t, TOKENIZER_ENDS_TEXT);
    assert_int_equal(end, 10);
    assert_int_equal(tokenizer_vocab_size(t), 11);
    assert_int_equal(tokenizer_role(t, TOKENIZER_BEGINS_TEXT), end);
    assert_true(tokenizer_is_special(t, end));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct Ids ids = encode(t, cases[i].text, 0);
        struct Text text = {0};
        assert_int_equal(ids.count, cases[i].count);
        for (int k = 0; k < ids.count; k++) assert_int_equal(ids.id[k], cases[i].ids[k]);
        ids_append(&ids, &end, 1);
        tokenizer_decode(t, ids.id, ids.count, TOKENIZER_PLAIN, &text);
        assert_string_equal(text.bytes, cases[i].text);
        text_free(&text), ids_free(&ids);
    }
    struct Ids none = {0};
    assert_false(tokenizer_encode(t, "1x", 2, 0, &none));
    assert_false(tokenizer_encode(t, "\xC3\xA9", 2, 0, &none));
    assert_int_equal(none.count, 0);
    ids_free(&none);
}

/* The files' text (transformers reads them: GPT-2 spells a space as U+0120), and back: as they are,
   without tokenizer.json as older checkpoints are, and without the others. */
static void test_alphabet_files(void **state) {
    (void)state;
    struct Tokenizer *written = tokenizer_from_alphabet("01 \n\"\\:\x7F~!");
    check_alphabet(written);
    tokenizer_save(written, folder, 16, NULL);
    tokenizer_free(written);
    assert_string_equal(read_bytes(in_folder("merges.txt"), NULL), "#version: 0.2\n");
    assert_string_equal(read_bytes(in_folder("vocab.json"), NULL),
        "{\n\t\"0\":\t0,\n\t\"1\":\t1,\n\t\"\xC4\xA0\":\t2,\n\t\"\xC4\x8A\":\t3,\n\t\"\\\"\":\t4,\n"
        "\t\"\\\\\":\t5,\n\t\":\":\t6,\n\t\"\xC4\xA1\":\t7,\n\t\"~\":\t8,\n\t\"!\":\t9,\n"
        "\t\"<|endoftext|>\":\t10\n}\n");
    cJSON *config = cJSON_Parse(read_bytes(in_folder("tokenizer_config.json"), NULL));
    assert_int_equal(cJSON_GetObjectItem(config, "model_max_length")->valueint, 16);
    assert_string_equal(cJSON_GetObjectItem(config, "tokenizer_class")->valuestring,
                        "GPT2Tokenizer");
    cJSON_Delete(config);
    struct Tokenizer *t = load(folder);
    check_alphabet(t);
    tokenizer_free(t);
    char aside[128];
    snprintf(aside, sizeof aside, "%s", in_folder("aside"));
    assert_int_equal(rename(in_folder("tokenizer.json"), aside), 0);
    t = load(folder);
    check_alphabet(t);
    tokenizer_free(t);
    assert_int_equal(rename(aside, in_folder("tokenizer.json")), 0);
    remove(in_folder("vocab.json")), remove(in_folder("merges.txt"));
    t = load(folder);
    check_alphabet(t);
    tokenizer_free(t);
    remove(in_folder("tokenizer.json")), remove(in_folder("tokenizer_config.json"));
}

/* What was loaded is written again byte for byte. */
static void test_files_come_back(void **state) {
    (void)state;
    struct Tokenizer *t = load_golden("qwen2");
    static char original[1 << 17];
    size_t length, again;
    memcpy(original, read_bytes(GOLDEN "qwen2/tokenizer.json", &length), sizeof original);
    tokenizer_save(t, folder, 1, NULL);
    const char *bytes = read_bytes(in_folder("tokenizer.json"), &again);
    assert_int_equal(length, again);
    assert_memory_equal(bytes, original, length);
    assert_int_not_equal(access(in_folder("vocab.json"), F_OK), 0);
    remove(in_folder("tokenizer.json"));
    tokenizer_free(t);
}

/* ---- what is refused ------------------------------------------------------------------------- */

static const char *problem_of(const char *name, const char *text, size_t length) {
    struct Tokenizer *t;
    write_bytes(in_folder(name), text, length);
    const char *problem = tokenizer_load(&t, folder);
    assert_true((problem == NULL) == (t != NULL));
    tokenizer_free(t);
    return problem;
}

static void expect_problem(const char *name, const char *text, const char *expected) {
    const char *problem = problem_of(name, text, strlen(text));
    if ((problem == NULL) != (expected == NULL))
        fail_msg("%.200s: \"%s\"", text, problem ? problem : "accepted");
    if (!problem) return;
    if (!strstr(problem, expected)) fail_msg("%.200s: \"%s\"", text, problem);
    if (!strstr(problem, name)) fail_msg("%s does not name its file", problem);
    assert_null(strchr(problem, '\n'));
}

#define VOCAB "\"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2, \"c\": 3}"
#define MODEL(more) "\"model\": {\"type\": \"BPE\", " VOCAB ", \"merges\": [\"a b\"]" more "}"
#define LEVEL "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}"
#define REST ", \"pre_tokenizer\": " LEVEL ", \"decoder\": " LEVEL "}"
#define STEPS(parts) \
    "{" MODEL("") ", \"decoder\": " LEVEL \
    ", \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [" parts "]}}"
#define SPLIT(pattern, behavior) \
    "{\"type\": \"Split\", \"invert\": false, \"pattern\": " pattern ", \"behavior\": \"" behavior \
    "\"}"
#define REGEX(text) STEPS(SPLIT("{\"Regex\": \"" text "\"}", "Isolated") ", " LEVEL)
#define VOCABULARY(vocab, merges) \
    "{\"model\": {\"vocab\": " vocab ", \"merges\": " merges "}" REST
#define FLAGS \
    ", \"special\": true, \"normalized\": false, \"lstrip\": false, \"rstrip\": false, " \
    "\"single_word\": false}"
#define ADDED(tokens) "{" MODEL("") ", \"added_tokens\": " tokens REST
#define POST(part) "{" MODEL("") ", \"post_processor\": " part REST
#define TEMPLATE(single, ids) \
    POST("{\"type\": \"TemplateProcessing\", \"single\": [" single "], \"special_tokens\": " \
         "{\"a\": {\"ids\": " ids "}}}")
#define TOKEN "{\"SpecialToken\": {\"id\": \"a\"}}"
#define TEXT "{\"Sequence\": {\"id\": \"A\"}}"

static void test_refused_by_name(void **state) {
    (void)state;
    static const struct { const char *text, *wrong; } cases[] = {
        {"{" MODEL("") REST, NULL},
        {"{" MODEL(", \"dropout\": null, \"end_of_word_suffix\": \"\", \"unk_token\": \"\"") REST,
         NULL},
        {"{" MODEL(", \"dropout\": 0.1") REST, "dropout"},
        {"{" MODEL(", \"continuing_subword_prefix\": \"##\"") REST, "continuing_subword_prefix"},
        {"{" MODEL(", \"end_of_word_suffix\": \"</w>\"") REST, "end_of_word_suffix"},
        {"{" MODEL(", \"byte_fallback\": true") REST, "byte_fallback"},
        {"{" MODEL(", \"something_new\": 1") REST, "something_new"},
        {"{\"model\": {\"type\": \"Unigram\"}" REST, "Unigram"},
        {"{" MODEL("") ", \"normalizer\": {\"type\": \"NFKC\"}" REST, "NFKC"},
        {"{" MODEL("") ", \"normalizer\": {\"type\": \"Sequence\", \"normalizers\": "
         "[{\"type\": \"NFC\"}, {\"type\": \"Lowercase\"}]}" REST, "Lowercase"},
        {STEPS("{\"type\": \"Metaspace\"}"), "Metaspace"},
        {STEPS(LEVEL ", " LEVEL), "more than once"},
        {STEPS(SPLIT("{\"String\": \" \"}", "Removed")), "nowhere"},
        {STEPS(SPLIT("{\"String\": \" \"}", "Sideways") ", " LEVEL), "Sideways"},
        {STEPS("{\"type\": \"Split\", \"invert\": false}, " LEVEL), "without a pattern"},
        {STEPS("{\"type\": \"Digits\"}, " LEVEL), "individual_digits"},
        {REGEX("("), "does not compile"},
        {REGEX("[a[b]]"), "class within a class"},
        {REGEX("[a&&b]"), "&&"},
        {REGEX("[[:alpha:]]"), "[:class:]"},
        {REGEX("a{2}+"), "interval"},
        {REGEX("\\\\Q.\\\\E"), "escape"},
        {"{" MODEL("") ", \"pre_tokenizer\": " LEVEL ", \"decoder\": {\"type\": \"WordPiece\"}}",
         "WordPiece"},
        {"{" MODEL("") ", \"pre_tokenizer\": " LEVEL "}", "decoder"},
        {POST("{\"type\": \"BertProcessing\"}"), "BertProcessing"},
        {TEMPLATE(TOKEN ", " TEXT, "[0]"), NULL},
        {TEMPLATE(TOKEN, "[0]"), "without the text"},
        {TEMPLATE(TOKEN ", " TEXT, "[4]"), "beyond the vocabulary"},
        {TEMPLATE("{\"SpecialToken\": {\"id\": \"x\"}}, " TEXT, "[0]"), "no ids"},
        {TEMPLATE("{\"Sequence\": {\"id\": \"B\"}}", "[0]"), "neither"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_problem("tokenizer.json", cases[i].text, cases[i].wrong);
    remove(in_folder("tokenizer.json"));
}

static void test_damaged_files(void **state) {
    (void)state;
    static const struct { const char *text, *wrong; } cases[] = {
        {"", "not JSON"}, {"[", "not JSON"}, {"[0]", "not one JSON object"},
        {"{}", "no model"}, {"{\"model\": 3}", "no model"},
        {"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"},
        {"{\"model\": {}" REST, "no tokens with ids"},
        {VOCABULARY("[[\"a\", 0]]", "[]"), "no tokens with ids"},
        {VOCABULARY("{\"a\": 4194304}", "[]"), "id that is not"},
        {VOCABULARY("{\"a\": -1}", "[]"), "id that is not"},
        {VOCABULARY("{\"a\": 1e300}", "[]"), "id that is not"},
        {VOCABULARY("{\"a\": 0.5}", "[]"), "id that is not"},
        {VOCABULARY("{\"a\": \"0\"}", "[]"), "id that is not"},
        {VOCABULARY("{\"a\": 0, \"b\": 0}", "[]"), "twice"},
        {VOCABULARY("{\"a\": 0, \"a\": 1}", "[]"), "twice"},
        {VOCABULARY("{\"a\": 0}", "{}"), "no list of merges"},
        {VOCABULARY("{\"a\": 0}", "[\"a\"]"), "not two tokens"},
        {VOCABULARY("{\"a\": 0}", "[\"a a a\"]"), "not two tokens"},
        {VOCABULARY("{\"a\": 0}", "[[\"a\"]]"), "not two tokens"},
        {VOCABULARY("{\"a\": 0}", "[7]"), "not two tokens"},
        {VOCABULARY("{\"a\": 0}", "[\"a b\"]"), "merge 0"},
        {VOCABULARY("{\"a\": 0, \"b\": 1}", "[\"a b\"]"), "merge 0"},
        {ADDED("7"), "no list"},
        {ADDED("[{\"id\": 4}]"), "without content"},
        {ADDED("[{\"id\": 4, \"content\": \"<x>\"}]"), "special of <x>"},
        {ADDED("[{\"id\": \"4\", \"content\": \"<x>\"" FLAGS "]"), "id that is not"},
        {ADDED("[{\"id\": 4, \"content\": \"<x>\"" FLAGS "]"), NULL},
        {ADDED("[{\"id\": 4, \"content\": \"\xC3\xA9\xCC\"" FLAGS "]"), "not UTF-8"},
        {ADDED("[{\"id\": 9, \"content\": \"<x>\"" FLAGS "]"), "gives it 4"},
        {ADDED("[{\"id\": 1, \"content\": \"a\"" FLAGS "]"), "gives it 0"},
        {ADDED("[{\"id\": 4, \"content\": \"<x>\"" FLAGS ", {\"id\": 5, \"content\": \"<x>\"" FLAGS
               "]"), "twice"},
        {"{\"model\": {\"vocab\": {\"a\": 1}, \"merges\": []}, \"added_tokens\": "
         "[{\"id\": 1, \"content\": \"<x>\"" FLAGS "]" REST, "id 1 twice"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_problem("tokenizer.json", cases[i].text, cases[i].wrong);
    const char *problem = problem_of("tokenizer.json", "{\0}", 3);
    assert_non_null(problem);
    assert_non_null(strstr(problem, "zero byte"));
    /* every beginning of a good file is none */
    const char *whole = "{" MODEL("") REST;
    for (size_t n = 0; n < strlen(whole); n++)
        assert_non_null(problem_of("tokenizer.json", whole, n));
    remove(in_folder("tokenizer.json"));
}

/* Sizes that no real file has. */
static void test_deep_and_large_files(void **state) {
    (void)state;
    struct Text text = {0};
    text_format(&text, "{\"model\": ");
    for (int i = 0; i < 100000; i++) text_append(&text, "[", 1);
    expect_problem("tokenizer.json", text.bytes, "not JSON");
    text_clear(&text);
    text_format(&text, "{" MODEL("") ", \"decoder\": " LEVEL ", \"pre_tokenizer\": ");
    for (int i = 0; i < 400; i++)
        text_format(&text, "{\"type\": \"Sequence\", \"pretokenizers\": [");
    for (int i = 0; i < 400; i++) text_format(&text, "]}");
    text_format(&text, "}");
    expect_problem("tokenizer.json", text.bytes, "nowhere");
    text_clear(&text);
    text_format(&text, "{" MODEL("") ", \"decoder\": " LEVEL
                ", \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [" LEVEL);
    for (int i = 0; i < 40; i++)
        text_format(&text, ", {\"type\": \"Digits\", \"individual_digits\": true}");
    text_format(&text, "]}}");
    expect_problem("tokenizer.json", text.bytes, "more than 32 steps");
    text_clear(&text);
    text_format(&text, "{" MODEL("") ", \"added_tokens\": [{\"id\": 4, \"content\": \"");
    for (int i = 0; i < 5000; i++) text_append(&text, "x", 1);
    text_format(&text, "\"" FLAGS "]" REST);
    expect_problem("tokenizer.json", text.bytes, "4096 bytes");
    text_clear(&text);
    text_format(&text, "%s", REGEX("((((a{100}){100}){100}){100})"));
    expect_problem("tokenizer.json", text.bytes, "does not compile");
    text_free(&text);
    remove(in_folder("tokenizer.json"));
}

/* A pattern may ask for more steps than there is time (these for years): the text has no ids
   then. */
static void test_catastrophic_patterns(void **state) {
    (void)state;
    static const char *const files[] = {REGEX("(a+)+$"), REGEX("(a|aa)+c"), REGEX("(a*)*c"),
                                        REGEX("(.*)*(.*)*(.*)*x"), REGEX("(?=(a+))a*b\\\\1")};
    char text[4000];
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = 'b';
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        struct Ids ids = {0};
        assert_null(problem_of("tokenizer.json", files[i], strlen(files[i])));
        struct Tokenizer *t = load(folder);
        bool done = tokenizer_encode(t, text, sizeof text, 0, &ids);
        assert_true(done ? ids.count > 0 : ids.count == 0);
        ids_free(&ids);
        tokenizer_free(t);
    }
    remove(in_folder("tokenizer.json"));
}

static void test_bad_gpt2_files(void **state) {
    (void)state;
    static const struct { const char *name, *text, *wrong; } cases[] = {
        {"vocab.json", "{\"a\": 0", "not JSON"},
        {"vocab.json", "{\"a\": 0, \"b\": 0}", "twice"},
        {"vocab.json", "{\"a\": 0, \"b\": 1, \"ab\": 2}", NULL},
        {"merges.txt", "a\n", "not two tokens"},
        {"merges.txt", "a b c\n", "not two tokens"},
        {"merges.txt", "#version: 0.2\na b\r\n\nb c\n", "merge 1"},
        {"merges.txt", "#version: 0.2\r\na b", NULL},
        {"tokenizer_config.json", "{\"tokenizer_class\": \"Qwen2Tokenizer\"}", "Qwen2Tokenizer"},
        {"tokenizer_config.json", "{\"add_prefix_space\": true}", "add_prefix_space"},
        {"tokenizer_config.json", "{", "not JSON"},
    };
    struct Tokenizer *t;
    assert_string_equal(tokenizer_load(&t, "/no/such"),
                        "there is neither vocab.json nor tokenizer.json");
    expect_problem("vocab.json", "{\"a\": 0}", "no merges.txt");
    write_bytes(in_folder("merges.txt"), "", 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_problem(cases[i].name, cases[i].text, cases[i].wrong);
    remove(in_folder("vocab.json")), remove(in_folder("merges.txt"));
    remove(in_folder("tokenizer_config.json"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids_of_the_library),
        cmocka_unit_test(test_the_way_back),
        cmocka_unit_test(test_streaming),
        cmocka_unit_test(test_streaming_by_hand),
        cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_bytes_without_a_token),
        cmocka_unit_test(test_invalid_input),
        cmocka_unit_test(test_many_marks),
        cmocka_unit_test(test_roles),
        cmocka_unit_test(test_alphabet_files),
        cmocka_unit_test(test_files_come_back),
        cmocka_unit_test(test_refused_by_name),
        cmocka_unit_test(test_damaged_files),
        cmocka_unit_test(test_deep_and_large_files),
        cmocka_unit_test(test_catastrophic_patterns),
        cmocka_unit_test(test_bad_gpt2_files),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
