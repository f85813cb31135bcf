/* Reads the lines of a file that another program or a person wrote. The end of the file and a read
   that failed are told apart, and so are a zero byte within a line and the end of the line. */
#ifndef LLMC_LINES_H
#define LLMC_LINES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct Lines {
    FILE *stream;
    char path[4096];
    const char *option;   /* that named the file, for messages; "" if none did */
    char *text;           /* the line in hand, with its newline where it has one; terminated */
    size_t length, capacity;
    long number;          /* of the line in hand, from 1 */
};

/* die_errno if the file cannot be opened. option: "--score", or NULL. */
void lines_open(struct Lines *lines, const char *path, const char *option);
/* The next line: 1; 0 at the end of the file; -1 where reading failed, with errno (a line that was
   begun is lost then). */
int lines_try(struct Lines *lines);
/* The same, true or false; a failed read ends the program: lines_fail. */
bool lines_next(struct Lines *lines);
_Noreturn void lines_fail(const struct Lines *lines);
/* Does the line hold a zero byte? String functions would not see what comes after it. */
bool lines_has_zero(const struct Lines *lines);
void lines_close(struct Lines *lines);

#endif
