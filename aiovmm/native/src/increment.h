/* The pages of guest memory that are in an increment: copied one after the other into a file, and back into memory. */
#ifndef AIOVMM_INCREMENT_H
#define AIOVMM_INCREMENT_H
#include "pages.h"

/* One bit a page of the whole memory, as `piece.number` counts. */
struct avmm_increment {
    int fd;                 /* the file */
    uint32_t pad;
    uint64_t at;            /* where in it the next page is; moves */
    uint8_t *buffer;        /* where the first pages go that are kept, as many as there is room for */
    uint64_t room;          /* bytes of it, whole pages */
    uint64_t filled;        /* bytes of it that have pages */
    const uint8_t *has;     /* pages that it has */
    uint8_t *full;          /* those of them that are in the file; the others are zeros */
    uint8_t *applied;       /* pages that need no more to be written, by an increment that is newer */
};

/* Copy the changed pages of the piece: into the buffer, so that nobody has to wait for a file system, and to the file what finds no
 * room there. `full` is found by this, and `kept` added to by what went into the file: 0 or an errno. `applied` is not looked at. */
int avmm_increment_keep(const struct avmm_piece *piece, struct avmm_increment *to, struct avmm_kept *kept);

/* Write what is in the buffer to the file, at `at`, and add to `kept`: 0 or an errno. When all pieces are kept; their pages may be
 * written to again by then. */
int avmm_increment_flush(const struct avmm_increment *to, uint64_t at, struct avmm_kept *kept);

/* Into the piece, which is private memory and shows a file of which `data_fd` says what is in it, the changed pages that are not
 * applied yet, and then are: 0 or an errno (EIO: the file is too short). `kept` counts the pages that were read. */
int avmm_increment_apply(const struct avmm_piece *piece, struct avmm_increment *from, struct avmm_kept *kept);

#endif
