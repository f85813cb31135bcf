#include "record.h"

#include <stdlib.h>
#include <string.h>
#include "../base/json.h"

static const char *const prompt_keys[] = {"prompt", "input", "question", "problem", "messages",
                                          NULL};
static const char *const answer_keys[] = {"answer", "label", "ground_truth", "solution",
                                          "reward_model.ground_truth", NULL};
static const char *const completion_keys[] = {"completion", "response", NULL};

/* ---- conversations --------------------------------------------------------------------------- */

void turns_add(struct Turns *turns, const char *role, const char *content, size_t length) {
    text_list_add(&turns->role, role, strlen(role));
    text_list_add(&turns->content, content, length);
}

void turns_clear(struct Turns *turns) {
    text_list_cut(&turns->role, 0);
    text_list_cut(&turns->content, 0);
}

void turns_free(struct Turns *turns) {
    text_list_free(&turns->role);
    text_list_free(&turns->content);
}

/* Appends the messages of a list; NULL, or what is wrong. */
static const char *add_messages(struct Turns *turns, const cJSON *list) {
    const cJSON *message;
    cJSON_ArrayForEach(message, list) {
        const cJSON *role = cJSON_GetObjectItemCaseSensitive(message, "role");
        const cJSON *content = cJSON_GetObjectItemCaseSensitive(message, "content");
        if (!cJSON_IsString(role)) return "has a message without a role";
        if (!cJSON_IsString(content)) return "has a message whose content is not text";
        turns_add(turns, role->valuestring, content->valuestring, strlen(content->valuestring));
    }
    return NULL;
}

/* ---- the line as it stands ------------------------------------------------------------------- */

/* cJSON keeps no places, and its numbers are doubles. So values that are passed on are copied from
   the line itself: it is known to be JSON without a fault (json_fault), and the k-th member of an
   object is the k-th child. */

static const char *skip_blanks(const char *at) { return at + strspn(at, " \t\r\n"); }

/* Behind the string that begins at `at`. */
static const char *skip_string(const char *at) {
    for (at++; *at != '"'; at++)
        if (*at == '\\') at++;
    return at + 1;
}

/* Behind the value that begins at `at`. */
static const char *skip_value(const char *at) {
    int depth = 0;
    do {
        at = skip_blanks(at);
        if (*at == '"') at = skip_string(at);
        else if (*at == '{' || *at == '[') depth++, at++;
        else if (*at == '}' || *at == ']') depth--, at++;
        else if (*at == ',' || *at == ':') at++;
        else at += strcspn(at, " \t\r\n,:]}");
    } while (depth > 0);
    return at;
}

/* Where the value of the member at `at` begins: behind its key, in an object. */
static const char *value_of_member(const char *at, const cJSON *child) {
    return child->string ? skip_blanks(skip_blanks(skip_string(at)) + 1) : at;
}

/* Is `value` `parent` or inside it? *at, where the parent begins, becomes where the value does. */
static bool locate(const char **at, const cJSON *parent, const cJSON *value) {
    if (parent == value) return true;
    const char *here = *at + 1;   /* behind the bracket */
    for (const cJSON *c = parent->child; c; c = c->next) {
        const char *begin = value_of_member(skip_blanks(here), c), *place = begin;
        if (locate(&place, c, value)) {
            *at = place;
            return true;
        }
        here = skip_blanks(skip_value(begin)) + 1;
    }
    return false;
}

/* ---- values ---------------------------------------------------------------------------------- */

static const cJSON *present(const cJSON *item) { return cJSON_IsNull(item) ? NULL : item; }

/* The member called `name` [length] of an object, or the element of a list. */
static const cJSON *member(const cJSON *parent, const char *name, size_t length) {
    const cJSON *c = parent ? parent->child : NULL;
    if (cJSON_IsArray(parent)) {
        char *end;
        long i = strtol(name, &end, 10);
        bool number = length > 0 && length < 9 && end == name + length && *name != '-';
        return number ? cJSON_GetArrayItem(parent, (int)i) : NULL;
    }
    for (; c; c = c->next)
        if (c->string && strlen(c->string) == length && memcmp(c->string, name, length) == 0)
            return c;
    return NULL;
}

const cJSON *record_find(const struct Record *r, const char *name) {
    const cJSON *at = member(r->json, name, strlen(name));
    if (at) return present(at);
    for (at = r->json; at && *name;) {
        size_t n = strcspn(name, ".");
        at = member(at, name, n);
        name += n;
        if (*name == '.' && !*++name) return NULL;
    }
    return present(at);
}

void record_text(struct Text *out, const struct Record *r, const cJSON *value) {
    if (!out->bytes) text_clear(out);
    if (cJSON_IsString(value)) {
        text_append(out, value->valuestring, strlen(value->valuestring));
        return;
    }
    const char *at = skip_blanks(r->line.bytes);
    if (!locate(&at, r->json, value)) return;
    text_append(out, at, (size_t)(skip_value(at) - at));
}

void record_metadata(struct Text *out, const struct Record *r) {
    text_append(out, "{", 1);
    bool first = true;
    const char *at = skip_blanks(r->line.bytes) + 1;
    for (const cJSON *c = r->json->child; c; c = c->next) {
        at = skip_blanks(at);
        const char *end = skip_value(value_of_member(at, c));
        if (c != r->prompt && c != r->answer && c != r->completion) {
            if (!first) text_append(out, ", ", 2);
            text_append(out, at, (size_t)(end - at));
            first = false;
        }
        at = skip_blanks(end) + 1;
    }
    text_append(out, "}", 1);
}

void record_keys(struct Text *out, const struct Record *r) {
    if (!out->bytes) text_clear(out);
    for (const cJSON *c = r->json->child; c; c = c->next)
        text_format(out, "%s%s", c == r->json->child ? "" : ", ", quote(c->string));
}

/* ---- a line ---------------------------------------------------------------------------------- */

static const cJSON *first_of(const struct Record *r, const char *const *keys) {
    for (; *keys; keys++) {
        const cJSON *found = record_find(r, *keys);
        if (found) return found;
    }
    return NULL;
}

/* A message that stands for its content: {"role": ..., "content": ...}, or a list of one. */
static const cJSON *content_of(const cJSON *value) {
    if (cJSON_IsArray(value) && cJSON_GetArraySize(value) == 1) value = value->child;
    const cJSON *content = cJSON_GetObjectItemCaseSensitive(value, "content");
    return cJSON_IsObject(value) && content ? content : value;
}

static const char *find_members(struct Record *r) {
    r->prompt = first_of(r, prompt_keys);
    r->answer = first_of(r, answer_keys);
    r->completion = first_of(r, completion_keys);
    r->text = record_find(r, "text");
    if (cJSON_IsArray(r->prompt)) {
        const char *problem = add_messages(&r->turns, r->prompt);
        if (problem) return problem;
        if (r->turns.role.count == 0) return "has no messages in its list";
    } else if (r->prompt && !cJSON_IsString(r->prompt)) {
        return "has a prompt that is neither text nor messages";
    }
    r->completion_text = r->completion ? content_of(r->completion) : NULL;
    if (r->completion && !cJSON_IsString(r->completion_text))
        return "has a completion that is neither text nor one message";
    if (r->text && !cJSON_IsString(r->text)) r->text = NULL;   /* a key like any other */
    return NULL;
}

const char *record_read(struct Record *r, const char *line, size_t length) {
    size_t at;
    cJSON_Delete(r->json);
    r->json = NULL;
    r->prompt = r->answer = r->completion = r->completion_text = r->text = NULL;
    turns_clear(&r->turns);
    text_clear(&r->line);
    text_append(&r->line, line, length);
    if (memchr(line, 0, length)) return "holds a zero byte";
    if (!utf8_is_valid(line, length)) return "is not UTF-8";
    enum JsonFault fault = json_fault(r->line.bytes, length, &at);
    if (fault != JSON_LAX) r->json = cJSON_ParseWithOpts(r->line.bytes, NULL, true);
    if (!r->json) return "is not JSON";
    if (!cJSON_IsObject(r->json)) return "is not a JSON object";
    if (fault == JSON_ZERO) return "holds the character \\u0000";
    return find_members(r);
}

void record_free(struct Record *r) {
    cJSON_Delete(r->json);
    turns_free(&r->turns);
    text_free(&r->line);
    *r = (struct Record){0};
}
