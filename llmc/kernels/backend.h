/* What a backend plug-in exports, and what it may ask of the program: C, and nothing else crosses
   the border. */
#ifndef LLMC_BACKEND_H
#define LLMC_BACKEND_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct Ops;

/* The program's side. die does not return: one line on stderr, exit code 1 (base/check.h). */
struct BackendHost {
    void (*die)(const char *format, ...);
    void (*warn)(const char *format, ...);
};

/* ops_size: sizeof(struct Ops) of the program; a plug-in of another age refuses. Fills `ops` for elements of type `dtype` ("bf16", "fp16", "fp32") on device `device` of this
   machine. Returns NULL, or one sentence (static storage) saying why there is no such backend here:
   no driver, no device, one that is too old. Called once. */
typedef const char *BackendOpen(struct Ops *ops, size_t ops_size, const char *dtype, int device,
                                const struct BackendHost *host);
#define BACKEND_OPEN "backend_open"

#ifdef __cplusplus
}
#endif
#endif
