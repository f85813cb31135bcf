/* Text to ids and back. The order is the library's: added tokens that are looked for in the text as
   it is; then, for what lies between them, the normalizer; added tokens in its result; and for what
   lies between those the pre-tokenizer, whose words the merges encode. */
#include "tokenizer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "tokenizer_parts.h"

enum { MOST_TEXT = 1 << 30 };

/* ---- ids ------------------------------------------------------------------------------------- */

void ids_append(struct Ids *ids, const int *id, int count) {
    if (ids->count + count > ids->capacity) {
        ids->capacity = 2 * (ids->count + count) + 16;
        ids->id = check_realloc(ids->id, (size_t)ids->capacity, sizeof *ids->id, "token ids");
    }
    for (int i = 0; i < count; i++) ids->id[ids->count++] = id[i];
}

void ids_free(struct Ids *ids) {
    free(ids->id);
    *ids = (struct Ids){0};
}

/* ---- making one ------------------------------------------------------------------------------ */

struct Tokenizer *tokenizer_new(void) {
    struct Tokenizer *t = check_alloc(1, sizeof *t, "a tokenizer");
    for (int i = 0; i < TOKENIZER_ROLES; i++) t->role[i] = -1;
    t->bpe.unknown = -1;
    bpe_open(&t->bpe, 0);
    return t;
}

/* A token that is looked for in normal text is from here on spelled so. Special ones first: of two
   that are spelled alike then, the first counts. */
static void insert_added(struct Tokenizer *t, bool special) {
    for (int i = 0; i < t->added.count; i++) {
        struct Added *added = &t->added.list[i];
        if (added->special != special) continue;
        if (added->normalized && t->nfc) {
            text_clear(&t->normal);
            text_to_nfc(&t->normal, added->content, added->length);
            free(added->content);
            added->content = check_strdup(t->normal.bytes);
            added->length = t->normal.length;
        }
        added_trie_insert(added->normalized ? &t->added.normalized : &t->added.as_written,
                          added->content, added->length, i);
    }
}

void tokenizer_finish(struct Tokenizer *t) {
    t->size = t->vocabulary.size > t->added.size ? t->vocabulary.size : t->added.size;
    t->added_number = check_alloc((size_t)t->size + 1, sizeof *t->added_number, "a tokenizer");
    for (int i = 0; i < t->size; i++) t->added_number[i] = -1;
    for (int i = 0; i < t->added.count; i++) t->added_number[t->added.list[i].id] = i;
    insert_added(t, true);
    insert_added(t, false);
    for (int byte = 0; byte < 256; byte++)
        t->bpe.byte_id[byte] = vocabulary_find_bytes(&t->vocabulary, &(char){(char)byte}, 1);
    for (int i = 0; i < t->splitter.count; i++)
        t->splitter.spells |= t->splitter.step[i].kind == SPLIT_SPELL;
}

struct Tokenizer *tokenizer_from_alphabet(const char *alphabet) {
    static const char end_of_text[] = "<|endoftext|>";
    struct Tokenizer *t = tokenizer_new();
    int n = 0;
    for (const char *c = alphabet; *c; c++) {
        text_clear(&t->joined);
        spell_bytes(&t->joined, c, 1);
        bool is_new = vocabulary_add(&t->vocabulary, t->joined.bytes, t->joined.length, n++);
        assert((unsigned char)*c < 128 && is_new), (void)is_new;
    }
    vocabulary_add(&t->vocabulary, end_of_text, sizeof end_of_text - 1, n);
    added_append(&t->added, &(struct Added){.content = check_strdup(end_of_text), .id = n,
                                            .length = sizeof end_of_text - 1, .special = true});
    t->alphabet = check_strdup(alphabet);
    t->role[TOKENIZER_ENDS_TEXT] = t->role[TOKENIZER_BEGINS_TEXT] = n;
    tokenizer_finish(t);
    return t;
}

void tokenizer_free(struct Tokenizer *t) {
    if (!t) return;
    vocabulary_free(&t->vocabulary);
    added_free(&t->added);
    splitter_free(&t->splitter);
    bpe_free(&t->bpe);
    ids_free(&t->begin), ids_free(&t->end);
    free(t->added_number), free(t->alphabet);
    for (int i = 0; i < t->num_files; i++) text_free(&t->file[i].bytes);
    text_free(&t->repaired), text_free(&t->normal), text_free(&t->joined);
    free(t);
}

/* ---- questions ------------------------------------------------------------------------------- */

int tokenizer_vocab_size(const struct Tokenizer *t) { return t->size; }

int tokenizer_role(const struct Tokenizer *t, enum TokenizerRole role) { return t->role[role]; }

void tokenizer_set_role(struct Tokenizer *t, enum TokenizerRole role, int id) {
    t->role[role] = id;
}

/* Its scratch memory is not what `const` promises to leave alone. */
static struct Tokenizer *scratch_of(const struct Tokenizer *t) { return (struct Tokenizer *)t; }

int tokenizer_id(const struct Tokenizer *tokenizer, const char *content) {
    struct Tokenizer *t = scratch_of(tokenizer);
    const struct Added *added = added_find(&t->added, content);
    return added ? added->id : vocabulary_find(&t->vocabulary, content, strlen(content));
}

static const struct Added *added_of(const struct Tokenizer *t, int id) {
    if (id < 0 || id >= t->size || t->added_number[id] < 0) return NULL;
    return &t->added.list[t->added_number[id]];
}

bool tokenizer_is_special(const struct Tokenizer *t, int id) {
    const struct Added *added = added_of(t, id);
    return added && added->special;
}

/* ---- text to ids ----------------------------------------------------------------------------- */

struct Encoding {
    struct Tokenizer *t;
    struct Ids *out;
    int flags;
};

static bool encode_word(void *context, const char *word, size_t length) {
    const struct Encoding *e = context;
    struct Tokenizer *t = e->t;
    if (t->splitter.spells) {
        text_clear(&t->joined);
        if (!unspell_bytes(&t->joined, word, length)) return false;
        word = t->joined.bytes, length = t->joined.length;
    }
    return bpe_encode(&t->bpe, &t->vocabulary, word, length, e->flags & TOKENIZER_LENIENT, e->out);
}

static bool encode_words(struct Encoding *e, const char *text, size_t length) {
    return splitter_run(&e->t->splitter, text, length, encode_word, e);
}

/* The ids of the added tokens in text; `rest` does what lies between them. */
static bool encode_around(struct Encoding *e, const struct AddedTrie *trie, const char *text,
                          size_t length, bool (*rest)(struct Encoding *, const char *, size_t)) {
    struct AddedSearch search = {.tokens = &e->t->added, .trie = trie, .text = text,
                                 .length = length, .specials = e->flags & TOKENIZER_SPECIALS};
    size_t begin, end;
    while (added_next(&search, &begin, &end)) {
        if (!rest(e, text + begin, end - begin)) return false;
        ids_append(e->out, &search.id, 1);
    }
    return rest(e, text + search.done, length - search.done);
}

static bool encode_normal(struct Encoding *e, const char *text, size_t length) {
    struct Tokenizer *t = e->t;
    if (t->nfc) {
        text_clear(&t->normal);
        text_to_nfc(&t->normal, text, length);
        text = t->normal.bytes, length = t->normal.length;
    }
    return encode_around(e, &t->added.normalized, text, length, encode_words);
}

bool tokenizer_encode(const struct Tokenizer *tokenizer, const char *text, size_t length,
                      int flags, struct Ids *out) {
    struct Tokenizer *t = scratch_of(tokenizer);
    struct Encoding e = {t, out, flags};
    int before = out->count;
    if (length > MOST_TEXT) return false;
    if (!utf8_is_valid(text, length)) {
        text_clear(&t->repaired);
        text_append_utf8(&t->repaired, text, length);
        text = t->repaired.bytes, length = t->repaired.length;
    }
    if (flags & TOKENIZER_BEGIN) ids_append(out, t->begin.id, t->begin.count);
    bool known = encode_around(&e, &t->added.as_written, text, length, encode_normal);
    if (!known) out->count = before;
    else if (flags & TOKENIZER_END) ids_append(out, t->end.id, t->end.count);
    return known;
}

/* ---- ids to text ----------------------------------------------------------------------------- */

static void decode_id(const struct Tokenizer *t, int id, int flags, struct Text *out) {
    const struct Added *added = added_of(t, id);
    const struct Vocabulary *v = &t->vocabulary;
    if (added && added->special && flags & TOKENIZER_PLAIN) return;
    if (added) text_append(out, added->content, added->length);
    else if (id >= 0 && id < v->size && v->token[id].kind != TOKEN_NONE)
        text_append(out, v->bytes.bytes + v->token[id].start, v->token[id].length);
    else text_append(out, UTF8_REPLACEMENT, sizeof UTF8_REPLACEMENT - 1);
}

void tokenizer_decode(const struct Tokenizer *t, const int *ids, int count, int flags,
                      struct Text *out) {
    text_append(out, "", 0);
    for (int i = 0; i < count; i++) decode_id(t, ids[i], flags, out);
}

void tokenizer_stream(const struct Tokenizer *tokenizer, struct TokenizerStream *stream, int id,
                      int flags, struct Text *out) {
    struct Tokenizer *t = scratch_of(tokenizer);
    text_clear(&t->joined);
    text_append(&t->joined, stream->begun, (size_t)stream->count);
    decode_id(t, id, flags, &t->joined);
    size_t held = utf8_unfinished(t->joined.bytes, t->joined.length);
    size_t whole = t->joined.length - held;
    text_append_utf8(out, t->joined.bytes, whole);
    memcpy(stream->begun, t->joined.bytes + whole, held);
    stream->count = (int)held;
}

void tokenizer_stream_end(struct TokenizerStream *stream, struct Text *out) {
    text_append_utf8(out, stream->begun, (size_t)stream->count);
    stream->count = 0;
}
