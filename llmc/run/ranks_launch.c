/* The process that starts the ranks of a machine and waits for them. It opens no device. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../base/check.h"
#include "../base/time.h"
#include "../kernels/backends.h"
#include "launch.h"
#include "ranks.h"

/* Seconds from a rank's failure to the moment when the others are asked to end (they see it by
   themselves, through what they communicate, and say in which operation they were); the same where
   the failure is a mistake in the input, which all of them see; and from there to the moment when
   they are killed. */
static const double GRACE = 5, GRACE_INPUT = 0.2, PATIENCE = 10;

static struct {
    pid_t process[RANKS_MOST];   /* 0: has ended */
    int size, running;
    int failed;                  /* exit code of the first that failed; 0: none has */
    double failed_at;
    int stage;                   /* of ending the others: 0 waits, 1 has asked, 2 has killed */
} crew;

/* ---- starting -------------------------------------------------------------------------------- */

static void set_number(const char *name, int number) {
    char digits[16];
    snprintf(digits, sizeof digits, "%d", number);
    setenv(name, digits, 1);
}

/* What the ranks find in their environment, but for their own numbers. */
static void set_environment(int size, const unsigned char id[RANKS_ID]) {
    char hex[2 * RANKS_ID + 1];
    for (int i = 0; i < RANKS_ID; i++) snprintf(hex + 2 * i, 3, "%02x", id[i]);
    setenv("POLICYC_MEETING", hex, 1);
    set_number("WORLD_SIZE", size);
    int threads = launch_processors() / size;   /* where --threads does not say it */
    if (!getenv("OMP_NUM_THREADS")) set_number("OMP_NUM_THREADS", threads > 1 ? threads : 1);
}

/* The signals that this process waits for: those that the user's shell did not have ignored. */
static void waited_signals(sigset_t *set) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    sigemptyset(set);
    sigaddset(set, SIGCHLD);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        struct sigaction now;
        sigaction(numbers[i], NULL, &now);
        if (now.sa_handler != SIG_IGN) sigaddset(set, numbers[i]);
    }
}

/* In the child. A group of its own: a terminal's Ctrl-C goes to the group of the process that the
   user called, which passes it on, and would otherwise come twice. A rank ends when its parent
   does, however that ends. */
static _Noreturn void become_rank(int rank, const char *program, char **argv, pid_t parent,
                                  const sigset_t *mask) {
    setpgid(0, 0);
    signal(SIGTTOU, SIG_IGN);   /* outside the terminal's own group it may still print */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    set_number("RANK", rank), set_number("LOCAL_RANK", rank);
    sigprocmask(SIG_SETMASK, mask, NULL);
    execv(program, argv);
    fprintf(stderr, "train: error: rank %d: cannot start %s: %s\n", rank, program,
            strerror(errno));
    _exit(1);
}

static void start(int size, char **argv, const sigset_t *mask) {
    char program[4096];
    pid_t parent = getpid();
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length < 0) die_machine("cannot read /proc/self/exe: %s", strerror(errno));
    program[length] = '\0';
    fflush(NULL);
    for (int r = 0; r < size; r++) {
        pid_t child = fork();
        if (child == 0) become_rank(r, program, argv, parent, mask);
        if (child < 0) {
            fprintf(stderr, "train: error: cannot start rank %d of %d: %s\n", r, size,
                    strerror(errno));
            crew.failed = 1, crew.failed_at = seconds();
            return;
        }
        setpgid(child, child);   /* both do: whoever is first */
        crew.process[r] = child, crew.running++;
    }
}

/* ---- waiting --------------------------------------------------------------------------------- */

/* To every rank; to its whole group what ends it for certain, so that its scorers end too. */
static void tell(int number) {
    for (int r = 0; r < crew.size; r++)
        if (crew.process[r]) kill(number == SIGKILL ? -crew.process[r] : crew.process[r], number);
}

/* One that failed because it was told to end is not the reason. */
static void note_end(int rank, int status) {
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    crew.process[rank] = 0, crew.running--;
    if (code == 0 || crew.failed) return;
    crew.failed = code, crew.failed_at = seconds();
    if (WIFSIGNALED(status))
        fprintf(stderr, "train: error: rank %d on %s was ended by signal %d (%s)\n", rank,
                check_host(), WTERMSIG(status), strsignal(WTERMSIG(status)));
}

static void collect(void) {
    int status;
    for (pid_t ended; (ended = waitpid(-1, &status, WNOHANG)) > 0;)
        for (int r = 0; r < crew.size; r++)
            if (crew.process[r] == ended) note_end(r, status);
}

/* Ends the others after a failure, step by step. */
static void end_others(void) {
    if (!crew.failed) return;
    double since = seconds() - crew.failed_at;
    double grace = crew.failed == 2 ? GRACE_INPUT : GRACE;
    if (crew.stage == 0 && since >= grace) tell(SIGTERM), crew.stage = 1;
    if (crew.stage == 1 && since >= grace + PATIENCE) tell(SIGKILL), crew.stage = 2;
}

/* Signals go on to the ranks. Two of a kind that come together count as one: timeout(1) signals
   the program and then its group. */
static void pass_on(int number) {
    static double last[NSIG];
    double now = seconds();
    if (now - last[number] >= 0.1) tell(number);
    last[number] = now;
}

_Noreturn void ranks_launch(char **argv, int size, const unsigned char id[RANKS_ID],
                            const char *backend) {
    sigset_t set, before;
    struct timespec tick = {0, 100000000};
    signal(SIGCHLD, SIG_DFL);   /* ignored, it would hide how they end */
    waited_signals(&set);
    sigprocmask(SIG_BLOCK, &set, &before);
    sigdelset(&before, SIGCHLD);
    set_environment(size, id);
    crew.size = size;
    start(size, argv, &before);
    while (crew.running > 0) {
        int number = sigtimedwait(&set, NULL, crew.failed ? &tick : NULL);
        if (number > 0 && number != SIGCHLD) pass_on(number);
        collect();
        end_others();
    }
    backend_meeting_over(backend, id);
    exit(crew.failed);
}
