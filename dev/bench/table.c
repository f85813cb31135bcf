/* The table: rows of versions and shapes, on stdout, as CSV and as JSON. */
#include "bench.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>
#include "../../llmc/base/check.h"
#include "../../llmc/base/files.h"
#include "../../llmc/base/json.h"
#include "../../llmc/run/launch.h"
#include "../cuda/lab_open.h"

enum { MOST_ROWS = 4096 };

/* Shared by the processes of one run. */
static struct Table {
    int count;
    char device[64], software[160];
    double sm_mhz, memory_mhz;
    char limited[16];
    struct Rates rates;
    struct { pid_t owner; struct Row row; } item[MOST_ROWS];
} *table;

void table_open(void) {
    table = mmap(NULL, sizeof *table, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (table == MAP_FAILED) die_machine("no memory for the benchmark's table");
    table->sm_mhz = table->memory_mhz = table->rates.flop = table->rates.bytes = NAN;
}

static bool is_row(const struct Row *r, const struct Row *key) {
    return strcmp(r->op, key->op) == 0 && strcmp(r->slot, key->slot) == 0 &&
           strcmp(r->version, key->version) == 0 && strcmp(r->backend, key->backend) == 0 &&
           strcmp(r->dtype, key->dtype) == 0 && strcmp(r->shape, key->shape) == 0;
}

struct Row *table_row(const struct Bench *b, const char *slot, const char *version,
                      const char *backend, const char *dtype, const char *shape) {
    struct Row key = {.agrees = true, .repeats = true};
    snprintf(key.op, sizeof key.op, "%s", b->op->name);
    snprintf(key.slot, sizeof key.slot, "%s", slot);
    snprintf(key.version, sizeof key.version, "%s", version);
    snprintf(key.backend, sizeof key.backend, "%s", backend);
    snprintf(key.dtype, sizeof key.dtype, "%s", dtype);
    snprintf(key.shape, sizeof key.shape, "%s", shape);
    for (int i = 0; i < table->count; i++)
        if (table->item[i].owner == getpid() && is_row(&table->item[i].row, &key))
            return &table->item[i].row;
    int i = __atomic_fetch_add(&table->count, 1, __ATOMIC_SEQ_CST);
    if (i >= MOST_ROWS) die_machine("the benchmark's table is full");
    for (int k = 0; k < 3; k++) key.cold[k] = key.warm[k] = NAN;
    key.products_ms = key.floor_ms = key.of_products = key.of_floor = NAN;
    key.extra_mib = key.joules = NAN;
    table->item[i].row = key;
    table->item[i].owner = getpid();
    return &table->item[i].row;
}

void table_device(const struct Lab *lab, const struct Rates *rates) {
    struct LabState state;
    memcpy(table->device, lab->device->name, sizeof table->device);
    memcpy(table->software, lab->device->software, sizeof table->software);
    lab->device->state(&state);
    table->sm_mhz = state.sm_mhz, table->memory_mhz = state.memory_mhz;
    snprintf(table->limited, sizeof table->limited, "%s", state.limited);
    if (rates) table->rates = *rates;
}

/* ---- stdout ---------------------------------------------------------------------------------- */

/* "12.3", or "-" where there is nothing. */
static const char *number(double x, char text[16]) {
    if (isnan(x)) return "-";
    snprintf(text, 16, x >= 1000 ? "%.0f" : x >= 10 ? "%.1f" : x >= 0.1 ? "%.3f" : "%.5f", x);
    return text;
}
static const char *share(double x, char text[16]) {
    if (isnan(x)) return "-";
    snprintf(text, 16, "%.0f %%", 100 * x);
    return text;
}

static void print_checks(const char *op) {
    bool titled = false;
    for (int i = 0; i < table->count; i++) {
        const struct Row *r = &table->item[i].row;
        if (strcmp(r->op, op) != 0 || r->cases == 0) continue;
        if (!titled)
            printf("\n%-28s %-22s %-9s %-5s %5s  %-8s %s\n", op, "slot", "on", "dtype", "cases",
                   "agrees", "errors against float64 (worst over its bound)");
        titled = true;
        printf("%-28s %-22s %-9s %-5s %5d  %-8s %s (%.2g)\n", r->version, r->slot, r->backend,
               r->dtype, r->cases, r->agrees ? "yes" : r->repeats ? "NO" : "NO, bits", r->errors,
               r->worst);
    }
}

static void print_times(const char *op) {
    char t[11][16];
    bool titled = false;
    for (int i = 0; i < table->count; i++) {
        const struct Row *r = &table->item[i].row;
        if (strcmp(r->op, op) != 0 || r->cases > 0) continue;
        if (!titled)
            printf("\n%-28s %-22s %-28s %-5s %27s %27s %8s %8s %8s %8s %8s\n", op, "slot", "shape",
                   "dtype", "warm ms (20, 50, 80 %)", "cold L2 ms", "TFLOP/s", "products", "floor",
                   "MiB", "J");
        titled = true;
        double rate = r->flop > 0 ? 1e-9 * r->flop / r->warm[1] : NAN;
        printf("%-28s %-22s %-28s %-5s %8s %9s %8s %8s %9s %8s %8s %8s %8s %8s %8s\n", r->version,
               r->slot, r->shape, r->dtype, number(r->warm[0], t[0]), number(r->warm[1], t[1]),
               number(r->warm[2], t[2]), number(r->cold[0], t[3]), number(r->cold[1], t[4]),
               number(r->cold[2], t[5]), number(rate, t[6]), share(r->of_products, t[7]),
               share(r->of_floor, t[8]), number(r->extra_mib, t[9]), number(r->joules, t[10]));
    }
}

void table_print(const char *op) {
    print_checks(op);
    print_times(op);
    fflush(stdout);
}

/* ---- files ----------------------------------------------------------------------------------- */

/* A row's columns, the same in CSV and JSON. */
enum { TEXTS = 8, NUMBERS = 16 };
struct Columns {
    struct { const char *name, *value; } text[TEXTS];
    struct { const char *name; double value; } number[NUMBERS];
};

static struct Columns columns_of(const struct Row *r) {
    const char *agrees = r->cases == 0 ? "" : r->agrees ? "yes" : "no";
    return (struct Columns){
        {{"op", r->op}, {"slot", r->slot}, {"version", r->version}, {"backend", r->backend},
         {"dtype", r->dtype}, {"shape", r->shape}, {"agrees", agrees}, {"errors", r->errors}},
        {{"cases", r->cases}, {"worst_over_bound", r->cases ? r->worst : NAN},
         {"warm_p20_ms", r->warm[0]}, {"warm_p50_ms", r->warm[1]}, {"warm_p80_ms", r->warm[2]},
         {"cold_p20_ms", r->cold[0]}, {"cold_p50_ms", r->cold[1]}, {"cold_p80_ms", r->cold[2]},
         {"flop", r->flop}, {"bytes", r->bytes}, {"products_ms", r->products_ms},
         {"floor_ms", r->floor_ms}, {"of_products", r->of_products}, {"of_floor", r->of_floor},
         {"extra_mib", r->extra_mib}, {"joules", r->joules}}};
}

/* row NULL: the columns' names. What is not known is empty. */
static void write_line(struct AtomicFile *file, const struct Row *row) {
    struct Row none = {.cases = 0};
    struct Columns c = columns_of(row ? row : &none);
    char item[320];
    for (int k = 0; k < TEXTS + NUMBERS; k++) {
        bool text = k < TEXTS;
        const char *name = text ? c.text[k].name : c.number[k - TEXTS].name;
        double value = text ? 0 : c.number[k - TEXTS].value;
        if (!row) snprintf(item, sizeof item, "%s", name);
        else if (text) snprintf(item, sizeof item, "\"%s\"", c.text[k].value);
        else if (isnan(value)) item[0] = 0;
        else snprintf(item, sizeof item, "%.6g", value);
        strcat(item, k + 1 < TEXTS + NUMBERS ? "," : "\n");
        atomic_write(file, item, strlen(item));
    }
}

static void write_csv(const char *path) {
    struct AtomicFile file;
    atomic_open(&file, path);
    write_line(&file, NULL);
    for (int i = 0; i < table->count; i++) write_line(&file, &table->item[i].row);
    atomic_commit(&file);
}

static void add_number(cJSON *to, const char *name, double x) {
    if (isnan(x)) cJSON_AddNullToObject(to, name);
    else cJSON_AddNumberToObject(to, name, x);
}

static void add_rows(cJSON *json) {
    cJSON *rows = cJSON_AddArrayToObject(json, "rows");
    for (int i = 0; i < table->count; i++) {
        struct Columns c = columns_of(&table->item[i].row);
        cJSON *item = cJSON_CreateObject();
        for (int k = 0; k < TEXTS; k++)
            cJSON_AddStringToObject(item, c.text[k].name, c.text[k].value);
        for (int k = 0; k < NUMBERS; k++) add_number(item, c.number[k].name, c.number[k].value);
        cJSON_AddItemToArray(rows, item);
    }
}

/* "783805e", "783805e-dirty" with changes that are not committed, or "". */
static void commit_of(char *out, size_t capacity) {
    FILE *git = popen("git describe --always --dirty --exclude '*' 2>/dev/null", "r");
    out[0] = 0;
    if (!git) return;
    if (!fgets(out, (int)capacity, git)) out[0] = 0;
    out[strcspn(out, "\n")] = 0;
    pclose(git);
}

/* "model name : X" of /proc/cpuinfo; "" where there is no such line. */
static void processor_of(char *out, size_t capacity) {
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");
    out[0] = 0;
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, "model name", 10) == 0 && strchr(line, ':')) {
            snprintf(out, capacity, "%.*s", (int)strcspn(strchr(line, ':') + 2, "\n"),
                     strchr(line, ':') + 2);
            break;
        }
    if (file) fclose(file);
}

void table_save(const char *folder) {
    char date[32], path[4096], commit[64], processor[128];
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(date, sizeof date, "%Y%m%d-%H%M%S", &utc);
    commit_of(commit, sizeof commit), processor_of(processor, sizeof processor);
    cJSON *json = cJSON_CreateObject();
    cJSON_AddStringToObject(json, "date", date);
    cJSON_AddStringToObject(json, "commit", commit);
    cJSON_AddStringToObject(json, "processor", processor);
    cJSON_AddNumberToObject(json, "threads", launch_threads(0));
    cJSON_AddStringToObject(json, "blas", launch_blas_name());
    cJSON_AddStringToObject(json, "device", table->device);
    cJSON_AddStringToObject(json, "software", table->software);
    add_number(json, "sm_mhz", table->sm_mhz);
    add_number(json, "memory_mhz", table->memory_mhz);
    cJSON_AddStringToObject(json, "clocks_limited_by", table->limited);
    add_number(json, "measured_flop_per_s", table->rates.flop);
    add_number(json, "measured_bytes_per_s", table->rates.bytes);
    add_rows(json);
    check_path(path, sizeof path, "%s/bench-%s.csv", folder, date);
    write_csv(path);
    check_path(path, sizeof path, "%s/bench-%s.json", folder, date);
    json_write(json, path, NULL);
    printf("\n%s and .csv: commit %s, %s%s%s\n", path, commit[0] ? commit : "unknown",
           table->device[0] ? table->device : processor, table->software[0] ? ", " : "",
           table->software);
}
