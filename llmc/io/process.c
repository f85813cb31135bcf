#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- starting -------------------------------------------------------------------------------- */

/* What a new process becomes. */
struct Start {
    const char *command;
    int in, out, err;      /* its standard descriptors */
    int announce;          /* where it writes "+ PID", the guard's pipe; -1: nowhere */
    bool guard;            /* in a session of its own, and not ended with its parent */
    pid_t parent;
    const sigset_t *mask;
};

/* "+ PID\n" without stdio. */
static void announce(int descriptor, char sign, pid_t pid) {
    char text[24], *at = text + sizeof text;
    *--at = '\n';
    do *--at = (char)('0' + pid % 10);
    while ((pid /= 10) > 0);
    *--at = ' ', *--at = sign;
    ssize_t n = write(descriptor, at, (size_t)(text + sizeof text - at));
    (void)n;   /* the guard is gone: nothing to be done */
}

/* A handler must not run in the new process, which still has its parent's memory. What is ignored
   stays so (nohup), except for the signals that only this program ignores. */
static void reset_signals(void) {
    struct sigaction action;
    for (int number = 1; number < NSIG; number++) {
        if (sigaction(number, NULL, &action) != 0) continue;
        bool ours = number == SIGPIPE || number == SIGXFSZ;
        if (action.sa_handler != SIG_DFL && (action.sa_handler != SIG_IGN || ours))
            signal(number, SIG_DFL);
    }
}

static void close_all_from(int first) {
#ifdef SYS_close_range
    if (syscall(SYS_close_range, (unsigned)first, ~0u, 0u) == 0) return;
#endif
    long most = sysconf(_SC_OPEN_MAX);   /* a kernel before Linux 5.9 */
    for (int fd = first; fd < (most > 0 && most < 65536 ? most : 65536); fd++) close(fd);
}

/* Between vfork and exec: this process works in its parent's memory and only makes system calls. */
static _Noreturn void become(const struct Start *start) {
    char *arguments[] = {"sh", "-c", (char *)start->command, NULL};
    reset_signals();
    if (start->guard) setsid();
    else setpgid(0, 0);
    if (!start->guard) {
        /* If the parent died before this call there is no signal, and another parent. */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != start->parent) _exit(127);
    }
    if (start->announce >= 0) announce(start->announce, '+', getpid());
    if (dup2(start->in, 0) < 0 || dup2(start->out, 1) < 0 || dup2(start->err, 2) < 0) _exit(127);
    close_all_from(3);
    sigprocmask(SIG_SETMASK, start->mask, NULL);
    execv("/bin/sh", arguments);
    _exit(127);
}

/* By vfork: fork would copy the page tables of a program that may hold a model of many gigabytes.
   The parent sleeps until exec. Returns the process, or -1 with errno. */
static pid_t spawn(struct Start *start) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    start->mask = &before;
    start->parent = getpid();
    pid_t pid = vfork();
    if (pid == 0) become(start);
    int error = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return pid;
}

static void close_pair(int pair[2]) {
    for (int i = 0; i < 2; i++) {
        if (pair[i] >= 0) close(pair[i]);
        pair[i] = -1;
    }
}

/* ---- the guard ------------------------------------------------------------------------------- */

/* It keeps the numbers of the groups that run, and kills them when its input ends. A kill of its
   own group, or Ctrl-C, does not reach it. */
static const char guard_script[] =
    "trap '' HUP INT TERM QUIT; all=; "
    "while read -r sign pid; do rest=; "
    "for p in $all; do [ \"$p\" = \"$pid\" ] || rest=\"$rest $p\"; done; "
    "[ \"$sign\" = + ] && rest=\"$rest $pid\"; all=$rest; done; "
    "for p in $all; do kill -KILL -$p; done";

static pid_t guard;
static int guard_pipe = -1;

/* Without it (no descriptor left, say) the other two ways remain. */
static void start_guard(void) {
    int pair[2], null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (guard != 0 || null < 0 || pipe2(pair, O_CLOEXEC) != 0) {
        if (null >= 0) close(null);
        return;
    }
    struct Start start = {guard_script, pair[0], null, null, .announce = -1, .guard = true};
    guard = spawn(&start);
    close(null), close(pair[0]);
    if (guard > 0) {
        guard_pipe = pair[1];
        return;
    }
    guard = 0;
    close(pair[1]);
}

void process_dismiss_guard(void) {
    if (guard == 0) return;
    close(guard_pipe);   /* that ends it */
    while (waitpid(guard, NULL, 0) < 0 && errno == EINTR) continue;
    guard = 0, guard_pipe = -1;
}

/* SIGPIPE goes to the thread that writes: blocked here and taken from what is pending, it is nobody
   else's (the program takes it as the end of its own output's reader). */
static ssize_t write_quietly(int descriptor, const void *bytes, size_t count) {
    sigset_t pipe_only, before, pending;
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    sigpending(&pending);
    bool was_pending = sigismember(&pending, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_only, &before);
    ssize_t n = write(descriptor, bytes, count);
    int error = errno;
    if (n < 0 && error == EPIPE && !was_pending)
        while (sigtimedwait(&pipe_only, NULL, &(struct timespec){0}) < 0 && errno == EINTR)
            continue;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return n;
}

static void tell_guard(char sign, pid_t pid) {
    char text[32];
    int length = snprintf(text, sizeof text, "%c %d\n", sign, (int)pid);
    if (guard_pipe >= 0) write_quietly(guard_pipe, text, (size_t)length);
}

/* ---- processes ------------------------------------------------------------------------------- */

static pid_t running[PROCESS_LIMIT];   /* 0: a free place */
static pid_t owner;                    /* whose they are: a fork of it must not end them */

static void replace_running(pid_t old, pid_t new) {
    for (int i = 0; i < PROCESS_LIMIT; i++) {
        if (running[i] != old) continue;
        running[i] = new;
        return;
    }
}

/* At exit. A program that ends as it should has ended them before. */
static void kill_running(void) {
    for (int i = 0; i < PROCESS_LIMIT && owner == getpid(); i++)
        if (running[i] > 0) kill(-running[i], SIGKILL);
}

static bool open_pipes(int pipes[3][2]) {
    for (int i = 0; i < 3; i++) pipes[i][0] = pipes[i][1] = -1;
    for (int i = 0; i < 3; i++) {
        int *pair = pipes[i], ours = i == 0;
        if (pipe2(pair, O_CLOEXEC) != 0 || fcntl(pair[ours], F_SETFL, O_NONBLOCK) != 0) {
            int error = errno;
            for (int k = 0; k < 3; k++) close_pair(pipes[k]);
            errno = error;
            return false;
        }
    }
    return true;
}

bool process_start(struct Process *process, const char *command) {
    int pipes[3][2];
    *process = (struct Process){0, -1, -1, -1};
    if (owner == 0) atexit(kill_running);
    owner = getpid();
    start_guard();
    if (!open_pipes(pipes)) return false;
    struct Start start = {command, pipes[0][0], pipes[1][1], pipes[2][1], .announce = guard_pipe};
    pid_t pid = spawn(&start);
    if (pid < 0) {
        int error = errno;
        for (int i = 0; i < 3; i++) close_pair(pipes[i]);
        errno = error;
        return false;
    }
    close(pipes[0][0]), close(pipes[1][1]), close(pipes[2][1]);
    *process = (struct Process){pid, pipes[0][1], pipes[1][0], pipes[2][0]};
    replace_running(0, pid);
    return true;
}

ssize_t process_write(struct Process *process, const void *bytes, size_t count) {
    return write_quietly(process->in, bytes, count);
}

bool process_ended(const struct Process *process, int *status) {
    siginfo_t info = {0};
    /* It is not waited for yet: its number, and its group's, must stay its own until the kill. */
    if (waitid(P_PID, (id_t)process->pid, &info, WEXITED | WNOHANG | WNOWAIT) != 0) return false;
    if (info.si_pid != process->pid) return false;
    *status = info.si_code == CLD_EXITED ? W_EXITCODE(info.si_status, 0) : info.si_status;
    return true;
}

void process_close_input(struct Process *process) {
    if (process->in >= 0) close(process->in);
    process->in = -1;
}

/* A killed process may take its time (a page that is being read); it is not waited for for ever. */
static void wait_briefly(pid_t pid) {
    for (int i = 0; i < 2000; i++) {
        pid_t got = waitpid(pid, NULL, WNOHANG);
        if (got == pid || (got < 0 && errno != EINTR)) return;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
}

void process_kill(struct Process *process) {
    if (process->pid == 0) return;
    kill(-process->pid, SIGKILL);
    wait_briefly(process->pid);
    tell_guard('-', process->pid);
    replace_running(process->pid, 0);
    process_close_input(process);
    if (process->out >= 0) close(process->out);
    if (process->err >= 0) close(process->err);
    *process = (struct Process){0, -1, -1, -1};
}

const char *process_status(int status) {
    static char text[64];
    if (WIFSIGNALED(status))
        snprintf(text, sizeof text, "signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else
        snprintf(text, sizeof text, "exit code %d", WEXITSTATUS(status));
    return text;
}
