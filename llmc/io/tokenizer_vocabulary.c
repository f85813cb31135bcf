/* Tokens by spelling and by id. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "tokenizer_parts.h"

const char *tokenizer_wrong(const char *file, const char *format, ...) {
    static char text[512];
    va_list arguments;
    int length = snprintf(text, sizeof text, "%s ", file);
    va_start(arguments, format);
    vsnprintf(text + length, sizeof text - (size_t)length, format, arguments);
    va_end(arguments);
    return text;
}

uint64_t hash_bytes(const char *bytes, size_t length) {
    uint64_t hash = length * 0x9E3779B97F4A7C15u, part;
    for (; length >= 8; bytes += 8, length -= 8) {
        memcpy(&part, bytes, 8);
        hash = (hash ^ part) * 0xD6E8FEB86659FD93u;
        hash ^= hash >> 32;
    }
    part = 0;
    memcpy(&part, bytes, length);
    hash = (hash ^ part) * 0xD6E8FEB86659FD93u;
    hash = (hash ^ hash >> 32) * 0xD6E8FEB86659FD93u;
    return hash ^ hash >> 32;
}

/* ---- bytes as characters --------------------------------------------------------------------- */

/* GPT-2 spells '!' to '~', 0xA1 to 0xAC and 0xAE to 0xFF as the characters of that number, and the
   others, in order, as U+0100 and on (its bytes_to_unicode). */
static bool is_itself(int byte) {
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
}

struct Spelling {
    unsigned short of_byte[256];   /* code points */
    short byte_of[512];            /* by code point; -1 */
};

static const struct Spelling *spelling(void) {
    static struct Spelling s;
    static bool made;
    if (made) return &s;
    memset(s.byte_of, -1, sizeof s.byte_of);
    for (int byte = 0, others = 0; byte < 256; byte++) {
        s.of_byte[byte] = (unsigned short)(is_itself(byte) ? byte : 256 + others++);
        s.byte_of[s.of_byte[byte]] = (short)byte;
    }
    made = true;
    return &s;
}

void spell_bytes(struct Text *out, const char *bytes, size_t length) {
    for (size_t i = 0; i < length; i++) {
        unsigned point = spelling()->of_byte[(unsigned char)bytes[i]];
        char text[2] = {(char)point};
        if (point >= 128)
            text[0] = (char)(0xC0 | point >> 6), text[1] = (char)(0x80 | (point & 63));
        text_append(out, text, point < 128 ? 1 : 2);
    }
}

bool unspell_bytes(struct Text *out, const char *text, size_t length) {
    for (size_t n; length > 0; text += n, length -= n) {
        n = utf8_length(text, length);
        if (n == 0 || n > 2) return false;
        unsigned point = utf8_code_point(text);
        int byte = point < 512 ? spelling()->byte_of[point] : -1;
        if (byte < 0) return false;
        text_append(out, &(char){(char)byte}, 1);
    }
    return true;
}

/* ---- the table ------------------------------------------------------------------------------- */

static int find(const struct Vocabulary *v, enum TokenKind kind, const char *bytes, size_t length) {
    if (v->num_slots == 0) return -1;
    for (size_t i = hash_bytes(bytes, length);; i++) {
        int id = v->slot[i & (v->num_slots - 1)] - 1;
        if (id < 0) return -1;
        const struct Token *token = &v->token[id];
        if (token->length == length && token->kind == kind &&
            memcmp(v->bytes.bytes + token->start, bytes, length) == 0)
            return id;
    }
}

/* The bytes of a token (valid until the next call) and what kind it is of. */
static enum TokenKind kind_of(struct Vocabulary *v, const char **bytes, size_t *length) {
    text_clear(&v->spelled);
    if (!unspell_bytes(&v->spelled, *bytes, *length)) return TOKEN_TEXT;
    *bytes = v->spelled.bytes;
    *length = v->spelled.length;
    return TOKEN_BYTES;
}

int vocabulary_find(struct Vocabulary *v, const char *spelling, size_t length) {
    enum TokenKind kind = kind_of(v, &spelling, &length);
    return find(v, kind, spelling, length);
}

int vocabulary_find_bytes(const struct Vocabulary *v, const char *bytes, size_t length) {
    return find(v, TOKEN_BYTES, bytes, length);
}

static void insert(struct Vocabulary *v, int id) {
    const struct Token *token = &v->token[id];
    size_t i = hash_bytes(v->bytes.bytes + token->start, token->length);
    while (v->slot[i & (v->num_slots - 1)]) i++;
    v->slot[i & (v->num_slots - 1)] = id + 1;
}

static void grow_slots(struct Vocabulary *v) {
    v->num_slots = v->num_slots ? 4 * v->num_slots : 1024;
    free(v->slot);
    v->slot = check_alloc(v->num_slots, sizeof *v->slot, "a vocabulary");
    for (int id = 0; id < v->size; id++)
        if (v->token[id].kind) insert(v, id);
}

static void grow_tokens(struct Vocabulary *v, int id) {
    if (id >= v->capacity) {
        v->capacity = 2 * id + 256;
        v->token = check_realloc(v->token, (size_t)v->capacity, sizeof *v->token, "a vocabulary");
    }
    memset(v->token + v->size, 0, (size_t)(id + 1 - v->size) * sizeof *v->token);
    v->size = id + 1;
}

bool vocabulary_add(struct Vocabulary *v, const char *spelling, size_t length, int id) {
    enum TokenKind kind = kind_of(v, &spelling, &length);
    if (find(v, kind, spelling, length) >= 0) return false;
    if (id < v->size && v->token[id].kind) return false;
    if (2 * (size_t)v->count >= v->num_slots) grow_slots(v);
    if (id >= v->size) grow_tokens(v, id);
    v->token[id] = (struct Token){v->bytes.length, (uint32_t)length, (unsigned char)kind};
    text_append(&v->bytes, spelling, length);
    insert(v, id);
    v->count++;
    return true;
}

void vocabulary_free(struct Vocabulary *v) {
    free(v->token), free(v->slot);
    text_free(&v->bytes), text_free(&v->spelled);
}
