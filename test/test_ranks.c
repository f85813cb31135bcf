/* The whole program on several ranks beside one: the same completions, the same numbers to
   rounding, the same bits in every run; any number of ranks goes on from a checkpoint; and whatever
   happens to one rank, all end, say why, and leave a checkpoint from which the run goes on. */
#include "program_rig.h"

#define RUN "--warm-batch 24 --prompts 5 --group 6 --minibatches 2 --eval-every 0 --threads 1 " \
            "--rollouts-every 1 --quiet "

/* On the CPU --ranks N, else --gpus N: of the simulator, which has four (PROGRAM sim). */
static const char *several = "--ranks";

/* Weights that know the form of an answer, so that there are rewards to tell apart. */
static void make_base(void) {
    static bool made;
    if (made) return;
    RUN_OK("$T " RUN "--warm-start 150 --warm-batch 64 --steps 0 --run base");
    made = true;
}

/* ---- the same completions -------------------------------------------------------------------- */

/* Options of a first step from weights that all have alike. */
static const char *const firsts[] = {
    "--objective grpo --steps 1",
    "--objective dapo --filter-rounds 4 --steps 1",   /* rewards decide which groups are kept */
    "--objective repo --prompts 3 --steps 1",                  /* fewer prompts than ranks */
    "--tasks countdown_sorted:1,countdown:1",
    "--task address_book --model tiny --warm-start 3 --steps 1",
};

static void test_first_rollout(void **state) {
    (void)state;
    make_base();
    for (size_t i = 0; i < sizeof firsts / sizeof *firsts; i++) {
        /* a warm start's roundings differ; its first completions need not */
        bool warms = strstr(firsts[i], "--warm-start") != NULL;
        for (int ranks = 1; ranks <= 4; ranks++) {
            RUN_OK("$T " RUN "%s %s %s %d --run first%d --overwrite",
                   warms ? "" : "--model base --warm-start 0", firsts[i], several, ranks, ranks);
            RUN_OK("grep -E '^.\"step\": ?1,' first%d/rollouts.jsonl > %d.jsonl", ranks, ranks);
            if (ranks == 1 || warms) continue;
            char log[64];
            snprintf(log, sizeof log, "%d.jsonl", ranks);
            assert_same_file("1.jsonl", log);
        }
    }
}

/* ---- the same numbers ------------------------------------------------------------------------ */

/* Twenty steps on the tokens that one rank has sampled. Small steps: AdamW gives a weight whose
   gradient is 0 but for roundings a whole step of either sign, and two runs must not go apart by
   that. */
#define REPLAYED RUN "--model base --warm-start 0 --steps 20 --lr 1e-6 --minibatches 3 "

static double at(const cJSON *log, int step, const char *key) {
    double x = logged(log, step, key);
    if (isnan(x)) fail_msg("step %d has no %s", step, key);
    return x;
}

/* A number of float32 terms, each rounded some hundred times on its way; sums of signed terms of
   size 1 are compared with 1. The updates move the weights by 20 x 3 x 1e-6 in all, so what the
   roundings of one step do to the next one is far below that. */
static void compare_runs(const char *run_a, const char *run_b, const char *options) {
    static const struct { const char *key; bool is_relative; } keys[] = {
        {"loss", false}, {"grad_norm", true}, {"entropy", true}, {"reward", true},
        {"repo_zeta", true}, {"entropy_target", true}, {"clip_high", true}, {"entropy_coef", true},
        {"entropy_push_raw", false}, {"learning_rate", true}, {"num_tokens", true}};
    char path[2][128];
    snprintf(path[0], sizeof path[0], "%s/metrics.jsonl", run_a);
    snprintf(path[1], sizeof path[1], "%s/metrics.jsonl", run_b);
    cJSON *a = read_log(path[0]), *b = read_log(path[1]);
    for (int step = 1; step <= 20; step++)
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
            if (isnan(logged(a, step, keys[k].key))) continue;
            double x = at(a, step, keys[k].key), y = at(b, step, keys[k].key);
            /* with equal rewards the gradient is that of a KL of 0: roundings of terms of size 1 */
            double size = fmax(keys[k].is_relative ? .1 : 1, fabs(x));
            char name[256];
            snprintf(name, sizeof name, "%s, %s, step %d, %s: %g, alone %g", run_b, options,
                     step, keys[k].key, y, x);
            /* a shared prompt is computed once on each rank that has some of its completions */
            double bound = strcmp(keys[k].key, "num_tokens") == 0 ? .5 : 2e-4;
            ASSERT_CLOSE(name, fabs(x - y) / size, bound);
        }
    cJSON_Delete(a), cJSON_Delete(b);
}

/* Controls whose variable moves by what the ranks have measured together. */
static const char *const controlled[] = {
    "--objective grpo",
    "--objective repo --entropy-target 1",
    "--objective gspo --zero 0",
    "--objective grpo --entropy-control clip_cov",
    /* where rewards are equal its gradient is nothing but roundings, in every weight */
    ("--objective grpo --kl-coef 0.01 --entropy-control adaptive_bonus --entropy-target 2 "
     "--lr 1e-7"),
};

static void test_twenty_steps(void **state) {
    (void)state;
    make_base();
    for (size_t i = 0; i < sizeof controlled / sizeof *controlled; i++) {
        RUN_OK("$T " REPLAYED "%s --run alone --overwrite", controlled[i]);
        for (int ranks = 2; ranks <= 4; ranks++) {
            RUN_OK("$T " REPLAYED "%s --replay alone/rollouts.jsonl %s %d --run ranks%d "
                   "--overwrite", controlled[i], several, ranks, ranks);
            char run[32];
            snprintf(run, sizeof run, "ranks%d", ranks);
            compare_runs("alone", run, controlled[i]);
        }
    }
}

static void test_llama(void **state) {
    (void)state;
    RUN_OK("$T " RUN "--model tiny-llama --warm-start 60 --warm-batch 64 --steps 0 --run llama");
    RUN_OK("$T " REPLAYED "--model llama --run alone --overwrite");
    RUN_OK("$T " REPLAYED "--model llama --replay alone/rollouts.jsonl --ranks 3 --run three "
           "--overwrite");
    compare_runs("alone", "three", "llama");
}

/* ---- the same bits --------------------------------------------------------------------------- */

static void test_repeats(void **state) {
    (void)state;
    RUN_OK("$T " RUN "--warm-start 5 --steps 4 --objective repo --ranks 3 --run one");
    RUN_OK("$T " RUN "--warm-start 5 --steps 4 --objective repo --ranks 3 --run two");
    assert_same_end("one", "two", 4);
    assert_same_file("one/rollouts.jsonl", "two/rollouts.jsonl");
    RUN_OK("$T " RUN "--warm-start 5 --steps 4 --objective repo --ranks 3 --run cut --save-every 2 "
           "--keep 0");
    RUN_OK("echo step_000002 > cut/checkpoints/latest && $T --quiet --resume cut --ranks 3");
    assert_same_end("one", "cut", 4);
    assert_same_file("one/rollouts.jsonl", "cut/rollouts.jsonl");
}

/* 1 -> 2 -> 4 -> 1 ranks, five steps each, beside one rank's twenty. */
static void test_any_number_goes_on(void **state) {
    (void)state;
    make_base();
    RUN_OK("$T " REPLAYED "--objective repo --run alone --overwrite");
    RUN_OK("$T " REPLAYED "--objective repo --replay alone/rollouts.jsonl --steps 5 --run chain");
    static const int ranks[] = {2, 4, 1};
    for (int i = 0; i < 3; i++)
        RUN_OK("$T --quiet --resume chain --steps %d --ranks %d", 10 + 5 * i, ranks[i]);
    compare_runs("alone", "chain", "1, 2, 4, 1 ranks");
}

/* ---- on the simulator, through NCCL's stand-in ----------------------------------------------- */

#define SMALL "--warm-batch 12 --prompts 3 --group 4 --minibatches 2 --eval-every 0 --threads 1 " \
              "--rollouts-every 1 --quiet --matmul first --comm-timeout 60 "

static void test_simulated(void **state) {
    (void)state;
    static const char *const types[] = {"fp32", "bf16"};
    for (int i = 0; i < 2; i++) {
        const char *line = "--warm-start 2 --objective repo --steps 2";
        RUN_OK("$T " SMALL "%s --dtype %s --run one --overwrite", line, types[i]);
        RUN_OK("$T " SMALL "%s --dtype %s --gpus 2 --run two --overwrite", line, types[i]);
        RUN_OK("$T " SMALL "%s --dtype %s --gpus 1,3 --run again --overwrite", line, types[i]);
        assert_same_end("two", "again", 2);
        assert_same_file("two/rollouts.jsonl", "again/rollouts.jsonl");
        cJSON *one = read_log("one/warm_start.jsonl"), *two = read_log("two/warm_start.jsonl");
        double x = cJSON_GetObjectItem(cJSON_GetArrayItem(one, 0), "loss")->valuedouble;
        double y = cJSON_GetObjectItem(cJSON_GetArrayItem(two, 0), "loss")->valuedouble;
        ASSERT_CLOSE("the first loss", fabs(x - y) / x, 1e-5);   /* of the same tokens */
        cJSON_Delete(one), cJSON_Delete(two);
    }
    /* a communicator of one rank: the same path, and the bits of one rank without it */
    RUN_OK("$T " SMALL "--warm-start 2 --steps 2 --dtype fp32 --run one --overwrite");
    RUN_OK("$T " SMALL "--warm-start 2 --steps 2 --dtype fp32 --gpus 1 --comm nccl --run two "
           "--overwrite");
    assert_same_end("one", "two", 2);
    assert_int_equal(run("$T --gpus 2,2 --steps 1 --run three"), 2);
    assert_non_null(strstr(output, "twice"));
    assert_int_equal(run("$T --gpus 9 --steps 1 --run three"), 2);
}

/* ---- failures -------------------------------------------------------------------------------- */

/* A run of three ranks that goes on until something happens to it. */
#define LONG "--warm-batch 24 --prompts 6 --group 6 --eval-every 0 --threads 1 --warm-start 2 " \
             "--steps 100000 --save-every 2 --comm-timeout 5 --quiet --overwrite "

/* The process of rank r, a child of the launcher `parent`; 0: it is not there. */
static pid_t process_of(pid_t parent, int r) {
    run("cd /proc; for p in [0-9]*; do grep -sqx 'PPid:.%d' $p/status && "
        "tr '\\0' '\\n' < $p/environ | grep -qx RANK=%d && echo $p; done", (int)parent, r);
    return (pid_t)atoi(output);
}

/* A process that has the run's name at the end of its line, by /proc (a bare machine has no pgrep);
   0: none. */
static pid_t process_named(const char *name) {
    run("cd /proc; for p in [0-9]*; do tr '\\0' ' ' 2>/dev/null < $p/cmdline | "
        "grep -q -- '--run %s $' && echo $p; done 2>/dev/null", name);
    return (pid_t)atoi(output);
}

/* Half a minute at most. */
static void assert_none_left(const char *name) {
    pid_t left = 0;
    for (int i = 0; i < 300; i++, pause_for(100000))
        if ((left = process_named(name)) == 0) return;
    kill(left, SIGKILL);
    fail_msg("process %d of %s is left", (int)left, name);
}

/* The run goes on from its last checkpoint, on one rank. */
static void assert_goes_on(const char *name) {
    RUN_OK("s=$(sed 's/step_0*//' %s/checkpoints/latest) && $T --quiet --resume %s "
           "--steps $((s+1))", name, name);
}

static pid_t start_long(const char *name) {
    char line[1024], latest[128];
    snprintf(line, sizeof line, LONG "%s 3 --run %s", several, name);
    run("rm -rf %s", name);   /* its checkpoint is waited for */
    pid_t parent = start(line);
    snprintf(latest, sizeof latest, "%s/checkpoints/latest", name);
    wait_for_file(latest);
    return parent;
}

static int code_of(int status) {
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void assert_said(const char *words) {
    size_t size;
    char *said = read_file("signalled.log", &size);
    if (!strstr(said, words)) fail_msg("\"%s\" is not in: %s", words, said);
    free(said);
}

static void test_killed_rank(void **state) {
    (void)state;
    for (int r = 0; r < 2; r++) {
        pid_t parent = start_long("killed");
        pid_t rank = process_of(parent, r);
        assert_true(rank > 0 && process_named("killed") > 0);
        kill(rank, SIGKILL);
        assert_int_equal(code_of(wait_for_end(parent)), 128 + SIGKILL);
        assert_none_left("killed");
        assert_said(r == 0 ? "rank 0" : "rank 1");
        assert_goes_on("killed");
    }
}

/* One rank stands still: the others find it after --comm-timeout, and the launcher ends it. */
static void test_stalled_rank(void **state) {
    (void)state;
    pid_t parent = start_long("stalled");
    pid_t rank = process_of(parent, 1);
    assert_true(rank > 0);
    kill(rank, SIGSTOP);
    assert_int_equal(code_of(wait_for_end(parent)), 1);
    assert_none_left("stalled");
    /* who did not come, NCCL does not know */
    assert_said(strcmp(several, "--ranks") == 0 ? "rank 1" : "another rank did not come");
    assert_said("step");
    assert_goes_on("stalled");
}

/* Rank 1 finds no memory, in the middle of the run: its limit becomes what it has. */
static void test_no_memory(void **state) {
    (void)state;
    pid_t parent = start_long("memory");
    pid_t rank = process_of(parent, 1);
    assert_true(rank > 0);
    if (run("prlimit --pid %d --as=1000000", (int)rank) != 0) {
        kill(parent, SIGTERM);
        wait_for_end(parent);
        skip();
    }
    int status = -1;
    for (int i = 0; i < 300 && waitpid(parent, &status, WNOHANG) == 0; i++) pause_for(100000);
    if (status == -1) {   /* it never asked for more */
        kill(parent, SIGTERM);
        status = wait_for_end(parent);
        assert_int_equal(code_of(status), 0);
    } else {
        assert_true(code_of(status) != 0);
    }
    assert_none_left("memory");
    assert_goes_on("memory");
}

/* kill -INT of the launcher, and a terminal's Ctrl-C, which every process gets: the step is
   finished, the run saved, and the exit code is 0. */
static void test_interrupted(void **state) {
    (void)state;
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    for (int i = 0; i < 3; i++) {
        pid_t parent = start_long("stopped");
        kill(parent, signals[i]);
        assert_int_equal(code_of(wait_for_end(parent)), 0);
        assert_none_left("stopped");
        assert_goes_on("stopped");
    }
}

/* A disk that is full for rank 0, from one moment to the next (a limit on the size of its files):
   it says so, all end, and the checkpoint before is whole. */
static void test_full_disk(void **state) {
    (void)state;
    pid_t parent = start_long("full");
    pid_t rank = process_of(parent, 0);
    assert_true(rank > 0);
    RUN_OK("prlimit --pid %d --fsize=1000", (int)rank);
    assert_int_equal(code_of(wait_for_end(parent)), 1);
    assert_none_left("full");
    assert_said("full/");
    assert_goes_on("full");
}

/* Ranks that another program started, with different options. */
static void test_other_options(void **state) {
    (void)state;
    int code = run("export MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + $$ %% 20000)); "
                   "export WORLD_SIZE=2; T=${T%%%% *}; O='" RUN "--warm-start 2 --steps 2 "
                   "--backend cpu --comm-timeout 20 --run other'; "
                   "RANK=1 LOCAL_RANK=1 $T $O --lr 2e-4 >1.log 2>&1 & "
                   "RANK=0 LOCAL_RANK=0 $T $O --lr 1e-4; c=$?; wait $!; d=$?; cat 1.log; "
                   "exit $((c + 10 * d))");
    assert_int_equal(code, 22);
    assert_non_null(strstr(output, "lr"));
    assert_true(run("test -e other/checkpoints") != 0);
}

/* The same, with the same options: they meet, and compute what --ranks 2 does. */
static void test_started_elsewhere(void **state) {
    (void)state;
    RUN_OK("export MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + $$ %% 20000)) WORLD_SIZE=2; "
           "O='" RUN "--warm-start 3 --steps 3 --backend cpu --comm-timeout 60 --run joined'; "
           "RANK=1 LOCAL_RANK=1 ${T%%%% *} $O & RANK=0 LOCAL_RANK=0 ${T%%%% *} $O && wait $!");
    RUN_OK("$T " RUN "--warm-start 3 --steps 3 --ranks 2 --run launched");
    assert_same_end("joined", "launched", 3);
}

int main(int argc, char **argv) {
    bool simulated = argc > 1 && strcmp(argv[1], "sim") == 0;
    always = "--backend cpu";
    if (argc > 2 - !simulated) cmocka_set_test_filter(argv[2 - !simulated]);
    setenv("OMP_NUM_THREADS", "1", 1);
    const struct CMUnitTest on_the_cpu[] = {
        cmocka_unit_test(test_first_rollout),
        cmocka_unit_test(test_twenty_steps),
        cmocka_unit_test(test_llama),
        cmocka_unit_test(test_repeats),
        cmocka_unit_test(test_any_number_goes_on),
        cmocka_unit_test(test_killed_rank),
        cmocka_unit_test(test_stalled_rank),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_interrupted),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_other_options),
        cmocka_unit_test(test_started_elsewhere),
    };
    const struct CMUnitTest simulations[] = {
        cmocka_unit_test(test_simulated),
        cmocka_unit_test(test_killed_rank),
        cmocka_unit_test(test_stalled_rank),
        cmocka_unit_test(test_interrupted),
    };
    if (!simulated) return cmocka_run_group_tests(on_the_cpu, make_place, remove_place);
    always = "--backend sim", several = "--gpus";
    setenv("CUDASIM", "devices=4", 1);
    return cmocka_run_group_tests(simulations, make_place, remove_place);
}
