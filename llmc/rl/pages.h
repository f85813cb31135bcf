/* Which pages of the decode cache belong to whom (struct KvCache in ops.h has the drawing). Host
   only: the sampler uploads the tables.

       struct Pages        free 5 0 3              a stack of the pool's free pages
       struct PageTable    slot 0:  1 4            a row per slot, `count` entries of it in use
                           slot 1:  2              */
#ifndef LLMC_PAGES_H
#define LLMC_PAGES_H

#include <stdbool.h>

/* Owned by whoever opens them; pages_free, page_table_free. */
struct Pages {
    int *free, num_free, total;
    int peak;   /* the most pages in use at once since pages_open, or since it was last set to 0 */
};

struct PageTable {
    int *page;    /* [slots][width] */
    int *count;   /* [slots] */
    int slots, width;
    bool moved;   /* a slot has got a page since this was last set to false; true at first */
};

/* All pages are free; all slots are empty. */
void pages_open(struct Pages *pages, int total);
void page_table_open(struct PageTable *table, int slots, int width);
void pages_free(struct Pages *pages);
void page_table_free(struct PageTable *table);
/* Takes pages until `slot` has `count` of them, or more if it has. All or none: false, and nothing
   changed, if so many are not free. count <= width (asserted). */
bool page_table_grow(struct PageTable *table, struct Pages *pages, int slot, int count);
/* Gives back all pages of a slot. */
void page_table_clear(struct PageTable *table, struct Pages *pages, int slot);

#endif
