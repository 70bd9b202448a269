/* Which pages of guest memory were written to, by whomever: the guest, this process, or the kernel for either of them.
 *
 * Pages are write-protected in this process's own page tables (userfaultfd, with the kernel taking the protection off at the first
 * write: WP_ASYNC, Linux 6.7), and a scan finds those that are so no longer. All writes go by those tables: KVM's own mappings are
 * made from them and taken back with the protection, and so are what io_uring and other calls of ours write. */
#ifndef AIOVMM_DIRTY_H
#define AIOVMM_DIRTY_H
#include <stdint.h>

/* A userfaultfd for `avmm_dirty_watch`, or a negative errno: ENOSYS, EINVAL for a kernel that cannot. No privilege is needed. */
int avmm_dirty_open(void);

/* [host, host + size) of private memory may be protected for as long as the descriptor is open: 0 or an errno. */
int avmm_dirty_watch(int fd, uint64_t host, uint64_t size);

struct avmm_dirty {
    uint64_t host;
    uint64_t size;
    uint64_t number;      /* of its first page in the bitmaps */
    uint8_t *marks;       /* bits are set, none is cleared */
    const uint8_t *moved; /* of memory that is mapped from a file: pages that are not to be as they are there */
    uint64_t there; /* pages that were told of and are there; is added to */
    uint32_t of_file;
    uint32_t how;
};

#define AVMM_DIRTY_OWN 0     /* all pages that are not the file's, and never mind when they were written to */
#define AVMM_DIRTY_LOOK 1    /* those that were written to since they were protected */
#define AVMM_DIRTY_PROTECT 2 /* the same, and then they are protected again */

/* Tell of pages that were written: 0 or an errno. Of anonymous memory those that are not
 * there count as written, too: they read as zeros, and it is not known since when. While nobody writes. */
int avmm_dirty_scan(struct avmm_dirty *of);

#endif
