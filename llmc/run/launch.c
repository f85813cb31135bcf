#include "launch.h"

#include <omp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* OpenBLAS's own; not every version's cblas.h declares it. */
extern char *openblas_get_corename(void);

const char *launch_blas_name(void) { return openblas_get_corename(); }

void launch_with_patient_threads(char **argv) {
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

int launch_threads(int64_t n) {
    if (n <= 0) {
        int limit = control_group_limit();
        n = omp_get_num_procs();
        if (limit && limit < n) n = limit;
    }
    omp_set_num_threads((int)n);
    return (int)n;
}

static volatile sig_atomic_t stop_requested;

static void request_stop(int signal_number) {
    (void)signal_number;
    stop_requested = 1;
}

void launch_catch_signals(void) {
    struct sigaction action = {.sa_handler = request_stop, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
    action.sa_flags |= SA_RESETHAND;   /* so the second SIGINT has its usual effect */
    sigaction(SIGINT, &action, NULL);
    /* A file size limit (ulimit -f) is then a write error with a message, as a full disk is. */
    signal(SIGXFSZ, SIG_IGN);
}

bool launch_stop_requested(void) { return stop_requested; }
