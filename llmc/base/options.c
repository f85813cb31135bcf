#include "options.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "check.h"
#include "console.h"
#include "json.h"
#include "text.h"

/* ---- names ----------------------------------------------------------------------------------- */

int option_table_find(const struct OptionTable *table, const char *name) {
    for (int i = 0; i < table->num_rows; i++)
        if (strcmp(table->rows[i].name, name) == 0) return i;
    return -1;
}

static unsigned char *given_field(const struct OptionTable *table, void *fields, int row) {
    return (unsigned char *)fields + table->given + row;
}

/* Levenshtein distance, of the first 63 characters. */
static int edit_distance(const char *a, const char *b) {
    int row[64], columns = (int)strnlen(b, 63), rows = (int)strnlen(a, 63);
    for (int j = 0; j <= columns; j++) row[j] = j;
    for (int i = 1; i <= rows; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= columns; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[columns];
}

/* The first option that begins with `name`, else the one that differs in the fewest letters. NULL:
   all differ in too many, so that a suggestion would most likely be wrong. */
static const char *nearest_name(const struct OptionTable *table, const char *name) {
    const struct Option *rows = table->rows;
    int best = 0, length = (int)strlen(name);
    for (int i = 0; i < table->num_rows; i++)
        if (length >= 3 && strncmp(name, rows[i].name, (size_t)length) == 0) return rows[i].name;
    for (int i = 1; i < table->num_rows; i++)
        if (edit_distance(name, rows[i].name) < edit_distance(name, rows[best].name)) best = i;
    return 3 * edit_distance(name, rows[best].name) <= length + 1 ? rows[best].name : NULL;
}

/* Are they equal, where b may have _ for - ? */
static bool same_words(const char *a, const char *b) {
    while (*a && (*a == *b || (*a == '-' && *b == '_'))) a++, b++;
    return !*a && !*b;
}

/* Ends the program: what to type instead of `name`. `source` is "" for the line, or "FILE: ". */
static _Noreturn void die_unknown(const struct OptionTable *table, const char *source,
                                  const char *name) {
    const char *dot = strrchr(name, '.'), *last = dot ? dot + 1 : name;   /* verl's a.b.name */
    for (int i = 0; i < table->num_synonyms; i++)
        if (same_words(table->synonyms[i].theirs, last))
            die_input("%sunknown option --%s; here it is %s (--help lists all)", source, name,
                      table->synonyms[i].ours);
    const char *nearest = nearest_name(table, name);
    if (!nearest) die_input("%sunknown option --%s (--help lists all)", source, name);
    die_input("%sunknown option --%s; did you mean --%s? (--help lists all)", source, name,
              nearest);
}

/* Is `value` one of the space-separated `choices`? */
static bool is_choice(const char *value, const char *choices) {
    size_t length = strlen(value);
    for (const char *c = choices; *c;) {
        size_t n = strcspn(c, " ");
        if (n == length && memcmp(c, value, n) == 0) return true;
        c += n + (c[n] == ' ');
    }
    return false;
}

/* ---- values ---------------------------------------------------------------------------------- */

static void set_number(void *fields, const struct Option *o, double value) {
    char *field = (char *)fields + o->offset;
    if (o->type == OPTION_WHOLE) *(int64_t *)field = (int64_t)value;
    else *(double *)field = value;
}

static double get_number(const void *fields, const struct Option *o) {
    const char *field = (const char *)fields + o->offset;
    return o->type == OPTION_WHOLE ? (double)*(const int64_t *)field : *(const double *)field;
}

static bool *boolean_field(void *fields, const struct Option *o) {
    return (bool *)((char *)fields + o->offset);
}

static char *text_field(void *fields, const struct Option *o) {
    return (char *)fields + o->offset;
}

static void set_default(void *fields, const struct Option *o) {
    if (o->type == OPTION_WHOLE || o->type == OPTION_REAL) set_number(fields, o, o->number);
    if (o->type == OPTION_FLAG) *boolean_field(fields, o) = false;
    if (o->type == OPTION_WORD) strcpy(text_field(fields, o), o->text);
}

/* The value's checks, wherever it came from; `source` begins the message: "" or "FILE: ". */
static void check_number(const struct Option *o, double value, const char *source) {
    if (o->type == OPTION_WHOLE && value != trunc(value))
        die_input("%s--%s wants a whole number, not %g", source, o->name, value);
    if (!(value >= o->min && value <= o->max))
        die_input("%s--%s %.16g is out of range: it goes from %.16g to %.16g", source, o->name,
                  value, o->min, o->max);
}

static void check_text(const struct Option *o, const char *value, const char *source) {
    if (strlen(value) >= OPTION_TEXT)
        die_input("%s--%s is too long: at most %d bytes", source, o->name, OPTION_TEXT - 1);
    bool is_default = strcmp(value, o->text) == 0;   /* an empty one: the objective decides */
    if (o->choices && !is_default && !is_choice(value, o->choices))
        die_input("%s--%s %s is unknown; choose from: %s", source, o->name, quote(value),
                  o->choices);
}

/* Reads a number as the whole of `text`; hexadecimal, "inf" and "nan" are not numbers here. */
static bool read_number(const char *text, double *value) {
    if (!*text || text[strspn(text, "+-.0123456789eE")]) return false;
    char *end;
    *value = strtod(text, &end);
    return *end == 0;
}

static void set_from_line(void *fields, const struct Option *o, const char *text) {
    double number = 0;
    switch (o->type) {
    case OPTION_WHOLE:
    case OPTION_REAL:
        if (!read_number(text, &number))
            die_input("--%s wants a %snumber, not \"%s\"", o->name,
                      o->type == OPTION_WHOLE ? "whole " : "", text);
        check_number(o, number, "");
        set_number(fields, o, number);
        break;
    case OPTION_FLAG:
        if (!is_choice(text, "true false"))
            die_input("--%s is true or false, not \"%s\"", o->name, text);
        *boolean_field(fields, o) = *text == 't';
        break;
    case OPTION_WORD:
        check_text(o, text, "");
        strcpy(text_field(fields, o), text);
        break;
    case OPTION_CONFIG: break;
    }
}

/* Does the field hold the table's default? */
static bool is_default(const void *fields, const struct Option *o) {
    const char *field = (const char *)fields + o->offset;
    double number;
    switch (o->type) {
    case OPTION_WHOLE:
    case OPTION_REAL:
        number = get_number(fields, o);
        return number == o->number || (isnan(number) && isnan(o->number));
    case OPTION_FLAG: return !*(const bool *)field;
    case OPTION_WORD: return strcmp(field, o->text) == 0;
    case OPTION_CONFIG: break;
    }
    return true;
}

bool option_same(const struct Option *o, const void *fields, const void *others) {
    const char *a = (const char *)fields + o->offset, *b = (const char *)others + o->offset;
    double x, y;
    switch (o->type) {
    case OPTION_WHOLE: return *(const int64_t *)a == *(const int64_t *)b;
    case OPTION_REAL:
        x = get_number(fields, o), y = get_number(others, o);
        return x == y || (isnan(x) && isnan(y));
    case OPTION_FLAG: return *(const bool *)a == *(const bool *)b;
    case OPTION_WORD: return strcmp(a, b) == 0;
    case OPTION_CONFIG: break;
    }
    return true;
}

const char *option_value(const struct Option *o, const void *fields, char out[OPTION_TEXT]) {
    const char *field = (const char *)fields + o->offset;
    switch (o->type) {
    case OPTION_WHOLE:
    case OPTION_REAL:
        snprintf(out, OPTION_TEXT, "%.16g", get_number(fields, o));
        if (o->type == OPTION_REAL && isnan(get_number(fields, o))) *out = 0;
        break;
    case OPTION_FLAG: strcpy(out, *(const bool *)field ? "true" : "false"); break;
    case OPTION_WORD: strcpy(out, field); break;
    case OPTION_CONFIG: *out = 0; break;
    }
    return out;
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static void set_from_json(void *fields, const struct Option *o, const cJSON *item,
                          const char *source) {
    static const char *const wanted[] = {"a whole number", "a number", "true or false", "a string"};
    bool fits = o->type == OPTION_FLAG ? cJSON_IsBool(item)
                : o->type == OPTION_WORD ? cJSON_IsString(item) : cJSON_IsNumber(item);
    if (!fits) die_input("%s--%s wants %s", source, o->name, wanted[o->type]);
    if (o->type == OPTION_FLAG) {
        *boolean_field(fields, o) = cJSON_IsTrue(item);
    } else if (o->type == OPTION_WORD) {
        check_text(o, item->valuestring, source);
        strcpy(text_field(fields, o), item->valuestring);
    } else {
        check_number(o, item->valuedouble, source);
        set_number(fields, o, item->valuedouble);
    }
}

static void set_from_config(const struct OptionTable *table, void *fields, const char *path) {
    enum { LIMIT = 1 << 20 };
    char source[OPTION_TEXT];
    const char *problem;
    check_path(source, sizeof source, "%s: ", path);
    cJSON *root = json_read(path, LIMIT, &problem);
    if (!root) die_input("%s%s", source, problem);
    bool seen[OPTION_LIMIT] = {false};
    for (const cJSON *item = root->child; item; item = item->next) {
        int row = option_table_find(table, item->string);
        if (row >= 0 && table->rows[row].type == OPTION_CONFIG)
            die_input("%sa config file cannot name another one", source);
        if (row < 0) die_unknown(table, source, quote(item->string));
        if (seen[row]) die_input("%s--%s is there twice", source, item->string);
        seen[row] = true;
        if (cJSON_IsNull(item)) set_default(fields, &table->rows[row]);
        else set_from_json(fields, &table->rows[row], item, source);
        /* A saved config holds every option. One at its default counts as not given. */
        *given_field(table, fields, row) =
            is_default(fields, &table->rows[row]) ? OPTION_NOT_GIVEN : OPTION_IN_FILE;
    }
    cJSON_Delete(root);
}

/* A number as digits that come back exactly (cJSON's own would lose the last bit); NaN as null. */
static void add_number(cJSON *root, const char *name, double value) {
    char digits[32] = "null";
    if (!isnan(value)) snprintf(digits, sizeof digits, "%.17g", value);
    cJSON_AddRawToObject(root, name, digits);
}

static void add_json(cJSON *root, const void *fields, const struct Option *o) {
    const char *field = (const char *)fields + o->offset;
    switch (o->type) {
    case OPTION_WHOLE:
    case OPTION_REAL: add_number(root, o->name, get_number(fields, o)); break;
    case OPTION_FLAG: cJSON_AddBoolToObject(root, o->name, *(const bool *)field); break;
    case OPTION_WORD: cJSON_AddStringToObject(root, o->name, field); break;
    case OPTION_CONFIG: break;
    }
}

/* Options that say what to do now (--overwrite, --resume) are not saved: in a config that is used
   for a new run they would act on the old one. */
void option_table_save(const struct OptionTable *table, const void *fields, const char *path) {
    cJSON *root = cJSON_CreateObject();
    for (int i = 0; i < table->num_rows; i++)
        if (!(table->rows[i].use & OPTION_ONCE)) add_json(root, fields, &table->rows[i]);
    json_write(root, path, NULL);
}

/* ---- the line -------------------------------------------------------------------------------- */

/* Handles argv[i], and argv[i + 1] where that is its value; returns how many were used. */
static int parse_one(const struct OptionTable *table, void *fields, char **argv, int i) {
    const char *argument = argv[i], *next = argv[i + 1];
    if (strncmp(argument, "--", 2) != 0 || !argument[2])
        die_input("unexpected \"%s\": options begin with -- (see --help)", argument);
    char name[64];
    const char *equals = strchr(argument, '=');
    int length = equals ? (int)(equals - argument) - 2 : (int)strlen(argument) - 2;
    snprintf(name, sizeof name, "%.*s", length, argument + 2);
    int row = option_table_find(table, name);
    if (row < 0) die_unknown(table, "", name);
    const struct Option *o = &table->rows[row];
    const char *value = equals ? equals + 1 : next;
    int used = equals ? 1 : 2;
    if (o->type == OPTION_FLAG && !equals && !(next && is_choice(next, "true false"))) {
        value = "true";
        used = 1;
    }
    if (!value || (!equals && strncmp(value, "--", 2) == 0))
        die_input("--%s needs a value", o->name);
    if (o->type == OPTION_CONFIG) set_from_config(table, fields, value);
    else set_from_line(fields, o, value);
    *given_field(table, fields, row) = OPTION_ON_LINE;
    return used;
}

void option_table_parse(const struct OptionTable *table, void *fields, int argc, char **argv) {
    for (int i = 0; i < table->num_rows; i++) set_default(fields, &table->rows[i]);
    for (int i = 1; i < argc;) {
        i += parse_one(table, fields, argv, i);
        if (*(const bool *)((const char *)fields + table->help)) {
            option_table_help(table, stdout);
            console_end(true);
            exit(0);
        }
    }
}

/* ---- help ------------------------------------------------------------------------------------ */

/* "0 to 65536; default 32", as fits the type. */
static void describe_values(const struct Option *o, char *out, size_t capacity) {
    if (o->type == OPTION_FLAG) snprintf(out, capacity, "default false");
    else if (o->type == OPTION_CONFIG) snprintf(out, capacity, "default none");
    else if (o->type == OPTION_WORD)
        snprintf(out, capacity, "%s%sdefault %s", o->choices ? o->choices : "",
                 o->choices ? "; " : "", *o->text ? o->text : "empty");
    else if (isnan(o->number))
        snprintf(out, capacity, "%.16g to %.16g; default the objective's", o->min, o->max);
    else
        snprintf(out, capacity, "%.16g to %.16g; default %.16g", o->min, o->max, o->number);
}

void option_table_help(const struct OptionTable *table, FILE *out) {
    static const char *const kinds[] = {"N", "X", "", "WORD", "FILE.json"};
    fputs(table->usage, out);
    const char *group = NULL, *newline = "\n                           ";
    for (int i = 0; i < table->num_rows; i++) {
        const struct Option *o = &table->rows[i];
        if (o->group != group) fprintf(out, "\n%s\n", group = o->group);
        char left[48], values[128];
        snprintf(left, sizeof left, "--%s %s", o->name, kinds[o->type]);
        describe_values(o, values, sizeof values);
        bool fits = 25 + strlen(o->help) + 3 + strlen(values) <= 100;
        fprintf(out, "  %-22s %s%s(%s)\n", left, o->help, fits ? " " : newline, values);
    }
    fputs("\n--name=value and --name value are the same; --flag is --flag true.\n", out);
}
