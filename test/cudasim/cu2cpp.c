/* cu2cpp: the only rewriting a .cu file needs before an ordinary C++ compiler can read it.

       cu2cpp IN.cu OUT.cc [DEPENDENCIES.d] [-I DIRECTORY]...

   Three things are rewritten, everything else is copied, and line numbers stay true (#line):

       __shared__ T a[2][3], b;   references into the block's shared window, one slot per name
       extern __shared__ T a[];   a pointer to the block's dynamic shared memory
       f<T><<<g, b, s, st>>>(x)   cudasim::launcher(..., config(g, b, s, st), [=](auto... a) {
                                  f<T>(a...); })(x), so that template deduction and the single
                                  evaluation of arguments stay as they were

   `#pragma unroll` goes (it would only slow the compilation down), and quoted includes of .cuh and
   .cu files are expanded in place, because they too may declare shared memory or launch. Other
   quoted includes are written relative to the working directory: compile with -iquote . */
#include <ctype.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_FILES = 256, MAX_DIRECTORIES = 32, MAX_PATH_LENGTH = 1024, MAX_NAME = 256 };

/* A source file in memory; data[size] is 0, so looking a few characters ahead is always safe. */
struct Source {
    char path[MAX_PATH_LENGTH];
    char *data;
    size_t size;
};

static char *output;
static size_t output_size, output_capacity;

static char seen[MAX_FILES][MAX_PATH_LENGTH]; /* every file read, for the dependency list */
static bool seen_once[MAX_FILES];             /* it said #pragma once */
static int num_seen;

static const char *directories[MAX_DIRECTORIES];
static int num_directories;

static void die(const char *path, int line, const char *message) {
    fprintf(stderr, "%s:%d: cu2cpp: %s\n", path, line, message);
    exit(1);
}

static int line_of(const struct Source *s, size_t at) {
    int line = 1;
    for (size_t i = 0; i < at && i < s->size; i++) line += s->data[i] == '\n';
    return line;
}

/* ---- output ---- */

static void emit_bytes(const char *bytes, size_t count) {
    if (output_size + count + 1 > output_capacity) {
        output_capacity = 2 * output_capacity + count + 4096;
        output = realloc(output, output_capacity);
        if (!output) die("output", 0, "out of memory");
    }
    memcpy(output + output_size, bytes, count);
    output_size += count;
    output[output_size] = 0;
}

__attribute__((format(printf, 1, 2))) static void emit(const char *format, ...) {
    char text[8192];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= sizeof text) die("output", 0, "a declaration is too long");
    emit_bytes(text, (size_t)length);
}

/* ---- scanning ---- */

static bool is_identifier(char c) { return isalnum((unsigned char)c) || c == '_'; }

static bool word_at(const struct Source *s, size_t i, const char *word) {
    size_t length = strlen(word);
    if (i + length > s->size || memcmp(s->data + i, word, length) != 0) return false;
    return !(i > 0 && is_identifier(s->data[i - 1])) && !is_identifier(s->data[i + length]);
}

static size_t skip_space(const struct Source *s, size_t i) {
    while (i < s->size && isspace((unsigned char)s->data[i])) i++;
    return i;
}

static size_t skip_raw_string(const struct Source *s, size_t i) {
    char terminator[40] = ")";
    size_t length = 1, j = i + 2;
    while (s->data[j] && s->data[j] != '(' && length < 20) terminator[length++] = s->data[j++];
    terminator[length++] = '"';
    const char *end = strstr(s->data + j, terminator);
    return end ? (size_t)(end - s->data) + length : s->size;
}

static size_t skip_quoted(const struct Source *s, size_t i) {
    char quote = s->data[i++];
    while (i < s->size && s->data[i] != quote) i += s->data[i] == '\\' ? 2 : 1;
    return i < s->size ? i + 1 : s->size;
}

static size_t skip_line(const struct Source *s, size_t i) {
    while (i < s->size && s->data[i] != '\n') i += s->data[i] == '\\' ? 2 : 1;
    return i < s->size ? i : s->size;
}

/* The end of the comment or literal that starts at i; i itself where none does. */
static size_t skip_literal(const struct Source *s, size_t i) {
    const char *p = s->data + i;
    bool after_word = i > 0 && is_identifier(p[-1]);
    if (p[0] == '/' && p[1] == '/') return skip_line(s, i);
    if (p[0] == '/' && p[1] == '*') {
        const char *end = strstr(p + 2, "*/");
        return end ? (size_t)(end - s->data) + 2 : s->size;
    }
    if (p[0] == 'R' && p[1] == '"' && !after_word) return skip_raw_string(s, i);
    if (p[0] == '"') return skip_quoted(s, i);
    if (p[0] == '\'' && !after_word) return skip_quoted(s, i); /* 1'000 is a number */
    return i;
}

/* What follows blanks and comments. */
static size_t skip_blank(const struct Source *s, size_t i) {
    for (;;) {
        i = skip_space(s, i);
        size_t end = s->data[i] == '/' ? skip_literal(s, i) : i;
        if (end == i) return i;
        i = end;
    }
}

/* The next place from i on where code, not a comment or literal, holds one of these characters. */
static size_t find_any(const struct Source *s, size_t i, size_t end, const char *characters) {
    while (i < end) {
        size_t literal_end = skip_literal(s, i);
        if (literal_end == i && strchr(characters, s->data[i])) return i;
        i = literal_end == i ? i + 1 : literal_end;
    }
    return end;
}

/* The position of the bracket that closes the one at or after i. */
static size_t match_bracket(const struct Source *s, size_t i, char open, char close) {
    size_t start = i;
    int depth = 0;
    while (i < s->size) {
        size_t literal_end = skip_literal(s, i);
        if (literal_end != i) {
            i = literal_end;
            continue;
        }
        if (s->data[i] == open) depth++;
        if (s->data[i] == close && --depth == 0) return i;
        i++;
    }
    die(s->path, line_of(s, start), "no matching bracket");
    return s->size;
}

/* ---- __shared__ declarations ---- */

struct SharedDeclaration {
    bool dynamic;        /* extern __shared__ */
    char alignment[128]; /* text inside alignas() or __align__(); empty if there was none */
    char type[MAX_PATH_LENGTH];
};

/* Copies source text [begin, end) on one line, without its comments. */
static void copy_text(char *out, size_t capacity, const struct Source *s, size_t begin,
                      size_t end) {
    if (end - begin + 1 > capacity) die(s->path, line_of(s, begin), "declaration too long");
    for (size_t i = begin; i < end;) {
        size_t next = s->data[i] == '/' ? skip_literal(s, i) : i;
        *out++ = next != i || s->data[i] == '\n' ? ' ' : s->data[i];
        i = next != i ? next : i + 1;
    }
    *out = 0;
}

/* Reads `extern`, `static`, `__shared__` and alignments in any order; returns what follows. */
static size_t parse_qualifiers(const struct Source *s, size_t i, struct SharedDeclaration *d) {
    for (;;) {
        i = skip_blank(s, i);
        if (word_at(s, i, "extern")) {
            d->dynamic = true;
            i += strlen("extern");
        } else if (word_at(s, i, "static")) {
            i += strlen("static");
        } else if (word_at(s, i, "__shared__")) {
            i += strlen("__shared__");
        } else if (word_at(s, i, "alignas") || word_at(s, i, "__align__")) {
            size_t open = i;
            while (s->data[open] != '(') open++;
            size_t close = match_bracket(s, open, '(', ')');
            copy_text(d->alignment, sizeof d->alignment, s, open + 1, close);
            i = close + 1;
        } else {
            return i;
        }
    }
}

/* The start of the first declarator's name: the last identifier before '[', ',', ';' or '='. */
static size_t find_first_name(const struct Source *s, size_t begin, size_t end) {
    size_t name = begin;
    int angle = 0;
    for (size_t i = skip_blank(s, begin); i < end; i = skip_blank(s, i + 1)) {
        char c = s->data[i];
        if (c == '<') angle++;
        if (c == '>') angle--;
        if (angle == 0 && (c == '[' || c == ',' || c == '=')) break;
        if (angle == 0 && is_identifier(c) && !(i > 0 && is_identifier(s->data[i - 1]))) name = i;
    }
    return name;
}

static void emit_shared(const struct SharedDeclaration *d, const char *name, const char *extents) {
    char alignment[MAX_NAME + 64];
    if (d->alignment[0]) snprintf(alignment, sizeof alignment, "%s", d->alignment);
    else snprintf(alignment, sizeof alignment, "alignof(cudasim_type_%s)", name);
    if (d->dynamic) {
        emit("typedef %s cudasim_type_%s; ", d->type, name);
        emit("cudasim_type_%s *%s = (cudasim_type_%s *)cudasim::dynamic_shared(%s)", name, name,
             name, alignment);
        return;
    }
    emit("typedef %s cudasim_type_%s%s; ", d->type, name, extents);
    emit("static cudasim::SharedVariable cudasim_slot_%s; ", name);
    emit("cudasim_type_%s &%s = *(cudasim_type_%s *)", name, name, name);
    emit("cudasim::shared_variable(cudasim_slot_%s, sizeof(cudasim_type_%s), %s, \"%s\")", name,
         name, alignment, name);
}

/* Rewrites the declaration that starts at i; returns the position of its ';', which the caller
   copies. */
static size_t rewrite_shared(const struct Source *s, size_t start) {
    struct SharedDeclaration d = {0};
    size_t type = parse_qualifiers(s, start, &d), end = find_any(s, type, s->size, ";");
    size_t name = find_first_name(s, type, end), type_end = name;
    while (type_end > type && isspace((unsigned char)s->data[type_end - 1])) type_end--;
    if (type_end == type)
        die(s->path, line_of(s, start), "cannot read this __shared__ declaration");
    copy_text(d.type, sizeof d.type, s, type, type_end);

    for (;;) { /* one declarator per round */
        size_t name_end = name;
        while (is_identifier(s->data[name_end])) name_end++;
        size_t declarator_end = find_any(s, name_end, end, ",[");
        while (declarator_end < end && s->data[declarator_end] == '[')
            declarator_end = find_any(s, match_bracket(s, declarator_end, '[', ']') + 1, end, ",[");
        char text[MAX_NAME], extents[MAX_NAME];
        copy_text(text, sizeof text, s, name, name_end);
        copy_text(extents, sizeof extents, s, name_end, declarator_end);
        emit_shared(&d, text, extents);
        if (declarator_end >= end) break;
        emit("; ");
        name = skip_blank(s, declarator_end + 1);
    }
    for (size_t i = start; i < end; i++)
        if (s->data[i] == '\n') emit("\n");
    return end;
}

/* ---- launches ---- */

/* Walks back over the bracketed text that ends at output[end - 1]; returns where it begins. */
static size_t output_bracket_start(size_t end, char open, char close) {
    int depth = 0;
    while (end > 0) {
        end--;
        if (output[end] == close) depth++;
        if (output[end] == open && --depth == 0) return end;
    }
    return 0;
}

/* Where the callee expression begins that ends at output[end): name, ns::name<T>, (pointer). */
static size_t callee_start(size_t end) {
    size_t begin = end;
    if (begin > 0 && output[begin - 1] == '>') begin = output_bracket_start(begin, '<', '>');
    else if (begin > 0 && output[begin - 1] == ')') begin = output_bracket_start(begin, '(', ')');
    while (begin > 0 && (is_identifier(output[begin - 1]) || output[begin - 1] == ':')) begin--;
    return begin;
}

static size_t find_launch_end(const struct Source *s, size_t i) {
    size_t start = i;
    int depth = 0;
    while (i < s->size) {
        size_t literal_end = skip_literal(s, i);
        if (literal_end != i) {
            i = literal_end;
            continue;
        }
        char c = s->data[i];
        if (c == '(' || c == '[' || c == '{') depth++;
        if (c == ')' || c == ']' || c == '}') depth--;
        if (depth == 0 && strncmp(s->data + i, ">>>", 3) == 0) return i;
        i++;
    }
    die(s->path, line_of(s, start), "no >>> for this <<<");
    return s->size;
}

/* The callee was copied already: takes it back from the output and wraps it. i is at "<<<". */
static size_t rewrite_launch(const struct Source *s, size_t i) {
    size_t callee_end = output_size;
    while (callee_end > 0 && isspace((unsigned char)output[callee_end - 1])) callee_end--;
    size_t begin = callee_start(callee_end);
    if (begin == callee_end) die(s->path, line_of(s, i), "no kernel name before <<<");
    char callee[MAX_PATH_LENGTH];
    if (callee_end - begin >= sizeof callee) die(s->path, line_of(s, i), "kernel name too long");
    memcpy(callee, output + begin, callee_end - begin);
    callee[callee_end - begin] = 0;
    output_size = begin;

    size_t end = find_launch_end(s, i + 3);
    emit("cudasim::launcher(__FILE__, __LINE__, \"");
    for (const char *c = callee; *c; c++)
        if (*c != '\n' && *c != '"') emit_bytes(c, 1);
    emit("\", cudasim::config(");
    emit_bytes(s->data + i + 3, end - (i + 3));
    emit("), [=](auto... cudasim_argument) { %s(cudasim_argument...); })", callee);
    return end + 3;
}

/* ---- files ---- */

static bool read_source(struct Source *s, const char *path) {
    FILE *stream = fopen(path, "rb");
    if (!stream) return false;
    fseek(stream, 0, SEEK_END);
    s->size = (size_t)ftell(stream);
    rewind(stream);
    s->data = malloc(s->size + 8);
    if (!s->data || fread(s->data, 1, s->size, stream) != s->size) die(path, 0, "cannot read");
    memset(s->data + s->size, 0, 8);
    snprintf(s->path, sizeof s->path, "%s", path);
    fclose(stream);
    return true;
}

static int remember_file(const char *path) {
    for (int i = 0; i < num_seen; i++)
        if (strcmp(seen[i], path) == 0) return i;
    if (num_seen == MAX_FILES) die(path, 0, "too many included files");
    snprintf(seen[num_seen], sizeof seen[0], "%s", path);
    return num_seen++;
}

static void rewrite_file(const struct Source *s);

/* The file beside s, or the same name as it is. */
static void path_beside(char *path, const struct Source *s, const char *name, int length) {
    const char *slash = strrchr(s->path, '/');
    int directory_length = slash ? (int)(slash - s->path) + 1 : 0;
    snprintf(path, MAX_PATH_LENGTH, "%.*s%.*s", directory_length, s->path, length, name);
}

/* Expands #include "name" where name is CUDA source and completes the path where it is not; returns
   false where the line stays as it is. */
static bool expand_include(const struct Source *s, size_t i, size_t line_end) {
    const char *open = memchr(s->data + i, '"', line_end - i);
    if (!open) return false;
    const char *name = open + 1, *close = strchr(name, '"');
    int length = (int)(close - name);
    bool cuda = (length > 4 && strncmp(close - 4, ".cuh", 4) == 0) ||
                (length > 3 && strncmp(close - 3, ".cu", 3) == 0);
    char path[MAX_PATH_LENGTH];
    path_beside(path, s, name, length);
    if (!cuda) {
        if (access(path, R_OK) != 0) return false;
        emit("#include \"%s\"", path);
        return true;
    }

    struct Source included;
    bool found = read_source(&included, path);
    for (int d = 0; d < num_directories && !found; d++) {
        snprintf(path, sizeof path, "%s/%.*s", directories[d], length, name);
        found = read_source(&included, path);
    }
    if (!found) die(s->path, line_of(s, i), "cannot find this included file");
    rewrite_file(&included);
    free(included.data);
    emit("#line %d \"%s\"", line_of(s, line_end) + 1, s->path);
    return true;
}

/* A preprocessor line that needs care; returns its end, or i where it is to be copied as code. */
static size_t rewrite_directive(const struct Source *s, size_t i) {
    size_t word = i + 1, line_end = skip_line(s, i);
    while (s->data[word] == ' ' || s->data[word] == '\t') word++;
    if (word_at(s, word, "include")) {
        if (!expand_include(s, i, line_end)) emit_bytes(s->data + i, line_end - i);
        return line_end;
    }
    if (word_at(s, word, "pragma")) {
        size_t what = word + strlen("pragma");
        while (s->data[what] == ' ') what++;
        if (word_at(s, what, "once")) seen_once[remember_file(s->path)] = true;
        else if (!word_at(s, what, "unroll")) emit_bytes(s->data + i, line_end - i);
        return line_end;
    }
    return i; /* a #define may hold a launch: its text is rewritten like code */
}

static bool starts_line(const struct Source *s, size_t i) {
    while (i > 0 && (s->data[i - 1] == ' ' || s->data[i - 1] == '\t')) i--;
    return i == 0 || s->data[i - 1] == '\n';
}

static bool starts_shared(const struct Source *s, size_t i) {
    if (word_at(s, i, "__shared__")) return true;
    if (!word_at(s, i, "extern") && !word_at(s, i, "static")) return false;
    return word_at(s, skip_space(s, i + strlen("extern")), "__shared__");
}

static void rewrite_file(const struct Source *s) {
    if (seen_once[remember_file(s->path)]) return;
    emit("#line 1 \"%s\"\n", s->path);
    size_t i = 0;
    while (i < s->size) {
        size_t next = skip_literal(s, i);
        if (next != i) {
            emit_bytes(s->data + i, next - i);
        } else if (s->data[i] == '#' && starts_line(s, i) &&
                   (next = rewrite_directive(s, i)) != i) {
            ; /* done */
        } else if (starts_shared(s, i)) {
            next = rewrite_shared(s, i);
        } else if (strncmp(s->data + i, "<<<", 3) == 0) {
            next = rewrite_launch(s, i);
        } else {
            emit_bytes(s->data + i, 1);
            next = i + 1;
        }
        i = next;
    }
    emit("\n");
}

static void write_file(const char *path, const char *data, size_t size) {
    FILE *stream = fopen(path, "wb");
    if (!stream || fwrite(data, 1, size, stream) != size || fclose(stream) != 0)
        die(path, 0, "cannot write");
}

/* A make rule: the output depends on every file read; missing headers are no error (`path:`). */
static void write_dependencies(const char *path, const char *target) {
    output_size = 0;
    emit("%s:", target);
    for (int i = 0; i < num_seen; i++) emit(" %s", seen[i]);
    for (int i = 1; i < num_seen; i++) emit("\n%s:", seen[i]);
    emit("\n");
    write_file(path, output, output_size);
}

int main(int argc, char **argv) {
    const char *paths[3] = {0};
    int num_paths = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-I") == 0 && i + 1 < argc) {
            if (num_directories == MAX_DIRECTORIES) die("-I", 0, "too many directories");
            directories[num_directories++] = argv[++i];
        } else if (num_paths < 3) {
            paths[num_paths++] = argv[i];
        }
    }
    if (num_paths < 2) {
        fprintf(stderr, "usage: cu2cpp IN.cu OUT.cc [DEPENDENCIES.d] [-I DIRECTORY]...\n");
        return 2;
    }
    struct Source source;
    if (!read_source(&source, paths[0])) die(paths[0], 0, "cannot open");
    rewrite_file(&source);
    write_file(paths[1], output, output_size);
    if (paths[2]) write_dependencies(paths[2], paths[1]);
    return 0;
}
