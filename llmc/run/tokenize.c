#include "tokenize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "../base/console.h"
#include "../base/json.h"
#include "../io/jsonl.h"
#include "../io/lines.h"
#include "../io/tokenizer.h"

struct Tokenize {
    struct Tokenizer *tokenizer;
    struct Lines in;
    struct Jsonl out;
    struct Ids ids;
    struct Text text;
    long bad;
};

static const cJSON *get(const cJSON *object, const char *key) {
    return cJSON_GetObjectItemCaseSensitive(object, key);
}

/* The line's text to ids; NULL or what is wrong. */
static const char *encode_line(struct Tokenize *t, const cJSON *line, const char zero[4]) {
    const char *string = cJSON_GetStringValue(get(line, "text"));
    bool bare = cJSON_IsFalse(get(line, "add_special_tokens"));
    int flags = TOKENIZER_SPECIALS | TOKENIZER_LENIENT |
                (bare ? 0 : TOKENIZER_BEGIN | TOKENIZER_END);
    if (!string) return "not a JSON object with \"text\"";
    text_clear(&t->text);
    json_append_string(&t->text, string, zero);
    t->ids.count = 0;
    if (!tokenizer_encode(t->tokenizer, t->text.bytes, t->text.length, flags, &t->ids))
        return "the tokenizer has no ids for this text";
    jsonl_begin(&t->out);
    jsonl_integers(&t->out, "ids", t->ids.id, t->ids.count);
    jsonl_end(&t->out);
    return NULL;
}

static const char *decode_line(struct Tokenize *t, const cJSON *line) {
    const cJSON *list = get(line, "ids"), *item;
    bool plain = cJSON_IsTrue(get(line, "skip_special_tokens"));
    if (!cJSON_IsArray(list)) return "not a JSON object with a list \"ids\"";
    t->ids.count = 0;
    cJSON_ArrayForEach(item, list) {
        if (!cJSON_IsNumber(item) || item->valuedouble != item->valueint || item->valueint < 0)
            return "an id is not a whole number from 0";
        ids_append(&t->ids, &item->valueint, 1);
    }
    text_clear(&t->text);
    tokenizer_decode(t->tokenizer, t->ids.id, t->ids.count, plain ? TOKENIZER_PLAIN : 0, &t->text);
    jsonl_begin(&t->out);
    jsonl_string(&t->out, "text", t->text.bytes, t->text.length);
    jsonl_end(&t->out);
    return NULL;
}

static void name_bad_line(struct Tokenize *t, bool encodes, const char *problem) {
    enum { NAMED = 20 };
    if (++t->bad <= NAMED) warn("%s:%ld: %s", t->in.path, t->in.number, problem);
    jsonl_begin(&t->out);
    jsonl_number(&t->out, encodes ? "ids" : "text", NAN);   /* null */
    jsonl_end(&t->out);
}

_Noreturn void tokenize_and_exit(const struct Options *o) {
    struct Tokenize t = {.out = {.stream = stdout, .path = "standard output"}};
    bool encodes = o->tokenize[0];
    console_open(o->quiet);
    options_check_measure(o);
    if (o->tokenize[0] && o->detokenize[0])
        die_input("--tokenize and --detokenize: one at a time");
    if (!options_given(o, "model"))
        die_input("--%stokenize needs --model DIR, whose tokenizer it uses", encodes ? "" : "de");
    const char *problem = tokenizer_load(&t.tokenizer, o->model);
    if (problem) die_input("%s: %s", o->model, problem);
    lines_open(&t.in, encodes ? o->tokenize : o->detokenize,
               encodes ? "--tokenize" : "--detokenize");
    while (lines_next(&t.in)) {
        char zero[4];
        if (t.in.text[strspn(t.in.text, " \t\r\n")] == 0 && !lines_has_zero(&t.in)) continue;
        cJSON *line = json_parse_line(t.in.text, t.in.length, zero);
        problem = encodes ? encode_line(&t, line, zero) : decode_line(&t, line);
        if (problem) name_bad_line(&t, encodes, problem);
        cJSON_Delete(line);
    }
    if (t.bad) warn("%s: %ld of %ld lines were bad", t.in.path, t.bad, t.in.number);
    jsonl_close(&t.out);
    lines_close(&t.in);
    tokenizer_free(t.tokenizer);
    ids_free(&t.ids), text_free(&t.text);
    exit(0);
}
