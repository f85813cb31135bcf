#include "safetensors.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "../base/check.h"
#include "../base/files.h"
#include "../base/json.h"
#include "../base/text.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is little-endian");

#define HEADER_LIMIT (16u << 20)   /* above any model's; bounds the memory it takes */

/* The format's type names: our value (what we do not compute with is OTHER) and bytes. */
static const struct { const char *name; enum SafetensorsType type; size_t size; } types[] = {
    {"F32", ST_F32, 4}, {"F16", ST_F16, 2}, {"BF16", ST_BF16, 2}, {"F64", ST_F64, 8},
    {"I64", ST_I64, 8}, {"I32", ST_I32, 4}, {"BOOL", ST_OTHER, 1}, {"U8", ST_OTHER, 1},
    {"I8", ST_OTHER, 1}, {"I16", ST_OTHER, 2}, {"U16", ST_OTHER, 2}, {"U32", ST_OTHER, 4},
    {"U64", ST_OTHER, 8}, {"C64", ST_OTHER, 8}, {"F8_E4M3", ST_OTHER, 1},
    {"F8_E5M2", ST_OTHER, 1}, {"F8_E8M0", ST_OTHER, 1},
};
enum { NUM_TYPES = sizeof types / sizeof *types };

size_t safetensors_size(enum SafetensorsType type) {
    int row = 0;
    while (types[row].type != type) row++;
    return types[row].size;
}

/* ---- reading: the header --------------------------------------------------------------------- */

static char problem_text[512];

__attribute__((format(printf, 1, 2)))
static const char *problem(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(problem_text, sizeof problem_text, format, arguments);
    va_end(arguments);
    return problem_text;
}

/* A whole number that JSON carries exactly, 0 to 2^53 - 1; false for anything else. */
static bool read_size(const cJSON *item, size_t *out) {
    if (!cJSON_IsNumber(item)) return false;
    double value = item->valuedouble;
    if (!(value >= 0 && value < 0x1p53) || value != (double)(size_t)value) return false;
    *out = (size_t)value;
    return true;
}

static const char *read_type(struct SafetensorsEntry *entry, const cJSON *item, size_t *size) {
    if (!cJSON_IsString(item)) return problem("tensor %s has no dtype", quote(entry->name));
    for (int i = 0; i < NUM_TYPES; i++)
        if (strcmp(item->valuestring, types[i].name) == 0) {
            entry->type = types[i].type;
            *size = types[i].size;
            return NULL;
        }
    return problem("tensor %s has the unknown dtype \"%s\"", quote(entry->name),
                   quote(item->valuestring));
}

static const char *read_shape(struct SafetensorsEntry *entry, const cJSON *item) {
    if (!cJSON_IsArray(item)) return problem("tensor %s has no shape", quote(entry->name));
    entry->count = 1;
    for (const cJSON *dim = item->child; dim; dim = dim->next) {
        size_t n;
        if (entry->num_dims == 4)
            return problem("tensor %s has more than 4 dims", quote(entry->name));
        if (!read_size(dim, &n) || __builtin_mul_overflow(entry->count, n, &entry->count))
            return problem("tensor %s has an impossible shape", quote(entry->name));
        entry->shape[entry->num_dims++] = (int64_t)n;
    }
    return NULL;
}

static const char *read_entry(struct SafetensorsEntry *entry, const cJSON *item,
                              size_t data_bytes) {
    size_t size = 0, bytes;
    if (strlen(item->string) >= sizeof entry->name)
        return problem("tensor name longer than %zu bytes: %s", sizeof entry->name - 1,
                       quote(item->string));
    strcpy(entry->name, item->string);
    if (!cJSON_IsObject(item)) return problem("tensor %s is not described", quote(entry->name));
    const char *wrong = read_type(entry, cJSON_GetObjectItemCaseSensitive(item, "dtype"), &size);
    if (!wrong) wrong = read_shape(entry, cJSON_GetObjectItemCaseSensitive(item, "shape"));
    if (wrong) return wrong;
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(item, "data_offsets");
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 ||
        !read_size(offsets->child, &entry->begin) ||
        !read_size(offsets->child->next, &entry->end))
        return problem("tensor %s has no valid data_offsets", quote(entry->name));
    if (entry->begin > entry->end || entry->end > data_bytes)
        return problem("tensor %s lies outside the file (bytes %zu to %zu of %zu)",
                       quote(entry->name), entry->begin, entry->end, data_bytes);
    if (__builtin_mul_overflow(entry->count, size, &bytes) || bytes != entry->end - entry->begin)
        return problem("tensor %s has %zu bytes, which is not what its shape needs",
                       quote(entry->name), entry->end - entry->begin);
    return NULL;
}

static int compare_begin(const void *a, const void *b) {
    const struct SafetensorsEntry *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

static int compare_name(const void *a, const void *b) {
    const struct SafetensorsEntry *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* Tensors lie end to end, without overlap, hole or rest; names differ. Sorts them by name. */
static const char *check_layout(struct Safetensors *file, size_t data_bytes) {
    struct SafetensorsEntry *entries = file->entries;
    size_t expected = 0;
    qsort(entries, (size_t)file->count, sizeof *entries, compare_begin);
    for (int i = 0; i < file->count; i++) {
        if (entries[i].begin != expected)
            return problem("tensor %s %s", quote(entries[i].name),
                           entries[i].begin < expected ? "overlaps another"
                                                       : "begins after unused bytes");
        expected = entries[i].end;
    }
    if (expected != data_bytes)
        return problem("%zu bytes at the end belong to no tensor", data_bytes - expected);
    qsort(entries, (size_t)file->count, sizeof *entries, compare_name);
    for (int i = 1; i < file->count; i++)
        if (compare_name(&entries[i - 1], &entries[i]) == 0)
            return problem("tensor %s is there twice", quote(entries[i].name));
    return NULL;
}

static const char *read_header(struct Safetensors *file, const cJSON *root) {
    if (!cJSON_IsObject(root)) return "the header is not a JSON object";
    size_t data_bytes = file->bytes - file->data_begin;
    int items = cJSON_GetArraySize(root);
    file->entries = check_alloc((size_t)items, sizeof *file->entries, "a list of tensors");
    for (const cJSON *item = root->child; item; item = item->next) {
        if (strcmp(item->string, "__metadata__") == 0) continue;
        const char *wrong = read_entry(&file->entries[file->count++], item, data_bytes);
        if (wrong) return wrong;
    }
    return check_layout(file, data_bytes);
}

/* What try_read found: errno's value where the machine said no, or one of these. */
enum { READ_WELL = 0, READ_SHORT = -1 };

/* Bytes [begin, begin + bytes) of the file. */
static int try_read(const struct Safetensors *file, void *out, size_t begin, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pread(file->descriptor, (char *)out + done, bytes - done,
                          (off_t)(begin + done));
        if (n > 0) done += (size_t)n;
        else if (n == 0) return READ_SHORT;
        else if (errno != EINTR) return errno;
    }
    return READ_WELL;
}

/* Ends the program unless all was read. */
static void check_read(const struct Safetensors *file, int found) {
    if (found == READ_WELL) return;
    if (found == READ_SHORT) die_input("%s: became shorter while it was read", file->path);
    errno = found;
    die_errno("read", file->path);
}

static void read_at(const struct Safetensors *file, void *out, size_t begin, size_t bytes) {
    check_read(file, try_read(file, out, begin, bytes));
}

/* Finds the header, parses and checks it. */
static const char *parse(struct Safetensors *file) {
    uint64_t length;
    char start[32] = {0};
    read_at(file, start, 0, file->bytes < sizeof start ? file->bytes : sizeof start);
    if (is_lfs_pointer(start, sizeof start)) return "it " LFS_POINTER;
    if (file->bytes < sizeof length) return "it is too short for a safetensors file";
    memcpy(&length, start, sizeof length);
    if (length > file->bytes - sizeof length) return "its header goes past the end of the file";
    if (length > HEADER_LIMIT) return "its header is larger than 16 MB";
    file->data_begin = sizeof length + length;
    char *text = check_alloc(length + 1, 1, "a safetensors header");
    read_at(file, text, sizeof length, length);
    const char *end = text, *wrong = "its header is not JSON";
    size_t at;
    enum JsonFault fault = json_fault(text, length, &at);
    if (fault == JSON_ZERO) wrong = "its header has the character \\u0000";
    cJSON *root = text[0] == '{' && fault == JSON_GOOD ? cJSON_ParseWithOpts(text, &end, false)
                                                       : NULL;
    if (root) wrong = read_header(file, root);
    if (!wrong && end + strspn(end, " ") != text + length)
        wrong = "its header goes on after the JSON object";
    cJSON_Delete(root);
    free(text);
    return wrong;
}

static const char *open_file(struct Safetensors *file) {
    /* O_NONBLOCK: else opening a named pipe would wait for somebody who writes into it. */
    file->descriptor = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file->descriptor < 0 && is_machine_error(errno)) die_errno("read", file->path);
    if (file->descriptor < 0) return problem("it cannot be opened: %s", strerror(errno));
    struct stat status;
    if (fstat(file->descriptor, &status) != 0 || !S_ISREG(status.st_mode))
        return "it is not a regular file";
    file->bytes = (size_t)status.st_size;
    return file->bytes == 0 ? "it is empty" : NULL;
}

const char *safetensors_open(struct Safetensors *file, const char *path) {
    *file = (struct Safetensors){.descriptor = -1};
    if (strlen(path) >= sizeof file->path) return "its path is too long";
    strcpy(file->path, path);
    const char *wrong = open_file(file);
    if (!wrong) wrong = parse(file);
    if (wrong) safetensors_close(file);
    return wrong;
}

void safetensors_close(struct Safetensors *file) {
    if (file->descriptor >= 0) close(file->descriptor);
    free(file->entries);
    *file = (struct Safetensors){.descriptor = -1};
}

const struct SafetensorsEntry *safetensors_find(const struct Safetensors *file, const char *name) {
    int low = 0, high = file->count;
    while (low < high) {
        int middle = low + (high - low) / 2, order = strcmp(name, file->entries[middle].name);
        if (order == 0) return &file->entries[middle];
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

/* ---- reading: elements ----------------------------------------------------------------------- */

static float float_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static float float_of_bf16(uint16_t bits) { return float_of_bits((uint32_t)bits << 16); }

static float float_of_fp16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, rest = half & 1023;
    if (exponent == 31) return float_of_bits(sign | 0x7F800000 | rest << 13);   /* inf, nan */
    if (exponent == 0) return (sign ? -0x1p-24f : 0x1p-24f) * (float)rest;      /* subnormal */
    return float_of_bits(sign | (exponent + 112) << 23 | rest << 13);           /* 127 - 15 */
}

static void convert(float *out, const unsigned char *bytes, enum SafetensorsType type, size_t n) {
    const uint16_t *half = (const uint16_t *)(const void *)bytes;
    double wide;
    if (type == ST_BF16)
        for (size_t i = 0; i < n; i++) out[i] = float_of_bf16(half[i]);
    if (type == ST_F16)
        for (size_t i = 0; i < n; i++) out[i] = float_of_fp16(half[i]);
    for (size_t i = 0; i < n && type == ST_F64; i++) {
        memcpy(&wide, bytes + 8 * i, 8);
        out[i] = (float)wide;
    }
}

/* The first of x [n] that is not finite, or n. Most have none: those are only added up, which the
   compiler makes vectors of; 0 * x is NaN where x is not finite, and 0 elsewhere. */
static size_t first_not_finite(const float *x, size_t n) {
    float sum[16] = {0}, all = 0;
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int k = 0; k < 16; k++) sum[k] += 0 * x[i + (size_t)k];
    for (; i < n; i++) all += 0 * x[i];
    for (int k = 0; k < 16; k++) all += sum[k];
    if (all == 0) return n;
    for (i = 0; i < n; i++)
        if (!isfinite(x[i])) break;
    return i;
}

/* Elements of one turn of the loop over threads: what is read stays in a core's cache until it is
   converted and checked. */
#define TURN ((size_t)1 << 16)

static int read_turn(const struct Safetensors *file, const struct SafetensorsEntry *entry,
                     float *out, size_t first, size_t n) {
    _Alignas(8) unsigned char piece[1 << 16];
    size_t size = safetensors_size(entry->type), most = sizeof piece / size;
    size_t begin = file->data_begin + entry->begin + size * first;
    if (entry->type == ST_F32) return try_read(file, out, begin, size * n);
    for (size_t done = 0; done < n; done += most) {
        size_t part = n - done < most ? n - done : most;
        int found = try_read(file, piece, begin + size * done, size * part);
        if (found != READ_WELL) return found;
        convert(out + done, piece, entry->type, part);
    }
    return READ_WELL;
}

size_t safetensors_read(const struct Safetensors *file, const struct SafetensorsEntry *entry,
                        float *out, size_t first, size_t n) {
    int found = READ_WELL;
    size_t finite = n;
    if (entry->type > ST_F64)
        die_input("%s: tensor %s does not hold floats", file->path, quote(entry->name));
    #pragma omp parallel for schedule(dynamic) if (n > TURN) reduction(min : finite)
    for (size_t begin = 0; begin < n; begin += TURN) {
        size_t part = n - begin < TURN ? n - begin : TURN;
        int turn = read_turn(file, entry, out + begin, first + begin, part);
        if (turn != READ_WELL) {
            #pragma omp atomic write
            found = turn;
            continue;
        }
        size_t good = first_not_finite(out + begin, part);
        if (good < part && begin + good < finite) finite = begin + good;
    }
    check_read(file, found);   /* here: a thread of the loop must not end the program */
    return finite;
}

/* ---- writing --------------------------------------------------------------------------------- */

static uint32_t bits_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Drops the lower `drop` bits, to nearest, ties to even. */
static uint32_t round_bits(uint32_t bits, int drop) {
    uint32_t half = (uint32_t)1 << (drop - 1);
    return (bits + half - 1 + (bits >> drop & 1)) >> drop;
}

static uint16_t bf16_of_float(float x) {
    uint32_t bits = bits_of_float(x);
    if (isnan(x)) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)round_bits(bits, 16);
}

static uint16_t fp16_of_float(float x) {
    uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000;
    float size = fabsf(x);
    if (isnan(x)) return (uint16_t)(sign | 0x7E00);
    if (size >= 65520) return (uint16_t)(sign | 0x7C00);
    /* Subnormal: the sum's last bit is worth 2^-24, so the addition rounds as is wanted. */
    if (size < 0x1p-14f) return (uint16_t)(sign | (bits_of_float(size + 0.5f) - 0x3F000000));
    return (uint16_t)(sign | round_bits((bits & 0x7FFFFFFF) - (112u << 23), 13));
}

size_t safetensors_narrow(uint16_t *out, const float *x, enum SafetensorsType type, size_t n) {
    uint16_t infinity = type == ST_F16 ? 0x7C00 : 0x7F80;
    size_t beyond = 0;
    for (size_t i = 0; i < n; i++) {
        out[i] = type == ST_F16 ? fp16_of_float(x[i]) : bf16_of_float(x[i]);
        if ((out[i] & 0x7FFF) != infinity || !isfinite(x[i])) continue;
        out[i]--;   /* the number before infinity is the largest */
        beyond++;
    }
    return beyond;
}

struct SafetensorsWriter {
    struct AtomicFile file;
    cJSON *header;
    size_t described, written;   /* bytes of data */
    bool header_written;
};

struct SafetensorsWriter *safetensors_create(const char *path) {
    struct SafetensorsWriter *writer = check_alloc(1, sizeof *writer, "a safetensors writer");
    atomic_open(&writer->file, path);
    writer->header = cJSON_CreateObject();
    /* transformers refuses a file that does not say which framework's layout it has. */
    cJSON *metadata = cJSON_AddObjectToObject(writer->header, "__metadata__");
    cJSON_AddStringToObject(metadata, "format", "pt");
    return writer;
}

void safetensors_describe(struct SafetensorsWriter *writer, const char *name,
                          enum SafetensorsType type, int num_dims, const int64_t *shape) {
    int row = 0;
    while (types[row].type != type) row++;
    size_t bytes = types[row].size;
    cJSON *entry = cJSON_AddObjectToObject(writer->header, name);
    cJSON_AddStringToObject(entry, "dtype", types[row].name);
    cJSON *dims = cJSON_AddArrayToObject(entry, "shape");
    for (int i = 0; i < num_dims; i++) {
        cJSON_AddItemToArray(dims, cJSON_CreateNumber((double)shape[i]));
        bytes *= (size_t)shape[i];
    }
    cJSON *offsets = cJSON_AddArrayToObject(entry, "data_offsets");
    cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)writer->described));
    writer->described += bytes;
    cJSON_AddItemToArray(offsets, cJSON_CreateNumber((double)writer->described));
}

/* The header goes out once all tensors are described: before the first data. Spaces bring the data
   section to a multiple of 8 bytes. */
static void write_header(struct SafetensorsWriter *writer) {
    char *text = cJSON_PrintUnformatted(writer->header);
    if (!text) die_machine("out of memory: a safetensors header");
    size_t length = strlen(text);
    uint64_t padded = (length + 7) / 8 * 8;
    atomic_write(&writer->file, &padded, sizeof padded);
    atomic_write(&writer->file, text, length);
    atomic_write(&writer->file, "       ", padded - length);
    free(text);
    writer->header_written = true;
}

void safetensors_write(struct SafetensorsWriter *writer, const void *data, size_t bytes) {
    if (!writer->header_written) write_header(writer);
    atomic_write(&writer->file, data, bytes);
    writer->written += bytes;
}

void safetensors_commit(struct SafetensorsWriter *writer, struct Checksums *sums) {
    if (!writer->header_written) write_header(writer);
    if (writer->written != writer->described) {
        unlink(writer->file.temporary);
        die_machine("internal error: %s got %zu bytes of %zu", writer->file.path, writer->written,
                    writer->described);
    }
    atomic_commit(&writer->file);
    checksums_add(sums, &writer->file);
    cJSON_Delete(writer->header);
    free(writer);
}
