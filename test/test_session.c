/* A session's beginning as a user meets it: which directory is a run's, what a run that goes on may
   change, what is measured. Runs ./train; each run is a fraction of a second. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include "../llmc/run/session.h"
#include "child.h"
#include "program_rig.h"

/* These two stand before the C library's, for sessions that a child of this program opens. */
static bool say_synced;          /* the path of what is synced goes to stdout */
static const char *vanishing;    /* a directory that is renamed when trainer_state.json is looked */
static int looks;                /* for the second time; how often it was looked for */
static const char *meanwhile;    /* options of another program that runs at that moment */

int fsync(int descriptor) {
    char link[64], path[4096];
    if (!say_synced) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n > 0) printf("synced %.*s\n", (int)n, path);
    return 0;
}

int access(const char *path, int mode) {
    bool second = strstr(path, "/trainer_state.json") && looks++ == 1;
    if (vanishing && second) rename(vanishing, "vanished");
    if (meanwhile && second && run("$T %s", meanwhile) != 0) fputs(output, stdout);
    return faccessat(AT_FDCWD, path, mode, 0);
}

#define TINY "--quiet --warm-start 2 --warm-batch 8 --prompts 2 --group 2 --minibatches 1 " \
             "--eval-every 0 --eval-prompts 2 --eval-samples 2 --threads 1 "

/* Runs the line and fails unless it ends with `code` and says `says` in one line of error. */
static void assert_refused(const char *line, const char *says) {
    int code = run("%s", line), lines = 0;
    for (const char *c = output; *c; c++) lines += *c == '\n';
    const char *error = strstr(output, "error: ");
    if (code != 2 || lines != 1 || !error || !strstr(error, says))
        fail_msg("%s: exit code %d instead of 2 with \"%s\", said: %s", line, code, says, output);
}

/* ---- the directory --------------------------------------------------------------------------- */

/* --overwrite takes a run's directory only: no model's, and no other. */
static void test_only_runs_are_overwritten(void **state) {
    (void)state;
    RUN_OK("$T " TINY "--steps 1 --run source && cp -r source/checkpoints/step_000001 model");
    RUN_OK("md5sum model/* > before.txt");
    assert_refused("$T " TINY "--steps 1 --run model --overwrite", "model exists and is no run");
    assert_refused("$T " TINY "--steps 1 --run model --overwrite --resume auto", "is a checkpoint");
    RUN_OK("md5sum -c --quiet before.txt && test $(ls model | wc -l) = $(wc -l < before.txt)");
    RUN_OK("mkdir notes && echo mine > notes/file && echo '{}' > notes/config.json");
    assert_refused("$T " TINY "--steps 1 --run notes --overwrite", "notes exists and is no run");
    RUN_OK("cp -r source scribbled && echo '{}' > scribbled/config.json");
    assert_refused("$T " TINY "--steps 1 --run scribbled --overwrite", "is not a run's");
    assert_refused("$T " TINY "--steps 1 --run source", "--overwrite");
    RUN_OK("$T " TINY "--steps 1 --run source --overwrite");
}

/* What a run killed in its first moments leaves is a fresh start under its name. */
static void test_early_kill_is_a_fresh_start(void **state) {
    (void)state;
    static const char *const left[] = {"true", "touch early/lock",
                                       "touch early/lock early/config.json.tmp"};
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) {
        RUN_OK("rm -rf early && mkdir early && %s && $T " TINY "--steps 1 --run early", left[i]);
        RUN_OK("rm -rf early && mkdir early && %s && $T " TINY "--steps 1 --resume auto "
               "--run early && test -s early/checkpoints/latest", left[i]);
    }
    RUN_OK("rm -rf early && mkdir early && touch early/lock");
    assert_refused("$T " TINY "--resume early", "--run early starts a run in it");
    /* with its config.json but before its first checkpoint */
    RUN_OK("$T " TINY "--steps 1 --run begun && rm -r begun/checkpoints");
    assert_refused("$T " TINY "--resume begun", "--resume auto");
    RUN_OK("$T --quiet --run begun --resume auto && test -s begun/checkpoints/latest");
}

/* Started in one second without a name: each has a directory of its own. */
static void test_runs_started_together(void **state) {
    (void)state;
    RUN_OK("mkdir together && cd together && for i in 1 2 3 4; do "
           "{ $T " TINY "--steps 1 --seed $i || touch failed; } & done; wait; test ! -e failed && "
           "test $(ls -d runs/*/ | wc -l) = 4 && test $(cat runs/*/metrics.jsonl | wc -l) = 4 && "
           "test $(grep -h seed runs/*/config.json | sort -u | wc -l) = 4");
    /* with a name: one gets it, the others leave its files alone */
    RUN_OK("cd together && for i in 1 2 3 4; do "
           "{ $T " TINY "--steps 1 --seed $i --run named && echo $i >> won; } & done; wait; "
           "test $(wc -l < won) = 1 && test $(wc -l < named/metrics.jsonl) = 1 && "
           "grep -q \"seed\\\":.$(cat won),\" named/config.json");
}

/* From here on the system call fails with `error` in this process and in programs that it starts.
   False: this machine has no such filters. */
static bool make_fail(long call, int error) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* A line of the program on a machine where a system call fails. */
struct Failing {
    long call;
    int error, code;      /* the exit code that is right, */
    const char *line;
    const char *says;     /* and what is said */
};

static void run_failing(void *failing) {
    const struct Failing *f = failing;
    if (!make_fail(f->call, f->error)) exit(77);
    int code = run("$T " TINY "%s", f->line);
    fputs(output, stdout);
    fflush(stdout);
    _exit(code);
}

static void check_failing(struct Failing f) {
    char said[4096];
    int code = run_in_child(run_failing, &f, said, sizeof said);
    if (code == 77) skip();
    if (code != f.code || !strstr(said, f.says))
        fail_msg("%s, %s: exit code %d, said: %s", f.line, strerror(f.error), code, said);
}

/* Only EWOULDBLOCK means that another program holds the lock. Other errors are reported in their
   own words, with exit code 1 where the machine failed. */
static void test_lock_errors(void **state) {
    (void)state;
    static const struct { int error, code; const char *says; } cases[] = {
        {EWOULDBLOCK, 2, "another program is using the run directory unlocked"},
        {ENOLCK, 1, "cannot lock unlocked/lock: No locks available; a run needs a file system"},
        {ENOSYS, 1, "cannot lock unlocked/lock: Function not implemented"},
        {EIO, 1, "cannot lock unlocked/lock: Input/output error"},
    };
    RUN_OK("mkdir -p taken/lock");
    assert_refused("$T " TINY "--run taken", "cannot write in the run directory taken: Is a dir");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_failing((struct Failing){SYS_flock, cases[i].error, cases[i].code,
                                       "--steps 1 --run unlocked", cases[i].says});
}

/* A directory that cannot be read is not taken for an empty one, in which a run would start and
   clear what is there; nor is a file for missing when looking for it gives an I/O error. */
static void test_unreadable_is_not_missing(void **state) {
    (void)state;
    static const char reads[] = "cannot read ";
    RUN_OK("$T " TINY "--steps 1 --run there && cp -r there kept && mkdir -p runs");
    static const char *const lines[] = {
        "--steps 1 --run there", "--steps 1 --run there --overwrite", "--resume there --steps 2",
        "--resume auto --steps 1"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        check_failing((struct Failing){SYS_getdents64, EIO, 1, lines[i], reads});
    RUN_OK("diff -r -x lock there kept && rm -r runs");
#ifdef SYS_access   /* elsewhere the C library has other calls for it */
    check_failing((struct Failing){SYS_access, EIO, 1, "--resume there --steps 2", reads});
    check_failing((struct Failing){SYS_access, EIO, 1, "--model there --run more", reads});
    check_failing((struct Failing){SYS_access, EIO, 1, "--backend cuda --run more",
                                   "/backend_cuda.so: Input/output error"});
    RUN_OK("diff -r -x lock there kept && test ! -e more/metrics.jsonl");
#endif
}

static void test_what_resume_refuses(void **state) {
    (void)state;
    RUN_OK("$T " TINY "--steps 1 --run a && cp -r a b");
    assert_refused("$T " TINY "--resume a --run b", "--model a --run b");
    RUN_OK("$T --quiet --resume a --run ./a");
    assert_refused("$T --resume a/checkpoints/step_000001", "is a checkpoint");
    RUN_OK("mkdir bare && cp -r a/checkpoints bare");
    assert_refused("$T --quiet --resume bare --steps 2", "no config.json");
    assert_refused("$T --quiet --resume auto --run bare --steps 2", "no config.json");
    assert_refused("$T --quiet --resume a --steps 0", "--steps 0: the run is at step 1 already");
    assert_refused("$T --quiet --config a/checkpoints/step_000001/config.json --run c", "--model");
    RUN_OK("flock a/lock sh -c \"$T --quiet --resume a --steps 2; test \\$? = 2\"");
    assert_non_null(strstr(output, "another program is using"));
}

/* What a damaged file says never reaches the terminal as it is. */
static void test_damaged_settings(void **state) {
    (void)state;
    RUN_OK("$T " TINY "--steps 1 --run rotten && cd rotten/checkpoints/step_* && rm checksums && "
           "sed -i 's/\"backend\":.*\"cpu\"/\"backend\": \"\\\\u001b[31m\"/' "
           "trainer_state.json");
    RUN_OK("$T --resume rotten --steps 2 --quiet false");
    if (!strstr(output, "resume    \\x1b[31m fp32") || strchr(output, 27))
        fail_msg("said: %s", output);
    RUN_OK("sed -i 's/\"control\":.*\"none\"/\"control\": \"magic\"/' "
           "rotten/checkpoints/step_000002/trainer_state.json && "
           "rm rotten/checkpoints/step_000002/checksums");
    assert_refused("$T --quiet --resume rotten --steps 3", "\"control\" is \"magic\"");
}

/* The start that would have changed the control was killed after it wrote config.json and before it
   saved: the state is still the old control's. */
static void test_the_states_own_control(void **state) {
    (void)state;
    RUN_OK("$T " TINY "--steps 1 --entropy-control repo_r --run turned && "
           "sed -i 's/\"entropy-control\":.*\"repo_r\"/\"entropy-control\": \"repo_d\"/' "
           "turned/config.json && $T --resume turned --steps 2 --quiet false");
    if (!strstr(output, "entropy control repo_r -> repo_d: its variable starts anew"))
        fail_msg("said: %s", output);
}

/* A run whose config.json is empty, cut short or another file's: what is lost, and what is not. */
static void test_lost_options(void **state) {
    (void)state;
    static const char *const texts[] = {"", "{", "{}"};
    RUN_OK("$T " TINY "--steps 1 --run lost");
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        RUN_OK("printf '%s' > lost/config.json", texts[i]);
        assert_refused("$T --quiet --resume lost --steps 2",
                       "its options are lost; --model lost --run ANOTHER starts another run from "
                       "its weights");
    }
    RUN_OK("rm -r lost/checkpoints");
    assert_refused("$T --quiet --resume lost --steps 2", "--run ANOTHER starts another");
}

/* ---- every option of a run that goes on ------------------------------------------------------ */

/* Another value than the small run below has, as it stands on the line; NULL: no such thing. */
static const char *another_value(const struct Option *o, char value[64]) {
    static const struct { const char *name, *value; } chosen[] = {
        {"task", "split"}, {"tasks", "countdown:1,split:1"}, {"model", "gpt2"}, {"steps", "3"},
        {"objective", "rloo"}, {"advantage", "mean"}, {"ratio", "sequence"},
        {"surrogate", "cispo"}, {"aggregation", "token_mean"}, {"overlong", "mask"}, {"kl", "k1"},
        {"entropy-control", "bonus"}, {"replay", "other.jsonl"}, {"dual-clip", "3"},
        {"backend", "cpu"}, {"dtype", "fp32"}, {"data", "other.jsonl"},
        {"eval-data", "other.jsonl"}, {"prompt-template", "none.txt"}, {"system", "you"},
        {"reward", "length"}, {"reward-regex", "x"}, {"shard-size", "1GB"},
        {"scorer", "cat"},
    };
    for (size_t i = 0; i < sizeof chosen / sizeof *chosen; i++)
        if (strcmp(chosen[i].name, o->name) == 0) return chosen[i].value;
    switch (o->type) {
    case OPTION_WHOLE: snprintf(value, 64, "%.0f", fmin(fmax(o->min, 3), o->max)); break;
    case OPTION_REAL:
        snprintf(value, 64, "%g", o->max < 1.5 ? 0.5 * (o->min + o->max) : 1.5);
        break;
    case OPTION_FLAG: return "true";
    case OPTION_WORD:
        if (!o->choices) return NULL;
        snprintf(value, 64, "%s", strrchr(o->choices, ' ') + 1);
        break;
    case OPTION_CONFIG: return NULL;
    }
    return value;
}

/* Is it refused by its name, or has the run's config.json taken it? Nothing in between. */
static void visit(const struct Option *o, const char *value) {
    char key[128], config[] = "visited/config.json";
    size_t size;
    RUN_OK("rm -rf visited && cp -r visit visited");
    int code = run("$T --quiet --resume visited --steps 2 --%s %s", o->name, value);
    snprintf(key, sizeof key, "--%s", o->name);
    if (code == 2 && strstr(output, key)) {
        RUN_OK("cmp visit/config.json visited/config.json");
        return;
    }
    if (code != 0) fail_msg("--%s %s: exit code %d, said: %s", o->name, value, code, output);
    char *text = read_file(config, &size);
    cJSON *json = cJSON_Parse(text), *item = cJSON_GetObjectItem(json, o->name);
    char *saved = cJSON_PrintUnformatted(item), quoted[128];
    snprintf(quoted, sizeof quoted, o->type == OPTION_WORD ? "\"%s\"" : "%s", value);
    if (!saved || strcmp(saved, quoted) != 0)
        fail_msg("--%s %s: accepted, and config.json says %s", o->name, value, saved);
    free(saved), free(text);
    cJSON_Delete(json);
}

static void test_every_option_on_resume(void **state) {
    (void)state;
    char value[64];
    RUN_OK("$T " TINY "--steps 1 --run visit && cp visit/rollouts.jsonl other.jsonl; "
           "$T " TINY "--steps 2 --rollouts-every 1 --run other && cp other/rollouts.jsonl .");
    RUN_OK("cp rollouts.jsonl other.jsonl");
    for (int i = 0; options_row(i); i++) {
        const struct Option *o = options_row(i);
        const char *another = another_value(o, value);
        if (!(o->use & OPTION_ONCE) && !another) fail_msg("no value to try for --%s", o->name);
        if (!(o->use & OPTION_ONCE)) visit(o, another);
    }
}

/* What a run was begun with and cannot change: said, not ignored. */
static void test_fixed_options(void **state) {
    (void)state;
    static const char *const changes[] = {"--layers 6", "--task split", "--seed 2", "--model gpt2",
                                          "--untied", "--warm-start 9", "--warm-lr 0.5"};
    RUN_OK("$T " TINY "--steps 1 --layers 2 --run fixed && cp fixed/config.json fixed.json");
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        char line[256], name[64];
        snprintf(line, sizeof line, "$T --quiet --resume fixed --steps 2 %s", changes[i]);
        snprintf(name, sizeof name, "%.*s", (int)strcspn(changes[i], " "), changes[i]);
        assert_refused(line, name);
    }
    RUN_OK("cmp fixed/config.json fixed.json && $T --quiet --resume fixed --layers 2 --steps 2");
    RUN_OK("$T " TINY "--steps 1 --run shaped");
    assert_refused("$T --quiet --resume shaped --steps 2 --layers 6",
                   "begun with \"0\" (0 = the model's)");
    /* the warm start's own may change until it is over */
    RUN_OK("$T " TINY "--steps 0 --run warm && $T --quiet --resume warm --warm-start 4 && "
           "test $(wc -l < warm/warm_start.jsonl) = 4");
}

/* The next step's value of `key` when the run `from` goes on with `options`. */
static float resumed_value(const char *from, const char *options, const char *key) {
    RUN_OK("rm -rf moved && cp -r %s moved && $T --quiet --resume moved --steps 3 %s", from,
           options);
    cJSON *log = read_log("moved/metrics.jsonl");
    double value = logged(log, 3, key);
    cJSON_Delete(log);
    return (float)value;
}

/* What may change acts from the next step on: the numbers are those of the line. */
static void test_changes_act(void **state) {
    (void)state;
    RUN_OK("$T " TINY "--steps 2 --entropy-control bonus --entropy-coef 0.01 --run bonus");
    assert_true(resumed_value("bonus", "", "entropy_coef") == .01f);
    assert_true(resumed_value("bonus", "--entropy-coef 0.2", "entropy_coef") == .2f);
    assert_true(resumed_value("bonus", "--lr 0.003", "learning_rate") == .003f);
    RUN_OK("$T " TINY "--steps 2 --objective repo --entropy-target-ratio 0.5 --run repo");
    cJSON *log = read_log("repo/metrics.jsonl");
    double first = logged(log, 1, "entropy");
    cJSON_Delete(log);
    ASSERT_CLOSE("the target as it was",
                 fabs(resumed_value("repo", "", "entropy_target") - 0.5 * first), 1e-6);
    ASSERT_CLOSE("another ratio",
                 fabs(resumed_value("repo", "--entropy-target-ratio 0.8", "entropy_target") -
                      0.8 * first), 1e-6);
    ASSERT_CLOSE("a target in nats",
                 fabs(resumed_value("repo", "--entropy-target 1.25", "entropy_target") - 1.25),
                 1e-6);
    /* doubled or halved once, from the new start */
    double zeta = fabsf(resumed_value("repo", "--zeta-start 0.5", "repo_zeta"));
    assert_true(zeta == 1 || zeta == 0.25);
    assert_true(fabsf(resumed_value("repo", "--zeta-max 0.001", "repo_zeta")) <= .001f);
    RUN_OK("$T " TINY "--steps 2 --objective adapo --run adapo");
    double high = resumed_value("adapo", "--clip-high 0.5", "clip_high");
    ASSERT_CLOSE("clip_high moved by its factor from .5",
                 fmin(fabs(high - 0.5 * 1.1), fabs(high - 0.5 / 1.1)), 1e-6);
}

/* ---- measuring ------------------------------------------------------------------------------- */

/* --eval-only and --score measure weights that are named, on the prompts that were held out. */
static void test_measuring(void **state) {
    (void)state;
    RUN_OK("$T " TINY "--steps 1 --seed 7 --run seven && echo '{\"tokens\":[1,2]}' > ids.jsonl");
    assert_refused("$T --run seven --score ids.jsonl", "--resume seven");
    assert_refused("$T --score ids.jsonl", "--model");
    assert_refused("$T --eval-only", "--model");
    assert_refused("$T --model tiny --eval-only", "random");
    assert_refused("$T --resume seven --eval-only --seed 3", "--seed 3");
    assert_refused("$T --model seven --eval-only --seed 3", "--seed 3");
    assert_refused("$T --resume seven --eval-only --model gpt2", "--model and --resume");
    assert_refused("$T --resume seven --eval-only --lr 1", "--lr does nothing with --eval-only");
    assert_refused("$T --resume seven --score ids.jsonl --task split", "--task does nothing");
    assert_refused("$T --resume seven --score ids.jsonl --eval-only", "--eval-only does nothing");
    RUN_OK("$T --resume seven --score ids.jsonl > one && "
           "$T --model seven --score ids.jsonl > two.out && cmp one two.out && test -s one");
    /* by either name of the weights: the same held-out prompts, those of seed 7 */
    RUN_OK("for w in '--resume seven' '--model seven' '--model seven --seed 7'; do "
           "$T $w --eval-only --eval-prompts 9 --eval-samples 4 | tail -n 1 >> measured; done; "
           "test $(sort -u measured | wc -l) = 1");
    /* also where a file says it; and --quiet leaves the result, for which the program was run */
    RUN_OK("echo '{\"seed\": 1}' > one.json && echo '{\"seed\": 3}' > three.json");
    assert_refused("$T --config one.json --resume seven --eval-only", "--seed 1");
    assert_refused("$T --config three.json --model seven --eval-only", "--seed 3");
    RUN_OK("$T --config seven/config.json --model seven --eval-only --eval-prompts 9 "
           "--eval-samples 4 --quiet > quiet && test $(sort -u quiet measured | wc -l) = 1");
    RUN_OK("$T " TINY "--tasks countdown:1,split:1 --run two && "
           "$T --resume two --eval-only > each && grep -q 'countdown held-out' each && "
           "grep -q 'split held-out' each");
}

/* One --task and its steps, or --tasks: what the person at the line did not type is named. */
static void test_two_plans(void **state) {
    (void)state;
    RUN_OK("$T " TINY "--steps 1 --run plain && $T " TINY
           "--tasks countdown:1,split:1 --run both");
    assert_refused("$T --quiet --resume plain --tasks countdown:1,split:1", "from its weights");
    assert_refused("$T --quiet --resume both --steps 3", "from the config file");
    assert_refused("$T --quiet --steps 3 --tasks split:1", "leave out --task and --steps");
    RUN_OK("$T --quiet --resume both --tasks countdown:1,split:2");
}

/* What is told at the start of a run that goes on is where its controller stands: in its log. */
static void test_where_a_control_stands(void **state) {
    (void)state;
    char wanted[128];
    RUN_OK("$T " TINY "--steps 2 --objective adapo --run stands");
    cJSON *log = read_log("stands/metrics.jsonl");
    snprintf(wanted, sizeof wanted, "clip_high stands at %.4g, target %.4g nats\n",
             logged(log, 2, "clip_high"), logged(log, 2, "entropy_target"));
    cJSON_Delete(log);
    RUN_OK("$T --resume stands --steps 3 --quiet false");
    if (!strstr(output, wanted)) fail_msg("wanted: %s, said: %s", wanted, output);
}

/* ---- the end --------------------------------------------------------------------------------- */

/* A run that is over says so and how to go on; it is not done again, nor saved again. */
static void test_finished_run(void **state) {
    (void)state;
    RUN_OK("$T " TINY "--steps 2 --run over && cp -rp over copy");
    RUN_OK("$T --resume over --quiet false");
    if (!strstr(output, "finished, at step 2 of 2") || !strstr(output, "--steps N"))
        fail_msg("said: %s", output);
    RUN_OK("$T --quiet --resume over --lr 0.5 && cmp over/config.json copy/config.json");
    RUN_OK("cmp over/metrics.jsonl copy/metrics.jsonl && for f in $(ls copy/checkpoints/*/*); do "
           "test ! over/${f#copy/} -nt $f || exit 1; done");
    RUN_OK("$T --resume over --steps 3 --quiet false");
}

/* broken/: a model whose weights are finite, and no product of them is. */
static void make_broken_model(void) {
    char path[256];
    static float huge[1 << 15];
    for (size_t i = 0; i < sizeof huge / sizeof *huge; i++) huge[i] = 3e38f;
    RUN_OK("rm -rf good broken && $T " TINY "--steps 0 --run good");
    RUN_OK("mkdir broken && cd good/checkpoints/step_* && "
           "cp config.json *vocab.json merges.txt tokenizer_config.json model.safetensors "
           "../../../broken");
    snprintf(path, sizeof path, "%s/broken/model.safetensors", place);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, -(long)sizeof huge, SEEK_END), 0);
    assert_int_equal(fwrite(huge, sizeof huge, 1, file), 1);
    assert_int_equal(fclose(file), 0);
}

/* Measured numbers that are not finite: exit code 1, because the weights are at fault. */
static void test_worthless_weights(void **state) {
    (void)state;
    static const struct { const char *line, *says; } cases[] = {
        {"$T --model broken --eval-only --eval-prompts 2 --eval-samples 2 --quiet",
         "entropy or loss on what is held out is not finite"},
        {"$T " TINY "--model broken --warm-start 0 --steps 2 --eval-every 1 --run evaluates",
         "step 0: the policy's entropy or loss on what is held out is not finite"},
        {"$T --model broken --score ids.jsonl", "ids.jsonl:1: its scores are not finite"},
    };
    make_broken_model();
    RUN_OK("echo '{\"tokens\":[1,2]}' > ids.jsonl");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int code = run("%s", cases[i].line);
        if (code != 1 || !strstr(output, cases[i].says))
            fail_msg("%s: exit code %d, said: %s", cases[i].line, code, output);
    }
}

/* Demonstrations have no reward and no log-probability from sampling; none are made up. */
static void test_failure_in_the_warm_start(void **state) {
    (void)state;
    make_broken_model();
    int code = run("$T " TINY "--model broken --warm-start 5 --run fails");
    if (code != 1 || !strstr(output, "three updates in a row") || !strstr(output, "--warm-lr"))
        fail_msg("exit code %d, said: %s", code, output);
    cJSON *log = read_log("fails/failure.jsonl"), *line;
    assert_int_equal(cJSON_GetArraySize(log), 8);
    cJSON_ArrayForEach(line, log) {
        assert_int_equal(cJSON_GetObjectItem(line, "warm_step")->valueint, 3);
        assert_true(cJSON_GetArraySize(cJSON_GetObjectItem(line, "tokens")) > 3);
        assert_null(cJSON_GetObjectItem(line, "reward"));
        assert_null(cJSON_GetObjectItem(line, "logp"));
    }
    cJSON_Delete(log);
}

/* ---- sessions of this program ---------------------------------------------------------------- */

static void open_session(struct Session *s, char **line) {
    int words = 0;
    while (line[words]) words++;
    if (chdir(place) != 0) abort();
    session_open(s, &(struct Ranks){.size = 1}, words, line);
}

static void saves_once(void *unused) {
    struct Session s;
    (void)unused;
    char *line[] = {"train", "--backend", "cpu", "--threads", "1", "--quiet", "--run", "synced",
                    NULL};
    open_session(&s, line);
    say_synced = true;
    session_save(&s);
    fflush(stdout);
    _exit(0);
}

/* The lines that a checkpoint covers are on the disk before any of its own files is. */
static void test_logs_are_synced_first(void **state) {
    (void)state;
    static const char *const logs[] = {"metrics.jsonl", "warm_start.jsonl", "rollouts.jsonl",
                                       "attention_entropy.jsonl"};
    char said[8192], name[64];
    assert_int_equal(run_in_child(saves_once, NULL, said, sizeof said), 0);
    const char *first = strstr(said, "/checkpoints/");
    assert_non_null(first);
    for (size_t i = 0; i < sizeof logs / sizeof *logs; i++) {
        snprintf(name, sizeof name, "/synced/%s\n", logs[i]);
        const char *log = strstr(said, name);
        if (!log || log > first) fail_msg("%s is not synced first: %s", logs[i], said);
    }
}

static void say_frozen(void) { puts("frozen"); }

static void write_a_choice(char *out, size_t capacity) {
    puts("written");
    snprintf(out, capacity, "a choice");
}

/* The CPU's backend, but for a choice of algorithms that it has. */
static void saves_choices(void *unused) {
    struct Session s;
    (void)unused;
    char *line[] = {"train", "--backend", "cpu", "--threads", "1", "--quiet", "--run", "chooses",
                    NULL};
    open_session(&s, line);
    struct Ops ops = *s.ops;
    ops.matmul_choices_freeze = say_frozen;
    ops.matmul_choices_save = write_a_choice;
    s.ops = &ops;
    session_save(&s);
    fflush(stdout);
    _exit(0);
}

/* The backend's choices become final before they are written into a checkpoint, so that this run
   and one that resumes it compute alike; and resuming hands them to the backend. */
static void test_choices_are_frozen_and_saved(void **state) {
    (void)state;
    char said[8192];
    assert_int_equal(run_in_child(saves_choices, NULL, said, sizeof said), 0);
    if (!strstr(said, "frozen\nwritten\n")) fail_msg("said: %s", said);
    RUN_OK("grep -q 'matmul_choices.*a choice' chooses/checkpoints/step_000000/trainer_state.json");
    RUN_OK("$T --resume chooses --warm-start 0 --steps 0 --quiet false");
    if (!strstr(output, "matmul choices are not used")) fail_msg("said: %s", output);
}

static void opens_what_vanishes(void *unused) {
    struct Session s;
    (void)unused;
    char *line[] = {"train", "--backend", "cpu", "--threads", "1", "--resume", "fading",
                    "--eval-only", NULL};
    vanishing = "fading/checkpoints/step_000001";
    open_session(&s, line);
}

static void opens_beside_a_writer(void *unused) {
    struct Session s;
    (void)unused;
    char *line[] = {"train", "--backend", "cpu", "--threads", "1", "--resume", "busy",
                    "--eval-only", NULL};
    meanwhile = "--quiet --resume busy --steps 2 --keep 1";
    open_session(&s, line);
    session_close(&s);
}

/* The run goes on, with --keep 1, while a reader opens what was its latest checkpoint: the reader
   gets all of it. The checkpoint that stayed for that is removed when the run is started again,
   although that start saves nothing. */
static void test_a_reader_beside_the_writer(void **state) {
    (void)state;
    char said[4096];
    RUN_OK("$T " TINY "--steps 1 --keep 1 --run busy");
    int code = run_in_child(opens_beside_a_writer, NULL, said, sizeof said);
    if (code != 0) fail_msg("exit code %d, said: %s", code, said);
    RUN_OK("test -d busy/checkpoints/step_000002 && $T --quiet --resume busy && "
           "test $(ls busy/checkpoints | grep -c step_) = 1");
}

/* A reader of a checkpoint that the run beside it removes meanwhile is told so. */
static void test_a_checkpoint_that_vanishes(void **state) {
    (void)state;
    char said[4096];
    RUN_OK("$T " TINY "--steps 1 --run fading");
    int code = run_in_child(opens_what_vanishes, NULL, said, sizeof said);
    if (code != 2 || !strstr(said, "fading/checkpoints/step_000001") || !strstr(said, "--keep"))
        fail_msg("exit code %d, said: %s", code, said);
}

int main(void) {
    always = "--backend cpu";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_runs_are_overwritten),
        cmocka_unit_test(test_early_kill_is_a_fresh_start),
        cmocka_unit_test(test_runs_started_together),
        cmocka_unit_test(test_what_resume_refuses),
        cmocka_unit_test(test_damaged_settings),
        cmocka_unit_test(test_the_states_own_control),
        cmocka_unit_test(test_lost_options),
        cmocka_unit_test(test_every_option_on_resume),
        cmocka_unit_test(test_fixed_options),
        cmocka_unit_test(test_changes_act),
        cmocka_unit_test(test_measuring),
        cmocka_unit_test(test_two_plans),
        cmocka_unit_test(test_where_a_control_stands),
        cmocka_unit_test(test_lock_errors),
        cmocka_unit_test(test_finished_run),
        cmocka_unit_test(test_worthless_weights),
        cmocka_unit_test(test_failure_in_the_warm_start),
        cmocka_unit_test(test_unreadable_is_not_missing),
        cmocka_unit_test(test_logs_are_synced_first),
        cmocka_unit_test(test_choices_are_frozen_and_saved),
        cmocka_unit_test(test_a_checkpoint_that_vanishes),
        cmocka_unit_test(test_a_reader_beside_the_writer),
    };
    return cmocka_run_group_tests(tests, make_place, remove_place);
}
