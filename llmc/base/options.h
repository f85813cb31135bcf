/* Options as a table: name, type, range, default, help. The parser of the command line, --help,
   --config FILE.json and the JSON file that a run saves all read the same rows, so they cannot
   disagree. The program's rows are in llmc/run/options.c. */
#ifndef LLMC_BASE_OPTIONS_H
#define LLMC_BASE_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#define OPTION_TEXT 1024   /* bytes of a word's field, the final zero included */
#define OPTION_LIMIT 128   /* rows a table may have */

/* A field is int64_t, double, bool, char[OPTION_TEXT]; CONFIG is --config itself, no field. */
enum OptionType { OPTION_WHOLE, OPTION_REAL, OPTION_FLAG, OPTION_WORD, OPTION_CONFIG };

/* How an option was set: by the word itself, by a file, or not at all. */
enum OptionGiven { OPTION_NOT_GIVEN, OPTION_IN_FILE, OPTION_ON_LINE };

/* The one bit of `use` that this file knows; the others are the program's. */
#define OPTION_ONCE 1      /* acts now and is no part of the recipe: not saved */

struct Option {
    const char *name;      /* without the dashes */
    enum OptionType type;
    size_t offset;         /* of the field */
    double min, max;       /* WHOLE, REAL; both ends allowed */
    double number;         /* default; NaN = left to something else. A FLAG's is false. */
    const char *text;      /* default of a WORD */
    const char *choices;   /* space-separated values that a WORD may have, or NULL: any */
    const char *group;     /* its heading in the help */
    unsigned use;          /* bits that say when it acts */
    const char *help;
};

/* An option's name in other programs, and what to say to somebody who types it here. */
struct OptionSynonym {
    const char *theirs;    /* without the dashes */
    const char *ours;      /* our option, dashes and all, or what to do instead */
};

struct OptionTable {
    const struct Option *rows;
    int num_rows;
    const struct OptionSynonym *synonyms;
    int num_synonyms;
    size_t given;          /* offset of unsigned char given[OPTION_LIMIT], by row: OptionGiven */
    size_t help;           /* offset of the field that --help sets */
    const char *usage;     /* what the help begins with */
};

/* Defaults, then --config FILE in its place on the line, then the line. `fields` is the struct that
   the offsets are of, zeroed by the caller. die_input for anything unknown (naming the synonym's
   or the nearest name), out of range, or without its value. --help prints and exits 0. */
void option_table_parse(const struct OptionTable *table, void *fields, int argc, char **argv);
/* --help's text: every option with its default and range. */
void option_table_help(const struct OptionTable *table, FILE *out);
/* All options but those with OPTION_ONCE as JSON, atomically; read back by --config. */
void option_table_save(const struct OptionTable *table, const void *fields, const char *path);
/* The row called `name`, or -1. */
int option_table_find(const struct OptionTable *table, const char *name);
/* Do two structs hold the same value of a row? (NaN equals NaN.) */
bool option_same(const struct Option *row, const void *fields, const void *others);
/* The value as it would stand on the line, e.g. "0.0001"; "" for an undecided number. */
const char *option_value(const struct Option *row, const void *fields, char out[OPTION_TEXT]);

#endif
