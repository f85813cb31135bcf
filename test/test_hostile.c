/* Hostile and damaged files, given to ./train as a user gives it a directory from somewhere: each
   is refused before anything is computed, in one line that says which file and what is wrong with
   it, with exit code 2. Bad lines of data, and bad answers of a scorer, are counted instead. */
#include "program_rig.h"
#include <stdint.h>
#include "../llmc/base/json.h"
#include "../llmc/base/text.h"
#include "../llmc/tasks/scorer_reply.h"

static void write_file(const char *name, const char *bytes, size_t length) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", place, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
}

/* The program's last words are one line of printable ASCII, with all words [count] in it. */
static void expect_refusal(int code, const char *what, const char *const *words, int count) {
    size_t length = strlen(output);
    bool one = length > 0 && strchr(output, '\n') == output + length - 1;
    for (size_t i = 0; i + 1 < length; i++) one &= output[i] >= 32 && output[i] < 127;
    if (code != 2 || !one || strncmp(output, "train: error: ", 14) != 0)
        fail_msg("%.300s: exit code %d, %s", what, code, output);
    for (int i = 0; i < count; i++)
        if (words[i] && !strstr(output, words[i]))
            fail_msg("%.300s: \"%s\" is not in: %s", what, words[i], output);
}

/* ---- directories ----------------------------------------------------------------------------- */

struct Row {
    const char *bytes;
    const char *words[3];
    size_t length;   /* 0: that of the text */
};

/* A fresh copy of the good directory with this file, and what the program says of it. */
static void give(const char *name, const struct Row *row) {
    char path[128];
    const char *words[] = {name, row->words[0], row->words[1], row->words[2]};
    RUN_OK("rm -rf bad && cp -r good bad");
    snprintf(path, sizeof path, "bad/%s", name);
    write_file(path, row->bytes, row->length ? row->length : strlen(row->bytes));
    expect_refusal(run("$T --quiet --model bad --eval-only"), row->bytes, words, 4);
}

#define TENSOR(name, type, shape, offsets) \
    "\"" name "\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define F32(name, shape, offsets) TENSOR(name, "F32", shape, offsets)

static void test_tensors(void **state) {
    (void)state;
    static const struct {
        const char *header, *word;
        size_t data;
        uint64_t length;   /* that the file claims; 0: the header's own */
    } rows[] = {
        {"{}", "past the end", 0, (uint64_t)1 << 63},
        {"{}", "past the end", 0, ~(uint64_t)0},
        {"{}", "past the end", 0, 3},
        {"{", "not JSON", 0, 1},
        {"[]", "not JSON", 8, 0},
        {"{" F32("a", "[2]", "[0,8]"), "not JSON", 8, 0},
        {"{" F32("a", "[2]", "[0,8]") "}{}", "goes on after", 8, 0},
        {"{\x01" F32("a", "[2]", "[0,8]") "}", "not JSON", 8, 0},
        {"{" F32("a", "[02]", "[0,8]") "}", "not JSON", 8, 0},
        {"{" F32("a\\u0000b", "[2]", "[0,8]") "}", "character \\u0000", 8, 0},
        {"{" F32("a", "[2]", "[0,8]") "," F32("b", "[2]", "[4,12]") "}", "b overlaps", 12, 0},
        {"{" F32("a", "[1]", "[0,4]") "," F32("b", "[1]", "[8,12]") "}", "unused bytes", 12, 0},
        {"{" F32("a", "[1]", "[0,4]") "," F32("a", "[1]", "[4,8]") "}", "a is there twice", 8, 0},
        {"{" F32("a", "[2]", "[-8,0]") "}", "a has no valid data_offsets", 8, 0},
        {"{" F32("a", "[2]", "[8,0]") "}", "a lies outside", 8, 0},
        {"{" F32("a", "[2]", "[0,18446744073709551624]") "}", "no valid data_offsets", 8, 0},
        {"{" F32("a", "[9]", "[0,36]") "}", "a lies outside", 8, 0},
        {"{" F32("a", "[2]", "[0,8]") "}", "belong to no tensor", 9, 0},
        {"{" TENSOR("a", "F4", "[2]", "[0,8]") "}", "unknown dtype \"F4\"", 8, 0},
        {"{" F32("a", "[4294967296,4294967296]", "[0,0]") "}", "impossible shape", 0, 0},
        {"{" F32("a", "[-2]", "[0,8]") "}", "impossible shape", 8, 0},
        {"{" F32("a", "[1,1,1,1,2]", "[0,8]") "}", "more than 4", 8, 0},
        {"{" F32("a", "[3]", "[0,8]") "}", "not what its shape needs", 8, 0},
        {"{\"\xFF\x1B\":3}", "not JSON", 8, 0},
        {"{\"\xFF\x9B\":3}", "\\xff\\x9b is not described", 8, 0},
        {"{" F32("a", "[2]", "[0,8]") "}", "wte.weight is missing", 8, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char file[1024] = {0};
        size_t header = strlen(rows[i].header);
        uint64_t length = rows[i].length ? rows[i].length : header;
        memcpy(file, &length, 8);
        memcpy(file + 8, rows[i].header, header);
        struct Row row = {file, {rows[i].word}, 8 + header + rows[i].data};
        give("model.safetensors", &row);
    }
    give("model.safetensors", &(struct Row){"abc", {"too short"}, 0});
    give("model.safetensors", &(struct Row){"version https://git-lfs.github.com/spec/v1\noid sha",
                                            {"git lfs pull"}, 0});
    static char deep[8 + 6000];
    memcpy(deep, &(uint64_t){6000}, 8);
    memset(deep + 8, '[', 6000);
    memcpy(deep + 8, "{\"a\":", 5);
    give("model.safetensors", &(struct Row){deep, {"not JSON"}, sizeof deep});
}

static void test_index(void **state) {
    (void)state;
    static const struct Row rows[] = {
        {"{\"weight_map\": {\"a\": \"x.safetensors\"}}", {"x.safetensors is missing"}, 0},
        {"{\"weight_map\": {\"a\": \"../good/m.safetensors\"}}",
         {"tensor a", "../good/m", "beside"}, 0},
        {"{\"weight_map\": {\"a\": \"/etc/passwd\"}}", {"tensor a", "/etc/passwd", "beside"}, 0},
        {"{\"weight_map\": {\"a\": \"..\"}}", {"tensor a", "beside"}, 0},
        {"{\"weight_map\": {\"a\": \"m.safetensors\\u0000.txt\"}}", {"character \\u0000"}, 0},
        {"{\"weight_map\": {\"a\": \"m.safe\\ntensors\"}}", {"m.safe\\x0atensors", "beside"}, 0},
        {"{\"weight_map\": {\"a\": \"x\", \"a\": \"y\"}}", {"tensor a is there twice"}, 0},
        {"{\"weight_map\": {\"a\": 7}}", {"tensor a has no file's name"}, 0},
        {"{\"weight_map\": [\"a\"]}", {"no \"weight_map\""}, 0},
        {"{\"metadata\": {\"total_size\": 1e300}}", {"no \"weight_map\""}, 0},
        {"{\"metadata\": {\"total_size\": 1e300}, \"weight_map\": {\"a\": \"m.safetensors\"}}",
         {"m.safetensors: tensor a is missing"}, 0},
        {"{\"weight_map\": {\"a\": \"m.safeten", {"not JSON"}, 0},
        {"\xFF\xFE{\0}\0", {"zero byte"}, 6},
    };
    RUN_OK("mv good/model.safetensors good/m.safetensors");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        give("model.safetensors.index.json", &rows[i]);
    RUN_OK("mv good/m.safetensors good/model.safetensors");
}

#define CONFIG(type, more) \
    "{\"model_type\": \"" type "\", \"hidden_size\": 64, \"num_hidden_layers\": 4, " \
    "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"intermediate_size\": 96, " \
    "\"vocab_size\": 24, \"max_position_embeddings\": 32768" more "}"
#define LLAMA(more) CONFIG("llama", more)
#define SCALED(scaling) LLAMA(", \"rope_scaling\": {" scaling "}")

static void test_config(void **state) {
    (void)state;
    static const struct Row rows[] = {
        {CONFIG("qwen2", ", \"use_sliding_window\": true, \"sliding_window\": 128, "
                "\"max_window_layers\": 2"), {"sliding window", "128"}, 0},
        {CONFIG("mistral", ", \"sliding_window\": 4096"), {"sliding window", "4096"}, 0},
        {CONFIG("mistral", ""), {"sliding window"}, 0},
        {CONFIG("qwen3", ", \"layer_types\": [\"sliding_attention\"], \"sliding_window\": 64"),
         {"sliding window"}, 0},
        {LLAMA(", \"layer_types\": [\"linear_attention\"]"), {"linear_attention"}, 0},
        {LLAMA(", \"partial_rotary_factor\": 0.5"), {"partial_rotary_factor"}, 0},
        {SCALED("\"type\": \"yarn\", \"factor\": 4.0"), {"yarn"}, 0},
        {SCALED("\"rope_type\": \"longrope\", \"short_factor\": [1.0]"), {"longrope"}, 0},
        {SCALED("\"rope_type\": \"linear\", \"factor\": 1e300"), {"factor"}, 0},
        {LLAMA(", \"num_local_experts\": 8"), {"mixture of experts", "num_local_experts"}, 0},
        {LLAMA(", \"quantization_config\": {\"bits\": 4}"), {"quantised"}, 0},
        {LLAMA(", \"hidden_act\": \"gelu\""), {"hidden_act"}, 0},
        {LLAMA(", \"rms_norm_eps\": -1"), {"rms_norm_eps"}, 0},
        {LLAMA(", \"rms_norm_eps\": NaN"), {"not JSON"}, 0},
        {LLAMA(", \"head_dim\": 1e18"), {"head_dim"}, 0},
        {LLAMA(", \"tie_word_embeddings\": \"yes\""), {"tie_word_embeddings"}, 0},
        {LLAMA(", \"rope_theta\": 0"), {"rope_theta"}, 0},
        {CONFIG("llama4", ""), {"llama4"}, 0},
        {CONFIG("a\\nb\\u001b[2J", ""), {"a\\x0ab\\x1b[2J"}, 0},
        {"{\"model_type\": \"llama\", \"hidden_size\": \"64\"}", {"num_hidden_layers"}, 0},
        {"{\"model_type\": \"llama\", \"num_hidden_layers\": 2.5}", {"num_hidden_layers"}, 0},
        {"{\"model_type\": \"gpt2\", \"n_layer\": 16777216, \"n_head\": 4, \"n_embd\": 64, "
         "\"vocab_size\": 24, \"n_positions\": 16}", {"layers", "16777216"}, 0},
        {"{\"model_type\": 7}", {"model_type"}, 0},
        {"{\"model_type\": \"llama\"", {"not JSON"}, 0},
        {"[]", {"one JSON object"}, 0},
        {"{\"model_type\": \"ll\xFF\"}", {"UTF-8"}, 0},
        {"{\"model_type\": \"gpt2\\u0000x\"}", {"character \\u0000"}, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) give("config.json", &rows[i]);
    struct Text text = {0};
    text_format(&text, "{\"model_type\": ");
    for (int i = 0; i < 100000; i++) text_append(&text, "[", 1);
    give("config.json", &(struct Row){text.bytes, {"not JSON"}, 0});
    /* Objects within objects, the same under both keys: comparing them would take for ever. */
    text_clear(&text);
    for (int key = 0; key < 2; key++) {
        text_format(&text, ", \"rope_%s\": {\"a\": [", key ? "parameters" : "scaling");
        for (int i = 0; i < 60; i++) text_format(&text, "{\"a\": [");
        for (int i = 0; i < 60; i++) text_format(&text, "]}");
        text_format(&text, "]}");
    }
    struct Text whole = {0};
    text_format(&whole, "{\"model_type\": \"llama\", \"hidden_size\": 64, \"num_hidden_layers\": 4,"
                " \"num_attention_heads\": 4, \"intermediate_size\": 96, \"vocab_size\": 24, "
                "\"max_position_embeddings\": 32%s}", text.bytes);
    give("config.json", &(struct Row){whole.bytes, {"rope_scaling"}, 0});
    /* As many parts, each to be looked for among as many. */
    text_clear(&text), text_clear(&whole);
    for (int i = 0; i < 400000; i++) text_format(&text, "%s\"p%d\": 1", i ? "," : "", i);
    text_format(&whole, CONFIG("llama", ", \"rope_scaling\": {%s}, \"rope_parameters\": {%s}"),
                text.bytes, text.bytes);
    give("config.json", &(struct Row){whole.bytes, {"differ"}, 0});
    text_free(&text), text_free(&whole);
}

#define TOKENIZER(model, more) \
    "{\"model\": {\"type\": \"BPE\", " model "}, \"pre_tokenizer\": {\"type\": \"ByteLevel\", " \
    "\"add_prefix_space\": false}, \"decoder\": {\"type\": \"ByteLevel\"}" more "}"
#define AB "\"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, \"merges\": [\"a b\"]"

static void test_tokenizers(void **state) {
    (void)state;
    static const struct Row rows[] = {
        {"{\"model\": {\"type\": \"Unigram\"}}", {"Unigram"}, 0},
        {TOKENIZER(AB ", \"dropout\": 0.1", ""), {"dropout"}, 0},
        {TOKENIZER(AB ", \"byte_fallback\": true", ""), {"byte_fallback"}, 0},
        {TOKENIZER(AB, ", \"normalizer\": {\"type\": \"NFKC\"}"), {"NFKC"}, 0},
        {TOKENIZER(AB, ", \"post_processor\": {\"type\": \"BertProcessing\"}"),
         {"BertProcessing"}, 0},
        {TOKENIZER("\"vocab\": {\"a\": 0, \"a\": 1}, \"merges\": []", ""), {"twice"}, 0},
        {TOKENIZER("\"vocab\": {\"a\": 0, \"b\": 0}, \"merges\": []", ""), {"twice"}, 0},
        {TOKENIZER("\"vocab\": {\"a\": -1}, \"merges\": []", ""), {"id that is not"}, 0},
        {TOKENIZER("\"vocab\": {\"a\": 1e300}, \"merges\": []", ""), {"id that is not"}, 0},
        {TOKENIZER("\"vocab\": {\"a\": 0}, \"merges\": [\"a b\"]", ""), {"merge 0"}, 0},
        {TOKENIZER("\"vocab\": {\"a\": 0, \"b\\u0000\": 1}, \"merges\": []", ""),
         {"character \\u0000"}, 0},
        {TOKENIZER("\"vocab\": {\"\xC3\": 0}, \"merges\": []", ""), {"UTF-8"}, 0},
        {TOKENIZER("\"vocab\": {\"\\udc00\": 0}, \"merges\": []", ""), {"not JSON"}, 0},
        {TOKENIZER(AB, ", \"added_tokens\": [{\"id\": 9, \"content\": \"<x>\"}]"), {"<x>"}, 0},
        {"{", {"not JSON"}, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) give("tokenizer.json", &rows[i]);
    static const struct Row roles[] = {
        {"[]", {"one JSON object"}, 0}, {"{\"a\": ", {"not JSON"}, 0}};
    for (int i = 0; i < 2; i++) give("tokenizer_config.json", &roles[i]);
    static const struct Row ends[] = {
        {"{\"eos_token_id\": \"x\"}", {"eos_token_id"}, 0},
        {"{\"eos_token_id\": [1, [2]]}", {"eos_token_id"}, 0},
        {"{\"eos_token_id\": [0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}", {"more than 16"}, 0},
        {"{\"eos_token_id\": 1", {"not JSON"}, 0},
        {"\xEF\xBB", {"UTF-8"}, 0},
    };
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        give("generation_config.json", &ends[i]);
    RUN_OK("mv good/tokenizer.json aside.json");
    static const struct Row merges[] = {
        {"#version: 0.2\n0 1 2\n", {"not two tokens"}, 0}, {"0 x\n", {"merge 0"}, 0}};
    for (int i = 0; i < 2; i++) give("merges.txt", &merges[i]);
    RUN_OK("mv aside.json good/tokenizer.json");
}

/* ---- data ------------------------------------------------------------------------------------ */

/* Bad lines are passed over; with none allowed the first ends the program. Line 2 of the file is
   the bad one. */
static void give_line(const char *line, size_t length, const char *word) {
    struct Text text = {0};
    static const char good[] = "{\"prompt\": \"1+1=\", \"answer\": \"2\"}\n";
    text_append(&text, good, sizeof good - 1);
    text_append(&text, line, length ? length : strlen(line));
    text_append(&text, "\n", 1);
    for (int i = 0; i < 4; i++) text_append(&text, good, sizeof good - 1);
    write_file("bad.jsonl", text.bytes, text.length);
    text_free(&text);
    static const char options[] = "--quiet --model good --data bad.jsonl --eval-share 0 --dry-run";
    int code = run("$T %s --bad-lines 0", options);
    expect_refusal(code, line, (const char *[]){"bad.jsonl:2 ", word, "--bad-lines"}, 3);
    RUN_OK("$T %s --bad-lines 1", options);
}

static void test_lines(void **state) {
    (void)state;
    static const struct { const char *line, *word; size_t length; } rows[] = {
        {"{\"prompt\": \"\xFF\"}", "is not UTF-8", 0},
        {"{\"prompt\": \"\xC0\xAF\"}", "is not UTF-8", 0},
        {"{\"prompt\": \"\xED\xA0\x80\"}", "is not UTF-8", 0},
        {"{\"prompt\": \"\\ud800\"}", "is not JSON", 0},
        {"{\"prompt\": \"\\udc00\\ud800\"}", "is not JSON", 0},
        {"{\"prompt\": \"a\\u0000b\"}", "holds the character \\u0000", 0},
        {"{\"prompt\": \"a\0\"}", "holds a zero byte", 15},
        {"\xEF\xBB\xBF{\"prompt\": \"a\"}", "is not JSON", 0},
        {"{\"prompt\": \"a\", \x01\"b}\": 1}", "is not JSON", 0},
        {"{\"prompt\": \"a\x02\"}", "is not JSON", 0},
        {"{\"prompt\": 01}", "is not JSON", 0},
        {"{\"prompt\": NaN}", "is not JSON", 0},
        {"{\"prompt\": \"a\"", "is not JSON", 0},
        {"{'prompt': 'a'}", "is not JSON", 0},
        {"null", "is not a JSON object", 0},
        {"{\"prompt\": 7}", "neither text nor messages", 0},
        {"{\"prompt\": [7]}", "message without a role", 0},
        {"{\"messages\": [{\"role\": \"user\", \"content\": [1]}]}", "content is not text", 0},
        {"{\"prompt\": \"1\", \"completion\": {\"content\": 7}}", "nor one message", 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        give_line(rows[i].line, rows[i].length, rows[i].word);
    enum { LARGE = (16 << 20) + 100, DEEP = 3000 };
    char *large = malloc(LARGE);
    memset(large, '[', LARGE);
    memcpy(large, "{\"prompt\": ", 11);
    give_line(large, DEEP, "is not JSON");
    memset(large, 'a', LARGE);
    memcpy(large, "{\"prompt\": \"", 12);
    memcpy(large + LARGE - 2, "\"}", 2);
    give_line(large, LARGE, "is longer than 16 MB");
    free(large);
}

/* Sound JSON of any kind is data, and nothing in it breaks the line. */
static void test_lines_that_are_good(void **state) {
    (void)state;
    static const char file[] =
        "\xEF\xBB\xBF{\"prompt\": \"1+1=\", \"answer\": \"2\"}\r\n\r\n"
        "{\"prompt\": \"2+1=\", \"answer\": \"3\", \"prompt\": \"\", \"\": {\"}\": [\"]\\\"\"]}}\n"
        "{\"prompt\": \"3+1=\", \"answer\": 1e999, \"x\": -0.0e-0, \"y\": \"\\ud83d\\ude00\"}\t\n";
    write_file("odd.jsonl", file, sizeof file - 1);
    RUN_OK("$T --quiet --model good --data odd.jsonl --eval-share 0 --dry-run --bad-lines 0 "
           "--max-tokens 4");
}

static void test_templates(void **state) {
    (void)state;
    static const struct Row rows[] = {
        {"{q", {"bad.txt:1", "a { without its }"}, 0},
        {"\n}", {"bad.txt:2", "a } without its {"}, 0},
        {"{ }", {"bad.txt:1", "{} has no name"}, 0},
        {"{a\n}", {"bad.txt:1", "a { without its }"}, 0},
        {"a\n\xFF", {"bad.txt:2", "not UTF-8"}, 0},
        {"a\0b", {"bad.txt", "zero byte"}, 3},
        {"{qestion}", {"{qestion}", "no key of"}, 0},
    };
    write_file("good.jsonl", "{\"prompt\": \"1\", \"answer\": 1}\n", 29);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        write_file("bad.txt", rows[i].bytes, rows[i].length ? rows[i].length
                                                            : strlen(rows[i].bytes));
        int code = run("$T --quiet --model good --data good.jsonl --prompt-template bad.txt "
                       "--dry-run");
        expect_refusal(code, rows[i].bytes, rows[i].words, 3);
    }
    static const struct { const char *option, *word; } forms[] = {
        {"--chat llama3", "<|begin_of_text|>"}, {"--chat chatml", "<|im_start|>"},
        {"--chat zephyr", "--chat"}};
    for (int i = 0; i < 3; i++) {
        int code = run("$T --quiet --model good --data good.jsonl --dry-run %s", forms[i].option);
        expect_refusal(code, forms[i].option, &forms[i].word, 1);
    }
}

/* What a scorer may answer: nothing of it is a reward, and none is fatal. */
static void test_replies(void **state) {
    (void)state;
    static const struct { const char *line; enum ReplyKind kind; size_t length; } rows[] = {
        {"Traceback (most recent call last):", REPLY_NOT_JSON, 0},
        {"{\"id\": 1, \"reward\": 1", REPLY_NOT_JSON, 0},
        {"{\"id\": 1, \"reward\": 1}\0}", REPLY_NOT_JSON, 24},
        {"{\"id\": 1, \"reward\": \"\\ud800\"}", REPLY_NOT_JSON, 0},
        {"{\"id\": 18446744073709551616, \"reward\": 1}", REPLY_NO_ID, 0},
        {"{\"id\": -1, \"reward\": 1}", REPLY_NO_ID, 0},
        {"{\"id\": {\"id\": 1}, \"reward\": 1}", REPLY_NO_ID, 0},
        {"{\"id\": 1, \"reward\": 1e999}", REPLY_NO_REWARD, 0},
        {"{\"id\": 1, \"reward\": NaN}", REPLY_NO_REWARD, 0},
        {"{\"id\": 1, \"reward\": [1]}", REPLY_NO_REWARD, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t length = rows[i].length ? rows[i].length : strlen(rows[i].line);
        struct Reply reply = scorer_reply(rows[i].line, length);
        if (reply.kind != rows[i].kind) fail_msg("%s: kind %d", rows[i].line, (int)reply.kind);
    }
}

static int make_good(void **state) {
    json_memory(malloc);
    if (make_place(state) != 0) return -1;
    RUN_OK("$T --quiet --warm-start 1 --warm-batch 8 --steps 0 --eval-every 0 --run seed && "
           "cp -r seed/checkpoints/step_000000 good && "
           "rm good/checksums good/optimizer.safetensors good/trainer_state.json");
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensors),   cmocka_unit_test(test_index),
        cmocka_unit_test(test_config),    cmocka_unit_test(test_tokenizers),
        cmocka_unit_test(test_lines),     cmocka_unit_test(test_lines_that_are_good),
        cmocka_unit_test(test_templates), cmocka_unit_test(test_replies),
    };
    return cmocka_run_group_tests(tests, make_good, remove_place);
}
