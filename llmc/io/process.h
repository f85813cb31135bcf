/* A command of the user's that runs beside the program: its standard input, output and error are
   pipes to it, and it is a process group of its own, so that the terminal's Ctrl-C does not reach
   it and everything that it starts can be ended with it.

   The group ends with the program, however that ends: by exit (a handler kills it), by a signal or
   by SIGKILL. For the latter the command's shell asks the kernel for a signal at its parent's
   death, and a small shell, the guard, kills the groups that are left when its pipe to the program
   breaks. Only what leaves its group (setsid) gets away.

   Call everything here from the main thread: the kernel's signal comes at the death of the thread
   that started the command. */
#ifndef LLMC_PROCESS_H
#define LLMC_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum { PROCESS_LIMIT = 256 };   /* that may run at the same time */

struct Process {
    pid_t pid;                  /* also its group's number; 0: none runs */
    int in, out, err;           /* to its standard input, from its output and error; none of them
                                   blocks; -1: closed */
};

/* Starts `/bin/sh -c command`. False, with errno: the machine has no process or descriptor left. If
   the shell cannot find the command, it ends with code 127; if it may not run it, with 126. */
bool process_start(struct Process *process, const char *command);
/* write(2) to its standard input; a reader that is gone is EPIPE, never the signal SIGPIPE. */
ssize_t process_write(struct Process *process, const void *bytes, size_t count);
/* Has the shell ended? *status: as of waitpid. The group's others may still run. */
bool process_ended(const struct Process *process, int *status);
/* Closes its standard input, which asks it to end. */
void process_close_input(struct Process *process);
/* Ends the whole group at once (SIGKILL), waits for the shell and closes the pipes. */
void process_kill(struct Process *process);
/* When no process is left: the guard ends too. It is started again when it is needed. */
void process_dismiss_guard(void);
/* "exit code 3", "signal 9 (Killed)" for a status of waitpid (static storage). */
const char *process_status(int status);

#endif
