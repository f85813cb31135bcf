#include "json.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "check.h"
#include "files.h"
#include "text.h"

/* ---- memory ---------------------------------------------------------------------------------- */

static void *(*allocate_unchecked)(size_t);

static void *allocate_checked(size_t bytes) {
    void *memory = allocate_unchecked(bytes);
    if (memory == NULL) die_machine("out of memory: %zu bytes for JSON", bytes);
    return memory;
}

void json_memory(void *(*allocate)(size_t)) {
    allocate_unchecked = allocate;
    cJSON_InitHooks(&(cJSON_Hooks){allocate_checked, free});
}

/* ---- files ----------------------------------------------------------------------------------- */

static char problem_text[256];

__attribute__((format(printf, 1, 2)))
static const char *sentence(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(problem_text, sizeof problem_text, format, arguments);
    va_end(arguments);
    return problem_text;
}

/* A sentence for errno where the file is at fault; a failure of the machine ends the program. */
static const char *read_problem(const char *path) {
    if (is_machine_error(errno)) die_errno("read", path);
    return sentence("cannot be read: %s", strerror(errno));
}

char *json_read_text(const char *path, size_t most_bytes, size_t *length, const char **problem) {
    FILE *stream = fopen(path, "rb");
    if (stream == NULL) {
        *problem = read_problem(path);
        return NULL;
    }
    char *text = NULL;
    size_t got;
    *length = 0;
    *problem = NULL;
    do {
        text = check_realloc(text, *length + 65537, 1, "a JSON file");
        got = fread(text + *length, 1, 65536, stream);
        *length += got;
    } while (got > 0 && *length <= most_bytes);
    if (ferror(stream)) *problem = read_problem(path);
    else if (*length > most_bytes)
        *problem = sentence("is larger than %zu MB", most_bytes >> 20);
    else if (is_lfs_pointer(text, *length)) *problem = LFS_POINTER;
    fclose(stream);
    text[*length] = '\0';
    if (*problem == NULL) return text;
    free(text);
    return NULL;
}

/* How many bytes at the start of text are a number as JSON writes it; 0: none is. */
static size_t number_length(const char *text) {
    static const char digits[] = "0123456789";
    size_t n = *text == '-', more = strspn(text + n, digits);
    if (more == 0 || (more > 1 && text[n] == '0')) return 0;
    n += more;
    if (text[n] == '.') {
        if ((more = strspn(text + n + 1, digits)) == 0) return 0;
        n += 1 + more;
    }
    if (text[n] != 'e' && text[n] != 'E') return n;
    n += 1 + (text[n + 1] == '+' || text[n + 1] == '-');
    more = strspn(text + n, digits);
    return more ? n + more : 0;
}

enum JsonFault json_fault(const char *text, size_t length, size_t *at) {
    bool in_string = false;
    for (size_t i = 0, n; i < length; i += n) {
        unsigned char c = (unsigned char)text[i];
        bool blank = c == ' ' || c == '\t' || c == '\r' || c == '\n';
        *at = i;
        n = 1;
        if (c < 32 && (in_string || !blank)) return JSON_LAX;
        if (c == '"') in_string = !in_string;
        if (in_string && c == '\\') {
            if (strncmp(text + i + 1, "u0000", 5) == 0) return JSON_ZERO;
            n = 2;
        }
        if (in_string) continue;
        if (c > 127) return JSON_LAX;
        if (c == '-' || (c >= '0' && c <= '9')) n = number_length(text + i);
        if (n == 0) return JSON_LAX;
    }
    return JSON_GOOD;
}

/* What is wrong with a text before it is parsed; NULL: nothing is known. */
static const char *text_problem(const char *text, size_t length) {
    size_t mark = strncmp(text, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0, at;
    if (memchr(text, 0, length) != NULL) return "holds a zero byte: not JSON";
    if (!utf8_is_valid(text, length)) return "is not UTF-8";
    enum JsonFault fault = json_fault(text + mark, length - mark, &at);
    if (fault == JSON_ZERO)
        return sentence("has the character \\u0000 at byte %zu, which is not read here", mark + at);
    return fault == JSON_GOOD ? NULL : sentence("is not JSON, at byte %zu", mark + at);
}

cJSON *json_parse(const char *text, size_t length, const char **problem) {
    const char *end = text;
    cJSON *json = NULL;
    *problem = text_problem(text, length);
    if (*problem != NULL) return NULL;
    json = cJSON_ParseWithOpts(text, &end, false);
    while (json != NULL && end < text + length && strchr(" \t\r\n", *end) != NULL) end++;
    if (json == NULL || end != text + length)
        *problem = sentence("is not JSON, at byte %td; the file may be cut short", end - text);
    else if (!cJSON_IsObject(json)) *problem = "is not one JSON object";
    if (*problem == NULL) return json;
    cJSON_Delete(json);
    return NULL;
}

cJSON *json_read(const char *path, size_t most_bytes, const char **problem) {
    size_t length;
    char *text = json_read_text(path, most_bytes, &length, problem);
    if (text == NULL) return NULL;
    cJSON *json = json_parse(text, length, problem);
    free(text);
    return json;
}

/* ---- lines ----------------------------------------------------------------------------------- */

/* Is this escape there, in either case of its digits? */
static bool has_escape(const char *line, unsigned point) {
    char escape[8];
    snprintf(escape, sizeof escape, "\\u%04x", point);
    return strcasestr(line, escape) != NULL;
}

/* A copy of the line with each \u0000 as the noncharacter; NULL: it has none. */
static char *replace_zeros(const char *line, size_t length, unsigned point) {
    char *copy = NULL;
    for (size_t i = 0; i + 1 < length; i++) {
        if (line[i] != '\\') continue;
        if (strncmp(line + ++i, "u0000", 5) != 0) continue;
        if (!copy) copy = check_strdup(line);
        char digits[5];
        snprintf(digits, sizeof digits, "%04x", point);
        memcpy(copy + i + 1, digits, 4);
    }
    return copy;
}

cJSON *json_parse_line(const char *line, size_t length, char zero[4]) {
    enum { FIRST = 0xFDD0, LAST = 0xFDEF };   /* no text has these: Unicode 15, section 23.7 */
    const char *problem;
    unsigned point = FIRST;
    *zero = 0;
    if (memchr(line, 0, length)) return NULL;
    for (; point <= LAST; point++) {
        snprintf(zero, 4, "\xEF\xB7%c", (char)(0x90 + point - FIRST));
        if (!strstr(line, zero) && !has_escape(line, point)) break;
    }
    char *copy = point <= LAST ? replace_zeros(line, length, point) : NULL;
    if (!copy) *zero = 0;
    cJSON *json = json_parse(copy ? copy : line, length, &problem);
    free(copy);
    return json;
}

void json_append_string(struct Text *out, const char *string, const char zero[4]) {
    const char *next;
    while (*zero && (next = strstr(string, zero)) != NULL) {
        text_append(out, string, (size_t)(next - string));
        text_append(out, "", 1);
        string = next + 3;
    }
    text_append(out, string, strlen(string));
}

/* ---- writing --------------------------------------------------------------------------------- */

void json_write(cJSON *json, const char *path, struct Checksums *sums) {
    char *text = cJSON_Print(json);
    if (text == NULL) die_machine("out of memory while writing %s", path);
    struct AtomicFile file;
    atomic_open(&file, path);
    atomic_write(&file, text, strlen(text));
    atomic_write(&file, "\n", 1);
    atomic_commit(&file);
    checksums_add(sums, &file);
    cJSON_free(text);
    cJSON_Delete(json);
}

/* ---- one value in a text --------------------------------------------------------------------- */

static const char *skip_spaces(const char *p) { return p + strspn(p, " \t\r\n"); }

/* p: at a string's first quotation mark. Returns what follows its last. */
static const char *skip_string(const char *p) {
    for (p++; *p != '\0' && *p != '"'; p++)
        if (*p == '\\' && p[1] != '\0') p++;
    return *p ? p + 1 : p;
}

/* What follows a value. */
static const char *skip_value(const char *p) {
    int depth = 0;
    do {
        if (*p == '"') {
            p = skip_string(p);
            continue;
        }
        if (*p == '{' || *p == '[') depth++;
        if (*p == '}' || *p == ']') depth--;
        p++;
    } while (*p != '\0' && (depth > 0 || strchr(",}] \t\r\n", *p) == NULL));
    return p;
}

void json_set(struct Text *out, const char *text, const char *key, const char *value) {
    bool marked = strncmp(text, "\xEF\xBB\xBF", 3) == 0;   /* as UTF-8, by some editors */
    const char *start = marked ? text + 3 : text;
    const char *from = text, *p = skip_spaces(start) + 1, *end = p;
    size_t length = strlen(key);
    bool found = false;
    for (p = skip_spaces(p); *p == '"'; p = skip_spaces(p)) {
        const char *name = p + 1, *colon = skip_spaces(skip_string(p));
        const char *begin = skip_spaces(colon + 1);
        end = skip_value(begin);
        if (strncmp(name, key, length) == 0 && name[length] == '"') {
            text_append(out, from, (size_t)(begin - from));
            text_append(out, value, strlen(value));
            from = end;
            found = true;
        }
        p = skip_spaces(end);
        if (*p == ',') p++;
    }
    if (!found) {
        text_append(out, from, (size_t)(end - from));
        text_format(out, "%s\n  \"%s\": %s%s", end[-1] == '{' ? "" : ",", key, value,
                    *end == '}' ? "\n" : "");
        from = end;
    }
    text_append(out, from, strlen(from));
}

/* ---- fields ---------------------------------------------------------------------------------- */

void json_add_fields(cJSON *json, const struct FieldTable *table, const void *object) {
    for (int i = 0; i < table->count; i++) {
        const struct Field *field = &table->fields[i];
        size_t capacity = field->type == FIELD_TEXT ? field->size + 1 : 512;
        char *text = cJSON_malloc(capacity);
        if (text == NULL) die_machine("out of memory: the field %s", field->name);
        bool number = field_print(text, capacity, field, object);
        /* JSON has no number for what is not finite: that goes as text. */
        const cJSON *added = number ? cJSON_AddRawToObject(json, field->name, text)
                                    : cJSON_AddStringToObject(json, field->name, text);
        cJSON_free(text);
        if (added == NULL) die_machine("out of memory: the field %s", field->name);
    }
}

const struct Field *json_get_fields(const cJSON *json, const struct FieldTable *table,
                                    void *object) {
    for (int i = 0; i < table->count; i++) {
        const struct Field *field = &table->fields[i];
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, field->name);
        bool fits = item == NULL           ? field->optional
                    : cJSON_IsNumber(item) ? field_set_number(field, object, item->valuedouble)
                    : cJSON_IsString(item) ? field_set_text(field, object, item->valuestring)
                                           : false;
        if (!fits) return field;
    }
    return NULL;
}
