/* Byte-pair merges. A word begins as its bytes; of all neighbours that a merge joins, those of the
   lowest rank are joined first, of equal ones the leftmost, until none is left. A heap holds the
   candidates of the word in hand, so that a word of n bytes takes n log n steps. */
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "tokenizer_parts.h"

#define NO_PAIR UINT64_MAX

/* Short words that were seen lately, by hash. Text has the same few thousand words again and
   again. */
enum { CACHE_WORDS = 1 << 15, CACHE_BYTES = 24, CACHE_IDS = 8 };
struct CachedWord {
    unsigned char length, count;   /* length 0: empty */
    char word[CACHE_BYTES];
    int id[CACHE_IDS];
};

struct Symbol {
    int id;                        /* -1: joined to the one before it */
    int previous, next;            /* positions, -1: none */
};

/* ---- merges ---------------------------------------------------------------------------------- */

static uint64_t pair_of(int left, int right) {
    return (uint64_t)(unsigned)left << 32 | (unsigned)right;
}

static struct Merge *slot_of(const struct Bpe *bpe, uint64_t pair) {
    size_t mask = bpe->num_merges - 1, i = (pair * 0x9E3779B97F4A7C15u) >> 20;
    while (bpe->merge[i & mask].pair != pair && bpe->merge[i & mask].pair != NO_PAIR) i++;
    return &bpe->merge[i & mask];
}

void bpe_open(struct Bpe *bpe, size_t num_merges) {
    free(bpe->merge);
    bpe->num_merges = 16;
    while (bpe->num_merges < 2 * num_merges) bpe->num_merges *= 2;
    bpe->merge = check_alloc(bpe->num_merges, sizeof *bpe->merge, "merges");
    for (size_t i = 0; i < bpe->num_merges; i++) bpe->merge[i].pair = NO_PAIR;
    if (!bpe->cache) bpe->cache = check_alloc(CACHE_WORDS, sizeof *bpe->cache, "words");
}

void bpe_merge(struct Bpe *bpe, int left, int right, int rank, int id) {
    uint64_t pair = pair_of(left, right);
    *slot_of(bpe, pair) = (struct Merge){pair, rank, id};
}

/* ---- the heap -------------------------------------------------------------------------------- */

static void heap_push(struct Bpe *bpe, uint64_t entry) {
    if (bpe->heap_count == bpe->heap_capacity) {
        bpe->heap_capacity = 2 * bpe->heap_capacity + 64;
        bpe->heap = check_realloc(bpe->heap, bpe->heap_capacity, sizeof *bpe->heap, "merges");
    }
    size_t i = bpe->heap_count++;
    for (; i > 0 && bpe->heap[(i - 1) / 2] > entry; i = (i - 1) / 2)
        bpe->heap[i] = bpe->heap[(i - 1) / 2];
    bpe->heap[i] = entry;
}

static uint64_t heap_pop(struct Bpe *bpe) {
    uint64_t top = bpe->heap[0], last = bpe->heap[--bpe->heap_count];
    size_t i = 0, child, n = bpe->heap_count;
    for (; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && bpe->heap[child + 1] < bpe->heap[child]) child++;
        if (bpe->heap[child] >= last) break;
        bpe->heap[i] = bpe->heap[child];
    }
    bpe->heap[i] = last;
    return top;
}

/* ---- a word ---------------------------------------------------------------------------------- */

/* The merge of the symbol at a position with the next one, or NULL. */
static const struct Merge *merge_at(const struct Bpe *bpe, int position) {
    const struct Symbol *s = &bpe->symbol[position];
    if (s->id < 0 || s->next < 0) return NULL;
    const struct Merge *merge = slot_of(bpe, pair_of(s->id, bpe->symbol[s->next].id));
    return merge->pair == NO_PAIR ? NULL : merge;
}

static void propose(struct Bpe *bpe, int position) {
    const struct Merge *merge = position < 0 ? NULL : merge_at(bpe, position);
    if (merge) heap_push(bpe, (uint64_t)(unsigned)merge->rank << 32 | (unsigned)position);
}

/* The word as symbols, a byte each: how many. *unknown: bytes without an id, which are left out or
   become the unknown token. */
static size_t set_symbols(struct Bpe *bpe, const char *word, size_t length, size_t *unknown) {
    size_t count = 0;
    bool fused = false;
    *unknown = 0;
    if (length > bpe->capacity) {
        bpe->capacity = 2 * length;
        bpe->symbol = check_realloc(bpe->symbol, bpe->capacity, sizeof *bpe->symbol, "a word");
    }
    for (size_t i = 0; i < length; i++) {
        int id = bpe->byte_id[(unsigned char)word[i]];
        bool known = id >= 0;
        *unknown += !known;
        if (!known) id = fused ? -1 : bpe->unknown;
        fused = !known && bpe->fuse_unknown;
        if (id < 0) continue;
        bpe->symbol[count] = (struct Symbol){id, (int)count - 1, (int)count + 1};
        count++;
    }
    if (count > 0) bpe->symbol[count - 1].next = -1;
    return count;
}

/* An entry of the heap whose pair has changed since is passed over: what stands there now, if it
   can be joined, has an entry of its own. */
static void join_all(struct Bpe *bpe, size_t length) {
    bpe->heap_count = 0;
    for (size_t i = 0; i + 1 < length; i++) propose(bpe, (int)i);
    while (bpe->heap_count > 0) {
        uint64_t entry = heap_pop(bpe);
        int position = (int)(entry & UINT32_MAX);
        const struct Merge *merge = merge_at(bpe, position);
        if (!merge || (unsigned)merge->rank != entry >> 32) continue;
        struct Symbol *left = &bpe->symbol[position], *right = &bpe->symbol[left->next];
        left->id = merge->id;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) bpe->symbol[left->next].previous = position;
        propose(bpe, left->previous);
        propose(bpe, position);
    }
}

/* How many of its bytes have no id; with some of these, and not lenient, there is nothing. */
static size_t encode_word(struct Bpe *bpe, const struct Vocabulary *vocabulary, const char *word,
                          size_t length, bool lenient, struct Ids *out) {
    int id = bpe->whole_words ? vocabulary_find_bytes(vocabulary, word, length) : -1;
    if (id >= 0) {
        ids_append(out, &id, 1);
        return 0;
    }
    size_t unknown, count = set_symbols(bpe, word, length, &unknown);
    if (count == 0 || (unknown > 0 && !lenient)) return unknown;
    join_all(bpe, count);
    for (int i = 0; i >= 0; i = bpe->symbol[i].next) ids_append(out, &bpe->symbol[i].id, 1);
    return unknown;
}

bool bpe_encode(struct Bpe *bpe, const struct Vocabulary *vocabulary, const char *word,
                size_t length, bool lenient, struct Ids *out) {
    lenient &= bpe->unknown != NO_UNKNOWN;
    if (length == 0) return true;
    if (length > CACHE_BYTES)
        return encode_word(bpe, vocabulary, word, length, lenient, out) == 0 || lenient;
    struct CachedWord *cached = &bpe->cache[hash_bytes(word, length) % CACHE_WORDS];
    if (cached->length == length && memcmp(cached->word, word, length) == 0) {
        ids_append(out, cached->id, cached->count);
        return true;
    }
    int before = out->count;
    if (encode_word(bpe, vocabulary, word, length, lenient, out)) return lenient;
    int count = out->count - before;
    if (count > CACHE_IDS) return true;
    cached->length = (unsigned char)length;
    cached->count = (unsigned char)count;
    memcpy(cached->word, word, length);
    memcpy(cached->id, out->id + before, (size_t)count * sizeof *out->id);
    return true;
}

void bpe_free(struct Bpe *bpe) {
    free(bpe->merge), free(bpe->cache), free(bpe->symbol), free(bpe->heap);
}
