/* The list of families, and functions that their files share. */
#include "family.h"
#include <cjson/cJSON.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

extern const struct Family family_gpt2, family_llama, family_mistral, family_qwen2, family_qwen3;

/* Every family has its line here. */
static const struct Family *const families[] = {
    &family_gpt2,
    &family_llama,
    &family_mistral,
    &family_qwen2,
    &family_qwen3,
};
enum { NUM_FAMILIES = sizeof families / sizeof *families };

const struct Family *family_at(int i) { return i < NUM_FAMILIES ? families[i] : NULL; }

const struct Family *family_find(const char *name) {
    for (int i = 0; i < NUM_FAMILIES; i++)
        if (strcmp(families[i]->name, name) == 0) return families[i];
    return NULL;
}

const char *family_names(void) {
    static char names[256];
    size_t length = 0;
    for (int i = 0; i < NUM_FAMILIES && length < sizeof names; i++)
        length += (size_t)snprintf(names + length, sizeof names - length, "%s%s", i ? ", " : "",
                                   families[i]->name);
    return names;
}

const char *family_short_name(const struct Family *family, const char *name) {
    size_t length = strlen(family->prefix);
    return strncmp(name, family->prefix, length) == 0 ? name + length : name;
}

const char *family_head_name(const struct Family *family) {
    for (int i = 0; i < family->num_rows; i++)
        if (family->rows[i].flags & UNTIED) return family->rows[i].name;
    return "";
}

bool family_ignores(const struct Family *family, const char *name) {
    size_t length = strlen(name);
    for (const char *const *suffix = family->ignored_suffixes; *suffix; suffix++) {
        size_t tail = strlen(*suffix);
        if (length > tail && strcmp(name + length - tail, *suffix) == 0) return true;
    }
    return false;
}

const char *family_sentence(const char *format, ...) {
    static char text[320];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return text;
}

const char *family_read_int(int *out, const cJSON *json, const char *key, int missing) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    if (item == NULL || cJSON_IsNull(item)) {
        *out = missing;
        return missing > 0 ? NULL : family_sentence("there is no \"%s\"", key);
    }
    double value = cJSON_IsNumber(item) ? item->valuedouble : 0;
    if (!(value >= 1 && value <= 1 << 24) || value != floor(value))
        return family_sentence("\"%s\" must be a whole number in [1, %d]", key, 1 << 24);
    *out = (int)value;
    return NULL;
}
