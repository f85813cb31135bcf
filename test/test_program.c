/* The whole program as a user meets it: runs ./train in a fresh directory and looks at exit codes,
   messages and files. Small runs of the built-in task, a fraction of a second each. */
#include "../llmc/rl/objectives.h"
#include "../llmc/tasks/task.h"
#include "program_rig.h"

/* A short run: 6 warm steps, then RL; every choice that matters is on the line. */
#define LOUD "--warm-start 6 --warm-batch 32 --prompts 4 --group 4 --minibatches 2 " \
              "--eval-prompts 3 --eval-samples 4 --eval-every 2 --save-every 2 --threads 2 " \
              "--rollouts-every 1 "
#define SMALL "--quiet " LOUD

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_two_runs_are_equal(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--steps 4 --run equal-a");
    RUN_OK("$T " SMALL "--steps 4 --run equal-b");
    assert_same_log("equal-a/metrics.jsonl", "equal-b/metrics.jsonl");
    assert_same_log("equal-a/rollouts.jsonl", "equal-b/rollouts.jsonl");
    assert_same_end("equal-a", "equal-b", 4);
}

/* Another run's completions give that run; other options, or more steps, are told which line. */
static void test_replay(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--steps 3 --run replay-a");
    RUN_OK("$T " SMALL "--steps 3 --run replay-b --replay replay-a/rollouts.jsonl");
    assert_same_log("replay-a/rollouts.jsonl", "replay-b/rollouts.jsonl");
    assert_same_end("replay-a", "replay-b", 3);
    RUN_OK("grep -v '\"step\": 2' replay-a/rollouts.jsonl > half.jsonl");
    static const struct {
        const char *options, *message;
    } cases[] = {
        {"--steps 1 --seed 2 --replay replay-a/rollouts.jsonl", "rollouts.jsonl:1: the prompt is"},
        {"--steps 3 --replay half.jsonl", "half.jsonl:17: fewer completions of step 2"},
        {"--steps 3 --replay replay-a/metrics.jsonl", "metrics.jsonl:"},
        {"--steps 3 --replay /no/such", "No such file"},
        {"--steps 3 --objective dapo --replay replay-a/rollouts.jsonl", "--group-filter off"},
        {"--steps 1 --max-tokens 1 --replay replay-a/rollouts.jsonl", "more than 1 entries"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int code = run("$T " SMALL "--run replay-c --overwrite %s", cases[i].options);
        if (code != 2 || !strstr(output, cases[i].message))
            fail_msg("%s: exit code %d\n%s", cases[i].options, code, output);
    }
    RUN_OK("sed 's/\"tokens\": .[0-9]*/\"tokens\": [9999/' replay-a/rollouts.jsonl > bad.jsonl");
    assert_int_equal(run("$T " SMALL "--run replay-c --overwrite --steps 1 --replay bad.jsonl"), 2);
    assert_non_null(strstr(output, "bad.jsonl:1: token 0 is not an id"));
}

/* A replayed file with fewer steps than the run: what was learnt is saved, and going on without it
   is the run that never stopped. A file that is wrong further down loses nothing either. */
static void test_replay_that_ends(void **state) {
    (void)state;
#define RARELY LOUD "--save-every 100 "
    RUN_OK("$T " RARELY "--steps 5 --run ended-a");
    RUN_OK("grep -v '\"step\": [45]' ended-a/rollouts.jsonl > three.jsonl");
    RUN_OK("$T " RARELY "--steps 5 --run ended-b --replay three.jsonl");
    assert_non_null(strstr(output, "stopped after step 3: three.jsonl ends before step 4"));
    RUN_OK("test -d ended-b/checkpoints/step_000003");
    RUN_OK("$T --quiet --resume ended-b --replay ended-a/rollouts.jsonl");
    assert_same_end("ended-a", "ended-b", 5);
    assert_same_log("ended-a/metrics.jsonl", "ended-b/metrics.jsonl");

    RUN_OK("sed '50s/\"prompt\": \"/&1/' ended-a/rollouts.jsonl > wrong.jsonl");
    assert_int_equal(run("$T " RARELY "--steps 5 --run ended-c --replay wrong.jsonl"), 2);
    assert_non_null(strstr(output, "wrong.jsonl:50: the prompt is not"));
    RUN_OK("$T --quiet --resume ended-c --replay ended-a/rollouts.jsonl");
    assert_same_end("ended-a", "ended-c", 5);
}

/* Completions longer than any built-in answer are logged whole: a character per token. */
static void test_long_completions_are_logged_whole(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--warm-start 0 --context 120 --max-tokens 100 --steps 1 --eval-every 0 "
           "--run long");
    cJSON *log = read_log("long/rollouts.jsonl"), *line;
    int longest = 0;
    cJSON_ArrayForEach(line, log) {
        int tokens = cJSON_GetArraySize(cJSON_GetObjectItem(line, "tokens"));
        int ended = cJSON_IsTrue(cJSON_GetObjectItem(line, "ended"));
        const char *text = cJSON_GetObjectItem(line, "completion")->valuestring;
        assert_int_equal(strlen(text), tokens - ended);
        if (tokens > longest) longest = tokens;
    }
    assert_in_range(longest, 64, 100);
    cJSON_Delete(log);
}

/* A backend that cannot be opened is one line: the machine's fault where it was asked for by name,
   the user's where the CPU is asked for what it has not. auto takes the CPU. */
static void test_backends_not_there(void **state) {
    (void)state;
    assert_int_equal(run("$T --dtype fp16 --dry-run"), 2);
    assert_non_null(strstr(output, "the CPU backend has no fp16; "));
    if (access("/dev/nvidiactl", F_OK) == 0) skip(); /* there is a GPU */
    assert_int_equal(run("%s --backend cuda --dry-run", train), 1);
    assert_ptr_equal(strstr(output, "train: error: backend cuda: "), output);
    assert_ptr_equal(strchr(output, '\n'), output + strlen(output) - 1); /* one line */
    RUN_OK("%s --backend auto --dry-run", train);
    assert_non_null(strstr(output, "backend cpu fp32"));
}

static void test_seed_changes_the_run(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--steps 1 --eval-every 0 --seed 5 --run seed-a");
    RUN_OK("$T " SMALL "--steps 1 --eval-every 0 --seed 6 --run seed-b");
    cJSON *a = read_log("seed-a/metrics.jsonl"), *b = read_log("seed-b/metrics.jsonl");
    assert_true(logged(a, 1, "entropy") != logged(b, 1, "entropy"));
    cJSON_Delete(a), cJSON_Delete(b);
}

static void test_resume_is_bitwise(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--steps 4 --run whole");
    RUN_OK("$T " SMALL "--steps 2 --run halves");
    RUN_OK("$T --quiet --resume halves --steps 4");
    assert_same_log("whole/metrics.jsonl", "halves/metrics.jsonl");
    assert_same_log("whole/rollouts.jsonl", "halves/rollouts.jsonl");
    assert_same_end("whole", "halves", 4);
}

/* Products of bf16 operands: as repeatable, said at the start, and noticed where a run goes on
   without. What decode and the training pass give differs by a rounding here and there, so the
   ratio is to the training pass's own. */
static void test_bf16_products(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--dtype bf16 --steps 4 --run whole16");
    RUN_OK("$T " SMALL "--dtype bf16 --steps 2 --run halves16");
    RUN_OK("cp -r halves16 other16 && $T --quiet --resume halves16 --steps 4");
    assert_same_log("whole16/metrics.jsonl", "halves16/metrics.jsonl");
    assert_same_log("whole16/rollouts.jsonl", "halves16/rollouts.jsonl");
    assert_same_end("whole16", "halves16", 4);
    RUN_OK("$T " SMALL "--dtype bf16 --warm-start 100 --minibatches 1 --epochs 1 --steps 1 "
           "--run ratio16");
    cJSON *log = read_log("ratio16/metrics.jsonl");
    assert_true(logged(log, 1, "ratio_mean") == 1);
    cJSON_Delete(log);
    RUN_OK("$T " SMALL "--steps 1 --run once32");
    RUN_OK("$T " SMALL "--dtype bf16 --steps 1 --run once16");
    assert_int_equal(run("cmp once32/rollouts.jsonl once16/rollouts.jsonl"), 1);
    RUN_OK("$T --dtype bf16 --dry-run");
    assert_non_null(strstr(output, "backend cpu fp32 with bf16 products"));
    RUN_OK("%s --resume other16 --steps 3 --dtype fp32", train);
    assert_non_null(strstr(output, " bf16 products -> cpu fp32 "));
    assert_non_null(strstr(output, "equal to rounding, not bit for bit"));
}

/* An objective whose gradient is not zero where every answer is wrong. */
#define BONUS "--objective rloo --entropy-control bonus --entropy-coef 0.1 "

/* Micro-batches are memory only: the first rollout is the same bits, gradients equal to
   rounding. */
static void test_micro_batches_do_not_matter(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--warm-start 100 --warm-batch 64 --steps 0 --run warm");
    RUN_OK("$T " SMALL "--model warm --warm-start 0 " BONUS "--steps 1 --run micro-a");
    RUN_OK("$T " SMALL "--model warm --warm-start 0 " BONUS "--steps 1 --run micro-b "
           "--micro-tokens 40 --decode-rows 3");
    cJSON *a = read_log("micro-a/metrics.jsonl"), *b = read_log("micro-b/metrics.jsonl");
    assert_same_log("micro-a/rollouts.jsonl", "micro-b/rollouts.jsonl");
    double norm_a = logged(a, 1, "grad_norm"), norm_b = logged(b, 1, "grad_norm");
    assert_true(norm_a > 0);
    ASSERT_CLOSE("grad_norm", fabs(norm_a - norm_b) / norm_a, 1e-5);
    cJSON_Delete(a), cJSON_Delete(b);
}

/* Sampling and scoring are the same policy: decode's numbers against the training pass's. */
static void test_sampled_logp_is_scored_logp(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--steps 3 --run match");
    cJSON *log = read_log("match/metrics.jsonl");
    for (int step = 1; step <= 3; step++) {
        double max = logged(log, step, "sampling/sampling_logp_difference/max");
        double mean = logged(log, step, "sampling/sampling_logp_difference/mean");
        assert_true(max > 0 && mean > 0 && mean <= max);
        ASSERT_CLOSE("sampling_logp_difference/max", max, 1e-4);
    }
    cJSON_Delete(log);
}

/* The metrics carry the design's keys. */
static void test_metric_keys(void **state) {
    (void)state;
    static const char *const keys[] = {
        "loss", "policy_loss", "grad_norm", "learning_rate", "num_tokens", "reward", "reward_std",
        "frac_reward_zero_std", "entropy", "entropy_ratio", "entropy_cumulative", "adv_logp_cov",
        "clip_ratio/low_mean", "clip_ratio/high_mean", "completions/mean_length",
        "completions/clipped_ratio", "eval/pass@1", "eval/pass@4", "eval/distinct_correct",
        "eval/entropy"};
    RUN_OK("$T " SMALL "--steps 2 --run keys");
    cJSON *log = read_log("keys/metrics.jsonl");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (isnan(logged(log, 2, keys[i]))) fail_msg("metrics.jsonl lacks %s", keys[i]);
    cJSON_Delete(log);
}

static void test_every_objective_runs(void **state) {
    (void)state;
    for (int i = 0; objective_row(i); i++) {
        const char *name = objective_row(i)->name;
        RUN_OK("$T " SMALL "--steps 2 --eval-every 0 --objective %s --run objective-%s", name,
               name);
    }
}

static void test_every_control_runs(void **state) {
    (void)state;
    char names[512], *rest = names, *name;
    snprintf(names, sizeof names, "%s", objective_axis_names("entropy-control"));
    while ((name = strsep(&rest, " ")) != NULL) {
        RUN_OK("$T " SMALL "--steps 2 --eval-every 0 --objective dapo --entropy-control %s "
               "--run control-%s", name, name);
        char log[128];
        snprintf(log, sizeof log, "control-%s/metrics.jsonl", name);
        cJSON *lines = read_log(log);
        assert_int_equal(isnan(logged(lines, 2, "repo_zeta")), strncmp(name, "repo", 4) != 0);
        assert_int_equal(isnan(logged(lines, 2, "clip_high")), strcmp(name, "adapo") != 0);
        assert_int_equal(isnan(logged(lines, 2, "entropy_coef")), !strstr(name, "bonus"));
        cJSON_Delete(lines);
    }
}

/* A second task starts with fresh moments and a target of its own; resuming at the border or after
   it gives the same run. */
static void test_tasks_in_sequence(void **state) {
    (void)state;
    static const char tasks[] = "--tasks countdown:2,countdown_sorted:2 --objective repo";
    RUN_OK("$T " SMALL "%s --run sequence", tasks);
    RUN_OK("$T " SMALL "%s --run sequence-cut --tasks countdown:2", tasks);
    RUN_OK("$T --quiet --resume sequence-cut %s", tasks);
    assert_same_end("sequence", "sequence-cut", 4);
    cJSON *log = read_log("sequence/metrics.jsonl");
    assert_true(logged(log, 3, "entropy_ratio") == 1);
    assert_true(logged(log, 2, "entropy_ratio") != 1);
    assert_string_equal(cJSON_GetObjectItem(cJSON_GetArrayItem(log, 3), "task")->valuestring,
                        "countdown_sorted");
    const cJSON *last = cJSON_GetArrayItem(log, cJSON_GetArraySize(log) - 1);
    assert_string_equal(cJSON_GetObjectItem(last, "task")->valuestring, "countdown");
    cJSON_Delete(log);
}

static void test_monitors(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--steps 2 --entropy-push-tokens 1000 --run monitors");
    cJSON *log = read_log("monitors/metrics.jsonl"), *attention;
    assert_false(isnan(logged(log, 2, "entropy_push_raw")));
    assert_false(isnan(logged(log, 2, "entropy_push_measured")));
    double min = logged(log, 2, "attention_entropy/min");
    double mean = logged(log, 2, "attention_entropy/mean");
    assert_true(0 < min && min <= mean && mean <= 1);
    attention = read_log("monitors/attention_entropy.jsonl");
    const cJSON *heads = cJSON_GetObjectItem(cJSON_GetArrayItem(attention, 1), "entropy");
    assert_int_equal(cJSON_GetArraySize(heads), 12);
    cJSON_Delete(log), cJSON_Delete(attention);
    RUN_OK("ls monitors/events.out.tfevents.*");
}

static void test_every_task_runs(void **state) {
    (void)state;
    for (int i = 0; task_row(i); i++) {
        const char *name = task_row(i)->name;
        RUN_OK("$T " SMALL "--steps 1 --task %s --run task-%s", name, name);
    }
}

static void test_reference_kl(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--steps 2 --kl-coef 0.1 --lr 1e-2 --run kl");
    RUN_OK("$T --quiet --resume kl --steps 3");
    cJSON *log = read_log("kl/metrics.jsonl");
    assert_true(logged(log, 2, "kl") > 0);
    assert_true(logged(log, 3, "kl") > 0);
    cJSON_Delete(log);
}

/* --score against the entropy and log-probability that the rollout logged for the same tokens. */
static void test_score(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--steps 1 --eval-every 0 --run scored");
    RUN_OK("printf '{\"tokens\":[1,2,3,4]}\\n\\n{\"tokens\":[3,3]}\\n' > score.jsonl; "
           "{ $T --score score.jsonl --model scored; $T --score score.jsonl --model scored; } "
           "> score.out");   /* one file for both, as in a pipeline's log */
    cJSON *out = read_log("score.out");
    assert_int_equal(cJSON_GetArraySize(out), 4);
    const cJSON *first = cJSON_GetArrayItem(out, 0);
    const cJSON *logp = cJSON_GetObjectItem(first, "logp"), *value;
    assert_int_equal(cJSON_GetArraySize(logp), 3);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(first, "entropy")), 3);
    cJSON_ArrayForEach(value, logp) assert_true(value->valuedouble < 0);
    cJSON_Delete(out);
    /* what cannot be read, or holds more than is seen, is an error and not the end of the file */
    static const struct { const char *line; int code; const char *said; } cases[] = {
        {"$T --score . --model scored", 2, "Is a directory"},
        {"$T --score /proc/self/mem --model scored", 1, "Input/output error"},
        {"printf '\\0{\"tokens\":[1,2]}\\n' > bad.jsonl; $T --score bad.jsonl --model scored", 2,
         "bad.jsonl:1: holds a zero byte"},
        {"printf '{\"tokens\":[1,2]}\\n{\"tokens\":[1,2]}\\0x\\n' > bad.jsonl; "
         "$T --score bad.jsonl --model scored", 2, "bad.jsonl:2: holds a zero byte"},
        {"$T " SMALL "--steps 1 --run zero --replay .", 2, "Is a directory"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int code = run("%s", cases[i].line);
        if (code != cases[i].code || !strstr(output, cases[i].said))
            fail_msg("%s: %d %s", cases[i].line, code, output);
    }
    assert_int_equal(run("echo '{\"tokens\":[1,99]}' > bad.jsonl; $T --score bad.jsonl --model "
                         "scored"), 2);
    assert_non_null(strstr(output, "bad.jsonl:1"));
}

static void test_eval_only_and_config(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--steps 1 --run saved");
    RUN_OK("$T --model saved --eval-only --eval-prompts 4 --eval-samples 4");
    assert_non_null(strstr(output, "pass@4"));
    /* a result that cannot be written is not a success */
    int code = run("$T --model saved --eval-only --eval-prompts 4 --eval-samples 4 > /dev/full");
    if (code != 1 || !strstr(output, "standard output")) fail_msg("%d %s", code, output);
    static const char *const printed[] = {"$T --help", "$T --dry-run",
                                          "$T " LOUD "--steps 1 --run said", "$T --help >&-"};
    for (size_t i = 0; i < sizeof printed / sizeof *printed; i++) {
        code = run("{ %s ; } > /dev/full", printed[i]);
        int lines = 0;
        for (const char *c = output; *c; c++) lines += *c == '\n';
        if (code != 1 || lines != 1 || !strstr(output, "cannot write standard output"))
            fail_msg("%s: %d %s", printed[i], code, output);
    }
    RUN_OK("test -s said/checkpoints/latest");   /* the run itself lost nothing */
    RUN_OK("$T --config saved/config.json --run from-config");
    assert_same_log("saved/metrics.jsonl", "from-config/metrics.jsonl");
}

static void test_dry_run_writes_nothing(void **state) {
    (void)state;
    RUN_OK("$T --dry-run --model gpt2 --context 64 --run never");
    assert_non_null(strstr(output, "activations"));
    assert_int_not_equal(run("test -e never"), 0);
}

/* Each: one clear line, the right exit code, nothing made or damaged. */
static void test_bad_input(void **state) {
    (void)state;
    static const struct { const char *line; int code; const char *says; } cases[] = {
        {"$T --stpes 3", 2, "--steps"},
        {"$T --steps", 2, "--steps"},
        {"$T --steps -1", 2, "--steps"},
        {"$T --lr nan", 2, "--lr"},
        {"$T --task chess", 2, "countdown"},
        {"$T --objective ppo", 2, "grpo"},
        {"$T --group 1", 2, "--group"},
        {"$T --model nowhere", 2, "nowhere"},
        {"$T --config nowhere.json", 2, "nowhere.json"},
        {"$T --max-tokens 500", 2, "--max-tokens"},
        {"$T --resume nowhere", 2, "nowhere"},
        {"$T --score nowhere.jsonl", 2, "--model"},
        {"$T --heads 3", 2, "model"},
        {"$T --run /proc/none/run", 2, "/proc/none"},
        {"$T --run taken", 2, "is no run"},
        {"$T --run taken --overwrite", 2, "is no run"},
        {"$T --backend cuda9", 2, "cuda9"},
        {"$T --objective reinforce --entropy-control adapo", 2, "adapo"},
        {"$T --entropy-control magic", 2, "repo_r"},
        {"$T --tasks countdown", 2, "NAME:STEPS"},
        {"$T --tasks chess:3", 2, "chess"},
        {"$T --objective repo --zeta-min 5", 2, "--zeta-min"},
    };
    RUN_OK("mkdir taken && echo mine > taken/file");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int code = run("%s", cases[i].line);
        int lines = 0;
        for (const char *c = output; *c; c++) lines += *c == '\n';
        const char *error = strstr(output, "error: ");
        if (code != cases[i].code || !error || !strstr(error, cases[i].says) || lines > 1)
            fail_msg("%s: exit code %d, said: %s", cases[i].line, code, output);
    }
    RUN_OK("test $(cat taken/file) = mine && test $(ls taken | wc -l) = 1");
}

/* Options that look harmless must not damage an older run, or measure something else. */
static void test_runs_are_safe(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--steps 2 --run safe --overwrite");
    assert_int_equal(run("$T --model safe --run safe --overwrite --quiet"), 2);
    RUN_OK("test -s safe/checkpoints/latest");
    RUN_OK("! grep -q overwrite safe/config.json");
    RUN_OK("$T --quiet --config safe/config.json --seed 2 --run safe-again --steps 1");
    RUN_OK("$T --resume safe --eval-only --eval-prompts 2 --eval-samples 2");
    assert_non_null(strstr(output, "safe/checkpoints/step_000002"));
    assert_int_equal(run("mkdir plain && $T --quiet --resume plain"), 2);
    assert_int_equal(run("$T --quiet --resume safe --tasks countdown:1,split:1"), 2);
    assert_int_equal(run("$T --quiet --model safe --layers 2 --run shaped"), 2);
    assert_int_equal(run("$T --quiet --eval-prompts 1000000 --eval-samples 65536"), 2);
}

/* Minibatches without a completion to learn from change nothing and are not logged as updates. */
static void test_empty_minibatches(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--warm-start 0 --steps 2 --objective dapo --filter-rounds 1 --run empty");
    cJSON *log = read_log("empty/metrics.jsonl");
    assert_true(logged(log, 1, "updates") == 0);
    assert_true(isnan(logged(log, 1, "ratio_mean")));
    cJSON_Delete(log);
}

/* The reference of a task is that of its start, also for a run resumed from before a border. */
static void test_reference_across_tasks(void **state) {
    (void)state;
    static const char plan[] = "--tasks countdown:3,split:3 --kl-coef 0.5 --lr 1e-3";
    RUN_OK("$T " SMALL "%s --run border", plan);
    RUN_OK("$T " SMALL "%s --run border-cut --tasks countdown:3,split:1", plan);
    RUN_OK("$T --quiet --resume border-cut --tasks countdown:3,split:3");
    assert_same_end("border", "border-cut", 6);
    assert_same_log("border/metrics.jsonl", "border-cut/metrics.jsonl");
}

/* A checkpoint cut short or scribbled over is refused by name, whatever the place. */
static void test_hostile_checkpoint(void **state) {
    (void)state;
    static const char *const files[] = {"model.safetensors", "optimizer.safetensors",
                                        "trainer_state.json", "config.json"};
    RUN_OK("$T " SMALL "--steps 2 --run healthy");
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        for (int cut = 0; cut < 3; cut++) {
            RUN_OK("rm -rf ill && cp -r healthy ill && f=ill/checkpoints/step_000002/%s && "
                   "n=$(stat -c %%s $f) && truncate -s $((n * %d / 4)) $f", files[i], cut + 1);
            int code = run("$T --quiet --resume ill --steps 3");
            if (code != 2 || !strstr(output, files[i]))
                fail_msg("%s cut to %d/4: exit code %d, said: %s", files[i], cut + 1, code, output);
        }
    }
    RUN_OK("$T --quiet --resume healthy --steps 3");
}

/* Starts a long run in under/, does `meanwhile` once it has logged something, then asks it to stop:
   it cannot save, ends with exit code 1, and says `says`. */
static void assert_lost_directory(const char *meanwhile, const char *says) {
    int code = run("$T " SMALL "--steps 1000000 --save-every 0 --run under & pid=$!; while ! "
                   "[ -s under/metrics.jsonl ]; do sleep .05; done; %s; "
                   "kill -TERM $pid; wait $pid", meanwhile);
    if (code != 1 || !strstr(output, says)) fail_msg("%s: %d %s", meanwhile, code, output);
}

/* The run's directory goes away under the run: the save at its end makes none in its place, and
   says so. */
static void test_run_removed_under_it(void **state) {
    (void)state;
    assert_lost_directory("mv under moved", "the directory under is gone");
    assert_int_equal(run("[ -e under ]"), 1);
    RUN_OK("rm -r moved");
    /* rm -rf that met a save: checkpoints/ is left, and is no run */
    assert_lost_directory("mkdir under/checkpoints; rm under/*.* under/lock", "under is gone");
    RUN_OK("rmdir under/checkpoints && rm -r under");
}

/* Nothing of the run is saved in a directory that was put in its place. */
static void test_run_replaced_under_it(void **state) {
    (void)state;
    assert_lost_directory("mv under moved; mkdir under", "another was put in its place");
    RUN_OK("rmdir under && rm -r moved");
}

/* A step that was saved is not saved again at the end of the run, nor by a resume that has nothing
   to do. */
static void test_no_step_is_saved_twice(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--steps 2 --keep 0 --run once");
    RUN_OK("stat -c %%i once/checkpoints/step_000002 > before");
    run("$T --quiet --resume once");   /* there is nothing left to do */
    RUN_OK("stat -c %%i once/checkpoints/step_000002 > after");
    assert_same_file("before", "after");
}

/* One changed byte of the weights, which would still be numbers. */
static void test_rotten_weights(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--steps 1 --run rotten");
    RUN_OK("printf x | dd of=rotten/checkpoints/step_000001/model.safetensors bs=1 seek=100000 "
           "conv=notrunc");
    static const char *const lines[] = {"--resume rotten --steps 2", "--model rotten --eval-only",
                                        "--model rotten --score /dev/null"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        int code = run("$T --quiet %s", lines[i]);
        if (code != 2 || !strstr(output, "model.safetensors is damaged"))
            fail_msg("%s: %d %s", lines[i], code, output);
    }
}

/* A full disk is the machine's failure (exit 1); what was there stays whole. */
static void test_full_disk(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--steps 2 --run full");
    int code = run("ulimit -f 64; $T --quiet --resume full --steps 4");
    if (code != 1) fail_msg("exit code %d, said: %s", code, output);
    assert_non_null(strstr(output, "error: "));
    RUN_OK("$T --quiet --resume full --steps 4");
    RUN_OK("$T " SMALL "--steps 4 --run unfull");
    assert_same_end("full", "unfull", 4);
}

/* ---- interruption ---------------------------------------------------------------------------- */

/* Starts the program on `arguments`, sends it `signal` after `microseconds`; returns its status. */
static int run_and_signal(const char *arguments, int signal, long microseconds) {
    pid_t child = start(arguments);
    pause_for(microseconds);
    kill(child, signal);
    return wait_for_end(child);
}

/* Long enough that it cannot be over before the signal; one checkpoint a step. */
#define LONG SMALL "--save-every 1 --eval-every 0 --steps 100000 "

static void test_sigterm_saves_and_exits_0(void **state) {
    (void)state;
    int status = run_and_signal(LONG "--run stopped", SIGTERM, 1500000);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    RUN_OK("test -s stopped/checkpoints/latest && $T --resume stopped --quiet "
           "--steps $(($(ls -d stopped/checkpoints/step_* | tail -n 1 | sed s/.*step_0*//) + 1))");
}

/* Killed at 20 random moments, --resume auto goes on each time; in the end the run equals one that
   was never interrupted. */
static void test_sigkill_at_random_moments(void **state) {
    (void)state;
    struct Rng rng;
    rng_open(&rng, 7, RNG_TEST, 0);
    for (int i = 0; i < 20; i++) {
        int status = run_and_signal(LONG "--run killed --resume auto", SIGKILL,
                                    20000 + (long)rng_below(&rng, 400000));
        if (!WIFSIGNALED(status)) {
            run("cat signalled.log");
            fail_msg("try %d ended by itself: %s", i, output);
        }
    }
    RUN_OK("ls killed/checkpoints | grep step_ | sort | tail -n 1 | sed s/step_0*//");
    int reached = atoi(output) + 2;
    RUN_OK("$T " LONG "--run killed --resume auto --steps %d", reached);
    RUN_OK("$T " LONG "--run unkilled --steps %d", reached);
    assert_same_end("killed", "unkilled", reached);
    assert_same_log("killed/metrics.jsonl", "unkilled/metrics.jsonl");
}

int main(void) {
    always = "--backend cpu"; /* also where there is a GPU: what they expect is float32's */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_runs_are_equal),
        cmocka_unit_test(test_replay),
        cmocka_unit_test(test_replay_that_ends),
        cmocka_unit_test(test_long_completions_are_logged_whole),
        cmocka_unit_test(test_backends_not_there),
        cmocka_unit_test(test_seed_changes_the_run),
        cmocka_unit_test(test_resume_is_bitwise),
        cmocka_unit_test(test_bf16_products),
        cmocka_unit_test(test_micro_batches_do_not_matter),
        cmocka_unit_test(test_sampled_logp_is_scored_logp),
        cmocka_unit_test(test_metric_keys),
        cmocka_unit_test(test_every_objective_runs),
        cmocka_unit_test(test_every_control_runs),
        cmocka_unit_test(test_tasks_in_sequence),
        cmocka_unit_test(test_monitors),
        cmocka_unit_test(test_every_task_runs),
        cmocka_unit_test(test_reference_kl),
        cmocka_unit_test(test_score),
        cmocka_unit_test(test_eval_only_and_config),
        cmocka_unit_test(test_dry_run_writes_nothing),
        cmocka_unit_test(test_bad_input),
        cmocka_unit_test(test_runs_are_safe),
        cmocka_unit_test(test_empty_minibatches),
        cmocka_unit_test(test_reference_across_tasks),
        cmocka_unit_test(test_hostile_checkpoint),
        cmocka_unit_test(test_run_removed_under_it),
        cmocka_unit_test(test_run_replaced_under_it),
        cmocka_unit_test(test_no_step_is_saved_twice),
        cmocka_unit_test(test_rotten_weights),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_sigterm_saves_and_exits_0),
        cmocka_unit_test(test_sigkill_at_random_moments),
    };
    return cmocka_run_group_tests(tests, make_place, remove_place);
}
