#include "fields.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *place(const struct Field *field, const void *object) {
    return (char *)object + field->offset;
}

bool field_set_number(const struct Field *field, void *object, double value) {
    bool inside = value >= field->low && value <= field->high;
    if (field->type == FIELD_TEXT || !(inside || (field->or_nan && isnan(value)))) return false;
    void *at = place(field, object);
    if (field->type == FIELD_REAL) {
        if (field->size == sizeof(float)) *(float *)at = (float)value;
        else *(double *)at = value;
        return true;
    }
    if (value != floor(value) || fabs(value) > FIELD_EXACT) return false;
    if (field->size == sizeof(int)) *(int *)at = (int)value;
    else *(int64_t *)at = (int64_t)value;
    return true;
}

bool field_set_text(const struct Field *field, void *object, const char *text) {
    if (field->type == FIELD_TEXT) {
        size_t length = strlen(text);
        if (length >= field->size) return false;
        memset(place(field, object), 0, field->size);
        memcpy(place(field, object), text, length);
        return true;
    }
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    /* strtod reports subnormal numbers through errno, and reads them all the same */
    bool read = end != text && *end == '\0' && (errno == 0 || fabs(value) < 1);
    return read && field_set_number(field, object, value);
}

bool field_print(char *out, size_t capacity, const struct Field *field, const void *object) {
    const void *at = place(field, object);
    if (field->type == FIELD_TEXT) {
        snprintf(out, capacity, "%.*s", (int)field->size, (const char *)at);
        return false;
    }
    if (field->type == FIELD_INTEGER) {
        bool narrow = field->size == sizeof(int);
        int64_t value = narrow ? *(const int *)at : *(const int64_t *)at;
        snprintf(out, capacity, "%lld", (long long)value);
        return fabs((double)value) <= FIELD_EXACT;
    }
    double value = field->size == sizeof(float) ? *(const float *)at : *(const double *)at;
    snprintf(out, capacity, "%.17g", value);
    return isfinite(value);
}

const char *field_wants(const struct Field *field) {
    static char text[128];
    if (field->type == FIELD_TEXT)
        snprintf(text, sizeof text, "a text of at most %zu bytes", field->size - 1);
    else
        snprintf(text, sizeof text, "a %snumber from %.16g to %.16g",
                 field->type == FIELD_INTEGER ? "whole " : "", field->low, field->high);
    return text;
}
