/* How a backend is put together from its list of kernel files; and what a plug-in exports and may
   ask of the program. Only these C types pass between the two. */
#ifndef LLMC_BACKEND_H
#define LLMC_BACKEND_H

#include <stddef.h>
#include "../ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Fills the slots from each file of a list. The list must live as long as ops. */
static inline void kernel_files_fill(struct Ops *ops, const struct KernelFile *const *files,
                                     int n) {
    ops->files = files;
    ops->num_files = n;
    for (int i = 0; i < n; i++) files[i]->fill(ops);
}

/* The workspace that serves all files of a list. A file that says nothing of its own is named at
   start (ops_missing). */
static inline size_t kernel_files_workspace(const struct KernelFile *const *files, int n,
                                            const struct OpsShape *shape) {
    size_t most = 0;
    for (int i = 0; i < n; i++) {
        size_t bytes = files[i]->workspace(shape);
        if (bytes > most) most = bytes;
    }
    return most;
}

/* The program's side. die does not return: one line on stderr, exit code 1 (base/check.h). */
struct BackendHost {
    void (*die)(const char *format, ...);
    void (*warn)(const char *format, ...);
};

/* ops_size: sizeof(struct Ops) of the program; a plug-in built from other sources refuses. Fills
   `ops` for elements of type `dtype` ("bf16", "fp16", "fp32") on device `device` of this machine.
   Returns NULL, or one sentence (static storage) saying why there is no such backend here: no
   driver, no device, one that is too old. Called once. */
typedef const char *BackendOpen(struct Ops *ops, size_t ops_size, const char *dtype, int device,
                                const struct BackendHost *host);
#define BACKEND_OPEN "backend_open"

/* id [128] = a new meeting point for ranks, without opening a device; NULL, or one sentence. A
   plug-in that cannot communicate does not export it. */
typedef const char *BackendMeeting(void *id);
#define BACKEND_MEETING "backend_meeting"

/* How many devices there are. For a process that opens none afterwards. */
typedef int BackendDevices(void);
#define BACKEND_DEVICES "backend_devices"

#ifdef __cplusplus
}
#endif
#endif
