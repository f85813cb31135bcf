#define PCRE2_CODE_UNIT_WIDTH 8
#include "verify.h"

#include <math.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "number.h"

enum { MOST_VERIFIERS = 16 };

struct Verify {
    struct { const struct Verifier *row; double weight; } part[MOST_VERIFIERS];
    int count;
    struct VerifyOptions options;
    char *regex;                 /* a copy of the option */
    pcre2_code *code;            /* of `pattern`, or NULL: it cannot be compiled */
    struct Text pattern;
    bool compiled;
    pcre2_match_data *match;
    pcre2_match_context *limits;
};

/* A part of a text. */
struct Span {
    const char *text;
    size_t length;
};

static bool is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
static bool is_word(char c) {
    return is_letter(c) || (c >= '0' && c <= '9') || c == '_' || (unsigned char)c >= 128;
}

static struct Span trimmed(const char *text, size_t length) {
    while (length > 0 && is_blank(text[0])) text++, length--;
    while (length > 0 && is_blank(text[length - 1])) length--;
    return (struct Span){text, length};
}

/* ---- exact: the completion is the answer, white space around both apart --------------------- */

static float exact(struct Verify *verify, const struct Completion *c) {
    const struct Text *answer = &c->example->answer;
    struct Span is = trimmed(c->text, c->length), wanted = trimmed(answer->bytes, answer->length);
    (void)verify;
    return c->ended && is.length == wanted.length && memcmp(is.text, wanted.text, is.length) == 0;
}

/* ---- number: see number.h ------------------------------------------------------------------- */

static float number(struct Verify *verify, const struct Completion *c) {
    const struct Text *answer = &c->example->answer;
    struct Number is, wanted;
    (void)verify;
    if (!number_in(&wanted, answer->bytes, answer->length, true) || !wanted.valued) return NAN;
    return number_in(&is, c->text, c->length, c->ended) && number_equal(&is, &wanted);
}

/* ---- choice: one of the letters A to E ------------------------------------------------------ */

/* Is the character at `at` a choice that stands alone? */
static bool stands_alone(const char *at, const struct Span *s) {
    const char *end = s->text + s->length;
    return *at >= 'A' && *at <= 'E' && (at == s->text || !is_word(at[-1])) &&
           (at + 1 == end || !is_word(at[1]));
}

/* The last letter that stands alone; 0: none. An A before another word is an article. */
static char last_letter(const struct Span *s) {
    const char *end = s->text + s->length;
    for (const char *at = end; at-- > s->text;) {
        if (!stands_alone(at, s)) continue;
        bool article = *at == 'A' && end - at > 2 && at[1] == ' ' && is_letter(at[2]);
        if (!article) return *at;
    }
    return 0;
}

static bool same_letters(const char *text, const char *lower) {
    for (; *lower; text++, lower++)
        if ((*text | 32) != *lower) return false;
    return true;
}

/* The letter within a few characters behind the last `answer`: "The answer is (B)"; 0: none. */
static char announced_letter(const struct Span *s) {
    enum { NEAR = 16 };
    static const char word[] = "answer";
    size_t n = sizeof word - 1;
    for (size_t i = s->length; i-- > 0;) {
        if (s->length - i < n || !same_letters(s->text + i, word)) continue;
        for (size_t k = i + n; k < s->length && k < i + n + NEAR; k++) {
            if (stands_alone(s->text + k, s)) return s->text[k];
        }
    }
    return 0;
}

/* What a text chooses: the letter in its last \boxed{}, or behind its last "answer", or at its
   beginning, or the last one that stands alone. In a text that was cut only the first two count. */
static char choice_in(const char *text, size_t length, bool whole) {
    struct Span all = trimmed(text, length), box = {0};
    box.text = last_boxed(all.text, all.length, &box.length);
    char letter = box.text ? last_letter(&box) : 0;
    if (!letter) letter = announced_letter(&all);
    if (letter || !whole || all.length == 0) return letter;
    const char *first = all.text + (all.text[0] == '(');
    if (first < all.text + all.length && stands_alone(first, &all) &&
        (first + 1 == all.text + all.length || first[1] != ' '))
        return *first;
    return last_letter(&all);
}

static float choice(struct Verify *verify, const struct Completion *c) {
    const struct Text *answer = &c->example->answer;
    char wanted = choice_in(answer->bytes, answer->length, true);
    (void)verify;
    if (!wanted) return NAN;
    return choice_in(c->text, c->length, c->ended) == wanted;
}

/* ---- regex: a pattern is found in the completion -------------------------------------------- */

/* How much work one match may be: with these limits the worst pattern takes some milliseconds. A
   match that would take more is none. */
enum { MATCH_LIMIT = 200000, DEPTH_LIMIT = 10000, HEAP_LIMIT_KIB = 16384, PATTERN_LIMIT = 65536 };

/* *offset: where the pattern is wrong. */
static pcre2_code *compile(const char *pattern, size_t length, int *error, size_t *offset) {
    PCRE2_SIZE at = 0;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context) die_machine("out of memory: a pattern of --reward regex");
    pcre2_set_max_pattern_length(context, PATTERN_LIMIT);
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, length,
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, error, &at,
                                     context);
    pcre2_compile_context_free(context);
    *offset = at;
    return code;
}

/* verify->code becomes that of `pattern`, which is compiled once for all completions of a
   prompt. */
static void use_pattern(struct Verify *v, const char *pattern, size_t length) {
    int error;
    size_t offset;
    if (v->compiled && v->pattern.length == length &&
        memcmp(v->pattern.bytes, pattern, length) == 0)
        return;
    text_clear(&v->pattern);
    text_append(&v->pattern, pattern, length);
    pcre2_code_free(v->code);
    v->code = compile(pattern, length, &error, &offset);
    v->compiled = true;
}

static float regex(struct Verify *v, const struct Completion *c) {
    const struct Text *answer = &c->example->answer;
    if (v->regex[0]) use_pattern(v, v->regex, strlen(v->regex));
    else if (answer->length > 0) use_pattern(v, answer->bytes, answer->length);
    else return NAN;
    if (!v->code) return NAN;
    return pcre2_match(v->code, (PCRE2_SPTR)c->text, c->length, 0, 0, v->match, v->limits) >= 0;
}

static void open_regex(struct Verify *v) {
    v->match = pcre2_match_data_create(1, NULL);
    v->limits = pcre2_match_context_create(NULL);
    if (!v->match || !v->limits) die_machine("out of memory: --reward regex");
    pcre2_set_match_limit(v->limits, MATCH_LIMIT);
    pcre2_set_depth_limit(v->limits, DEPTH_LIMIT);
    pcre2_set_heap_limit(v->limits, HEAP_LIMIT_KIB);
}

/* ---- length: 1 for an empty completion, falling to 0 at the longest; cut: 0 ------------------ */

static float length(struct Verify *verify, const struct Completion *c) {
    int most = verify->options.max_tokens;
    if (!c->ended || c->tokens >= most) return 0;
    return 1 - (float)c->tokens / (float)most;
}

/* ---- scorer: a program of the user's, see scorer.h ------------------------------------------- */

static void scorer(struct Verify *verify, float *score, const struct Completion *completion,
                   int count) {
    scorer_score(verify->options.scorer, score, completion, count);
}

/* ---- the table ------------------------------------------------------------------------------ */

static const struct Verifier rows[] = {
    {"exact", "the completion is the answer, white space around it apart", true, exact, NULL},
    {"number", "its number equals the answer's: #### 72, \\boxed{72}, or its last one", true,
     number, NULL},
    {"choice", "its letter A to E is the answer's", true, choice, NULL},
    {"regex", "--reward-regex, or else the answer as a pattern, is found in it", false, regex,
     NULL},
    {"length", "the share of the longest length that it leaves unused", false, length, NULL},
    {"scorer", "what the program of --scorer gives", false, NULL, scorer},
};
enum { NUM_ROWS = sizeof rows / sizeof *rows };

const struct Verifier *verifier_row(int i) { return i >= 0 && i < NUM_ROWS ? &rows[i] : NULL; }

const char *verifier_names(void) {
    static struct Text names;
    text_clear(&names);
    for (int i = 0; i < NUM_ROWS; i++) text_format(&names, "%s%s", i ? " " : "", rows[i].name);
    return names.bytes;
}

const char *verifier_for(const char *answer, size_t size) {
    struct Number value;
    struct Span all = trimmed(answer, size);
    size_t bracket = all.length > 0 && all.text[0] == '(';
    bool letter = all.length == 1 + 2 * bracket && stands_alone(all.text + bracket, &all);
    if (letter) return "choice";
    /* a number with at most a word or two, or a solution that ends in one */
    bool marked = last_boxed(answer, size, &(size_t){0}) || memmem(answer, size, "####", 4);
    bool is_number = number_in(&value, answer, size, true) && value.valued;
    return is_number && (marked || all.length <= 24) ? "number" : "exact";
}

/* ---- a list of them, with weights ----------------------------------------------------------- */

static char problem_text[512];
#define PROBLEM(...) (snprintf(problem_text, sizeof problem_text, __VA_ARGS__), problem_text)

/* Adds NAME or NAME:WEIGHT; NULL or what is wrong with it. */
static const char *add_part(struct Verify *v, char *item) {
    char *colon = strchr(item, ':'), *end = NULL;
    double weight = 1;
    if (colon) {
        *colon++ = 0;
        weight = *colon && !is_blank(*colon) ? strtod(colon, &end) : NAN;
        if (!isfinite(weight) || weight == 0 || fabs(weight) > 1000 || *end)
            return PROBLEM("\"%s\" is not a weight: a number up to 1000 that is not 0",
                           quote(colon));
    }
    const struct Verifier *row = NULL;
    for (int i = 0; i < NUM_ROWS && !row; i++)
        if (strcmp(rows[i].name, item) == 0) row = &rows[i];
    if (!row) return PROBLEM("\"%s\" is unknown; known are %s", quote(item), verifier_names());
    if (row->all == scorer && !v->options.scorer) return "scorer needs --scorer COMMAND";
    for (int i = 0; i < v->count; i++)
        if (v->part[i].row == row) return PROBLEM("%s is there twice", item);
    v->part[v->count].row = row, v->part[v->count++].weight = weight;
    return NULL;
}

static const char *check_regex(const struct Verify *v) {
    int error;
    size_t offset;
    unsigned char says[128];
    pcre2_code *code = compile(v->regex, strlen(v->regex), &error, &offset);
    if (code) {
        pcre2_code_free(code);
        return NULL;
    }
    pcre2_get_error_message(error, says, sizeof says);
    return PROBLEM("--reward-regex: %s, at byte %zu of \"%s\"", says, offset, quote(v->regex));
}

static bool has_scorer(const struct Verify *v) {
    for (int i = 0; i < v->count; i++)
        if (v->part[i].row->all == scorer) return true;
    return false;
}

struct Verify *verify_open(const char *list, const struct VerifyOptions *options,
                           const char **problem) {
    struct Verify *v = check_alloc(1, sizeof *v, "verifiers");
    char *copy = check_strdup(list), *rest = copy, *item;
    v->options = *options;
    v->regex = check_strdup(options->regex);
    open_regex(v);
    *problem = v->regex[0] ? check_regex(v) : NULL;
    while (!*problem && (item = strsep(&rest, ",")) != NULL) *problem = add_part(v, item);
    if (!*problem && options->scorer && !has_scorer(v))
        *problem = PROBLEM("the program of --scorer has no part in it; add scorer:1");
    free(copy);
    if (!*problem) return v;
    verify_close(v);
    return NULL;
}

void verify_close(struct Verify *v) {
    if (!v) return;
    pcre2_code_free(v->code);
    pcre2_match_data_free(v->match);
    pcre2_match_context_free(v->limits);
    text_free(&v->pattern);
    free(v->regex);
    free(v);
}

bool verify_interrupted(const struct Verify *v) {
    return has_scorer(v) && scorer_interrupted(v->options.scorer);
}

bool verify_needs_answers(const struct Verify *v) {
    for (int i = 0; i < v->count; i++) {
        bool pattern = strcmp(v->part[i].row->name, "regex") == 0 && !v->regex[0];
        if (v->part[i].row->needs_answer || pattern) return true;
    }
    return false;
}

/* score [count] of one verifier. */
static void score_all(struct Verify *v, const struct Verifier *row, float *score,
                      const struct Completion *completion, int count) {
    if (row->all) {
        row->all(v, score, completion, count);
        return;
    }
    for (int i = 0; i < count; i++) {
        bool without = row->needs_answer && completion[i].example->answer.length == 0;
        score[i] = without ? NAN : row->one(v, &completion[i]);
    }
}

void verify_judge(struct Verify *v, struct Reward *reward, const struct Completion *completion,
                  int count) {
    float *score = check_alloc((size_t)count, sizeof *score, "rewards");
    double *sum = check_alloc((size_t)count, sizeof *sum, "rewards");
    for (int k = 0; k < v->count; k++) {
        score_all(v, v->part[k].row, score, completion, count);
        for (int i = 0; i < count; i++) {
            sum[i] += v->part[k].weight * score[i];
            if (k == 0) reward[i].right = score[i] >= 1;
        }
    }
    for (int i = 0; i < count; i++) reward[i].value = (float)sum[i];
    free(score), free(sum);
}
