#include "template.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "../base/files.h"
#include "../base/json.h"

/* ---- files ----------------------------------------------------------------------------------- */

/* Appends the file; false and errno if it cannot be read, EFBIG if it is larger than `most`. */
static bool read_file(struct Text *out, const char *path, size_t most) {
    FILE *stream = fopen(path, "rb");
    char piece[4096];
    if (!stream) return false;
    for (size_t n; (n = fread(piece, 1, sizeof piece, stream)) > 0 && out->length <= most;)
        text_append(out, piece, n);
    int error = ferror(stream) ? (errno ? errno : EIO) : out->length > most ? EFBIG : 0;
    fclose(stream);
    errno = error;
    if (!out->bytes) text_clear(out);
    return error == 0;
}

/* ---- prompt templates ------------------------------------------------------------------------ */

/* Pieces: literal 0, placeholder 0, literal 1, ... One literal more than placeholders. */
struct Template {
    struct TextList literal, name;
};

static int line_of(const char *text, const char *at) {
    int line = 1;
    for (; text < at; text++) line += *text == '\n';
    return line;
}

/* ":LINE" and what is wrong there, for template_parse. */
static const char *wrong_at(const char *text, const char *at, const char *what) {
    static char problem[160];
    snprintf(problem, sizeof problem, ":%d%s", line_of(text, at), what);
    return problem;
}

#define ADVICE "; a brace that is meant as such is {{ or }}"

/* The placeholder that opens at *at, which moves behind it. NULL, or what is wrong. */
static const char *read_placeholder(struct Template *form, const char *text, const char **at) {
    const char *begin = *at + 1, *end = begin + strcspn(begin, "{}\n");
    if (*end != '}') return wrong_at(text, *at, ": a { without its }" ADVICE);
    *at = end + 1;
    while (*begin == ' ') begin++;
    while (end > begin && end[-1] == ' ') end--;
    if (end == begin) return wrong_at(text, begin, ": {} has no name in it" ADVICE);
    text_list_add(&form->name, begin, (size_t)(end - begin));
    return NULL;
}

/* Pieces of a terminated text. NULL, or what is wrong. */
static const char *parse(struct Template *form, const char *text) {
    struct Text literal = {0};
    const char *problem = NULL;
    text_clear(&literal);
    for (const char *at = text; *at && !problem;) {
        bool twice = at[1] == *at;
        if ((*at == '{' || *at == '}') && twice) {
            text_append(&literal, at, 1);
            at += 2;
        } else if (*at == '{') {
            text_list_add(&form->literal, literal.bytes, literal.length);
            text_clear(&literal);
            problem = read_placeholder(form, text, &at);
        } else if (*at == '}') {
            problem = wrong_at(text, at, ": a } without its {" ADVICE);
        } else {
            text_append(&literal, at++, 1);
        }
    }
    text_list_add(&form->literal, literal.bytes, literal.length);
    text_free(&literal);
    return problem;
}

struct Template *template_parse(const char *text, size_t length, const char **problem) {
    struct Template *form = check_alloc(1, sizeof *form, "a template");
    struct Text copy = {0};
    text_clear(&copy);
    text_append(&copy, text, length);
    *problem = memchr(copy.bytes, 0, length) ? " holds a zero byte: not a text" : NULL;
    for (size_t i = 0, n; i < length && !*problem; i += n)
        if ((n = utf8_length(copy.bytes + i, length - i)) == 0)
            *problem = wrong_at(copy.bytes, copy.bytes + i, " is not UTF-8");
    if (length > 0 && copy.bytes[length - 1] == '\n') copy.bytes[length - 1] = 0;
    if (!*problem) *problem = parse(form, copy.bytes);
    text_free(&copy);
    if (!*problem) return form;
    template_close(form);
    return NULL;
}

struct Template *template_open(const char *path) {
    enum { MOST = 1 << 20 };
    struct Text text = {0};
    const char *problem;
    if (!read_file(&text, path, MOST)) {
        if (errno == EFBIG) die_input("--prompt-template %s is larger than 1 MB", path);
        die_errno("read --prompt-template", path);
    }
    struct Template *form = template_parse(text.bytes, text.length, &problem);
    if (!form) die_input("--prompt-template %s%s", path, problem);
    text_free(&text);
    return form;
}

void template_close(struct Template *form) {
    if (!form) return;
    text_list_free(&form->literal);
    text_list_free(&form->name);
    free(form);
}

const char *template_fill(struct Text *out, const struct Template *form,
                          const struct Record *record) {
    for (int i = 0; i < form->literal.count; i++) {
        text_append(out, text_list_at(&form->literal, i), text_list_length(&form->literal, i));
        if (i == form->name.count) break;
        const cJSON *value = record_find(record, text_list_at(&form->name, i));
        if (!value) return text_list_at(&form->name, i);
        record_text(out, record, value);
    }
    return NULL;
}

/* ---- a model's default system prompt --------------------------------------------------------- */

/* Models say it in their own template (Jinja, which is not run here) as a literal between the two
   tokens: '<|im_start|>system\nYou are ...<|im_end|>'. Where that is an expression instead, there
   is no default. No place of the text is looked at for more than one beginning. */
static void find_default_system(struct Text *out, const char *template_text) {
    static const char opens[] = "<|im_start|>system", closes[] = "<|im_end|>";
    const char *end = template_text;
    if (!utf8_is_valid(template_text, strlen(template_text))) return;
    for (const char *at = template_text; (at = strstr(at, opens)) != NULL;) {
        const char *begin = at + sizeof opens - 1;
        size_t newline = strncmp(begin, "\\n", 2) == 0 ? 2 : *begin == '\n';
        at = begin += newline;
        if (!newline) continue;
        if (end < begin) end = strstr(begin, closes);
        if (!end) return;
        const char *quoted = begin + strcspn(begin, "'\"{}");
        if (quoted < end) at = quoted;
        if (quoted < end || end == begin) continue;
        for (; begin < end; begin++) {
            bool escape = begin[0] == '\\' && begin[1] == 'n';
            text_append(out, escape ? "\n" : begin, 1);
            begin += escape;
        }
        return;
    }
}

/* tokenizer_config.json's chat_template: a text, or a list of named ones of which "default" is
   meant. */
static const char *template_in(const cJSON *config) {
    const cJSON *found = cJSON_GetObjectItemCaseSensitive(config, "chat_template"), *item;
    if (cJSON_IsString(found)) return found->valuestring;
    cJSON_ArrayForEach(item, found) {
        const cJSON *name = cJSON_GetObjectItemCaseSensitive(item, "name");
        const cJSON *text = cJSON_GetObjectItemCaseSensitive(item, "template");
        if (cJSON_IsString(name) && strcmp(name->valuestring, "default") == 0 &&
            cJSON_IsString(text))
            return text->valuestring;
    }
    return NULL;
}

static void read_default_system(struct Text *out, const char *directory) {
    enum { MOST = 16 << 20 };
    char path[4096];
    const char *problem;
    struct Text jinja = {0};
    check_path(path, sizeof path, "%s/chat_template.jinja", directory);
    if (path_exists(path)) {
        if (read_file(&jinja, path, MOST)) find_default_system(out, jinja.bytes);
        text_free(&jinja);
        return;
    }
    check_path(path, sizeof path, "%s/tokenizer_config.json", directory);
    if (!path_exists(path)) return;
    cJSON *config = json_read(path, MOST, &problem);
    const char *text = template_in(config);
    if (text) find_default_system(out, text);
    cJSON_Delete(config);
}

/* ---- chat forms ------------------------------------------------------------------------------ */

enum { BEGIN, OPEN, CLOSE_HEADER, CLOSE, SPECIALS };

struct Form {
    const char *name;
    const char *special[SPECIALS];   /* spelled out; NULL: the form has no such token */
    const char *header_end;          /* between role and content */
    const char *turn_end;            /* behind the token that ends a turn */
    bool trims;                      /* contents lose the white space around them */
};
static const struct Form forms[] = {
    {"chatml", {NULL, "<|im_start|>", NULL, "<|im_end|>"}, "\n", "\n", false},
    {"llama3", {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
     "\n\n", "", true},
};

struct Chat {
    const struct Form *form;         /* NULL: none */
    const struct Tokenizer *tokenizer;
    int special[SPECIALS];           /* ids, -1 where the form has none */
    int end_of_text;                 /* -1: the tokenizer has none */
    struct Text system;
};

/* The form's ids from the tokenizer; the spelling of one it lacks, or NULL. */
static const char *find_specials(struct Chat *chat, const struct Form *form) {
    for (int i = 0; i < SPECIALS; i++) {
        const char *spelled = form->special[i];
        chat->special[i] = spelled ? tokenizer_id(chat->tokenizer, spelled) : -1;
        if (spelled && chat->special[i] < 0) return spelled;
    }
    return NULL;
}

static const char *choose_form(struct Chat *chat, const char *word) {
    static char problem[256];
    bool chosen = strcmp(word, "auto") == 0;
    for (size_t i = 0; i < sizeof forms / sizeof *forms && strcmp(word, "none") != 0; i++) {
        const char *lacks = find_specials(chat, &forms[i]);
        if (!chosen && strcmp(word, forms[i].name) != 0) continue;
        if (lacks && chosen) continue;
        snprintf(problem, sizeof problem, "--chat %s: the tokenizer has no %s; choose --chat none "
                 "or a model of that form", word, lacks ? lacks : "");
        if (lacks) return problem;
        chat->form = &forms[i];
        return NULL;
    }
    return NULL;
}

struct Chat *chat_open(const char *word, const char *system, const struct Tokenizer *tokenizer,
                       const char *directory, const char **problem) {
    struct Chat *chat = check_alloc(1, sizeof *chat, "a chat form");
    chat->tokenizer = tokenizer;
    chat->end_of_text = tokenizer_role(tokenizer, TOKENIZER_ENDS_TEXT);
    text_clear(&chat->system);
    *problem = choose_form(chat, word);
    if (*problem) {
        chat_close(chat);
        return NULL;
    }
    if (strcmp(system, "auto") != 0) text_append(&chat->system, system, strlen(system));
    else if (chat->form == &forms[0] && directory[0]) read_default_system(&chat->system, directory);
    return chat;
}

void chat_close(struct Chat *chat) {
    if (!chat) return;
    text_free(&chat->system);
    free(chat);
}

const char *chat_name(const struct Chat *chat) { return chat->form ? chat->form->name : "none"; }
const char *chat_system(const struct Chat *chat) { return chat->system.bytes; }

void chat_add_ends(const struct Chat *chat, struct Ends *ends) {
    if (chat->form) ends_add(ends, chat->special[CLOSE]);
}

/* ---- putting a conversation together --------------------------------------------------------- */

/* What is being made. Text is gathered and becomes ids at the next special token, as a whole: so
   do the tokenizer's own templates. */
struct Builder {
    const struct Chat *chat;
    struct Ids *ids;
    struct Text *text, *loss;        /* or NULL */
    struct Text run;
    int flags;
    bool learn;                      /* what comes now has loss */
    bool failed;
};

static void note_loss(struct Builder *b) {
    if (!b->loss) return;
    while (b->loss->length < (size_t)b->ids->count) text_append(b->loss, b->learn ? "\1" : "", 1);
}

/* Begin-of-text is never there twice: a text may have it written out. */
static void encode_run(struct Builder *b) {
    struct Ids begin = {0}, ids = {0};
    const struct Tokenizer *tokenizer = b->chat->tokenizer;
    bool begins = b->flags & TOKENIZER_BEGIN;
    b->flags &= ~TOKENIZER_BEGIN;
    if (begins) tokenizer_encode(tokenizer, "", 0, TOKENIZER_BEGIN, &begin);
    b->failed |= !tokenizer_encode(tokenizer, b->run.bytes, b->run.length, b->flags, &ids);
    bool there = begin.count > 0 && ids.count >= begin.count &&
                 memcmp(ids.id, begin.id, (size_t)begin.count * sizeof(int)) == 0;
    for (int i = 0; i < begin.count && !there; i++) ids_add(b->ids, begin.id[i]);
    for (int i = 0; i < ids.count; i++) ids_add(b->ids, ids.id[i]);
    ids_free(&begin), ids_free(&ids);
}

static void flush(struct Builder *b) {
    if (b->run.length > 0) encode_run(b);
    text_clear(&b->run);
    note_loss(b);
}

static void put(struct Builder *b, const char *text, size_t length) {
    text_append(&b->run, text, length);
    if (b->text) text_append(b->text, text, length);
}

static void put_special(struct Builder *b, int which) {
    const char *spelled = b->chat->form->special[which];
    if (!spelled) return;
    flush(b);
    ids_add(b->ids, b->chat->special[which]);
    note_loss(b);
    if (b->text) text_append(b->text, spelled, strlen(spelled));
}

static void put_header(struct Builder *b, const char *role) {
    put_special(b, OPEN);
    put(b, role, strlen(role));
    put_special(b, CLOSE_HEADER);
    put(b, b->chat->form->header_end, strlen(b->chat->form->header_end));
}

/* The bytes of the white space that text begins with, or 0: what Jinja's `trim` takes away, which
   is Unicode's white space and the four separators 1C to 1F. */
static size_t blank_at(const char *text, size_t length) {
    size_t bytes = utf8_length(text, length);
    if (bytes == 0) return 0;
    unsigned c = utf8_code_point(text);
    bool blank = c == ' ' || (c >= 0x9 && c <= 0xD) || (c >= 0x1C && c <= 0x1F) || c == 0x85 ||
                 c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
                 c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
    return blank ? bytes : 0;
}

static size_t blank_before(const char *text, size_t length) {
    for (size_t bytes = 1; bytes <= 3 && bytes <= length; bytes++)
        if (blank_at(text + length - bytes, bytes) == bytes) return bytes;
    return 0;
}

static void put_content(struct Builder *b, const char *content, size_t length) {
    if (b->chat->form->trims) {
        for (size_t n; (n = blank_at(content, length)) > 0; length -= n) content += n;
        for (size_t n; (n = blank_before(content, length)) > 0;) length -= n;
    }
    put(b, content, length);
}

static void put_turn(struct Builder *b, const char *role, const char *content, size_t length) {
    put_header(b, role);
    bool learn = b->loss && strcmp(role, "assistant") == 0;
    if (learn) {   /* as when it is sampled: behind the header, which has ids of its own */
        flush(b);
        b->learn = true;
    }
    put_content(b, content, length);
    put_special(b, CLOSE);
    b->learn = false;
    put(b, b->chat->form->turn_end, strlen(b->chat->form->turn_end));
}

/* Begin-of-text, the default system turn, and the turns. */
static void put_conversation(struct Builder *b, const struct Turns *turns) {
    const struct Text *system = &b->chat->system;
    if (b->chat->form->special[BEGIN]) {
        put_special(b, BEGIN);
    } else {
        struct Ids begin = {0};
        tokenizer_encode(b->chat->tokenizer, "", 0, TOKENIZER_BEGIN, &begin);
        for (int i = 0; i < begin.count; i++) ids_add(b->ids, begin.id[i]);
        note_loss(b);
        ids_free(&begin);
    }
    bool has_system = turns->role.count > 0 && strcmp(text_list_at(&turns->role, 0), "system") == 0;
    if (!has_system && system->length > 0) put_turn(b, "system", system->bytes, system->length);
    for (int i = 0; i < turns->role.count; i++)
        put_turn(b, text_list_at(&turns->role, i), text_list_at(&turns->content, i),
                 text_list_length(&turns->content, i));
}

/* Without a form: the contents. */
static void put_contents(struct Builder *b, const struct Turns *turns) {
    bool first = b->chat->system.length == 0;
    b->flags = TOKENIZER_SPECIALS | TOKENIZER_BEGIN;
    put(b, b->chat->system.bytes, b->chat->system.length);
    for (int i = 0; i < turns->role.count; i++) {
        if (!first) put(b, "\n\n", 2);
        put(b, text_list_at(&turns->content, i), text_list_length(&turns->content, i));
        first = false;
    }
}

static const char *finish(struct Builder *b) {
    text_free(&b->run);
    return b->failed ? "has characters for which the model's vocabulary has no ids" : NULL;
}

const char *chat_prompt(struct Ids *ids, struct Text *text, const struct Chat *chat,
                        const struct Turns *turns) {
    struct Builder b = {.chat = chat, .ids = ids, .text = text};
    if (chat->form) {
        put_conversation(&b, turns);
        put_header(&b, "assistant");
    } else {
        put_contents(&b, turns);
    }
    flush(&b);
    return finish(&b);
}

static void put_end_of_text(struct Builder *b) {
    flush(b);
    if (b->chat->end_of_text >= 0) ids_add(b->ids, b->chat->end_of_text);
    note_loss(b);
}

const char *chat_reply(struct Ids *ids, const struct Chat *chat, const char *content,
                       size_t length) {
    struct Builder b = {.chat = chat, .ids = ids};
    if (chat->form) {
        put_content(&b, content, length);
        put_special(&b, CLOSE);
    } else {
        b.flags = TOKENIZER_SPECIALS;
        put(&b, content, length);
        put_end_of_text(&b);
    }
    return finish(&b);
}

const char *chat_answer(struct Ids *ids, const struct Chat *chat, const char *role,
                        const char *content, size_t length) {
    struct Builder b = {.chat = chat, .ids = ids};
    if (chat->form) {
        put(&b, chat->form->turn_end, strlen(chat->form->turn_end));
        put_turn(&b, role, content, length);
        put_header(&b, "assistant");
    } else {
        put(&b, content, length);
    }
    flush(&b);
    return finish(&b);
}

const char *chat_lesson(struct Ids *ids, struct Text *loss, const struct Chat *chat,
                        const struct Turns *turns) {
    struct Builder b = {.chat = chat, .ids = ids, .loss = loss};
    if (chat->form) {
        put_conversation(&b, turns);
        return finish(&b);   /* what is left in b.run stands behind the last turn */
    }
    b.flags = TOKENIZER_SPECIALS | TOKENIZER_BEGIN;
    put(&b, chat->system.bytes, chat->system.length);
    for (int i = 0; i < turns->role.count; i++) {
        if (i > 0 || chat->system.length > 0) put(&b, "\n\n", 2);
        flush(&b);
        b.learn = strcmp(text_list_at(&turns->role, i), "assistant") == 0;
        put(&b, text_list_at(&turns->content, i), text_list_length(&turns->content, i));
        if (b.learn) put_end_of_text(&b);
        flush(&b);
        b.learn = false;
    }
    return finish(&b);
}

const char *chat_document(struct Ids *ids, const struct Chat *chat, const char *text,
                          size_t length) {
    struct Builder b = {.chat = chat, .ids = ids, .flags = TOKENIZER_SPECIALS | TOKENIZER_BEGIN};
    put(&b, text, length);
    put_end_of_text(&b);
    return finish(&b);
}
