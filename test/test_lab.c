/* The laboratory's measuring (struct LabDevice), in the simulator: test_lab sim. The driver's
   library is one that this program makes: what it says is known. Without the plug-in's name, as
   among the CPU's tests, all is skipped. */
#include <math.h>
#include <stdlib.h>
#include <unistd.h>
#include "test.h"
#include "../dev/cuda/lab_open.h"

static struct Lab lab;

/* NVML as lab_device.cu knows it: of device 0 of the simulator, no other. Energy rises by 1.5 J
   from one call to the next. */
static const char nvml[] =
    "#include <string.h>\n"
    "int nvmlInit_v2(void) { return 0; }\n"
    "int nvmlSystemGetDriverVersion(char *out, unsigned n) { return n < 8 || !strcpy(out, "
    "\"1.23.45\"); }\n"
    "int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **out) {\n"
    "    *out = (void *)7; return strcmp(bus, \"0000:00:00.0\") != 0; }\n"
    "static unsigned long long used = 5000;\n"
    "int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *out) {\n"
    "    used += 1500; *out = used; return device != (void *)7; }\n"
    "int nvmlDeviceGetClockInfo(void *device, int type, unsigned *out) {\n"
    "    *out = type == 1 ? 1980 : type == 2 ? 2619 : 1; return device != (void *)7; }\n"
    "int nvmlDeviceGetPowerUsage(void *device, unsigned *out) {\n"
    "    *out = 345678; return device != (void *)7; }\n"
    "int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *out) {\n"
    "    (void)device, (void)sensor, (void)out; return 3; }\n"
    "int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *out) {\n"
    "    *out = 4; return device != (void *)7; }\n";

/* A library that is open under its name is what dlopen finds under it. */
static void open_nvml(void) {
    char folder[] = "/tmp/policy-lab-XXXXXX", path[64], line[512];
    const char *compiler = getenv("CC");
    if (!mkdtemp(folder)) exit(1);
    snprintf(path, sizeof path, "%s/nvml.c", folder);
    FILE *file = fopen(path, "w");
    fputs(nvml, file);
    fclose(file);
    snprintf(line, sizeof line, "cd %s && %s -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 "
             "-o nvml.so nvml.c", folder, compiler ? compiler : "cc");
    int status = system(line);
    snprintf(path, sizeof path, "%s/nvml.so", folder);
    void *library = dlopen(path, RTLD_NOW);
    snprintf(line, sizeof line, "rm -r %s", folder);
    if (status != 0 || !library || system(line) != 0) {
        fprintf(stderr, "no library for the test: %s\n", dlerror());
        exit(1);
    }
}

static void test_device(void **state) {
    if (!lab.device) skip();
    (void)state;
    const struct LabDevice *d = lab.device;
    assert_string_equal(d->name, "cudasim");
    assert_string_equal(d->software,
                        "driver 1.23.45, driver for CUDA 12.0, runtime 12.0, cuBLASLt 120000");
    assert_true(d->capability >= 80 && d->multiprocessors > 0 && d->l2_bytes > 0);
    assert_true(d->memory_bytes > d->l2_bytes);
}

static void test_what_the_driver_says(void **state) {
    if (!lab.device) skip();
    (void)state;
    struct LabState now;
    double first = lab.device->energy_joules();
    assert_true(first >= 6.5 && lab.device->energy_joules() == first + 1.5);
    lab.device->state(&now);
    assert_true(now.sm_mhz == 1980 && now.memory_mhz == 2619);
    assert_true(now.watts == 345.678 && isnan(now.celsius));
    assert_string_equal(now.limited, "power");
}

struct Adam {
    float *w, *m, *v, *g;
    int n, calls;
};

static void adam(void *context) {
    struct Adam *a = context;
    const struct AdamwRange all = {0, (size_t)a->n, 0};
    const struct AdamwStep step = {.learning_rate = 1e-3f, .beta1 = .9f, .beta2 = .95f,
                                   .epsilon = 1e-8f, .grad_scale = 1, .step = 1, .seed = 1};
    lab.ops.adamw((floatX *)a->w, NULL, a->m, a->v, a->g, &all, 1, 0, (size_t)a->n, &step);
    a->calls++;
}

/* What is timed runs once; between two measurements the cache is flushed, and nothing else
   changes. */
static void test_time(void **state) {
    if (!lab.device) skip();
    (void)state;
    enum { N = 100000 };
    const struct Ops *ops = &lab.ops;
    float *host = calloc(N, sizeof *host), *all = ops->alloc(4 * N * sizeof(float));
    struct Adam a = {all, all + N, all + 2 * N, all + 3 * N, N, 0}, few = a;
    ops->fill_zero(all, 4 * N * sizeof(float));
    for (int i = 0; i < N; i++) host[i] = 1;
    ops->upload(a.g, host, N * sizeof(float));
    few.n = 8;
    double long_time = lab.device->time_ms(adam, &a);
    lab.device->flush();
    double short_time = lab.device->time_ms(adam, &few);
    assert_true(a.calls == 1 && few.calls == 1);
    assert_true(long_time > 0 && short_time > 0);
    ops->download(host, a.m, N * sizeof(float));
    for (int i = 0; i < N; i++)   /* (1 - beta1) g, twice for the first 8 */
        if (fabs(host[i] - (i < 8 ? .19 : .1)) > 1e-6) fail_msg("m[%d] is %g", i, host[i]);
    ops->download(host, a.g, N * sizeof(float));
    for (int i = 0; i < N; i++) assert_true(host[i] == 1);
    ops->free(all);
    free(host);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device),
        cmocka_unit_test(test_what_the_driver_says),
        cmocka_unit_test(test_time),
    };
    char why[1024];
    if (argc > 1) open_nvml();
    if (argc > 1 && !lab_open(&lab, argv[1], "fp32", why, sizeof why)) {
        fprintf(stderr, "no laboratory: %s\n", why);
        return 1;
    }
    return cmocka_run_group_tests_name("lab", tests, NULL, NULL);
}
