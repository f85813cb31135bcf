/* The choices of gemm_choice.h: a list of classes, to text and back. Compiled once. */
#include "gemm_choice.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "gemm.cuh"

enum { CHOICES = 256, NUMBERS = sizeof(struct GemmKey) / sizeof(int64_t) };

struct Choice {
    struct GemmKey of; /* a class */
    cublasLtMatmulAlgo_t algorithm;
};

static struct {
    struct Choice choice[CHOICES];
    int count;
    bool timed, final;
} choices; /* at first: nothing is timed */

/* ---- classes --------------------------------------------------------------------------------- */

static int64_t *tokens_of(struct GemmKey *key) { return key->form == GEMM_TN ? &key->K : &key->M; }

/* n up to 8 is itself; above, 5, 6, 7 or 8 eighths of the power of two that is not below it. */
static int64_t round_up(int64_t n) {
    int64_t eighth = 1;
    while (eighth * 8 < n) eighth *= 2;
    return (n + eighth - 1) / eighth * eighth;
}

const cublasLtMatmulAlgo_t *gemm_choice_find(const struct GemmKey *key) {
    struct GemmKey kind = *key;
    int64_t wanted = round_up(*tokens_of(&kind)), nearest = INT64_MAX;
    const cublasLtMatmulAlgo_t *found = NULL;
    for (int i = 0; i < choices.count; i++) {
        struct GemmKey other = choices.choice[i].of;
        int64_t tokens = *tokens_of(&other), distance = llabs(tokens - wanted);
        *tokens_of(&kind) = tokens;
        bool may = distance == 0 || (choices.final && distance < nearest);
        if (!may || memcmp(&kind, &other, sizeof kind) != 0) continue;
        found = &choices.choice[i].algorithm;
        nearest = distance;
    }
    return found;
}

bool gemm_choice_wanted(void) { return choices.timed && !choices.final; }

void gemm_choice_add(const struct GemmKey *key, const cublasLtMatmulAlgo_t *algorithm) {
    struct Choice *c = &choices.choice[choices.count++];
    c->of = *key;
    *tokens_of(&c->of) = round_up(*tokens_of(&c->of));
    c->algorithm = *algorithm;
    choices.final = choices.count == CHOICES;
}

/* ---- text ------------------------------------------------------------------------------------ */

/* First a line that says for which machine the choices hold; then one for each: the numbers of its
   key and the algorithm's bytes in hexadecimal, which NVIDIA allows to be stored for the same
   version of the library. */
static void describe_machine(char *out, size_t capacity) {
    snprintf(out, capacity, "%s, cuBLASLt %zu, %s\n", cuda.name, cublasLtGetVersion(), cuda.dtype);
}

/* 13 numbers of which 6 have up to 10 digits and the others one or two, and 128 of an algorithm. */
enum { MOST_LINE = 6 * 11 + 7 * 3 + 2 * (int)sizeof(cublasLtMatmulAlgo_t) + 1 };
static_assert(CHOICES * MOST_LINE + 256 <= MATMUL_CHOICES_TEXT, "choices do not fit their text");

static void choices_save(char *out, size_t capacity) {
    if (capacity == 0) return;
    out[0] = '\0';
    if (!choices.timed || choices.count == 0) return;
    describe_machine(out, capacity);
    size_t at = strlen(out);
    for (int i = 0; i < choices.count && at + MOST_LINE < capacity; i++) {
        int64_t number[NUMBERS];
        unsigned char byte[sizeof(cublasLtMatmulAlgo_t)];
        memcpy(number, &choices.choice[i].of, sizeof number);
        memcpy(byte, &choices.choice[i].algorithm, sizeof byte);
        for (int n = 0; n < NUMBERS; n++)
            at += snprintf(out + at, capacity - at, "%lld ", (long long)number[n]);
        for (size_t b = 0; b < sizeof byte; b++)
            at += snprintf(out + at, capacity - at, "%02x", byte[b]);
        at += snprintf(out + at, capacity - at, "\n");
    }
}

static void choices_freeze(void) {
    if (choices.count > 0) choices.final = true;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Reads one line; returns where the next one begins, or NULL if it is not in this format. */
static const char *read_choice(struct Choice *out, const char *line) {
    int64_t number[NUMBERS];
    unsigned char byte[sizeof(cublasLtMatmulAlgo_t)];
    for (int n = 0; n < NUMBERS; n++) {
        char *end;
        number[n] = strtoll(line, &end, 10);
        if (end == line || *end != ' ' || number[n] < 0 || number[n] > INT32_MAX) return NULL;
        line = end + 1;
    }
    for (size_t b = 0; b < sizeof byte; b++, line += 2) {
        int high = hex_digit(line[0]), low = high < 0 ? -1 : hex_digit(line[1]);
        if (low < 0) return NULL;
        byte[b] = (unsigned char)(high * 16 + low);
    }
    memcpy(&out->of, number, sizeof number);
    memcpy(&out->algorithm, byte, sizeof byte);
    return *line == '\n' ? line + 1 : NULL;
}

static const char *choices_load(const char *text) {
    char here[256];
    gemm_forget_plans();
    cuda_forget_sequences(); /* they hold the algorithms that were chosen before */
    memset(&choices, 0, sizeof choices);
    choices.timed = text != NULL;
    if (!text || !text[0]) return NULL;
    describe_machine(here, sizeof here);
    if (strncmp(text, here, strlen(here)) != 0)
        return "they are another device's, library version's or dtype's";
    for (text += strlen(here); *text && choices.count < CHOICES; choices.count++)
        if (!(text = read_choice(&choices.choice[choices.count], text))) {
            choices.count = 0;
            return "their text is damaged";
        }
    choices.final = true;
    return NULL;
}

static void fill(struct Ops *ops) {
    ops->matmul_choices_load = choices_load;
    ops->matmul_choices_save = choices_save;
    ops->matmul_choices_freeze = choices_freeze;
}

extern const struct KernelFile cuda_gemm_choice = {"gemm_choice", fill, no_workspace};
