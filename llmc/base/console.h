/* What the program prints for a person, on standard output. On a terminal: a table line per step,
   and a progress line with the time left. Elsewhere: plain lines, a step's line now and then, and
   nothing is overwritten. With --quiet: errors and results only. */
#ifndef LLMC_CONSOLE_H
#define LLMC_CONSOLE_H

#include <stdbool.h>
#include <stdint.h>

void console_open(bool quiet);
/* Nothing is printed any more but errors, whatever console_open says: for ranks other than 0. */
void console_mute(void);
bool console_quiet(void);
/* A printf-like line of the log (stdout), followed by a newline; nothing when quiet. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same for what the program was asked for: it is printed with --quiet too. If it cannot be
   written the program ends (die_machine). */
void say_result(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Call when all has been printed, before the program ends by itself: ends it by die_machine if
   standard output could not be written. all: everything that was printed is what the program was
   asked for (a result, --help), and must be there. Otherwise it was a run's log: then a reader that
   went away (`| head`) and a closed output are nobody's fault. */
void console_end(bool all);
/* Redraws the progress line "what 120/300 [#####....] 0:42 left"; nothing unless on a terminal. */
void console_progress(const char *what, int64_t done, int64_t total, double seconds_left);
/* Removes the progress line (before any other output; called by say, warn, die). */
void console_clear(void);
/* Seconds as 0:42, 12:03, 1:02:03 in a static buffer. */
const char *console_time(double seconds);

#endif
