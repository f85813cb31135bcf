/* Runs every case in a process of its own and compares what was reported with what must be. Prints
   one line per case: the matrix of doc/cudasim.md is made of these. Built by nvcc, it runs the
   sound cases on a GPU: what holds here must hold there. */
#include "selftest.h"
#include <stdlib.h>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

static int failures;

#ifdef CUDASIM
int planted_bug;
static void plant(int bug) { planted_bug = bug; }
#else
static void plant(int) {}
#endif

#ifndef CUDASIM
static const char BUILD = 'g';
static const char *const build_name = "gpu";
#elif defined(CUDASIM_RACE)
static const char BUILD = 'r';
static const char *const build_name = "sim-race";
#elif defined(__SANITIZE_ADDRESS__)
static const char BUILD = 'a';
static const char *const build_name = "sim-asan";
/* Nothing is freed here: each case is a process. */
extern "C" __attribute__((visibility("default"))) const char *__asan_default_options() {
    return "detect_leaks=0";
}
#else
static const char BUILD = 's';
static const char *const build_name = "sim";
#endif

/* ---- what cases use ---- */

void expect(bool condition, const char *what) {
    if (condition) return;
    if (failures++ < 5) printf("WRONG %s\n", what);
}

void expect_close(double error, double bound, const char *what) {
    if (error <= bound) return;
    if (failures++ < 5) printf("WRONG %s: error %.3g > %.3g\n", what, error, bound);
}

int failure_count() { return failures; }

float next_number() {
    static uint32_t state = 12345;
    state = state * 1664525u + 1013904223u;
    return (float)((int)(state >> 25) - 64) / 64.0f;
}

uint16_t encode16(double value, int exponent_bits, int mantissa_bits) {
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    int bias = (1 << (exponent_bits - 1)) - 1;
    uint16_t infinity = (uint16_t)(((1 << exponent_bits) - 1) << mantissa_bits);
    if (isnan(value)) return 0x7fff; /* what the device writes for any NaN */
    if (isinf(value)) return sign | infinity;
    int exponent;
    double magnitude = fabs(value);
    frexp(magnitude, &exponent); /* magnitude = fraction * 2^exponent, fraction in [1/2, 1) */
    int scale = exponent - 1 > 1 - bias ? exponent - 1 : 1 - bias; /* subnormals share the lowest */
    double units = nearbyint(ldexp(magnitude, mantissa_bits - scale));
    if (units == 0) return sign;
    /* adding the hidden bit into the exponent field also carries a rounding overflow upwards */
    double bits = (double)(scale + bias - 1) * (double)(1 << mantissa_bits) + units;
    return sign | (uint16_t)(bits < infinity ? bits : infinity);
}

double decode16(uint16_t bits, int exponent_bits, int mantissa_bits) {
    int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
    int mantissa = bits & ((1 << mantissa_bits) - 1);
    int bias = (1 << (exponent_bits - 1)) - 1;
    double magnitude;
    if (exponent == (1 << exponent_bits) - 1) magnitude = mantissa ? NAN : INFINITY;
    else if (exponent == 0) magnitude = ldexp(mantissa, 1 - bias - mantissa_bits);
    else magnitude = ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
    return bits & 0x8000 ? -magnitude : magnitude;
}

/* ---- running a case ---- */

struct Outcome {
    bool found;        /* anything at all was reported */
    std::string text;  /* all that was printed */
};

static Outcome run_case(const Case &c, const char *order) {
    int ends[2];
    if (pipe(ends) != 0) abort();
    fflush(nullptr);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        close(ends[0]);
        std::string settings = std::string(order) + "," + c.settings;
        setenv("CUDASIM", settings.c_str(), 1);
        plant(c.bug);
        c.run();
        expect(cudaGetLastError() == cudaSuccess, "an error was left behind");
        exit(failures ? 1 : 0);
    }
    close(ends[1]);
    Outcome outcome;
    char buffer[4096];
    ssize_t count;
    while ((count = read(ends[0], buffer, sizeof buffer)) > 0)
        outcome.text.append(buffer, (size_t)count);
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    outcome.found = status != 0;
    return outcome;
}

/* The line of a report that says most. */
static std::string first_report(const std::string &text) {
    static const char *const marks[] = {"CUDASIM ",      "CUDASIM:",      "ERROR: AddressSanitizer",
                                        "runtime error", "WRONG "};
    for (const char *mark : marks) {
        size_t at = text.find(mark);
        if (at == std::string::npos) continue;
        size_t end = text.find('\n', at);
        return text.substr(at, end - at).substr(0, 110);
    }
    return text.substr(0, 110);
}

static const char *const silent_orders[] = {"order=ascending", "order=descending",
                                            "order=random,resident=3,seed=1",
                                            "order=random,resident=3,seed=2"};
static const char *const bug_orders[] = {"order=ascending", "order=descending,seed=2",
                                         "order=random,resident=3,seed=3",
                                         "order=random,resident=2,seed=4"};

/* Nothing may be said, in whatever order threads run. */
static bool check_silent(const Case &c) {
    bool good = true;
    for (const char *order : silent_orders) {
        Outcome outcome = run_case(c, order);
        bool silent = !outcome.found && outcome.text.find("CUDASIM") == std::string::npos;
        if (silent) continue;
        good = false;
        printf("FAIL  %-10s %s (%s):\n%s\n", c.name, c.what, order, outcome.text.c_str());
    }
    if (good) printf("ok    %-10s    silent: %s\n", c.name, c.what);
    return good;
}

/* Whether this build prints what the case must say: the race checker has words of its own. */
static bool must_say(const Case &c) {
    static const char *const race_words[] = {"RACE", "UNINITIALISED", "OUT-OF-BOUNDS",
                                             "HOST-MEMORY", "freed device"};
    bool by_race_checker = false;
    for (const char *word : race_words)
        by_race_checker = by_race_checker || (c.says && strstr(c.says, word));
    return c.says && strchr(c.found_by, BUILD) && (BUILD == 'r' || !by_race_checker);
}

/* The bug must be reported, if this build is among those that should. */
static bool check_bug(const Case &c) {
    bool wanted = strchr(c.found_by, BUILD) != nullptr, diagnosing = must_say(c);
    Outcome best = {false, ""};
    for (const char *order : bug_orders) {
        Outcome outcome = run_case(c, order);
        bool said = diagnosing && outcome.text.find(c.says) != std::string::npos;
        if (outcome.found && (!best.found || said)) best = outcome;
        if (best.found && (said || !diagnosing)) break;
    }
    bool right = !diagnosing || best.text.find(c.says) != std::string::npos;
    bool good = (best.found || !wanted) && right;
    printf("%s  %-10s %2d %-38s %s%s\n", good ? "ok  " : "FAIL", c.name, c.bug, c.what,
           best.found ? "" : "not seen", best.found ? first_report(best.text).c_str() : "");
    if (!right) printf("%s", best.text.c_str());
    return good;
}

int main(int argc, char **argv) {
    const Case *const all[] = {kernel_cases, feature_cases, hopper_cases,  cluster_cases,
                               host_cases,   graph_cases,   library_cases, float16_cases};
    int passed = 0, failed = 0;
    for (const Case *list : all) {
        for (const Case *c = list; c->name; c++) {
            if (argc > 1 && strcmp(argv[1], c->name) != 0) continue;
            if (argc > 2 && atoi(argv[2]) != c->bug) continue;
            if (BUILD == 'g' && (c->bug || strcmp(c->name, "nccl") == 0)) continue; /* one GPU */
            bool good = c->bug ? check_bug(*c) : check_silent(*c);
            if (good) passed++;
            else failed++;
            fflush(stdout);
        }
    }
    printf("%s: %d passed, %d failed\n", build_name, passed, failed);
    return failed != 0;
}
