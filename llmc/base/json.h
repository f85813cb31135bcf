/* JSON files, whole: the parser and the tree are cJSON's (its type and functions are used as they
   are); files, memory and tables of fields are here. */
#ifndef LLMC_JSON_H
#define LLMC_JSON_H

#include <cjson/cJSON.h>
#include <stddef.h>
#include "checksums.h"
#include "fields.h"
#include "text.h"

/* Call before every other function here. From then on cJSON takes its memory from `allocate`
   (malloc; tests give others), and an allocation that fails ends the program (die_machine). cJSON
   itself would go on: a file would be written without a field, or a good file be called bad. */
void json_memory(void *(*allocate)(size_t));

/* cJSON reads more than JSON (RFC 8259): control characters as blanks and within strings, numbers
   such as 01 and 1., bytes in front of it that mark UTF-8. Whoever looks for the same places in the
   text itself would find others, and other programs refuse such files. And at the character \u0000
   its strings end: two names could be one. This tells such a text [length], terminated, and where
   it is (from 0). Of a text that is no JSON at all it says so, or GOOD. */
enum JsonFault { JSON_GOOD, JSON_LAX, JSON_ZERO };
enum JsonFault json_fault(const char *text, size_t length, size_t *at);

/* The one JSON object that the file holds, for cJSON_Delete; or NULL and in *problem one sentence
   that says what is wrong (static storage, without the file's name). Where the machine failed
   (memory, disk, too many files) it ends the program. */
cJSON *json_read(const char *path, size_t most_bytes, const char **problem);
/* The two halves of it: the file as terminated text (free it), and the object that a text [length],
   terminated, holds. It is UTF-8 without a fault, but for a mark of UTF-8 in front. */
char *json_read_text(const char *path, size_t most_bytes, size_t *length, const char **problem);
cJSON *json_parse(const char *text, size_t length, const char **problem);
/* A line with one JSON object [length], terminated, whose strings may have zero characters
   (\u0000), which end a string of cJSON's: in the object they are the character `zero`, one that
   the line does not have ("": there are none). NULL: not one JSON object. json_append_string
   appends a string of the object with its zeros. */
cJSON *json_parse_line(const char *line, size_t length, char zero[4]);
void json_append_string(struct Text *out, const char *string, const char zero[4]);
/* Writes the object, atomically, and deletes it; its checksum goes into sums (or NULL). Ends the
   program if it cannot. */
void json_write(cJSON *json, const char *path, struct Checksums *sums);

/* Appends to out the JSON object `text`, in which `key` of the outermost object has the value
   `value` (JSON): in its place where it is there, else as the last. All else stays byte for byte,
   which reading and printing would not leave so (1e-05, 10000.0). `text` was read without a
   problem. */
void json_set(struct Text *out, const char *text, const char *key, const char *value);

/* A struct by its table. json_get_fields returns NULL, or the row of the first field that is
   missing or out of its bounds. */
void json_add_fields(cJSON *json, const struct FieldTable *table, const void *object);
const struct Field *json_get_fields(const cJSON *json, const struct FieldTable *table,
                                    void *object);

#endif
