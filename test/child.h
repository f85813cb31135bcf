/* Running code that ends the process: in a child, its exit code and its output kept. */
#ifndef CHILD_H
#define CHILD_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

/* A child that ends the program frees nothing, so LeakSanitizer does not look at it. */
#ifdef __SANITIZE_ADDRESS__
void __lsan_disable(void);
#else
static inline void __lsan_disable(void) {}
#endif

/* Runs body(argument) in a child with stdout and stderr going to `output` (terminated, cut at
   capacity). Returns its exit code, 0 if body returned, or 128 + the signal that ended it. */
static inline int run_in_child(void (*body)(void *), void *argument, char *output,
                               size_t capacity) {
    int ends[2];
    fflush(NULL);
    if (pipe(ends) != 0) abort();
    pid_t child = fork();
    if (child < 0) abort();
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        __lsan_disable();
        body(argument);
        exit(0);
    }
    close(ends[1]);
    size_t length = 0;
    char rest[512];
    for (ssize_t n; (n = read(ends[0], rest, sizeof rest)) > 0;)
        for (ssize_t i = 0; i < n; i++)
            if (length + 1 < capacity) output[length++] = rest[i];
    output[length] = 0;
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

#endif
