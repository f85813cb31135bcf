#include "assets.h"

#include <stdio.h>
#include <string.h>
#include "../base/check.h"
#include "../base/files.h"

#define PATH_SIZE 4096
#define MOST_BYTES ((size_t)256 << 20)   /* the largest tokenizers are below 40 MB */

static const char *const known[] = {
    "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model",
    "chat_template.jinja", "chat_template.json",
    "LICENSE", "LICENSE.txt", ("LICENSE" ".md"), "NOTICE", "NOTICE.txt",
};
enum { NUM_KNOWN = sizeof known / sizeof *known };

static void read_file(struct Text *out, const char *path) {
    const char *problem = file_problem(path);
    if (problem) die_input("%s: %s", path, problem);
    FILE *stream = fopen(path, "rb");
    if (!stream) die_errno("read", path);
    char piece[1 << 16];
    size_t n;
    text_clear(out);
    while (out->length <= MOST_BYTES && (n = fread(piece, 1, sizeof piece, stream)) > 0)
        text_append(out, piece, n);
    if (ferror(stream)) die_errno("read", path);
    fclose(stream);
    if (out->length > MOST_BYTES)
        die_input("%s is larger than %zu MB; it would go into every checkpoint", path,
                  MOST_BYTES >> 20);
    if (is_lfs_pointer(out->bytes, out->length)) die_input("%s " LFS_POINTER, path);
}

void assets_read(struct Assets *assets, const char *directory) {
    struct Text text = {0};
    for (int i = 0; i < NUM_KNOWN; i++) {
        char path[PATH_SIZE];
        check_path(path, sizeof path, "%s/%s", directory, known[i]);
        if (!path_exists(path)) continue;
        read_file(&text, path);
        text_list_add(&assets->names, known[i], strlen(known[i]));
        text_list_add(&assets->contents, text.bytes, text.length);
    }
    text_free(&text);
}

const char *assets_find(const struct Assets *assets, const char *name) {
    for (int i = 0; i < assets->names.count; i++)
        if (strcmp(text_list_at(&assets->names, i), name) == 0)
            return text_list_at(&assets->contents, i);
    return NULL;
}

void assets_write_file(const char *directory, const char *name, const char *bytes, size_t length,
                       struct Checksums *sums) {
    char path[PATH_SIZE];
    struct AtomicFile file;
    check_path(path, sizeof path, "%s/%s", directory, name);
    atomic_open(&file, path);
    atomic_write(&file, bytes, length);
    atomic_commit(&file);
    checksums_add(sums, &file);
}

void assets_write(const struct Assets *assets, const char *directory, const char *without,
                  struct Checksums *sums) {
    for (int i = 0; i < assets->names.count; i++) {
        const char *name = text_list_at(&assets->names, i);
        if (without && strcmp(name, without) == 0) continue;
        assets_write_file(directory, name, text_list_at(&assets->contents, i),
                          text_list_length(&assets->contents, i), sums);
    }
}

void assets_free(struct Assets *assets) {
    text_list_free(&assets->names);
    text_list_free(&assets->contents);
}
