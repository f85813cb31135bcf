/* run/ranks: who a process is, the process that starts the others, and what all must have alike. No
   model is trained: this program plays the ranks (roles), started through ranks_begin as ./train
   is. */
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include "../llmc/base/check.h"
#include "../llmc/kernels/backends.h"
#include "../llmc/run/ranks.h"
#include "program_rig.h"

/* ---- roles: what this program does as a rank ------------------------------------------------- */

/* Leaves a file called `name`.RANK with what the rank knows, then `name` is complete. */
static void leave(const char *name, const struct Ranks *ranks, const struct Options *o) {
    char path[64], there[64];
    unsigned sum = 0;
    snprintf(path, sizeof path, "%s.%d.tmp", name, ranks->rank);
    snprintf(there, sizeof there, "%s.%d", name, ranks->rank);
    for (int i = 0; i < RANKS_ID; i++) sum = 31 * sum + ranks->id[i];
    FILE *file = fopen(path, "w");
    if (!file) exit(99);
    fprintf(file, "rank %d of %d local %d device %d backend %s launcher %s meeting %s id %s %u "
            "threads %s environment %d pid %d group %d place %s\n", ranks->rank, ranks->size,
            ranks->local, ranks_device(ranks, o), ranks_backend(o),
            ranks->launcher ? ranks->launcher : "-", ranks->meeting[0] ? ranks->meeting : "-",
            ranks->id[0] ? "yes" : "no", sum % 999983,
            getenv("OMP_NUM_THREADS") ? getenv("OMP_NUM_THREADS") : "-",
            getenv("RANK") || getenv("WORLD_SIZE") || getenv("POLICYC_MEETING"), (int)getpid(),
            getpgrp() == getpid(), ranks->id[0] == '/' ? (const char *)ranks->id : "-");
    fclose(file);
    if (rename(path, there) != 0) exit(99);
}

static void wait_alone(void) {
    alarm(120);
    for (;;) pause();
}

static const char *signal_file;
static int signals_seen;

static void count_signal(int number) {
    char line[32];
    int file = open(signal_file, O_WRONLY | O_CREAT | O_APPEND, 0666);
    int n = snprintf(line, sizeof line, "%d\n", number);
    if (file >= 0 && write(file, line, (size_t)n) == n) close(file);
    if (++signals_seen > 1) _exit(128 + number);
}

/* With ROLE in its environment this program is one of them; `fails` rank 1's. */
static int play(const char *role, int argc, char **argv) {
    struct Options o;
    struct Ranks ranks = ranks_begin(argc, argv);
    options_parse(&o, argc, argv);
    bool fails = ranks.rank == 1;
    if (strcmp(role, "tell") == 0) leave("told", &ranks, &o);
    if (strcmp(role, "exit7") == 0 && !fails) wait_alone();
    if (strcmp(role, "exit7") == 0) return 7;
    if (strcmp(role, "killed") == 0 && fails) raise(SIGKILL);
    if (strcmp(role, "killed") == 0) wait_alone();
    if (strcmp(role, "stubborn") == 0) {   /* the others do not end when they are asked */
        signal(SIGTERM, SIG_IGN);
        leave("stubborn", &ranks, &o);
        if (!fails) wait_alone();
        pause_for(500000);
        return 3;
    }
    if (strcmp(role, "input") == 0) die_input("no such file");
    if (strcmp(role, "signals") == 0) {
        static char name[32];
        snprintf(name, sizeof name, "signals.log.%d", ranks.rank);
        signal_file = name;
        signal(SIGINT, count_signal), signal(SIGTERM, count_signal);
        leave("ready", &ranks, &o);
        alarm(120);
        for (double end = 0; !signals_seen || end < 20; end++) pause_for(100000);
        return 0;   /* two seconds after the first, if no second one came */
    }
    if (strcmp(role, "wait") == 0) {
        leave("ready", &ranks, &o);
        wait_alone();
    }
    if (strcmp(role, "meet") == 0) {
        struct World world;
        const struct Ops *ops = ops_open("cpu", "fp32", 0);
        char *other = getenv("OTHER");   /* rank 1 was given other options */
        if (other && fails) {
            char *line[] = {argv[0], "--ranks", "3", "--lr", other, NULL};
            options_parse(&o, 5, line);
        }
        ranks_open(&world, &ranks, &o, ops);
        ranks_check(&world, &ranks, &o, ops, NULL);
        double sum = ranks.rank + 1;
        world_sum(&world, &sum, 1);
        printf("rank %d sum %g\n", ranks.rank, sum);
        world_close(&world);
    }
    return 0;
}

/* ---- starting -------------------------------------------------------------------------------- */

#define ROLE(role) "ROLE=" role " OMP_WAIT_POLICY=passive timeout -k 1 100 $T "

static void assert_said(const char *what) {
    if (!strstr(output, what)) fail_msg("\"%s\" is not in: %s", what, output);
}

/* What rank r has left. */
static const char *left(const char *name, int rank) {
    static char text[4][1024];
    static int turn;
    char file[64];
    size_t size;
    snprintf(file, sizeof file, "%s.%d", name, rank);
    char *data = read_file(file, &size);
    snprintf(text[++turn % 4], sizeof text[0], "%s", data);
    free(data);
    return text[turn % 4];
}

static int number_in(const char *text, const char *key) {
    const char *at = strstr(text, key);
    if (!at) fail_msg("no %s in: %s", key, text);
    return atoi(at + strlen(key));
}

/* The ranks have other processes, and those are gone. */
static void assert_gone(const char *name, int ranks) {
    for (int r = 0; r < ranks; r++) {
        pid_t process = number_in(left(name, r), "pid ");
        for (int i = 0; kill(process, 0) == 0; i++, pause_for(10000))
            if (i == 3000) fail_msg("rank %d, process %d, is still there", r, (int)process);
    }
}

static void test_ranks_of_the_cpu(void **state) {
    (void)state;
    RUN_OK("unset OMP_NUM_THREADS; " ROLE("tell") "--ranks 3");
    int processors = 0, sum = number_in(left("told", 0), "id yes ");
    RUN_OK("nproc");
    processors = atoi(output);
    for (int r = 0; r < 3; r++) {
        char expected[128];
        const char *told = left("told", r);
        snprintf(expected, sizeof expected, "rank %d of 3 local %d device %d backend cpu launcher "
                 "--ranks meeting - id yes ", r, r, r);
        if (strncmp(told, expected, strlen(expected)) != 0) fail_msg("%s\n%s", told, expected);
        assert_int_equal(number_in(told, "id yes "), sum);
        assert_in_range(number_in(told, "threads "), 1, processors / 3 > 1 ? processors / 3 : 1);
        assert_int_equal(number_in(told, "environment "), 0);   /* a scorer is no rank */
        assert_int_equal(number_in(told, "group "), 1);
    }
    assert_gone("told", 3);
    RUN_OK("OMP_NUM_THREADS=5 " ROLE("tell") "--ranks 2");
    assert_int_equal(number_in(left("told", 1), "threads "), 5);
    RUN_OK("rm told.*; " ROLE("tell") "--ranks 1 && test -f told.0 && ! test -f told.1");
    RUN_OK("rm told.*; " ROLE("tell") "--ranks 4 --dry-run && test -f told.0 && ! test -f told.1");
    RUN_OK("rm told.*; echo '{\"ranks\": 2}' >c.json; " ROLE("tell") "--config c.json; "
           "test -f told.1");
    RUN_OK("rm told.*; echo '{\"seed\": 2}' | " ROLE("tell") "--config /dev/stdin");
}

/* The shared memory in which the ranks of "told" were to meet, but did not, is gone. */
static void assert_place_gone(void) {
    char name[64];
    const char *at = strstr(left("told", 0), "place /policyc-");
    assert_true(at && sscanf(at, "place /%63s", name) == 1);
    RUN_OK("! test -e /dev/shm/%s", name);
}

/* They meet, and nothing of it is left. */
static void test_meeting(void **state) {
    (void)state;
    RUN_OK(ROLE("meet") "--ranks 3 | sort >met; cat met");
    assert_string_equal(output, "rank 0 sum 6\nrank 1 sum 6\nrank 2 sum 6\n");
    RUN_OK(ROLE("tell") "--ranks 2");
    assert_place_gone();
}

static void test_exit_codes(void **state) {
    (void)state;
    assert_int_equal(run(ROLE("exit7") "--ranks 3"), 7);
    assert_int_equal(run(ROLE("killed") "--ranks 3"), 128 + SIGKILL);
    assert_said("train: error: rank 1 on ");
    assert_said("was ended by signal 9 (Killed)");
}

/* A mistake that all ranks see is said once, by rank 0. */
static void test_input_is_said_once(void **state) {
    (void)state;
    assert_int_equal(run(ROLE("input") "--ranks 3"), 2);
    assert_said("train: error: rank 0 on ");
    assert_said("(test_ranks_launch.c:");
    assert_said("): no such file\n");
    assert_null(strstr(strchr(output, '\n') + 1, "error"));
    assert_int_equal(run(ROLE("tell") "--ranks 3 --lr fast"), 2);   /* before any is started */
    assert_string_equal(output, "train: error: --lr wants a number, not \"fast\"\n");
}

static void test_stubborn_ranks_are_killed(void **state) {
    (void)state;
    RUN_OK("rm -f stubborn.*");
    assert_int_equal(run(ROLE("stubborn") "--ranks 3"), 3);
    assert_gone("stubborn", 3);
}

/* ---- signals --------------------------------------------------------------------------------- */

/* Starts this program as a parent of two ranks, in a group of its own as a shell does it. */
static pid_t start_parent(const char *role) {
    RUN_OK("rm -f ready.* signals.log.*");
    pid_t child = fork();
    if (child == 0) {
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (chdir(place) != 0) _exit(98);
        setenv("ROLE", role, 1), setenv("OMP_WAIT_POLICY", "passive", 1);
        signal(SIGINT, SIG_DFL), signal(SIGHUP, SIG_DFL), signal(SIGTERM, SIG_DFL);
        execl(train, train, "--ranks", "2", (char *)NULL);
        _exit(127);
    }
    setpgid(child, child);
    wait_for_file("ready.0"), wait_for_file("ready.1");
    return child;
}

static void assert_signals(const char *expected) {
    for (int r = 0; r < 2; r++) {
        char name[32];
        size_t size;
        snprintf(name, sizeof name, "signals.log.%d", r);
        char *seen = read_file(name, &size);
        assert_string_equal(seen, expected);
        free(seen);
    }
    assert_gone("ready", 2);
}

/* Whether the parent alone is signalled or its whole group (a terminal's Ctrl-C), each rank gets it
   once; a second one, later, as well. */
static void test_signals_once(void **state) {
    (void)state;
    for (int group = 0; group < 2; group++) {
        pid_t parent = start_parent("signals");
        kill(group ? -parent : parent, SIGINT);
        int status = wait_for_end(parent);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        assert_signals("2\n");
    }
}

static void test_second_signal(void **state) {
    (void)state;
    pid_t parent = start_parent("signals");
    kill(parent, SIGTERM);
    wait_for_file("signals.log.0"), wait_for_file("signals.log.1");
    pause_for(300000);
    kill(parent, SIGTERM);
    int status = wait_for_end(parent);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 128 + SIGTERM);
    assert_signals("15\n15\n");
}

static void test_orphans_end(void **state) {
    (void)state;
    pid_t parent = start_parent("wait");
    kill(parent, SIGKILL);
    wait_for_end(parent);
    assert_gone("ready", 2);
    run("rm -f /dev/shm/policyc-%d-*", (int)parent);   /* where ranks would have met */
}

/* ---- launchers ------------------------------------------------------------------------------- */

/* Variables of a launcher, and what this program then takes itself for; or the refusal. */
static void test_launchers(void **state) {
    (void)state;
    static const struct { const char *variables, *says; } cases[] = {
        {"RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 MASTER_ADDR=node1 MASTER_PORT=29500",
         "rank 5 of 8 local 1 device 1 backend auto launcher torchrun meeting node1:29501 id no"},
        {"RANK=0 WORLD_SIZE=1 LOCAL_RANK=3 MASTER_ADDR=node1 MASTER_PORT=29500",
         "rank 0 of 1 local 3 device 3 backend auto launcher - meeting -"},
        {"SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=1 SLURM_STEP_NUM_NODES=2 "
         "SLURM_JOB_ID=7 SLURM_STEP_ID=0 MASTER_ADDR=n0",
         "rank 3 of 4 local 1 device 1 backend auto launcher srun meeting n0:15049 id no"},
        {"SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=3 SLURM_STEP_NUM_NODES=1 "
         "MASTER_PORT=4000", "rank 3 of 4 local 3 device 3 backend auto launcher srun meeting "
                             "127.0.0.1:4001"},
        {"SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=1 SLURM_STEP_NUM_NODES=2",
         "rank 3 of 4, started by srun: MASTER_ADDR is not in the environment"},
        {"SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_LOCALID=0 SLURM_JOB_ID=7", "rank 0 of 1"},
        {"SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 SLURM_LOCALID=0", "rank 0 of 1"},
        {"OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1 "
         "OMPI_COMM_WORLD_LOCAL_SIZE=2 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=9 SLURM_LOCALID=0",
         "rank 1 of 2 local 1 device 1 backend auto launcher mpirun meeting 127.0.0.1:29501"},
        {"OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=0 "
         "OMPI_COMM_WORLD_LOCAL_SIZE=1",
         "rank 1 of 2, started by mpirun: MASTER_ADDR is not in the environment"},
        {"PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=0 MPI_LOCALNRANKS=1 MASTER_ADDR=a MASTER_PORT=9",
         "rank 1 of 2 local 0 device 0 backend auto launcher mpirun meeting a:10"},
        {"RANK=1 WORLD_SIZE=two", "WORLD_SIZE=two in the environment is no number"},
        {"RANK=2 WORLD_SIZE=2 LOCAL_RANK=0", "RANK=2 in the environment is no number from 0 to 1"},
        {"RANK=1 WORLD_SIZE=2 MASTER_ADDR=a", "LOCAL_RANK is not in the environment"},
        {"RANK=1", "rank 0 of 1"},
        {"POLICYC_MEETING=ab RANK=0 WORLD_SIZE=2", "is not for you to set"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        RUN_OK("rm -f told.*; env %s " ROLE("tell") "2>&1 || true; cat told.* 2>&1 || true",
               cases[i].variables);
        if (!strstr(output, cases[i].says))
            fail_msg("%s:\n%s\nis not in: %s", cases[i].variables, cases[i].says, output);
    }
    RUN_OK("rm -f told.*; CUDA_VISIBLE_DEVICES=5 RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 MASTER_ADDR=a "
           "MASTER_PORT=5 " ROLE("tell") "; cat told.1");   /* each was given one GPU to see */
    assert_said("local 1 device 0 ");
    RUN_OK("rm -f told.*; RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 MASTER_ADDR=a MASTER_PORT=5 "
           ROLE("tell") "--comm-port 77 --device 4; cat told.1");
    assert_said("device 4 backend auto launcher torchrun meeting a:77");
}

/* ---- refusals -------------------------------------------------------------------------------- */

static void test_refusals(void **state) {
    (void)state;
    static const struct { const char *options, *says; } cases[] = {
        {"--ranks 2 --grad-comm bf16 --zero 0", "--grad-comm bf16 is for gradients that are "
                                                "scattered: leave out --zero 0"},
        {"--gpus 0,0", "a GPU is there twice"},
        {"--gpus 0,1,", "that is no list of numbers"},
        {"--gpus two", "that is no list of numbers"},
        {"--gpus 0", "from 1 on"},
        {"--gpus 65", "at most 64"},
        {"--gpus 2 --backend cpu", "on the CPU it is --ranks N"},
        {"--ranks 2 --backend cuda", "on GPUs it is --gpus N"},
        {"--ranks 2 --gpus 2", "there is one rank for each GPU"},
        {"--ranks 2 --device 1", "--device 1 is for one process"},
        {"--ranks 2 --tokenize x --model y", "--tokenize is work for one process"},
        {"--gpus 2 --detokenize x --model y", "--detokenize is work for one process"},
        {"--gpus 2 --backend sim", " here"},   /* it has one, where it was built */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int code = run(ROLE("tell") "%s", cases[i].options);
        if (code != 2 || !strstr(output, cases[i].says) || strchr(output, '\n')[1])
            fail_msg("%s: %d, no \"%s\" in: %s", cases[i].options, code, cases[i].says, output);
    }
    assert_int_equal(run(ROLE("tell") "--ranks 2 --score x"), 2);
    assert_int_equal(run("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a " ROLE("tell")
                         "--score x"), 2);
    assert_said("--score is work for one process");
    assert_int_equal(run("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a " ROLE("tell")
                         "--gpus 2"), 2);
    assert_said("torchrun has started 2 ranks already");
    RUN_OK("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a " ROLE("tell") "--ranks 2");
}

/* ---- what all must have alike ---------------------------------------------------------------- */

static void test_other_options(void **state) {
    (void)state;
    assert_int_equal(run("OTHER=0.25 " ROLE("meet") "--ranks 3"), 2);
    assert_said("--lr is 0.0001 on rank 0 and 0.25 on rank 1 (");
    assert_null(strstr(strchr(output, '\n') + 1, "error"));
    RUN_OK("OTHER=0.0001 " ROLE("meet") "--ranks 3");
}

static void test_compare(void **state) {
    (void)state;
    static const char zero[] = "host\ta\ndevice\t0\nprogram\t12\nbackend\tcuda\n"
                               "--run\t\n--seed\t1\n";
    assert_null(ranks_compare(zero, "host\tb\ndevice\t1\nprogram\t12\n"
                              "backend\tcuda\n--run\t\n--seed\t1\n", 1));
    assert_string_equal(ranks_compare(zero, "host\tb\ndevice\t1\nprogram\t13\n"
                                      "backend\tcuda\n--run\t\n--seed\t1\n", 1),
                        "rank 1 (b) runs another program file than rank 0: copy one build to all "
                        "machines");
    assert_string_equal(ranks_compare(zero, "host\tb\ndevice\t1\nprogram\t12\n"
                                      "backend\tcpu\n--run\t\n--seed\t1\n", 7),
                        "backend is cuda on rank 0 and cpu on rank 7 (b): all must have the same");
    assert_string_equal(ranks_compare(zero, "host\tb\ndevice\t1\nprogram\t12\n"
                                      "backend\tcuda\n--run\tx\n--seed\t1\n", 1),
                        "--run is empty on rank 0 and x on rank 1 (b): all must have the same");
    assert_string_equal(ranks_share("host\tb\ndevice\tf3\n", "host\tb\ndevice\tf3\n", 0, 2, "H"),
                        "ranks 0 and 2 on b share one GPU (H), and each needs one of its own: "
                        "start fewer, or name others with --gpus");
    assert_null(ranks_share("host\tb\ndevice\tf3\n", "host\tb\ndevice\tf4\n", 0, 1, "H"));
    assert_null(ranks_share("host\tb\ndevice\t\n", "host\tb\ndevice\t\n", 0, 1, ""));   /* CPU */
    static const char tensors[] = "host\ta\ndevice\t0\ntensor w\t[3, 4] at 0\n";
    assert_string_equal(ranks_compare(tensors, "host\tb\ndevice\t1\n"
                                      "tensor w\t[3, 5] at 0\n", 2),
                        "the model differs: tensor w is [3, 4] at 0 on rank 0 and [3, 5] at 0 on "
                        "rank 2 (b)");
    assert_non_null(ranks_compare(tensors, "host\tb\ndevice\t1\n"
                                  "tensor w\t[3, 4] at 0\ntensor x\t[1, 0] at 12\n", 2));
}

static int make_place_here(void **state) {
    if (make_place(state) != 0) return -1;
    ssize_t n = readlink("/proc/self/exe", train, sizeof train - 1);   /* $T is this program */
    if (n < 0) return -1;
    train[n] = 0;
    return 0;
}

int main(int argc, char **argv) {
    if (getenv("ROLE")) return play(getenv("ROLE"), argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks_of_the_cpu),
        cmocka_unit_test(test_meeting),
        cmocka_unit_test(test_exit_codes),
        cmocka_unit_test(test_input_is_said_once),
        cmocka_unit_test(test_stubborn_ranks_are_killed),
        cmocka_unit_test(test_signals_once),
        cmocka_unit_test(test_second_signal),
        cmocka_unit_test(test_orphans_end),
        cmocka_unit_test(test_launchers),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_other_options),
        cmocka_unit_test(test_compare),
    };
    return cmocka_run_group_tests(tests, make_place_here, remove_place);
}
