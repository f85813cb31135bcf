/* scripts/run_resilient.sh: a program that fails is started again from its last checkpoint, so
   often and no more. And the two scripts that start several ranks, as far as they go here. */
#include "program_rig.h"

static char here[4096];

#define SCRIPT "%s/scripts/run_resilient.sh "

/* A program that leaves a line with its arguments each time; `plan` has an exit code for each
   start, s before it: it saves a checkpoint first. */
static void make_program(const char *plan) {
    RUN_OK("rm -rf starts fake-run && mkdir -p fake-run/checkpoints && echo '%s' >plan && "
           "cat >fake <<'END'\n"
           "#!/bin/sh\n"
           "echo \"$*\" >>starts\n"
           "n=$(wc -l <starts)\n"
           "word=$(cut -d' ' -f$n plan)\n"
           "case $word in s*) echo step_$n >fake-run/checkpoints/latest ;; esac\n"
           "exit ${word#s}\n"
           "END\n"
           "chmod +x fake", plan);
}

static void test_restarts(void **state) {
    (void)state;
    static const struct { const char *options, *plan; int code, starts; } cases[] = {
        {"-p 0", "0", 0, 1},
        {"-p 0", "2", 2, 1},                       /* wrong input: the same again */
        {"-p 0", "1 1 137 0", 0, 4},
        {"-p 0", "1 1 1 5 0", 5, 4},               /* three restarts that save nothing */
        {"-p 0 -n 1", "7 9 0", 9, 2},
        {"-p 0 -n 0", "7 0", 7, 1},
        {"-p 0 -n 2", "1 1 s1 1 s1 1 0", 0, 7},    /* what goes forward is not counted */
        {"-p 0", "143 0", 143, 1}, {"-p 0", "130 0", 130, 1}, {"-p 0", "129 0", 129, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        make_program(cases[i].plan);
        int code = run(SCRIPT "%s ./fake --run fake-run --seed 2", here, cases[i].options);
        if (code != cases[i].code)
            fail_msg("%s: exit code %d, %s", cases[i].plan, code, output);
        RUN_OK("wc -l <starts; grep -cx -- '--run fake-run --seed 2 --resume auto' starts");
        int starts, right;
        assert_int_equal(sscanf(output, "%d %d", &starts, &right), 2);
        if (starts != cases[i].starts || right != starts)
            fail_msg("%s: %d starts, %d as they should be", cases[i].plan, starts, right);
    }
    make_program("0");
    assert_int_equal(run(SCRIPT "./fake --seed 2", here), 2);
    assert_int_equal(run(SCRIPT "./fake --run fake-run --overwrite", here), 2);
    assert_int_equal(run(SCRIPT "./fake --run=fake-run --resume=auto", here), 2);
    assert_int_equal(run(SCRIPT "-n many ./fake --run fake-run", here), 2);
    RUN_OK("! test -e starts");
}

#define TINY "--warm-start 2 --warm-batch 8 --prompts 2 --group 2 --minibatches 1 --eval-every 0 " \
             "--threads 1 --quiet --backend cpu "

/* Starts the program and leaves its process in the file pid. */
#define NOTED "sh -c 'echo $$ >pid; exec \"$@\"' sh $T "

/* ./train, killed in the middle, ends as if it never was. */
static void test_killed_train(void **state) {
    (void)state;
    RUN_OK("$T " TINY "--steps 1500 --save-every 50 --run straight");
    RUN_OK("(" SCRIPT "-p 0 " NOTED TINY "--steps 1500 --save-every 50 --run killed & script=$!; "
           "while ! test -s killed/checkpoints/latest; do sleep 0.01; done; "
           "kill -9 $(cat pid) && wait $script) 2>said; code=$?; cat said; "
           "exit $code", here);
    assert_non_null(strstr(output, "exit code 137; restart 1 of 3 in 0 s, from step_"));
    assert_same_end("straight", "killed", 1500);
    assert_same_log("straight/metrics.jsonl", "killed/metrics.jsonl");
}

/* The script is asked to end, by a signal: the program saves, and is not started again. */
static void test_asked_to_end(void **state) {
    (void)state;
    static const char *const signals[] = {"TERM", "HUP"};   /* sh ignores INT in what it puts into
                                                              the background, as it does here */
    for (int i = 0; i < 2; i++)
        RUN_OK("rm -rf asked; " SCRIPT "-p 0 " NOTED TINY
               "--steps 100000 --save-every 0 --run asked & script=$!; "
               "while ! test -s asked/metrics.jsonl; do sleep 0.01; done; "
               "kill -%s $script; wait $script && test -s asked/checkpoints/latest && "
               "! kill -0 $(cat pid) 2>/dev/null", here, signals[i]);
}

static void test_other_scripts(void **state) {
    (void)state;
    RUN_OK("mkdir -p tree/scripts && cp %s/scripts/run_*.sh tree/scripts", here);
    assert_int_equal(run("tree/scripts/run_multi_gpu.sh --steps 1"), 2);
    assert_non_null(strstr(output, "make builds it"));
    RUN_OK("printf '#!/bin/sh\\necho \"$@\"\\n' >tree/train && chmod +x tree/train");
    RUN_OK("tree/scripts/run_multi_gpu.sh --steps 1 --data 'a b'");
    assert_string_equal(output, "--gpus all --steps 1 --data a b\n");
    assert_int_equal(run("env -u SLURM_JOB_ID tree/scripts/run_slurm.sh --run x"), 2);
    /* stand-ins for Slurm's programs; srun gives the last of a machine's tasks */
    RUN_OK("mkdir -p bin && printf '#!/bin/sh\\nprintf \"n4\\\\nn5\\\\n\"\\n' >bin/scontrol && "
           "printf '#!/bin/sh\\nwhile [ \"${1#--}\" != \"$1\" ]; do shift; done\\n"
           "echo $MASTER_ADDR $MASTER_PORT $OMP_NUM_THREADS\\nexec \"$@\"\\n' >bin/srun && "
           "chmod +x bin/*");
    RUN_OK("PATH=$PWD/bin:$PATH; export PATH; unset OMP_NUM_THREADS; SLURM_JOB_ID=15007 "
           "SLURM_SUBMIT_DIR=tree SLURM_JOB_NODELIST='n[4-5]' SLURM_CPUS_PER_TASK=8 "
           "sh tree/scripts/run_slurm.sh --run x --seed 3");
    assert_string_equal(output, "n4 15007 8\n--run x --seed 3 --resume auto\n");
}

static int make_all(void **state) {
    return getcwd(here, sizeof here) ? make_place(state) : -1;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_restarts),
        cmocka_unit_test(test_killed_train),
        cmocka_unit_test(test_asked_to_end),
        cmocka_unit_test(test_other_scripts),
    };
    return cmocka_run_group_tests(tests, make_all, remove_place);
}
