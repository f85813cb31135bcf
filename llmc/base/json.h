/* JSON files, whole: the parser and the tree are cJSON's (its type and functions are used as they
   are); files, memory and tables of fields are here. */
#ifndef LLMC_JSON_H
#define LLMC_JSON_H

#include <cjson/cJSON.h>
#include <stddef.h>
#include "checksums.h"
#include "fields.h"

/* Call before every other function here. From then on cJSON takes its memory from `allocate`
   (malloc; tests give others), and an allocation that fails ends the program (die_machine). cJSON
   itself would go on: a file would be written without a field, or a good file be called bad. */
void json_memory(void *(*allocate)(size_t));

/* The one JSON object that the file holds, for cJSON_Delete; or NULL and in *problem one sentence
   that says what is wrong (static storage, without the file's name). Where the machine failed
   (memory, disk, too many files) it ends the program. */
cJSON *json_read(const char *path, size_t most_bytes, const char **problem);
/* Writes the object, atomically, and deletes it; its checksum goes into sums (or NULL). Ends the
   program if it cannot. */
void json_write(cJSON *json, const char *path, struct Checksums *sums);

/* A struct by its table. json_get_fields returns NULL, or the row of the first field that is
   missing or out of its bounds. */
void json_add_fields(cJSON *json, const struct FieldTable *table, const void *object);
const struct Field *json_get_fields(const cJSON *json, const struct FieldTable *table,
                                    void *object);

#endif
