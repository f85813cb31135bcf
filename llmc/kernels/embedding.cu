/* Token and position embedding.

       x_n = wte[token_n] + wpe[position_n]
       dwte[v] += sum over n with token_n = v of dx_n,     dwpe[t] likewise by position

   A token whose position is negative is padding: its x is 0, and it adds to no gradient. Without
   wpe (NULL: positions are told otherwise) the second term and its gradient are left out.

   Forward: a thread makes 16 bytes of x. 3 N C elements move, without wpe 2.

   Backward needs, for each token, the list of its n. No float atomics: the order of every sum is
   fixed by the arguments. The pairs (token + 1, n), and likewise (position + 1, n), are sorted by
   their key (stably: n ascends within it), and the sorted list is cut into pieces of 32, one block
   each, whatever the tokens are: a token that fills half the batch is added up by many blocks.

       key     1 1 1 1 | 1 1 4 4 | 4 4 4 4 | 4 4 7 9         (pieces of 4 here)

       piece 0: one run, which goes on       -> tail[0]
       piece 1: 1 ends                       -> head[1];    4 begins and goes on -> tail[1]
       piece 2: 4 began before and goes on   -> head[2]
       piece 3: 4 ends                       -> head[3];    7 and 9 are whole: dw[key - 1] +=
       then     dw[1 - 1] += tail[0] + head[1],    dw[4 - 1] += tail[1] + head[2] + head[3]

   So each row of dw gets one addition. Key 0 stands for padding.

   Cost: each list is sorted by one block, 8 bits of the key at a time, in two passes over 8 N bytes
   (four above 65534): linear in N, by calculation 0.1 ms for 64k tokens, whose training step is 49
   TFLOP in GPT-2 124M. The sums read dx once per list, 2 N C elements in all, every piece in
   parallel. At worst, one token everywhere, N / 32 partial sums are added one after another. */
#include "dependent.cuh"

enum {
    THREADS = 128,
    PIECE = 32,            /* entries of a sorted list that a block adds up */
    AHEAD = 8,             /* rows that a thread has under way */
    SORTERS = 1024,        /* threads of the sort */
    SORT_WARPS = SORTERS / WARP,
    DIGIT_BITS = 8,
    DIGITS = 1 << DIGIT_BITS
};

static int chunks_of(int C) { return ceil_div(C, VEC); }

/* ---- forward --------------------------------------------------------------------------------- */

static __global__ void forward_kernel(floatX *x, const int *token, const int *position,
                                      const floatX *wte, const floatX *wpe, int N, int C,
                                      bool whole) {
    await_previous();
    const int chunks = ceil_div(C, VEC);
    size_t index = (size_t)blockIdx.x * THREADS + threadIdx.x, n = index / chunks;
    if (n >= (size_t)N) return;
    int c = (int)(index % chunks) * VEC;
    float a[VEC] = {0}, b[VEC] = {0};
    if (position[n] >= 0) {
        load_some(a, wte + (size_t)token[n] * C + c, C - c, whole);
        if (wpe) load_some(b, wpe + (size_t)position[n] * C + c, C - c, whole);
#pragma unroll
        for (int i = 0; i < VEC; i++) a[i] += b[i];
    }
    store_some(x + n * C + c, a, C - c, whole);
}

static void embedding_forward(floatX *x, const int *token, const int *position, const floatX *wte,
                              const floatX *wpe, int N, int C) {
    if (N == 0) return;
    bool whole = rows_aligned(x, C, sizeof *x) && rows_aligned(wte, C, sizeof *x) &&
                 rows_aligned(wpe, C, sizeof *x);
    size_t threads = (size_t)N * chunks_of(C);
    unsigned blocks = (unsigned)((threads + THREADS - 1) / THREADS);
    LAUNCH_DEPENDENT(blocks, THREADS, 0, forward_kernel, x, token, position, wte, wpe, N, C, whole);
}

/* ---- the sorted lists ------------------------------------------------------------------------ */

struct Entry {
    unsigned key;
    int n;
};

/* One list's scratch. */
struct List {
    Entry *sorted, *other; /* [N] */
    float *head, *tail;    /* [pieces,C] */
};

/* Both lists, by token and by position, and what their sums go to. */
struct Lists {
    struct List list[2];
    float *dw[2];
    const int *token, *position;
    const floatX *dx;
    int N, C, pieces;
    bool whole;
};

static __device__ unsigned key_of(const struct Lists *l, int which, int n) {
    int position = l->position[n], index = which ? position : l->token[n];
    return position < 0 ? 0 : 1u + (unsigned)index;
}

/* counts [SORT_WARPS][DIGITS] become the places of each warp's first entry with each digit: digits
   in order, and for one digit the warps in order. */
static __device__ void counts_to_places(int (*counts)[DIGITS], int *warp_totals) {
    const int digit = threadIdx.x, lane = digit % WARP;
    int total = 0, before = 0;
    if (digit < DIGITS) {
        for (int w = 0; w < SORT_WARPS; w++) total += counts[w][digit];
        before = total; /* of the digits up to this one, in this warp */
        for (int lanes = 1; lanes < WARP; lanes *= 2) {
            int other = __shfl_up_sync(FULL_WARP, before, lanes);
            if (lane >= lanes) before += other;
        }
        if (lane == WARP - 1) warp_totals[digit / WARP] = before;
        before -= total;
    }
    __syncthreads();
    if (digit < DIGITS) {
        for (int w = 0; w < digit / WARP; w++) before += warp_totals[w];
        for (int w = 0; w < SORT_WARPS; w++) {
            int count = counts[w][digit];
            counts[w][digit] = before;
            before += count;
        }
    }
    __syncthreads();
}

/* One pass of a radix sort: out = in, or for in = NULL the unsorted list, stably by the digit at
   bit `shift`. A warp has a contiguous share of the list, and takes it 32 entries at a time. */
static __device__ void sort_pass(Entry *out, const Entry *in, const struct Lists *l, int which,
                                 int shift, int (*counts)[DIGITS], int *warp_totals) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int share = ceil_div(ceil_div(l->N, SORT_WARPS), WARP) * WARP;
    const int begin = min_int(warp * share, l->N), end = min_int(begin + share, l->N);
    for (int d = lane; d < DIGITS; d += WARP) counts[warp][d] = 0;
    __syncwarp();
    for (int i = begin + lane; i < end; i += WARP) {
        unsigned key = in ? in[i].key : key_of(l, which, i);
        atomicAdd(&counts[warp][key >> shift & (DIGITS - 1)], 1);
    }
    __syncthreads();
    counts_to_places(counts, warp_totals);
    for (int first = begin; first < end; first += WARP) {
        int i = first + lane;
        bool there = i < end;
        Entry entry = {0, i};
        if (there && in) entry = in[i];
        else if (there) entry.key = key_of(l, which, i);
        int digit = there ? (int)(entry.key >> shift & (DIGITS - 1)) : DIGITS;
        unsigned same = __match_any_sync(FULL_WARP, digit);
        int rank = __popc(same & ((1u << lane) - 1)); /* among the lanes with this digit */
        if (there) out[counts[warp][digit] + rank] = entry;
        __syncwarp();
        if (there && rank == 0) counts[warp][digit] += __popc(same);
        __syncwarp();
    }
    __syncthreads();
}

/* Block 0 sorts by token, block 1 by position. Passes come in pairs, as many as the largest key
   needs, so that the list ends up in `sorted`. */
static __global__ void __launch_bounds__(SORTERS)
sort_kernel(const __grid_constant__ struct Lists l) {
    __shared__ int counts[SORT_WARPS][DIGITS], warp_totals[DIGITS / WARP];
    __shared__ unsigned largest;
    const int which = blockIdx.x;
    struct List list = l.list[which];
    unsigned mine = 0;
    if (threadIdx.x == 0) largest = 0;
    for (int i = threadIdx.x; i < l.N; i += SORTERS) mine = max(mine, key_of(&l, which, i));
    __syncthreads();
    atomicMax(&largest, mine);
    __syncthreads();
    const unsigned last = largest;
    const Entry *in = NULL;
    for (int shift = 0; shift == 0 || (shift < 32 && last >> shift); shift += 2 * DIGIT_BITS) {
        sort_pass(list.other, in, &l, which, shift, counts, warp_totals);
        sort_pass(list.sorted, list.other, &l, which, shift + DIGIT_BITS, counts, warp_totals);
        in = list.sorted;
    }
}

/* ---- the sums -------------------------------------------------------------------------------- */

/* out [VEC] (+)= x, both float32, of which `count` elements exist. */
static __device__ __forceinline__ void put_sum(float *out, const float *x, int count, bool add,
                                               bool whole) {
#pragma unroll
    for (int j = 0; j < VEC; j += 4) {
        float old[4] = {0};
        if (add) load_some(old, out + j, count - j, whole);
#pragma unroll
        for (int i = 0; i < 4; i++) old[i] += x[j + i];
        store_some(out + j, old, count - j, whole);
    }
}

/* A block: one piece of one list (z), 16 bytes of a row to a thread. */
template <bool WHOLE>
static __global__ void __launch_bounds__(THREADS, 4)
sum_kernel(const __grid_constant__ struct Lists l) {
    __shared__ Entry entries[PIECE];
    const int piece = blockIdx.x, first = piece * PIECE, count = min_int(PIECE, l.N - first);
    const struct List list = l.list[blockIdx.z];
    const Entry *sorted = list.sorted + first;
    if ((int)threadIdx.x < count) entries[threadIdx.x] = sorted[threadIdx.x];
    __syncthreads();
    const int c = (blockIdx.y * THREADS + threadIdx.x) * VEC, left = l.C - c;
    if (left <= 0) return;
    int begin = 0;
    while (begin < count && entries[begin].key == 0) begin++;
    /* whether the first run began in an earlier piece, and the last one goes on in the next */
    bool came = begin == 0 && first > 0 && sorted[-1].key == entries[0].key;
    const bool goes = first + count < l.N && sorted[count].key == entries[count - 1].key;
    float sum[VEC] = {0};
    for (int i0 = begin; i0 < count; i0 += AHEAD) {
        float x[AHEAD][VEC];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const floatX *row = l.dx + (size_t)entries[min_int(i0 + i, count - 1)].n * l.C;
            if (WHOLE) load_vector(x[i], row + c);
            else load_some(x[i], row + c, left, false);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int next = i0 + i + 1;
            if (next > count) break;
            const unsigned key = entries[next - 1].key;
#pragma unroll
            for (int j = 0; j < VEC; j++) sum[j] += x[i][j];
            if (next < count && entries[next].key == key) continue;
            const bool on = goes && next == count, whole_run = !came && !on;
            float *out = came ? list.head + (size_t)piece * l.C
                         : on ? list.tail + (size_t)piece * l.C
                              : l.dw[blockIdx.z] + (size_t)(key - 1) * l.C;
            put_sum(out + c, sum, left, whole_run, WHOLE);
            came = false;
#pragma unroll
            for (int j = 0; j < VEC; j++) sum[j] = 0;
        }
    }
}

/* A block: the run that begins in a piece and goes on beyond it, if there is one. */
static __global__ void __launch_bounds__(THREADS)
merge_kernel(const __grid_constant__ struct Lists l) {
    const struct List list = l.list[blockIdx.z];
    const int piece = blockIdx.x, last = piece * PIECE + PIECE - 1; /* this piece's last entry */
    if (last + 1 >= l.N) return;
    const unsigned key = list.sorted[last].key;
    const bool came = piece > 0 && list.sorted[last - PIECE].key == key;
    if (key == 0 || came || list.sorted[last + 1].key != key) return;
    /* counts the further pieces that the run is in: those that begin with its key */
    int more = 0, counted = THREADS;
    while (counted == THREADS) {
        int other = piece + 1 + more + (int)threadIdx.x;
        bool has = other < l.pieces && list.sorted[(size_t)other * PIECE].key == key;
        counted = __syncthreads_count(has);
        more += counted;
    }
    const int c = (blockIdx.y * THREADS + threadIdx.x) * VEC, left = l.C - c;
    if (left <= 0) return;
    float sum[VEC] = {0};
    const float *tail = list.tail + (size_t)piece * l.C + c;
    const float *head = list.head + (size_t)(piece + 1) * l.C + c;
#pragma unroll
    for (int j = 0; j < VEC; j += 4) load_some(sum + j, tail + j, left - j, l.whole);
#pragma unroll AHEAD
    for (int i = 0; i < more; i++) {
        float x[VEC];
#pragma unroll
        for (int j = 0; j < VEC; j += 4)
            load_some(x + j, head + (size_t)i * l.C + j, left - j, l.whole);
#pragma unroll
        for (int j = 0; j < VEC; j++) sum[j] += x[j];
    }
    put_sum(l.dw[blockIdx.z] + (size_t)(key - 1) * l.C + c, sum, left, true, l.whole);
}

/* ---- the slot -------------------------------------------------------------------------------- */

/* Scratch: heads and tails of both lists [4,pieces,C], then their entries [4,N]. */
static size_t sums_of(int N, int C) { return (size_t)ceil_div(N, PIECE) * C; }

static void embedding_backward(float *dwte, float *dwpe, const floatX *dx, const int *token,
                               const int *position, int N, int C, void *workspace) {
    if (N == 0) return;
    const int pieces = ceil_div(N, PIECE);
    const size_t sums = sums_of(N, C);
    const bool whole = rows_aligned(dx, C, sizeof *dx) && rows_aligned(dwte, C, sizeof *dwte) &&
                       rows_aligned(dwpe, C, sizeof *dwpe);
    float *parts = (float *)workspace;
    Entry *entries = (Entry *)(parts + 4 * sums);
    struct List by_token = {entries, entries + N, parts, parts + sums};
    struct List by_position = {entries + 2 * (size_t)N, entries + 3 * (size_t)N, parts + 2 * sums,
                               parts + 3 * sums};
    struct Lists l = {{by_token, by_position}, {dwte, dwpe}, token, position, dx, N, C,
                      pieces, whole};
    const int lists = dwpe ? 2 : 1;
    dim3 grid(pieces, ceil_div(chunks_of(C), THREADS), lists);
    sort_kernel<<<lists, SORTERS, 0, cuda.stream>>>(l);
    CUDA_CHECK_LAUNCH();
    if (whole) sum_kernel<true><<<grid, THREADS, 0, cuda.stream>>>(l);
    else sum_kernel<false><<<grid, THREADS, 0, cuda.stream>>>(l);
    CUDA_CHECK_LAUNCH();
    merge_kernel<<<grid, THREADS, 0, cuda.stream>>>(l);
    CUDA_CHECK_LAUNCH();
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    return 4 * (sums_of(shape->N, shape->C) * sizeof(float) + (size_t)shape->N * sizeof(Entry));
}

static void fill(struct Ops *ops) {
    ops->embedding_forward = embedding_forward;
    ops->embedding_backward = embedding_backward;
}

extern const struct KernelFile PER_TYPE(cuda_embedding) = {"embedding", fill, workspace_bytes};
