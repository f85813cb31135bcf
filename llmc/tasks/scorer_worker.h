/* One process of a scorer: lines to it, lines from it, and what it says on its standard error.
   Nothing here waits. */
#ifndef LLMC_SCORER_WORKER_H
#define LLMC_SCORER_WORKER_H

#include <stdint.h>
#include "../base/text.h"
#include "../io/process.h"

enum {
    WORKER_LINE = 1 << 20,      /* bytes of the longest line that is read; longer ones are
                                   passed over */
    WORKER_TURN = 1 << 18,      /* bytes read at a time, so that a flood does not stop the others */
    WORKER_SAID = 200,          /* bytes of a line of standard error that are shown */
};

/* How much of standard error is shown: 20 lines at once, then one a second. One for all workers. */
struct Voice {
    double allowed, since;      /* lines that may be shown, as of that time */
    int64_t hidden;             /* lines since the last that was */
};

struct Worker {
    struct Process process;
    int number;                 /* from 1, for messages */
    struct Text out;            /* requests; those before `written` were taken */
    size_t written;
    struct Text in;             /* the beginning of a line */
    bool passing_over;          /* the rest of a line that is too long */
    struct Text said;           /* the beginning of a line of standard error */
    char last_said[WORKER_SAID + 1];
};

/* True if the process runs now; false as in process_start. */
bool worker_start(struct Worker *worker, const char *command);
/* Shows its last words, and kills it with all that it started; requests and half lines are
   dropped. */
void worker_stop(struct Worker *worker, struct Voice *voice);
void worker_free(struct Worker *worker);   /* of one that does not run */

/* Writes of `out` what the pipe takes. False: the process has closed its input. */
bool worker_write(struct Worker *worker);
/* Reads at most WORKER_TURN bytes and gives each line that is whole to `line`; text is terminated,
   and NULL for one longer than WORKER_LINE. *bytes += how many came. False: the process has closed
   its output, and all of it was read. */
typedef void WorkerLine(void *context, struct Worker *worker, const char *text, size_t length);
bool worker_read(struct Worker *worker, size_t *bytes, WorkerLine *line, void *context);
/* Shows what it says on standard error, with its number in front, as far as the voice allows. */
void worker_listen(struct Worker *worker, struct Voice *voice);

#endif
