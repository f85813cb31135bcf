/* Measuring on the device that is open: struct LabDevice (lab.h). Compiled once. */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include "../../llmc/kernels/cuda_device.h"
#include "lab.h"

/* ---- time ------------------------------------------------------------------------------------ */

static double time_ms(void (*call)(void *context), void *context) {
    static cudaEvent_t begin, end;
    float milliseconds;
    if (!begin) CUDA_CHECK(cudaEventCreate(&begin));
    if (!end) CUDA_CHECK(cudaEventCreate(&end));
    CUDA_CHECK(cudaEventRecord(begin, cuda.stream));
    call(context);
    CUDA_CHECK(cudaEventRecord(end, cuda.stream));
    CUDA_CHECK(cudaEventSynchronize(end));
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    return milliseconds;
}

static struct LabDevice device;

/* Twice the cache is written, as Triton's do_bench does it: peers are measured likewise. The lines
   are dirty then, and what runs next also pays for their way out. */
static void flush(void) {
    static void *memory;
    if (!memory) CUDA_CHECK(cudaMalloc(&memory, 2 * device.l2_bytes));
    CUDA_CHECK(cudaMemsetAsync(memory, 0, 2 * device.l2_bytes, cuda.stream));
}

/* ---- NVML: looked for at run time, as machines for building have no driver ------------------- */

typedef struct nvmlDevice_st *Nvml;   /* its opaque handle; the functions return 0 for success */

static struct {
    bool tried;
    Nvml device;                      /* NULL: there is no answer */
    int (*energy)(Nvml device, unsigned long long *millijoules);
    int (*clock)(Nvml device, int type, unsigned *mhz);
    int (*power)(Nvml device, unsigned *milliwatts);
    int (*temperature)(Nvml device, int sensor, unsigned *celsius);
    int (*limits)(Nvml device, unsigned long long *reasons);
    char driver[80];
} nvml;

/* Opens it for the device of this process: NVML counts devices in another order than CUDA, so by
   its place on the bus. A function that a version does not have stays NULL. */
static void nvml_open(void) {
    char bus[32];
    int number;
    if (nvml.tried) return;
    nvml.tried = true;
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) return;
    int (*init)(void) = NULL;
    int (*find)(const char *bus, Nvml *out) = NULL;
    int (*version)(char *out, unsigned length) = NULL;
    *(void **)&init = dlsym(library, "nvmlInit_v2");
    *(void **)&find = dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2");
    *(void **)&version = dlsym(library, "nvmlSystemGetDriverVersion");
    *(void **)&nvml.energy = dlsym(library, "nvmlDeviceGetTotalEnergyConsumption");
    *(void **)&nvml.clock = dlsym(library, "nvmlDeviceGetClockInfo");
    *(void **)&nvml.power = dlsym(library, "nvmlDeviceGetPowerUsage");
    *(void **)&nvml.temperature = dlsym(library, "nvmlDeviceGetTemperature");
    *(void **)&nvml.limits = dlsym(library, "nvmlDeviceGetCurrentClocksThrottleReasons");
    CUDA_CHECK(cudaGetDevice(&number));
    CUDA_CHECK(cudaDeviceGetPCIBusId(bus, sizeof bus, number));
    if (!init || !find || init() != 0 || find(bus, &nvml.device) != 0) nvml.device = NULL;
    if (nvml.device && version && version(nvml.driver, sizeof nvml.driver) != 0)
        nvml.driver[0] = 0;
}

static double energy_joules(void) {
    unsigned long long millijoules;
    nvml_open();
    if (!nvml.device || !nvml.energy || nvml.energy(nvml.device, &millijoules) != 0) return NAN;
    return (double)millijoules / 1000;
}

static double clock_mhz(int type) {
    unsigned mhz;
    return nvml.clock && nvml.clock(nvml.device, type, &mhz) == 0 ? mhz : NAN;
}

static void state(struct LabState *out) {
    enum { MULTIPROCESSOR = 1, MEMORY = 2, GPU_SENSOR = 0 };
    enum { POWER_LIMITS = 0x4 | 0x80, HEAT_LIMITS = 0x20 | 0x40, HARDWARE_SLOWDOWN = 0x8 };
    unsigned number;
    unsigned long long reasons = 0;
    *out = (struct LabState){NAN, NAN, NAN, NAN, ""};
    nvml_open();
    if (!nvml.device) return;
    out->sm_mhz = clock_mhz(MULTIPROCESSOR);
    out->memory_mhz = clock_mhz(MEMORY);
    if (nvml.power && nvml.power(nvml.device, &number) == 0) out->watts = number / 1000.;
    if (nvml.temperature && nvml.temperature(nvml.device, GPU_SENSOR, &number) == 0)
        out->celsius = number;
    if (nvml.limits && nvml.limits(nvml.device, &reasons) != 0) reasons = 0;
    if (reasons & HARDWARE_SLOWDOWN) out->limited = "hardware";
    if (reasons & HEAT_LIMITS) out->limited = "heat";
    if (reasons & POWER_LIMITS) out->limited = "power";
}

/* ---- the device ------------------------------------------------------------------------------ */

extern "C" __attribute__((visibility("default"))) const struct LabDevice *lab_device(void) {
    struct cudaDeviceProp properties;
    int number, driver, runtime;
    if (device.time_ms) return &device;
    nvml_open();
    CUDA_CHECK(cudaGetDevice(&number));
    CUDA_CHECK(cudaGetDeviceProperties(&properties, number));
    CUDA_CHECK(cudaDriverGetVersion(&driver));
    CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
    snprintf(device.name, sizeof device.name, "%.63s", properties.name);
    snprintf(device.software, sizeof device.software,
             "%s%s%sdriver for CUDA %d.%d, runtime %d.%d, cuBLASLt %zu",
             nvml.driver[0] ? "driver " : "", nvml.driver, nvml.driver[0] ? ", " : "",
             driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10,
             cublasLtGetVersion());
    device.multiprocessors = properties.multiProcessorCount;
    device.capability = 10 * properties.major + properties.minor;
    device.l2_bytes = (size_t)properties.l2CacheSize;
    device.memory_bytes = properties.totalGlobalMem;
    device.flush = flush;
    device.energy_joules = energy_joules;
    device.state = state;
    device.time_ms = time_ms;
    return &device;
}
