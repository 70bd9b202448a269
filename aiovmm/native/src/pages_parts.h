/* What the files about pages have in common. */
#ifndef AIOVMM_PAGES_PARTS_H
#define AIOVMM_PAGES_PARTS_H
#include "pages.h"

#include <stdbool.h>

#define PAGE 4096u
#define BATCH 512u /* pages looked up at once */

/* Which pages of a piece there may be something in. */
struct search {
    const struct avmm_piece *piece;
    int pagemap;         /* -1: it cannot be read, and every page may have something */
    uint64_t data, hole; /* the file's next data after what has been looked at, and where that ends */
};

void avmm_search_begin(struct search *s, const struct avmm_piece *piece);
void avmm_search_end(struct search *s);

/* The bits of `count` pages from `at`, which does not go back between calls; whether one is set. */
bool avmm_search_look(struct search *s, uint64_t at, uint64_t count, bool there[BATCH]);

bool avmm_page_is_zero(const uint64_t *page);
/* All of it, however often the kernel takes less: 0 or an errno. */
int avmm_write_out(int out, uint64_t host, uint64_t size, uint64_t offset);

uint64_t avmm_page_sum(const uint64_t *page, uint64_t number);

#endif
