/* The laboratory's program (make bench): checks every version of an operation against a reference
   in double and the CPU's slot, then times it. doc/lab.md says how to use it.

       bench.c      what is asked for, and the order of it all
       case.c       inputs, outputs, comparison          op_X.c     an operation's cases
       check.c      versions against the reference       measure.c  times, floors, energy
       table.c      rows: on stdout, as CSV and JSON     whole.c    what users wait for: training
                                                                    steps, generations, the task

   An operation gives cases: a slot of struct Ops with its shapes, inputs and expected outputs. The
   rest does not know which operation it is. */
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "../../llmc/ops.h"

/* What inputs are like: normal noise; the same with a few large numbers, or logits; numbers of a
   real run (HIDDEN=FILE). */
enum Data { NORMAL, PEAKED, HIDDEN };
extern const char *const data_names[];   /* NULL behind the last */

/* Larger than a block and ragged, for checks; moderate, for the CPU's clock; the sizes of real
   models, for a GPU's. */
enum Size { RAGGED, MODERATE, LARGE };

/* What an argument is. X: elements of the backend; HOST: float32 on the host; MADE: memory that the
   case's `prepare` allocates and fills, because its contents depend on the backend. */
enum Kind { IN_X, IN_FLOAT, IN_INT, OUT_X, OUT_FLOAT, OUT_INT, OUT_DOUBLE, OUT_HOST, MADE };

enum { MOST_BUFFERS = 20 };

/* An argument of a slot, n numbers. */
struct Buffer {
    const char *name;
    enum Kind kind;
    size_t n;
    float *host;      /* inputs, and what outputs with += hold before; NULL: NaN before */
    int *ints;        /* of IN_INT */
    double *want;     /* outputs: what must come out; NULL: not compared */
    double bound;     /* of its error (case_error) */
    double apart;     /* of its distance from what the CPU's slot gave; 0: twice the bound, as both
                         may be off */
    bool absolute;    /* the error is the largest difference; else the relative L2 norm */
    void *at;         /* the backend's, while it is uploaded */
};

/* A linear layer's products out [N,OC] = x [N,C] w^T: the floor of a case that has some. */
struct Products {
    int N, C, OC;
    bool forward, backward;   /* backward: the two for dx and dw */
};

/* A slot with its arguments. Owns all memory of its buffers, and `about` (case_close). */
struct Case {
    const char *slot;
    char shape[64];
    bool wanted;                 /* outputs are compared: memory for `want` is needed */
    enum Data data;
    struct Buffer buffer[MOST_BUFFERS];
    int buffers;
    struct OpsShape sizes;       /* for the workspace */
    void *about;                 /* what the operation needs besides */
    double flop, bytes;          /* useful operations; inputs read once, outputs written once */
    struct Products products;    /* N 0: none */
    void (*prepare)(struct Case *c, const struct Ops *ops);   /* after uploads; or NULL */
    void (*call)(struct Case *c, const struct Ops *ops, void *workspace);
    void (*expect)(struct Case *c);   /* fills `want` */
    /* Where what must come out depends on how another output was rounded, or which of two equals
       was drawn: after expect, with the outputs got [buffers] of one call. Or NULL. */
    void (*settle)(struct Case *c, double *const *got);
};

/* What a case is to be made for. */
struct Setting {
    const struct Ops *ops;       /* whose elements inputs are rounded to */
    enum Data data;
    enum Size size;
    int which;                   /* of the operation's shapes of that size */
};

/* An operation. open fills a case whose `data` and `wanted` are set; false: there is none. */
struct Operation {
    const char *name;
    const char *slots[5];        /* NULL behind the last */
    bool (*open)(struct Case *c, const char *slot, const struct Setting *setting);
};
extern const struct Operation op_head, op_attention, op_norm, op_adamw, op_sample, op_decode,
    op_matmul;

/* ---- case.c ---------------------------------------------------------------------------------- */

/* Bound of an error relative to the result's size: so many roundings to the backend's elements one
   after another, each of relative error 2^-8 (bf16), 2^-11 (fp16) or 2^-24; and the float32
   arithmetic between them, whose sums of some thousand terms lose a few units of 2^-24. */
double bound_of(const struct Ops *ops, double roundings);

/* Opens the file of HIDDEN; dies if ./train --dump-hidden did not write it. */
void hidden_open(const char *path);
bool hidden_is_open(void);
int hidden_channels(void), hidden_vocabulary(void), hidden_target(int i);

/* New arrays [n] of the setting's data, rounded to its elements. Normal: noise times scale. Peaked:
   one number in 61 is 12 times as large. Hidden: the file's hidden states, whatever the scale. */
float *case_numbers(const struct Setting *s, size_t n, double scale, int stream);
/* Noise, whatever the data: weights. */
float *case_noise(const struct Setting *s, size_t n, double scale, int stream);
/* The file's hidden states, or its head's weights [rows, columns]. */
float *hidden_numbers(const struct Setting *s, bool head, size_t rows, size_t columns);
void case_round(const struct Ops *ops, float *x, size_t n);
float *case_new_floats(size_t n);
int *case_new_ints(size_t n);

/* Each adds a buffer and returns it, the last of the list. x [n] is taken over. */
struct Buffer *case_in(struct Case *c, const char *name, enum Kind kind, float *x, size_t n);
struct Buffer *case_ints(struct Case *c, const char *name, int *x, size_t n);
struct Buffer *case_made(struct Case *c, const char *name);
struct Buffer *case_out(struct Case *c, const char *name, enum Kind kind, size_t n, double bound);

/* Uploads inputs and poisons outputs; release frees what it allocated; reset: outputs as they were
   before a call; remake: what `prepare` makes, again, for other slots of the same backend. */
void case_upload(struct Case *c, const struct Ops *ops);
void case_release(struct Case *c, const struct Ops *ops);
void case_reset(struct Case *c, const struct Ops *ops);
void case_remake(struct Case *c, const struct Ops *ops);
/* Output b on the host; the caller frees. NaN if something was written behind its end. */
double *case_download(const struct Buffer *b, const struct Ops *ops);
bool is_output(const struct Buffer *b);

/* How far `got` is from `want`. shown: the relative L2 norm, or the largest difference (absolute).
   over_bound: the share of the bound that it reaches. Where it is relative, each element is
   compared too: its difference over its own size plus the root mean square of all may be 8 times
   the bound, since the largest of a million normal numbers is 5 times their standard deviation.
   NaN where something is not a number. */
struct Error { double shown, over_bound; };
struct Error case_error(const struct Buffer *b, const double *got, const double *want);
void case_close(struct Case *c);

/* ---- check.c, measure.c, table.c ------------------------------------------------------------- */

struct Lab;
struct Version;

/* What is known of a version (or the CPU's slot, or what ships on a GPU) and a shape. Times in
   milliseconds; NaN: not measured. */
struct Row {
    char op[16], slot[32], version[48], backend[16], dtype[8], shape[64];
    int cases;                   /* checked; 0: this row was only timed */
    bool agrees, repeats;
    char errors[256];            /* the worst error of each output: "logp 3e-07, dE 0.0021" */
    double worst;                /* the largest error over its bound */
    double cold[3], warm[3];     /* 20th percentile, median, 80th */
    double flop, bytes;
    double products_ms, floor_ms;/* the bare products; the larger of operations and bytes at the
                                    measured rates */
    double of_products, of_floor;/* those over the median: on the CPU the median of ratios */
    double extra_mib, joules;
};

struct Bench {
    const struct Operation *op;
    const struct Ops *cpu;       /* NULL: not to be checked or timed */
    struct Lab *lab;             /* NULL: there is none here */
    const char *backend;         /* the laboratory's: cuda, sim ... */
};

bool slot_is_there(const struct Ops *ops, const char *slot);
/* Every version of the operation that runs here; false if one is wrong. Adds rows. */
bool check_versions(const struct Bench *b);

/* What this machine reaches, measured once: operations and bytes per second. */
struct Rates { double flop, bytes; };
/* The CPU's slots beside their floor, in turns. */
void time_cpu(const struct Bench *b);
/* The versions on a GPU. `rates` were measured by gpu_rates. */
void time_gpu(const struct Bench *b, const struct Rates *rates);
void gpu_rates(struct Rates *out, const struct Lab *lab);
/* Sorts x [n]. */
double percentile(double *x, int n, double share);

/* Several processes add to one table: call first. */
void table_open(void);
/* The row of a version that this process has added, or adds now. */
struct Row *table_row(const struct Bench *b, const char *slot, const char *version,
                      const char *backend, const char *dtype, const char *shape);
/* Rows of an operation, on stdout. */
void table_print(const char *op);
/* For table_save: the device, as this process has it open. */
void table_device(const struct Lab *lab, const struct Rates *rates);
/* FOLDER/bench-DATE-TIME.csv and .json: all rows, and what machine and commit it was. */
void table_save(const char *folder);

/* ---- whole.c --------------------------------------------------------------------------------- */

/* On the CPU: step generate task monitors. On a GPU: step generate. false: it is none of these. */
bool whole_is(const char *name);
void whole_cpu(const char *name);
void whole_gpu(const char *name, const struct Ops *ops, const struct Rates *rates);

#endif
