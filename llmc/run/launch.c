#include "launch.h"

#include <fcntl.h>
#include <omp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include "../base/check.h"

/* OpenBLAS's own; not every version's cblas.h declares it. */
extern char *openblas_get_corename(void);

const char *launch_blas_name(void) { return openblas_get_corename(); }

/* A file that the run opens would get the number of a closed standard descriptor, and what is
   printed would be written into that file. /dev/null takes its place, opened for the opposite
   direction: reading standard input or writing standard output is still an error. */
static void open_standard_descriptors(void) {
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0) open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
}

void launch_prepare(char **argv) {
    open_standard_descriptors();
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT") || getenv("KMP_BLOCKTIME")) return;
    char self[4096];   /* by its own name, so that ps and pkill still know the program */
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length <= 0) return;
    self[length] = 0;
    setenv("GOMP_SPINCOUNT", "1000", 1);   /* GNU's runtime: about a microsecond */
    setenv("KMP_BLOCKTIME", "0", 1);       /* LLVM's, in milliseconds */
    execv(self, argv);
}

/* A container may have fewer processors' worth of time than it sees processors; threads beyond that
   wait for each other at every barrier. 0: no limit. */
static int control_group_limit(void) {
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (!file) return 0;
    double quota, period;   /* "max 100000" means none */
    int fields = fscanf(file, "%lf %lf", &quota, &period);
    fclose(file);
    if (fields != 2 || !(period > 0) || !(quota > 0)) return 0;
    double processors = quota / period;
    return processors < 1 ? 1 : processors < 4096 ? (int)processors : 0;
}

int launch_processors(void) {
    int n = omp_get_num_procs(), limit = control_group_limit();
    return limit && limit < n ? limit : n;
}

int launch_threads(int64_t wanted) {
    int n = (int)wanted, given = 1;
    if (n <= 0) {
        n = omp_get_max_threads();   /* OMP_NUM_THREADS, or the processors of this process */
        if (n == omp_get_num_procs()) n = launch_processors();
    }
    omp_set_dynamic(0);   /* else OpenMP may start fewer threads than memory is planned for */
    omp_set_num_threads(n);
    #pragma omp parallel
    #pragma omp single
    given = omp_get_num_threads();
    /* OpenBLAS believes omp_get_max_threads. In a team of one it would share a product among that
       many and wait for ever for those that are not there. */
    omp_set_num_threads(given);
    if (wanted > 0 && given != wanted)
        warn("--threads %lld: OpenMP gives %d (see OMP_THREAD_LIMIT)", (long long)wanted, given);
    return given;
}

/* ---- signals --------------------------------------------------------------------------------- */

static volatile sig_atomic_t stop_requested, times_received[NSIG];
static struct timespec received;

/* The first asks the loop to stop, the next of its kind ends the program at once. Two that come
   together count as one: timeout(1) signals the program and then its group. */
static void request_stop(int number) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double since = (double)(now.tv_sec - received.tv_sec) +
                   1e-9 * (double)(now.tv_nsec - received.tv_nsec);
    if (times_received[number]++ == 0 || since < 0.1) {
        if (times_received[number] == 1) received = now;
        stop_requested = 1;
        return;
    }
    signal(number, SIG_DFL);
    raise(number);
}

/* The program that reads our output has ended (`| head`): the run saves and stops. */
static void lose_reader(int number) {
    (void)number;
    stop_requested = 1;
}

void launch_catch_signals(void) {
    static const int asking[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof asking / sizeof *asking; i++) {
        struct sigaction action = {.sa_handler = request_stop, .sa_flags = SA_RESTART}, before;
        sigaction(asking[i], NULL, &before);
        if (before.sa_handler != SIG_IGN) sigaction(asking[i], &action, NULL);   /* nohup */
    }
    struct sigaction pipe = {.sa_handler = lose_reader, .sa_flags = SA_RESTART};
    sigaction(SIGPIPE, &pipe, NULL);
}

void launch_ignore_size_limit(void) {
    /* A file size limit (ulimit -f) is then a write error with a message, as a full disk is. */
    signal(SIGXFSZ, SIG_IGN);
}

bool launch_stop_requested(void) { return stop_requested; }
