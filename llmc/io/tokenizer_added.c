/* Added tokens in a text: from left to right, at each place the longest. */
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "tokenizer_parts.h"

/* ---- the lists ------------------------------------------------------------------------------- */

void added_append(struct AddedTokens *tokens, const struct Added *added) {
    if (tokens->count == tokens->capacity) {
        tokens->capacity = 2 * tokens->capacity + 16;
        tokens->list = check_realloc(tokens->list, (size_t)tokens->capacity, sizeof *tokens->list,
                                     "added tokens");
    }
    vocabulary_add(&tokens->numbers, added->content, added->length, tokens->count);
    tokens->list[tokens->count++] = *added;
    if (added->id >= tokens->size) tokens->size = added->id + 1;
}

const struct Added *added_find(struct AddedTokens *tokens, const char *content) {
    int number = vocabulary_find(&tokens->numbers, content, strlen(content));
    return number < 0 ? NULL : &tokens->list[number];
}

static int new_node(struct AddedTrie *trie, unsigned char byte) {
    if (trie->count + 1 >= trie->capacity) {
        trie->capacity = 2 * trie->capacity + 64;
        trie->node = check_realloc(trie->node, (size_t)trie->capacity, sizeof *trie->node,
                                   "added tokens");
    }
    trie->count++;
    trie->node[trie->count] = (struct AddedNode){.byte = byte};
    return trie->count;
}

static int child_of(const struct AddedTrie *trie, int node, unsigned char byte) {
    for (node = trie->node[node].child; node; node = trie->node[node].sibling)
        if (trie->node[node].byte == byte) break;
    return node;
}

void added_trie_insert(struct AddedTrie *trie, const char *content, size_t length, int index) {
    int node = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)content[i];
        int next = i == 0 ? trie->root[byte] : child_of(trie, node, byte);
        if (!next) {
            next = new_node(trie, byte);
            if (i == 0) {
                trie->root[byte] = next;
            } else {
                trie->node[next].sibling = trie->node[node].child;
                trie->node[node].child = next;
            }
        }
        node = next;
    }
    if (node && !trie->node[node].added) trie->node[node].added = index + 1;
}

void added_free(struct AddedTokens *tokens) {
    for (int i = 0; i < tokens->count; i++) free(tokens->list[i].content);
    free(tokens->list), free(tokens->as_written.node), free(tokens->normalized.node);
    vocabulary_free(&tokens->numbers);
}

/* ---- what stands beside them ----------------------------------------------------------------- */

/* Where the character that ends at text + end begins. */
static size_t character_before(const char *text, size_t end) {
    do end--;
    while (end > 0 && ((unsigned char)text[end] & 0xC0) == 0x80);
    return end;
}

static bool is_single_word(const struct AddedSearch *s, size_t begin, size_t end) {
    if (begin > 0 && is_word_character(utf8_code_point(s->text + character_before(s->text, begin))))
        return false;
    return end == s->length || !is_word_character(utf8_code_point(s->text + end));
}

static size_t skip_spaces_back(const struct AddedSearch *s, size_t begin) {
    while (begin > s->done) {
        size_t before = character_before(s->text, begin);
        if (before < s->done || !is_white_space(utf8_code_point(s->text + before))) break;
        begin = before;
    }
    return begin > s->done ? begin : s->done;
}

static size_t skip_spaces(const struct AddedSearch *s, size_t end) {
    while (end < s->length && is_white_space(utf8_code_point(s->text + end)))
        end += utf8_length(s->text + end, s->length - end);
    return end;
}

/* ---- the search ------------------------------------------------------------------------------ */

/* The longest token that begins at s->at: its number, or -1; *end is where it ends. */
static int longest_at(const struct AddedSearch *s, size_t *end) {
    int found = -1;
    size_t i = s->at;
    int node = s->trie->root[(unsigned char)s->text[i]];
    while (node) {
        i++;
        if (s->trie->node[node].added) found = s->trie->node[node].added - 1, *end = i;
        if (i == s->length) break;
        node = child_of(s->trie, node, (unsigned char)s->text[i]);
    }
    return found;
}

/* A token that does not count here (not a word by itself; special, and those are not wanted) is
   passed over, and the search goes on behind it. The spaces that a token takes from its right are
   searched too, and a token in them counts unless it takes spaces from its left, of which none are
   left: all as the library does. */
bool added_next(struct AddedSearch *s, size_t *before_begin, size_t *before_end) {
    if (s->trie->count == 0) return false;
    while (s->at < s->length) {
        size_t begin = s->at, end;
        int index = longest_at(s, &end);
        if (index < 0) {
            s->at++;
            continue;
        }
        s->at = end;
        const struct Added *added = &s->tokens->list[index];
        if (added->special && !s->specials) continue;
        if (added->single_word && !is_single_word(s, begin, end)) continue;
        if (added->lstrip) begin = skip_spaces_back(s, begin);
        if (added->rstrip) end = skip_spaces(s, end);
        bool taken = begin >= end;
        *before_begin = s->done;
        *before_end = begin > s->done ? begin : s->done;
        s->done = end;
        s->id = added->id;
        if (!taken) return true;
    }
    return false;
}
