#include "pages.h"

#include <assert.h>
#include <stdlib.h>
#include "../base/check.h"

void pages_open(struct Pages *pages, int total) {
    *pages = (struct Pages){.num_free = total, .total = total};
    pages->free = check_alloc((size_t)total, sizeof(int), "the cache's pages");
    for (int i = 0; i < total; i++) pages->free[i] = total - 1 - i;
}

void page_table_open(struct PageTable *table, int slots, int width) {
    *table = (struct PageTable){.slots = slots, .width = width, .moved = true};
    table->page = check_alloc((size_t)slots * (size_t)width, sizeof(int), "the cache's pages");
    table->count = check_alloc((size_t)slots, sizeof(int), "the cache's pages");
}

void pages_free(struct Pages *pages) {
    free(pages->free);
    *pages = (struct Pages){0};
}

void page_table_free(struct PageTable *table) {
    free(table->page);
    free(table->count);
    *table = (struct PageTable){0};
}

bool page_table_grow(struct PageTable *table, struct Pages *pages, int slot, int count) {
    assert(slot >= 0 && slot < table->slots && count <= table->width);
    int *held = &table->count[slot];
    if (count - *held > pages->num_free) return false;
    if (count > *held) table->moved = true;
    while (*held < count)
        table->page[slot * table->width + (*held)++] = pages->free[--pages->num_free];
    int used = pages->total - pages->num_free;
    if (used > pages->peak) pages->peak = used;
    return true;
}

void page_table_clear(struct PageTable *table, struct Pages *pages, int slot) {
    int *held = &table->count[slot];
    while (*held > 0) pages->free[pages->num_free++] = table->page[slot * table->width + --*held];
}
