/* scripts/to_wandb.py with a stand-in for W&B's module: what is sent, under which names, to which
   run. Skipped where there is no python3, or the tests run elsewhere than in the repository. */
#include "program_rig.h"

#define SMALL "--quiet --warm-start 3 --warm-batch 16 --prompts 4 --group 4 --eval-every 2 " \
              "--eval-prompts 3 --eval-samples 4 --threads 2 "

/* What the stand-in writes: a line per log call, with the id of the run that it went to. */
static const char module[] =
    "import json\n"
    "class Run:\n"
    "    def __init__(self, id): self.id = id\n"
    "    def log(self, metrics, step):\n"
    "        with open('sent.jsonl', 'a') as out:\n"
    "            out.write(json.dumps({'id': self.id, 'step': step, **metrics}) + '\\n')\n"
    "    def finish(self): pass\n"
    "def init(id, **rest): return Run(id)\n";

static char send[4200];

static int make(void **state) {
    char here[4096];
    if (make_place(state) != 0 || !getcwd(here, sizeof here)) return -1;
    snprintf(send, sizeof send, "env PYTHONPATH=. python3 %s/scripts/to_wandb.py", here);
    char path[128];
    snprintf(path, sizeof path, "%s/wandb.py", place);
    FILE *file = fopen(path, "w");
    return !file || fputs(module, file) < 0 || fclose(file) != 0;
}

static bool can_send(void) { return run("%s --help", send) == 0; }

static const char *id_of(const cJSON *log, int line) {
    return cJSON_GetObjectItem(cJSON_GetArrayItem(log, line), "id")->valuestring;
}

/* Two evaluations at step 2, neither in the place of the other; and each line once. */
static void test_tasks_keep_their_names(void **state) {
    (void)state;
    if (!can_send()) skip();
    RUN_OK("$T " SMALL "--tasks countdown:2,split:2 --run tasks");
    RUN_OK("%s tasks --once && %s tasks --once", send, send);
    cJSON *log = read_log("sent.jsonl"), *lines = read_log("tasks/metrics.jsonl");
    assert_int_equal(cJSON_GetArraySize(log), cJSON_GetArraySize(lines));
    assert_false(isnan(logged(log, 2, "eval/countdown/pass@1")));
    assert_false(isnan(logged(log, 2, "eval/split/pass@1")));
    assert_true(isnan(logged(log, 2, "eval/pass@1")));
    assert_false(isnan(logged(log, 2, "reward")));
    cJSON_Delete(log), cJSON_Delete(lines);
}

/* A resumed run goes on in the same run of W&B; one started anew goes to another, wholly. */
static void test_started_anew(void **state) {
    (void)state;
    if (!can_send()) skip();
    RUN_OK("rm -f sent.jsonl; $T " SMALL "--steps 3 --run anew && %s anew --once", send);
    RUN_OK("$T --quiet --resume anew --steps 4 && %s anew --once", send);
    cJSON *log = read_log("sent.jsonl");
    int before = cJSON_GetArraySize(log);
    assert_string_equal(id_of(log, 0), id_of(log, before - 1));
    assert_false(isnan(logged(log, 4, "reward")));
    RUN_OK("$T " SMALL "--steps 2 --seed 2 --run anew --overwrite && %s anew --once", send);
    cJSON *after = read_log("sent.jsonl"), *lines = read_log("anew/metrics.jsonl");
    assert_int_equal(cJSON_GetArraySize(after), before + cJSON_GetArraySize(lines));
    assert_string_not_equal(id_of(after, 0), id_of(after, before));
    cJSON_Delete(log), cJSON_Delete(after), cJSON_Delete(lines);
}

/* The same while it follows: it goes on with the new run by itself. */
static void test_started_anew_while_following(void **state) {
    (void)state;
    if (!can_send()) skip();
    RUN_OK("rm -f sent.jsonl; $T " SMALL "--steps 3 --run live && "
           "{ timeout -s INT 60 %s live --every 0.05 > follow.log 2>&1 & pid=$!; "
           "for i in $(seq 200); do test -e live/wandb.json && break; sleep 0.05; done; "
           "$T " SMALL "--steps 2 --run live --overwrite; "
           "for i in $(seq 200); do test $(grep -c . sent.jsonl) -ge 7 && break; sleep 0.05; done; "
           "kill $pid; wait $pid; true; }", send);
    cJSON *log = read_log("sent.jsonl");
    int lines = cJSON_GetArraySize(log);
    assert_int_equal(lines, 4 + 3);   /* the evaluation before, and each step */
    assert_string_not_equal(id_of(log, 3), id_of(log, 4));
    assert_string_equal(id_of(log, 4), id_of(log, 6));
    cJSON_Delete(log);
}

int main(void) {
    always = "--backend cpu";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tasks_keep_their_names),
        cmocka_unit_test(test_started_anew),
        cmocka_unit_test(test_started_anew_while_following),
    };
    return cmocka_run_group_tests_name("wandb", tests, make, remove_place);
}
