/* The pages of guest memory that are to be kept: found, summed up and copied into a sparse file. */
#ifndef AIOVMM_PAGES_H
#define AIOVMM_PAGES_H
#include <stdint.h>

/* A piece of guest memory, whole pages. What is in it: that this process has touched it, or the file that it is mapped from has
 * data there. The rest is zeros, as are pages with nothing else in them. */
struct avmm_piece {
    uint64_t host;
    uint64_t size;
    int data_fd;          /* the file, or -1: anonymous memory */
    uint32_t release;     /* give each page back (of private memory alone) once it has been copied */
    uint64_t data_offset; /* of the piece in the file */
    uint64_t number;      /* of its first page, for the sum */
};

struct avmm_kept {
    uint64_t pages; /* that were not zeros */
    uint64_t sum;   /* of them: 0 for none; whatever the order in which pages are added */
    uint32_t given_up; /* set by another thread: no more is looked at, and that is ECANCELED */
    uint32_t pad;
};

static inline int avmm_kept_given_up(const struct avmm_kept *kept) {
    return __atomic_load_n(&kept->given_up, __ATOMIC_RELAXED) != 0;
}

/* Copy the piece to `out` at `out_offset`, where there must be zeros (-1: nowhere), and add to `kept`: 0 or an errno. */
int avmm_pages_keep(const struct avmm_piece *piece, int out, uint64_t out_offset, struct avmm_kept *kept);

#endif
