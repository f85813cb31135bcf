#include "scorer_reply.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "../base/text.h"

/* Python's json.dumps writes NaN, Infinity and -Infinity, which JSON does not have. Where they
   stand outside of strings they become an empty string here, which is no number either. Returns
   whether there were any. */
static bool replace_nonfinite(char *line) {
    static const char *const words[] = {"-Infinity", "Infinity", "NaN"};
    bool in_string = false, found = false;
    for (char *at = line; *at; at++) {
        if (in_string && *at == '\\' && at[1]) at++;
        else if (*at == '"') in_string = !in_string;
        for (int i = 0; i < 3 && !in_string; i++) {
            size_t n = strlen(words[i]);
            if (strncmp(at, words[i], n) != 0) continue;
            memset(at, ' ', n);
            at[0] = at[1] = '"';
            at += n - 1;
            found = true;
            break;
        }
    }
    return found;
}

/* The id: a whole number that is not negative, or one as text; -1: there is none. */
static int64_t id_of(const cJSON *json) {
    const cJSON *id = cJSON_GetObjectItemCaseSensitive(json, "id");
    double value = -1;
    if (cJSON_IsNumber(id)) value = id->valuedouble;
    if (cJSON_IsString(id)) {
        char *end;
        size_t digits = strspn(id->valuestring, "0123456789");
        double number = strtod(id->valuestring, &end);
        if (digits > 0 && digits < 16 && id->valuestring[digits] == 0) value = number;
    }
    return value >= 0 && value <= 9007199254740991.0 && value == floor(value) ? (int64_t)value : -1;
}

/* A text to go on behind, with its role; false: there is none, or the role is unknown. */
static bool continues(struct Reply *reply, const cJSON *json) {
    static struct Text text;
    const cJSON *said = cJSON_GetObjectItemCaseSensitive(json, "continue");
    const cJSON *role = cJSON_GetObjectItemCaseSensitive(json, "role");
    const char *name = cJSON_IsString(role) ? role->valuestring : role ? "" : "user";
    reply->role = strcmp(name, "user") == 0 ? "user" : strcmp(name, "tool") == 0 ? "tool" : NULL;
    if (!cJSON_IsString(said) || !reply->role) return false;
    text_clear(&text);
    text_append_utf8(&text, said->valuestring, strlen(said->valuestring));
    reply->text = text.bytes, reply->length = text.length;
    return true;
}

static struct Reply reply_of(const cJSON *json) {
    const cJSON *reward = cJSON_GetObjectItemCaseSensitive(json, "reward");
    struct Reply reply = {.kind = REPLY_NO_REWARD, .id = id_of(json), .reward = NAN};
    bool no_reward = !reward || cJSON_IsNull(reward);
    if (reply.id < 0) reply.kind = REPLY_NO_ID;
    else if (no_reward && continues(&reply, json)) reply.kind = REPLY_CONTINUE;
    else if (cJSON_IsNull(reward)) reply.kind = REPLY_NONE;
    else if (cJSON_IsBool(reward)) reply.reward = cJSON_IsTrue(reward);
    else if (cJSON_IsNumber(reward) && isfinite((float)reward->valuedouble))
        reply.reward = (float)reward->valuedouble;
    if (!isnan(reply.reward)) reply.kind = REPLY_REWARD;
    return reply;
}

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

struct Reply scorer_reply(const char *line, size_t length) {
    struct Reply reply = {.kind = REPLY_NOT_JSON, .id = -1, .reward = NAN};
    while (length > 0 && is_blank(line[length - 1])) length--;
    while (length > 0 && is_blank(line[0])) line++, length--;
    /* what print leaves is told apart without a parser, for there may be much of it */
    if (length < 2 || line[0] != '{' || line[length - 1] != '}') return reply;
    if (memchr(line, 0, length)) return reply;
    char *copy = memcpy(check_alloc(length + 1, 1, "a scorer's line"), line, length);
    cJSON *json = cJSON_ParseWithOpts(copy, NULL, true);
    if (!json && replace_nonfinite(copy)) json = cJSON_ParseWithOpts(copy, NULL, true);
    if (cJSON_IsObject(json)) reply = reply_of(json);
    cJSON_Delete(json);
    free(copy);
    return reply;
}
