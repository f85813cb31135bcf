/* Patterns of tokenizer.json, which are written for Oniguruma, run by PCRE2. Where the two read the
   same characters differently the pattern is rewritten or, where that is not possible, refused; and
   where they know different versions of Unicode PCRE2 is shown other text (pattern_view). One
   difference is left: without case, Oniguruma takes ss for a sharp s, ff for the ligature, and so
   on. Patterns come from files: every match has a limit of steps. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "tokenizer_parts.h"

struct Pattern {
    pcre2_code *code;
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    bool jit;
};

enum { LONGEST_PATTERN = 65536, HEAP_KIB = 65536, JIT_STACK = 8 << 20 };

/* ---- from Oniguruma's language to PCRE2's ---------------------------------------------------- */

/* Oniguruma's \w: Alphabetic, marks, decimal digits, connectors; outside a class Latin-1's numbers
   too. */
#define WORD_CLASS "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}" \
                   "\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"
#define WORDS WORD_CLASS "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"
#define WORD "[" WORDS "]"

struct Rewriting {
    const char *at;            /* what is left of the pattern */
    struct Text out;
    bool in_class;
    bool script_names;         /* \p{Han} is asked for as a script, not as a script extension */
    const char *problem;
};

static void put(struct Rewriting *r, const char *text) { text_append(&r->out, text, strlen(text)); }

static void copy(struct Rewriting *r, size_t count) {
    text_append(&r->out, r->at, count);
    r->at += count;
}

/* \p{Name}: general categories have one letter or two, scripts more. */
static void rewrite_property(struct Rewriting *r) {
    size_t name = r->at[2] == '{' ? strcspn(r->at + 3, "}") : 0;
    bool negated = name > 0 && r->at[3] == '^';
    bool category = name < 3 + (size_t)negated || strncmp(r->at + 3, "Any}", 4) == 0;
    if (!r->script_names || category || memchr(r->at, ':', name)) {
        copy(r, 2);
        return;
    }
    copy(r, 3 + (size_t)negated);
    put(r, "sc:");
}

/* A backslash and what follows. */
static void rewrite_escape(struct Rewriting *r) {
    static const struct { char letter; const char *outside, *inside; } rows[] = {
        {'w', WORD, WORD_CLASS}, {'W', "[^" WORDS "]", NULL},
        {'h', "[0-9a-fA-F]", "0-9a-fA-F"}, {'H', "[^0-9a-fA-F]", NULL},
        {'b', "(?:(?<=" WORD ")(?!" WORD ")|(?<!" WORD ")(?=" WORD "))", "\\b"},
        {'B', "(?:(?<=" WORD ")(?=" WORD ")|(?<!" WORD ")(?!" WORD "))", NULL},
        {'Q', NULL, NULL}, {'E', NULL, NULL}, {'C', NULL, NULL}, {'N', NULL, NULL},
        {'O', NULL, NULL}, {'G', NULL, NULL}, {'y', NULL, NULL}, {'Y', NULL, NULL},
    };
    char letter = r->at[1];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (rows[i].letter != letter) continue;
        const char *text = r->in_class ? rows[i].inside : rows[i].outside;
        if (!text) r->problem = "has an escape whose meaning differs between regex libraries";
        else put(r, text), r->at += 2;
        return;
    }
    if (letter == 'p' || letter == 'P') {
        rewrite_property(r);
    } else if (letter == 'u' && strspn(r->at + 2, "0123456789abcdefABCDEF") >= 4) {
        text_format(&r->out, "\\x{%.4s}", r->at + 2);
        r->at += 6;
    } else if (letter) {
        copy(r, 1 + utf8_length(r->at + 1, strlen(r->at + 1)));
    } else {
        copy(r, 1);
    }
}

/* [:name:]; most names mean other characters there. */
static void rewrite_named_class(struct Rewriting *r) {
    static const char *const same[] = {"[:blank:]", "[:cntrl:]", "[:digit:]", "[:space:]",
                                       "[:xdigit:]"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        if (strncmp(r->at, same[i], strlen(same[i])) != 0) continue;
        copy(r, strlen(same[i]));
        return;
    }
    r->problem = "has a [:class:] whose meaning differs between regex libraries";
}

/* One character of a class. */
static void rewrite_in_class(struct Rewriting *r) {
    if (r->at[0] == '[' && r->at[1] == ':') {
        rewrite_named_class(r);
    } else if (r->at[0] == '[') {
        r->problem = "has a class within a class";
    } else if (r->at[0] == '&' && r->at[1] == '&') {
        r->problem = "has an intersection of classes (&&)";
    } else {
        r->in_class = r->at[0] != ']';
        copy(r, 1);
    }
}

/* An interval {n}, {n,m}, {,m}; any other brace is text. */
static void rewrite_brace(struct Rewriting *r) {
    size_t low = strspn(r->at + 1, "0123456789"), high = 0, length = low + 1;
    bool comma = r->at[length] == ',';
    if (comma) high = strspn(r->at + length + 1, "0123456789"), length += 1 + high;
    if (r->at[length] != '}' || low + high == 0) {
        copy(r, 1);
        return;
    }
    char after = r->at[length + 1];
    if (after == '+' || (after == '?' && !comma)) {
        r->problem = "has an interval before + or ?, which differs between regex libraries";
        return;
    }
    put(r, low ? "{" : "{0");
    r->at++;
    copy(r, length);
}

/* (?imx-imx: where Oniguruma's m lets the dot match a newline, which is PCRE2's s. */
static void rewrite_group(struct Rewriting *r) {
    size_t options = strspn(r->at + 2, "imx-");
    char after = r->at[1] == '?' ? r->at[2 + options] : 0;
    if (options == 0 || (after != ':' && after != ')')) {
        copy(r, 1);
        return;
    }
    copy(r, 2);
    for (; options > 0; options--, r->at++) text_append(&r->out, *r->at == 'm' ? "s" : r->at, 1);
}

static void rewrite(struct Rewriting *r) {
    text_clear(&r->out);
    while (*r->at && !r->problem) {
        if (*r->at == '\\') {
            rewrite_escape(r);
        } else if (r->in_class) {
            rewrite_in_class(r);
        } else if (*r->at == '{') {
            rewrite_brace(r);
        } else if (*r->at == '(') {
            rewrite_group(r);
        } else {
            r->in_class = *r->at == '[';
            copy(r, r->in_class && r->at[1] == '^' ? 2 : 1);
        }
    }
}

/* ---- compiling ------------------------------------------------------------------------------- */

static pcre2_code *compile(const char *text, uint32_t options, int *error) {
    size_t offset;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context) die_machine("out of memory: a pattern");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | options, error, &offset, context);
    pcre2_compile_context_free(context);
    return code;
}

/* As a script first: where PCRE2 is too old to know the word, or the name is no script's, as it
   is written. */
static pcre2_code *compile_rewritten(const char *text, const char **problem) {
    static char message[200];
    pcre2_code *code = NULL;
    int error = 0;
    for (int scripts = 1; scripts >= 0 && !code && !*problem; scripts--) {
        struct Rewriting r = {.at = text, .script_names = scripts};
        rewrite(&r);
        *problem = r.problem;
        if (!r.problem)
            code = compile(r.out.bytes, PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                           &error);
        text_free(&r.out);
    }
    if (code || *problem) return code;
    int length = snprintf(message, sizeof message, "does not compile: ");
    pcre2_get_error_message(error, (PCRE2_UCHAR *)message + length,
                            sizeof message - (size_t)length);
    *problem = message;
    return NULL;
}

struct Pattern *pattern_open(const char *text, bool literal, const char **problem) {
    int error;
    pcre2_code *code = NULL;
    *problem = strlen(text) > LONGEST_PATTERN ? "is longer than 64 KB" : NULL;
    if (*problem) return NULL;
    if (!literal) code = compile_rewritten(text, problem);
    else if (!(code = compile(text, PCRE2_LITERAL, &error))) *problem = "does not compile";
    if (*problem) return NULL;
    struct Pattern *p = check_alloc(1, sizeof *p, "a pattern");
    p->code = code;
    p->data = pcre2_match_data_create(1, NULL);
    p->context = pcre2_match_context_create(NULL);
    if (!p->data || !p->context) die_machine("out of memory: a pattern");
    p->jit = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;
    p->stack = p->jit ? pcre2_jit_stack_create(32768, JIT_STACK, NULL) : NULL;
    if (p->stack) pcre2_jit_stack_assign(p->context, NULL, p->stack);
    pcre2_set_heap_limit(p->context, HEAP_KIB);
    return p;
}

void pattern_close(struct Pattern *p) {
    if (!p) return;
    pcre2_match_context_free(p->context);
    pcre2_match_data_free(p->data);
    pcre2_jit_stack_free(p->stack);
    pcre2_code_free(p->code);
    free(p);
}

/* ---- matching -------------------------------------------------------------------------------- */

int pattern_find(const struct Pattern *p, const char *text, size_t length, size_t from,
                 size_t *begin, size_t *end) {
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    pcre2_set_match_limit(p->context, (uint32_t)(1000000 + 2 * length));
    int found = PCRE2_ERROR_JIT_STACKLIMIT;
    if (p->jit) found = pcre2_jit_match(p->code, subject, length, from, 0, p->data, p->context);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT)
        found = pcre2_match(p->code, subject, length, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                            p->data, p->context);
    if (found == PCRE2_ERROR_NOMATCH) return 0;
    if (found < 0) return -1;
    const size_t *place = pcre2_get_ovector_pointer(p->data);
    *begin = place[0], *end = place[1];
    return *begin >= from && *end >= *begin ? 1 : -1;   /* \K can do anything */
}
