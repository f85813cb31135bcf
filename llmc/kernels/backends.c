/* The choice of a backend: the CPU's, which is linked in, or a plug-in. */
#include "backends.h"
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../base/check.h"
#include "../base/console.h"
#include "../base/files.h"
#include "backend.h"
#include "gemm_bf16.h"

/* ---- plug-ins -------------------------------------------------------------------------------- */

/* Where backend_NAME.so may lie, seen from the program's own folder: a program beside the Makefile,
   its build folder, a test program in build/test. */
static const char *const plugin_folders[] = {".", "build", "..", "../.."};

/* Opens the plug-in's library; NULL with one sentence in `why`, or with nothing in it: there is no
   such file. */
static void *plugin_load(const char *name, char *why, size_t capacity) {
    char program[3072], path[4096];
    why[0] = '\0';
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    program[length > 0 ? length : 0] = '\0';
    char *slash = strrchr(program, '/');
    if (slash) *slash = '\0';
    for (size_t i = 0; i < sizeof plugin_folders / sizeof *plugin_folders; i++) {
        snprintf(path, sizeof path, "%s/%s/backend_%s.so", program, plugin_folders[i], name);
        if (!path_exists(path)) continue;
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!library) snprintf(why, capacity, "%s", dlerror());
        return library;
    }
    return NULL;
}

/* Fills ops from a plug-in; false with one sentence in `why`. */
static bool plugin_open(struct Ops *ops, const char *name, const char *dtype, int device,
                        char *why, size_t capacity) {
    static const struct BackendHost host = {die_machine, warn};
    void *library = plugin_load(name, why, capacity);
    if (!library) return false;
    BackendOpen *open = NULL;
    *(void **)&open = dlsym(library, BACKEND_OPEN); /* the cast POSIX recommends */
    if (strcmp(dtype, "auto") == 0) dtype = "bf16";
    const char *problem = open ? open(ops, sizeof *ops, dtype, device, &host)
                               : "it exports no " BACKEND_OPEN;
    if (problem) snprintf(why, capacity, "%s", problem);
    return problem == NULL;
}

/* ---- the choice ------------------------------------------------------------------------------ */

static bool is_one_of(const char *word, const char *const *words) {
    while (*words && strcmp(word, *words) != 0) words++;
    return *words != NULL;
}

const struct Ops *ops_open(const char *name, const char *dtype, int device) {
    static const char *const names[] = {"auto", "cpu", "cuda", "sim", "sim-asan", "sim-race", NULL};
    static const char *const dtypes[] = {"auto", "fp32", "bf16", "fp16", NULL};
    static struct Ops ops;
    char text[1024];
    if (!is_one_of(name, names))
        die_input("there is no backend \"%s\"; known are auto, cpu, cuda, sim, sim-asan, sim-race",
                  name);
    if (!is_one_of(dtype, dtypes))
        die_input("there is no dtype \"%s\"; known are auto, fp32, bf16, fp16", dtype);
    bool named = strcmp(name, "auto") != 0, cpu = strcmp(name, "cpu") == 0;
    if (!cpu && !plugin_open(&ops, named ? name : "cuda", dtype, device, text, sizeof text)) {
        if (named && !text[0])
            die_machine("backend %s: there is no backend_%s.so beside the program; `make %s` "
                        "builds it",
                        name, name, strcmp(name, "cuda") == 0 ? "cuda" : "sim-backends");
        if (named) die_machine("backend %s: %s", name, text);
        if (text[0]) say("backend   cpu; not cuda: %s", text);
        cpu = true;
    }
    if (cpu && strcmp(dtype, "fp16") == 0)
        die_input("the CPU backend has no fp16; take --dtype fp32, --dtype bf16 (for its matrix "
                  "products), or --backend cuda");
    bool bf16 = cpu && strcmp(dtype, "bf16") == 0;
    static bool said;
    if (bf16 && !gemm_bf16_is_fast() && !said)
        warn("--dtype bf16: this program was compiled for a processor that has no instruction for "
             "it (AVX512_BF16); products are rounded as they would be there, but slower than in "
             "float32");
    said |= bf16;
    if (cpu) cpu_fill(&ops, bf16);
    else ops.products = ops.dtype;
    if (ops_missing(&ops, text, sizeof text))
        die_machine("backend %s is incomplete: nothing fills %s", ops.name, text);
    return &ops;
}

/* ---- for a process that starts ranks --------------------------------------------------------- */

/* By the driver alone (CUDA's driver API, 6.2 and 6.3), which minds CUDA_VISIBLE_DEVICES. */
static int count_cuda_devices(void) {
    int (*init)(unsigned flags) = NULL, (*count)(int *count) = NULL, n = 0;
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!driver) return 0;
    *(void **)&init = dlsym(driver, "cuInit");
    *(void **)&count = dlsym(driver, "cuDeviceGetCount");
    return init && count && init(0) == 0 && count(&n) == 0 ? n : 0;
}

/* The same driver's (6.5): 16 bytes that no other GPU, or part of one, has. */
void backend_device_id(const char *name, int device, char out[64]) {
    int (*get)(int *handle, int ordinal) = NULL, (*identify)(unsigned char id[16], int) = NULL;
    unsigned char id[16];
    int handle;
    out[0] = '\0';
    if (strcmp(name, "cuda") != 0) return;
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!driver) return;
    *(void **)&get = dlsym(driver, "cuDeviceGet");
    *(void **)&identify = dlsym(driver, "cuDeviceGetUuid_v2");
    if (!get || !identify || get(&handle, device) != 0 || identify(id, handle) != 0) return;
    for (int i = 0; i < 16; i++) snprintf(out + 2 * i, 3, "%02x", id[i]);
}

/* The simulator's are in its plug-in. */
static int count_simulated_devices(const char *name) {
    char why[1024];
    void *library = plugin_load(name, why, sizeof why);
    BackendDevices *count = NULL;
    if (library) *(void **)&count = dlsym(library, BACKEND_DEVICES);
    return count ? count() : 0;
}

int backend_devices(const char *name) {
    int status = 0;
    if (strcmp(name, "cpu") == 0) return 0;
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) die_machine("cannot start a process to count GPUs: %s", strerror(errno));
    if (child == 0)
        _exit(strcmp(name, "cuda") == 0 ? count_cuda_devices() : count_simulated_devices(name));
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 0;
}

void backend_meeting(const char *name, void *id) {
    char why[1024];
    struct Ops ops;
    if (strcmp(name, "cpu") == 0) {
        cpu_fill(&ops, false);
        ops.comm_id(id, NULL);
        return;
    }
    void *library = plugin_load(name, why, sizeof why);
    if (!library)
        die_machine("backend %s: %s", name,
                    why[0] ? why : "its plug-in is not beside the program (make cuda)");
    BackendMeeting *meeting = NULL;
    *(void **)&meeting = dlsym(library, BACKEND_MEETING);
    const char *problem = meeting ? meeting(id) : "its ranks cannot communicate";
    if (problem) die_machine("backend %s: %s", name, problem);
}

/* The CPU's is a name of shared memory, which the ranks remove when they have all come. */
void backend_meeting_over(const char *name, const void *id) {
    if (strcmp(name, "cpu") == 0 && *(const char *)id == '/') shm_unlink(id);
}
