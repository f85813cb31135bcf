/* Plain structs described by tables, a row per field. Who owns a struct owns its table; who writes
   a file (the checkpoint's trainer_state.json) knows tables only. A value read from a file comes
   into the struct only within its row's bounds, so that nothing a file says overflows or indexes
   out of an array. */
#ifndef LLMC_FIELDS_H
#define LLMC_FIELDS_H

#include <stdbool.h>
#include <stddef.h>

/* With the size this says the C type: int or int64_t, float or double, char [size]. */
enum FieldType { FIELD_INTEGER, FIELD_REAL, FIELD_TEXT };

struct Field {
    const char *name;        /* in the file */
    enum FieldType type;
    size_t offset, size;
    double low, high;        /* numbers: both ends allowed. Integers stay below FIELD_EXACT. */
    bool or_nan;             /* REAL: NaN too, for what is not known yet */
    bool optional;           /* files of before this field say nothing: it stays as it is */
};

struct FieldTable {
    const struct Field *fields;
    int count;
};

/* A struct to save or to fill, with its table. Lists of them end with a table of NULL. */
struct FieldSection {
    const struct FieldTable *table;
    void *object;
};

/* The first parts of a row of `structure`; low, high and flags follow. */
#define FIELD(type_, structure, member, name_)                                            \
    .name = name_, .type = type_, .offset = offsetof(structure, member),                  \
    .size = sizeof(((structure *)0)->member)
#define FIELD_EXACT 9007199254740991.0   /* 2^53 - 1: JSON's numbers are exact up to here */

/* Sets the field of `object`; false, and nothing is changed, if the value is of the wrong kind, out
   of bounds or too long. A number's text is its digits ("nan", "inf" and "-inf" too, if in
   bounds). */
bool field_set_number(const struct Field *field, void *object, double value);
bool field_set_text(const struct Field *field, void *object, const char *text);
/* The value as text: 17 digits, which bring every double back; or the text itself. Returns whether
   it is a number that JSON has: finite, and an integer only up to FIELD_EXACT. */
bool field_print(char *out, size_t capacity, const struct Field *field, const void *object);
/* What the field takes, for messages: "a whole number from 0 to 1000" (static storage). */
const char *field_wants(const struct Field *field);

#endif
