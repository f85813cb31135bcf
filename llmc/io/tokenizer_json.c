/* tokenizer.json: what of it this program can do exactly; anything else is refused by name. */
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "tokenizer_parts.h"

#define wrong(...) tokenizer_wrong("tokenizer.json", __VA_ARGS__)

/* ---- fields ---------------------------------------------------------------------------------- */

static const cJSON *get(const cJSON *object, const char *key) {
    return cJSON_GetObjectItemCaseSensitive(object, key);
}

static const char *text_of(const cJSON *object, const char *key) {
    const cJSON *item = get(object, key);
    return cJSON_IsString(item) ? item->valuestring : NULL;
}

/* For messages. */
static const char *type_of(const cJSON *object) {
    const char *type = text_of(object, "type");
    return type ? type : "of no type";
}

static bool is_type(const cJSON *object, const char *type) {
    return strcmp(type_of(object), type) == 0;
}

static bool is_absent(const cJSON *item) { return !item || cJSON_IsNull(item); }

/* true or false, which must be there. */
static const char *read_flag(bool *out, const cJSON *object, const char *key, const char *where) {
    const cJSON *item = get(object, key);
    if (!cJSON_IsBool(item)) return wrong("has no true or false for %s of %s", key, quote(where));
    *out = cJSON_IsTrue(item);
    return NULL;
}

static bool is_id(const cJSON *item) {
    return cJSON_IsNumber(item) && item->valuedouble >= 0 && item->valuedouble < MOST_IDS &&
           item->valuedouble == item->valueint;
}

/* Reads one part of a kind (a normalizer, ...); a Sequence is its parts in order. */
typedef const char *(*ReadPart)(struct Tokenizer *t, const cJSON *part);
static const char *read_parts(struct Tokenizer *t, const cJSON *part, const char *list,
                              ReadPart read) {
    const cJSON *item;
    const char *problem = NULL;
    if (!is_type(part, "Sequence")) return read(t, part);
    if (!cJSON_IsArray(get(part, list))) return wrong("has a Sequence without %s", list);
    cJSON_ArrayForEach(item, get(part, list)) {
        problem = read_parts(t, item, list, read);
        if (problem) break;
    }
    return problem;
}

/* ---- the model ------------------------------------------------------------------------------- */

const char *tokenizer_read_vocab(struct Tokenizer *t, const cJSON *vocab, const char *file) {
    if (!cJSON_IsObject(vocab)) return tokenizer_wrong(file, "has no tokens with ids");
    for (const cJSON *item = vocab->child; item; item = item->next) {
        if (!is_id(item))
            return tokenizer_wrong(file, "has the token \"%s\" with an id that is not a number in "
                                   "0..%d", quote(item->string), MOST_IDS - 1);
        if (!vocabulary_add(&t->vocabulary, item->string, strlen(item->string), item->valueint))
            return tokenizer_wrong(file, "has the token \"%s\" or its id %d twice",
                                   quote(item->string), item->valueint);
    }
    return NULL;
}

const char *tokenizer_add_merge(struct Tokenizer *t, const char *left, size_t left_length,
                                const char *right, size_t right_length, int rank,
                                const char *file) {
    int id[3];
    text_clear(&t->joined);
    text_append(&t->joined, left, left_length);
    text_append(&t->joined, right, right_length);
    id[0] = vocabulary_find(&t->vocabulary, left, left_length);
    id[1] = vocabulary_find(&t->vocabulary, right, right_length);
    id[2] = vocabulary_find(&t->vocabulary, t->joined.bytes, t->joined.length);
    for (int i = 0; i < 3; i++)
        if (id[i] < 0)
            return tokenizer_wrong(file, "joins tokens to \"%s\" in merge %d, and not all of them "
                                   "are in the vocabulary", quote(t->joined.bytes), rank);
    bpe_merge(&t->bpe, id[0], id[1], rank, id[2]);
    return NULL;
}

/* "left right" or ["left", "right"] */
static const char *read_merge(struct Tokenizer *t, const cJSON *item, int rank) {
    const char *left = NULL, *right = NULL;
    size_t left_length = 0;
    if (cJSON_IsString(item)) {
        left = item->valuestring;
        right = strchr(left, ' ');
        left_length = right ? (size_t)(right - left) : 0;
        right = right && !strchr(right + 1, ' ') ? right + 1 : NULL;
    } else if (cJSON_IsArray(item) && cJSON_GetArraySize(item) == 2) {
        left = cJSON_GetStringValue(item->child);
        right = cJSON_GetStringValue(item->child->next);
        left_length = left ? strlen(left) : 0;
    }
    if (!left || !right) return wrong("has a merge that is not two tokens (merge %d)", rank);
    return tokenizer_add_merge(t, left, left_length, right, strlen(right), rank,
                               "tokenizer.json");
}

static const char *read_merges(struct Tokenizer *t, const cJSON *merges) {
    const cJSON *item;
    const char *problem = NULL;
    int rank = 0;
    if (!cJSON_IsArray(merges)) return wrong("has no list of merges");
    bpe_open(&t->bpe, (size_t)cJSON_GetArraySize(merges));
    cJSON_ArrayForEach(item, merges) {
        if (cJSON_IsString(item) && strncmp(item->valuestring, "#version", 8) == 0) continue;
        problem = read_merge(t, item, rank++);
        if (problem) break;
    }
    return problem;
}

static const char *check_model_field(const cJSON *item) {
    static const char *const harmless[] = {"type", "vocab", "merges", "ignore_merges", "fuse_unk",
                                           "unk_token", "byte_fallback"};
    static const char *const empty[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *name = item->string;
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
        if (strcmp(name, harmless[i]) == 0) return NULL;
    for (size_t i = 0; i < sizeof empty / sizeof *empty; i++)
        if (strcmp(name, empty[i]) == 0 && cJSON_IsString(item) && !item->valuestring[0])
            return NULL;
    bool zero = cJSON_IsNumber(item) && item->valuedouble == 0;
    if (cJSON_IsNull(item) || (strcmp(name, "dropout") == 0 && zero)) return NULL;
    return wrong("has a model with %s, which cannot be used here", quote(name));
}

static const char *read_model(struct Tokenizer *t, const cJSON *model) {
    const char *problem;
    if (!cJSON_IsObject(model)) return wrong("has no model");
    if (get(model, "type") && !is_type(model, "BPE"))
        return wrong("has a model %s; only BPE can be used", quote(type_of(model)));
    for (const cJSON *item = model->child; item; item = item->next)
        if ((problem = check_model_field(item))) return problem;
    t->bpe.whole_words = cJSON_IsTrue(get(model, "ignore_merges"));
    problem = tokenizer_read_vocab(t, get(model, "vocab"), "tokenizer.json");
    const char *unknown = text_of(model, "unk_token");
    if (unknown && !problem) t->bpe.unknown = vocabulary_find(&t->vocabulary, unknown,
                                                              strlen(unknown));
    if (unknown && t->bpe.unknown < 0) t->bpe.unknown = NO_UNKNOWN;
    t->bpe.fuse_unknown = cJSON_IsTrue(get(model, "fuse_unk"));
    return problem ? problem : read_merges(t, get(model, "merges"));
}

/* byte_fallback has names like <0x0A> for bytes without a token: where each byte has one it does
   nothing. */
static const char *check_bytes(const struct Tokenizer *t, const cJSON *model) {
    if (!cJSON_IsTrue(get(model, "byte_fallback"))) return NULL;
    for (int byte = 0; byte < 256; byte++)
        if (t->bpe.byte_id[byte] < 0)
            return wrong("has a model with byte_fallback, and no token for the byte %d", byte);
    return NULL;
}

/* ---- normalizer, pre-tokenizer, decoder ------------------------------------------------------ */

static const char *read_normalizer(struct Tokenizer *t, const cJSON *part) {
    if (!is_type(part, "NFC"))
        return wrong("has a normalizer %s; only NFC can be used", quote(type_of(part)));
    t->nfc = true;
    return NULL;
}

static const char *add_step(struct Tokenizer *t, struct SplitStep step) {
    if (t->splitter.count == MOST_STEPS) {
        pattern_close(step.pattern);
        return wrong("has a pre_tokenizer of more than %d steps", MOST_STEPS);
    }
    t->splitter.step[t->splitter.count++] = step;
    return NULL;
}

static const char *add_pattern(struct Tokenizer *t, const char *pattern, bool literal,
                               enum SplitBehavior behavior, bool invert) {
    const char *problem;
    struct Pattern *compiled = pattern_open(pattern, literal, &problem);
    if (!compiled) return wrong("has the pattern \"%s\", which %s", quote(pattern), problem);
    return add_step(t, (struct SplitStep){.kind = SPLIT_PATTERN, .pattern = compiled,
                                          .behavior = behavior, .invert = invert});
}

static const char *read_split(struct Tokenizer *t, const cJSON *part) {
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const cJSON *pattern = get(part, "pattern");
    const char *regex = text_of(pattern, "Regex"), *literal = text_of(pattern, "String");
    const char *behavior = text_of(part, "behavior");
    bool invert = false;
    const char *problem = read_flag(&invert, part, "invert", "Split");
    if (problem) return problem;
    if (!regex && !literal) return wrong("has a Split without a pattern");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (behavior && strcmp(behavior, names[i]) == 0)
            return add_pattern(t, regex ? regex : literal, !regex, (enum SplitBehavior)i, invert);
    return wrong("has a Split with the behavior \"%s\"", quote(behavior));
}

static const char *read_digits(struct Tokenizer *t, const cJSON *part) {
    bool individual = false;
    const char *problem = read_flag(&individual, part, "individual_digits", "Digits");
    if (problem) return problem;
    return add_pattern(t, individual ? "\\p{N}" : "\\p{N}+", false, SPLIT_ISOLATED, false);
}

/* Its spelling of bytes is only made where a later step would see it. */
static const char *read_byte_level(struct Tokenizer *t, const cJSON *part) {
    bool prefix = false, regex = true;
    const char *problem = read_flag(&prefix, part, "add_prefix_space", "ByteLevel");
    if (!problem && get(part, "use_regex")) problem = read_flag(&regex, part, "use_regex",
                                                               "ByteLevel");
    if (!problem && prefix) problem = add_step(t, (struct SplitStep){.kind = SPLIT_PREFIX});
    if (!problem && regex) problem = add_pattern(t, GPT2_PATTERN, false, SPLIT_ISOLATED, false);
    if (!problem) problem = add_step(t, (struct SplitStep){.kind = SPLIT_SPELL});
    return problem;
}

static const char *read_pre_tokenizer(struct Tokenizer *t, const cJSON *part) {
    if (is_type(part, "ByteLevel")) return read_byte_level(t, part);
    if (is_type(part, "Split")) return read_split(t, part);
    if (is_type(part, "Digits")) return read_digits(t, part);
    return wrong("has a pre_tokenizer %s; only ByteLevel, Split, Digits and sequences of them can "
                 "be used", quote(type_of(part)));
}

static const char *read_splitter(struct Tokenizer *t, const cJSON *part) {
    struct Splitter *s = &t->splitter;
    const char *problem = is_absent(part) ? NULL
                          : read_parts(t, part, "pretokenizers", read_pre_tokenizer);
    int spellings = 0;
    for (int i = 0; i < s->count; i++) spellings += s->step[i].kind == SPLIT_SPELL;
    if (problem) return problem;
    if (spellings != 1) return wrong("has a pre_tokenizer with ByteLevel %s; once is what can be "
                                     "used", spellings ? "more than once" : "nowhere in it");
    if (s->step[s->count - 1].kind == SPLIT_SPELL) s->count--;
    return NULL;
}

static const char *read_decoder(struct Tokenizer *t, const cJSON *part) {
    (void)t;
    if (is_type(part, "ByteLevel")) return NULL;
    return wrong("has a decoder %s; only ByteLevel can be used", quote(type_of(part)));
}

/* ---- post-processor -------------------------------------------------------------------------- */

/* The ids that a template's special token stands for. */
static const char *read_template_token(struct Tokenizer *t, const cJSON *template,
                                       const cJSON *piece, struct Ids *out) {
    const char *name = text_of(piece, "id");
    const cJSON *ids = NULL, *item;
    if (name) ids = get(get(get(template, "special_tokens"), name), "ids");
    if (!cJSON_IsArray(ids)) return wrong("has a template with \"%s\", which has no ids there",
                                          quote(name));
    cJSON_ArrayForEach(item, ids) {
        if (!is_id(item) || item->valueint >= t->size)
            return wrong("has a template with ids beyond the vocabulary");
        ids_append(out, &item->valueint, 1);
    }
    return NULL;
}

static const char *read_template(struct Tokenizer *t, const cJSON *template) {
    const cJSON *item;
    const char *problem = NULL;
    int texts = 0;
    cJSON_ArrayForEach(item, get(template, "single")) {
        const cJSON *token = get(item, "SpecialToken");
        const char *sequence = text_of(get(item, "Sequence"), "id");
        if (token) problem = read_template_token(t, template, token, texts ? &t->end : &t->begin);
        else if (sequence && strcmp(sequence, "A") == 0) texts++;
        else problem = wrong("has a template whose parts are neither tokens nor the text A");
        if (problem) return problem;
    }
    return texts == 1 ? NULL : wrong("has a template without the text, or with it twice");
}

static const char *read_post_processor(struct Tokenizer *t, const cJSON *part) {
    if (is_type(part, "ByteLevel")) return NULL;   /* offsets only */
    if (!is_type(part, "TemplateProcessing"))
        return wrong("has a post_processor %s; only ByteLevel and TemplateProcessing can be used",
                     quote(type_of(part)));
    if (t->begin.count || t->end.count) return wrong("has more than one template");
    return read_template(t, part);
}

/* ---- added tokens ---------------------------------------------------------------------------- */

/* The id that the library gives it, whatever the file says: that of the vocabulary, or the next
   after all. */
static int library_id(struct Tokenizer *t, const struct Added *added) {
    int id = vocabulary_find(&t->vocabulary, added->content, added->length);
    int count = t->vocabulary.count, size = t->added.size;
    return id >= 0 ? id : size > count ? size : count;
}

static bool same_added(const struct Added *a, const struct Added *b) {
    return a->id == b->id && a->special == b->special && a->normalized == b->normalized &&
           a->lstrip == b->lstrip && a->rstrip == b->rstrip && a->single_word == b->single_word;
}

const char *tokenizer_add_token(struct Tokenizer *t, struct Added *added, const char *file) {
    const struct Added *before = added_find(&t->added, added->content);
    const struct Vocabulary *v = &t->vocabulary;
    if (added->length > LONGEST_ADDED)
        return tokenizer_wrong(file, "has an added token of more than %d bytes", LONGEST_ADDED);
    if (before && !same_added(before, added))
        return tokenizer_wrong(file, "has the added token \"%s\" twice", quote(added->content));
    int id = before ? before->id : library_id(t, added);
    if (id != added->id)
        return tokenizer_wrong(file, "has the added token \"%s\" with id %d, where the tokenizers "
                               "library gives it %d", quote(added->content), added->id, id);
    bool in_vocabulary = vocabulary_find(&t->vocabulary, added->content, added->length) == id;
    if (!in_vocabulary && id < v->size && v->token[id].kind)
        return tokenizer_wrong(file, "has the id %d twice", id);
    if (before || added->length == 0) {
        free(added->content);
        return NULL;
    }
    added_append(&t->added, added);
    return NULL;
}

static const char *read_added_token(struct Tokenizer *t, const cJSON *item) {
    const char *content = text_of(item, "content"), *problem = NULL;
    struct Added added = {0};
    struct { const char *key; bool *flag; } flags[] = {
        {"special", &added.special}, {"normalized", &added.normalized}, {"lstrip", &added.lstrip},
        {"rstrip", &added.rstrip}, {"single_word", &added.single_word}};
    if (!content) return wrong("has an added token without content");
    if (!is_id(get(item, "id")))
        return wrong("has the added token \"%s\" with an id that is not a number in 0..%d",
                     quote(content), MOST_IDS - 1);
    for (size_t i = 0; i < sizeof flags / sizeof *flags && !problem; i++)
        problem = read_flag(flags[i].flag, item, flags[i].key, content);
    if (problem) return problem;
    added.id = get(item, "id")->valueint;
    added.length = strlen(content);
    added.content = check_strdup(content);
    problem = tokenizer_add_token(t, &added, "tokenizer.json");
    if (problem) free(added.content);
    return problem;
}

static const char *read_added(struct Tokenizer *t, const cJSON *list) {
    const cJSON *item;
    const char *problem = NULL;
    if (!is_absent(list) && !cJSON_IsArray(list)) return wrong("has added_tokens that are no list");
    cJSON_ArrayForEach(item, list) {
        problem = read_added_token(t, item);
        if (problem) break;
    }
    return problem;
}

/* truncation and padding are left alone: a caller of the library sets them anew for each text. */
const char *tokenizer_read_json(struct Tokenizer *t, const cJSON *root) {
    const cJSON *normalizer = get(root, "normalizer"), *post = get(root, "post_processor");
    const char *problem = read_model(t, get(root, "model"));
    if (!problem && !is_absent(normalizer))
        problem = read_parts(t, normalizer, "normalizers", read_normalizer);
    if (!problem) problem = read_splitter(t, get(root, "pre_tokenizer"));
    if (!problem) problem = read_parts(t, get(root, "decoder"), "decoders", read_decoder);
    if (!problem) problem = read_added(t, get(root, "added_tokens"));
    if (problem) return problem;
    tokenizer_finish(t);
    problem = check_bytes(t, get(root, "model"));
    if (!problem && !is_absent(post))
        problem = read_parts(t, post, "processors", read_post_processor);
    return problem;
}
