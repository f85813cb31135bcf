/* For C programs: opens the laboratory's plug-in (lab.h), and puts a version in the place of what
   ships. */
#ifndef LAB_OPEN_H
#define LAB_OPEN_H

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include "../../llmc/base/check.h"
#include "../../llmc/base/console.h"
#include "lab.h"

struct Lab {
    struct Ops ops;                      /* the backend that ships, of one element type */
    const struct Ladder *const *ladders; /* [count] */
    int count;
    const struct LabDevice *device;
};

/* Opens build/lab_NAME.so (NAME: cuda, sim, sim-asan, sim-race) for elements of type `dtype` on
   device 0; false with one sentence in why. The working directory is the repository's root. A
   process opens one plug-in, once. */
static inline bool lab_open(struct Lab *lab, const char *name, const char *dtype, char *why,
                            size_t capacity) {
    static const struct BackendHost host = {die_machine, warn};
    char path[256];
    snprintf(path, sizeof path, "build/lab_%s.so", name);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(why, capacity, "%s", dlerror());
        return false;
    }
    BackendOpen *open = NULL;
    LabLadders *ladders = NULL;
    LabDeviceOpen *device = NULL;
    *(void **)&open = dlsym(library, BACKEND_OPEN);
    *(void **)&ladders = dlsym(library, LAB_LADDERS);
    *(void **)&device = dlsym(library, LAB_DEVICE);
    bool whole = open && ladders && device;
    const char *problem = !whole ? "it exports no laboratory"
                                 : open(&lab->ops, sizeof lab->ops, dtype, 0, &host);
    if (!problem && !(lab->ladders = ladders(dtype, &lab->count)))
        problem = "it was built without this dtype";
    if (!problem) lab->ops.products = lab->ops.dtype;
    if (!problem) lab->device = device();
    if (problem) snprintf(why, capacity, "%s: %s", path, problem);
    return problem == NULL;
}

static inline const struct Ladder *lab_ladder(const struct Lab *lab, const char *op) {
    for (int l = 0; l < lab->count; l++)
        if (strcmp(lab->ladders[l]->op, op) == 0) return lab->ladders[l];
    return NULL;
}

/* NULL: no ladder has a version of that name. */
static inline const struct Version *lab_version(const struct Lab *lab, const char *name) {
    for (int l = 0; l < lab->count; l++)
        for (int v = 0; v < lab->ladders[l]->count; v++)
            if (strcmp(lab->ladders[l]->versions[v].file->name, name) == 0)
                return &lab->ladders[l]->versions[v];
    return NULL;
}

/* ops: what ships, but with the version's slots; the version's file is behind the others in
   ops->files, so that a workspace may be made for it. `ops` stays where it is as long as slots are
   called: kernel files keep its address. One version at a time. */
static inline void lab_use(struct Ops *ops, const struct Lab *lab, const struct Version *version) {
    static const struct KernelFile *files[64];
    int n = lab->ops.num_files;
    *ops = lab->ops;
    memcpy(files, lab->ops.files, (size_t)n * sizeof *files);
    files[n] = version->file;
    version->file->fill(ops);
    ops->files = files;
    ops->num_files = n + 1;
}

#endif
