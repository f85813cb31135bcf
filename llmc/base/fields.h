/* Plain structs described by tables, a row per field. The module that defines a struct defines its
   table too; the module that writes the file (trainer_state.json of a checkpoint) works with tables
   only. A value from a file is stored in the struct only if it is within its row's bounds, so no
   file can make the program overflow a counter or read outside an array. */
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
    bool or_nan;             /* REAL: NaN is allowed too, for a value that is not known yet */
    bool optional;           /* may be missing, as in older files: the value stays as it is */
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
