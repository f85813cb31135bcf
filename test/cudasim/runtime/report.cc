/* Errors: one line saying what, where in the kernel, and a backtrace in source lines. */
#include "emulator.h"
#include <cstdarg>
#include <dlfcn.h>
#include <execinfo.h>
#include <link.h>
#include <map>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace cudasim {

/* ---- the module: this program, or the shared library that the emulator was linked into ---- */

struct Module {
    uintptr_t bias, begin, end; /* load bias; first and last address of its segments */
    std::string path;
};

static int inspect_module(struct dl_phdr_info *info, size_t, void *data) {
    Module *module = (Module *)data;
    uintptr_t begin = UINTPTR_MAX, end = 0, here = (uintptr_t)&inspect_module;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
        uintptr_t first = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
        uintptr_t last = first + info->dlpi_phdr[i].p_memsz;
        if (first < begin) begin = first;
        if (last > end) end = last;
    }
    if (here < begin || here >= end) return 0;
    module->bias = info->dlpi_addr;
    module->begin = begin;
    module->end = end;
    module->path = info->dlpi_name && *info->dlpi_name ? info->dlpi_name : "/proc/self/exe";
    return 1;
}

static const Module &module() {
    static const Module &found = *[] {
        Module *m = new Module();
        dl_iterate_phdr(inspect_module, m);
        char target[4096];
        ssize_t length = readlink(m->path.c_str(), target, sizeof target - 1);
        if (length > 0 && m->path == "/proc/self/exe") m->path.assign(target, (size_t)length);
        return m;
    }();
    return found;
}

uintptr_t module_offset(uintptr_t pc) { return pc - module().bias; }
uintptr_t module_address(uint32_t offset) { return module().bias + offset; }
bool in_module(const void *address) {
    return (uintptr_t)address >= module().begin && (uintptr_t)address < module().end;
}

/* ---- source lines ---- */

/* The emulator's own headers are inlined into kernels: such frames only hide the kernel's line. */
static bool is_emulator_source(const char *place) {
    return strstr(place, "cudasim/device/") || strstr(place, "cudasim/runtime/");
}

/* One frame of addr2line's answer, "function" and "file:line", shortened. */
static std::string format_frame(char *function, char *place) {
    function[strcspn(function, "\n")] = 0;
    place[strcspn(place, "\n")] = 0;
    char *discriminator = strstr(place, " (disc");
    if (discriminator) *discriminator = 0;
    char *parameters = strchr(function, '(');
    if (parameters) *parameters = 0;
    if (place[0] == '?' || is_emulator_source(place)) return "";
    char directory[2048];
    size_t length = getcwd(directory, sizeof directory) ? strlen(directory) : 0;
    if (length && strncmp(place, directory, length) == 0 && place[length] == '/')
        place += length + 1;
    return std::string(place) + " in " + function;
}

static std::string ask_addr2line(uintptr_t offset) {
    char command[4300], function[1024], place[1024];
    snprintf(command, sizeof command, "addr2line -e '%s' -i -f -C 0x%zx 2>/dev/null",
             module().path.c_str(), (size_t)offset);
    FILE *answer = popen(command, "r");
    if (!answer) return "";
    std::string frames;
    while (fgets(function, sizeof function, answer) && fgets(place, sizeof place, answer)) {
        std::string frame = format_frame(function, place);
        if (frame.empty()) continue;
        if (!frames.empty()) frames += " <- ";
        frames += frame;
    }
    pclose(answer);
    return frames;
}

std::string source_of(uintptr_t pc) {
    static auto &cache = *new std::map<uintptr_t, std::string>();
    if (!in_module((void *)pc)) return "";
    auto it = cache.find(pc);
    if (it != cache.end()) return it->second;
    return cache[pc] = ask_addr2line(module_offset(pc) - 1); /* the call, not what follows it */
}

static void print_backtrace() {
    void *frames[32];
    int count = backtrace(frames, 32);
    for (int i = 1; i < count; i++) {
        std::string source = source_of((uintptr_t)frames[i]);
        if (!source.empty()) fprintf(stderr, "    at %s\n", source.c_str());
    }
}

/* ---- errors ---- */

void (*at_failure)();

void fail(const char *format, ...) {
    char message[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    fflush(stdout);
    fprintf(stderr, "CUDASIM ERROR: %s\n", message);
    if (const Fiber *me = current) {
        const dim3 &block = me->block->position;
        fprintf(stderr,
                "    kernel %s launched at %s:%d, block (%u,%u,%u), thread (%u,%u,%u), warp %u "
                "lane %u\n",
                launch.name, launch.file, launch.line, block.x, block.y, block.z, me->thread.x,
                me->thread.y, me->thread.z, me->warp, me->lane);
    }
    print_backtrace();
    if (void (*tell)() = at_failure) {
        at_failure = nullptr;
        tell();
    }
    fflush(stderr);
    _exit(86); /* without destructors and atexit: a kernel has run in part */
}

/* ---- signals ---- */

static struct sigaction previous_fault;

static void on_fault(int signal, siginfo_t *info, void *) {
    const void *address = info->si_addr;
    if (current && on_guard_page(current, address))
        fail("a thread's stack overflowed its %zu KB", stack_bytes() >> 10);
    if (current) fail("fault at %s (misaligned vector access, or a wild pointer)",
                      describe(address).c_str());
    if (is_device(address)) fail("host code dereferences device memory at %p", address);
    sigaction(signal, &previous_fault, nullptr); /* not ours: the program's own handler gets it */
}

static timer_t watchdog;

static void on_timeout(int) {
    unsigned waiting = blocks_not_started();
    if (waiting)
        fail("a kernel ran for %d s without an end; %u blocks had not started: does it wait for "
             "one?", options().timeout, waiting);
    fail("a kernel ran for %d s without an end", options().timeout);
}

/* The processor time of this thread only: a busy machine must not look like an endless loop. */
static void install_watchdog() {
    struct sigaction action = {};
    action.sa_handler = on_timeout;
    action.sa_flags = SA_ONSTACK;
    sigaction(SIGVTALRM, &action, nullptr);
    struct sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGVTALRM;
    event._sigev_un._tid = (int)syscall(SYS_gettid);
    timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &watchdog);
}

void install_handlers() {
    static char alternate_stack[64 << 10];
    stack_t stack = {};
    stack.ss_sp = alternate_stack;
    stack.ss_size = sizeof alternate_stack;
    sigaltstack(&stack, nullptr);
#ifndef CUDASIM_ASAN /* AddressSanitizer's own report says more */
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &previous_fault);
#else
    (void)on_fault;
#endif
    install_watchdog();
}

void watch(bool on) {
    struct itimerspec limit = {};
    limit.it_value.tv_sec = on ? options().timeout : 0;
    timer_settime(watchdog, 0, &limit, nullptr);
}

} // namespace cudasim
