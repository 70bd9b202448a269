/* io_uring by its system calls: one submission and one completion ring, used by one thread (the event loop's). Its descriptor
 * is pollable: it reads as readable while completions wait, so an event loop watches it and no eventfd is needed. */
#ifndef AIOVMM_URING_H
#define AIOVMM_URING_H
#include <linux/io_uring.h>
#include <stddef.h>
#include <stdint.h>

struct avmm_uring {
    int fd;
    uint32_t setup_flags; /* IORING_SETUP_* that the kernel granted */
    uint32_t pending;     /* SQEs filled and not taken by the kernel yet */
    uint32_t sq_entries, cq_entries, sq_mask, cq_mask;
    uint32_t sq_tail, cq_head; /* our copies of the indices that are ours */
    uint32_t *sq_khead, *sq_ktail, *cq_khead, *cq_ktail;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    void *rings;
    size_t rings_size, sqes_size;
    uint64_t enters; /* system calls made, for statistics */
};

/* Make a ring for `entries` submissions in one system call and `completions` requests in flight at once (both rounded up to a power
 * of two, and as many completions as submissions at least). 0, or -errno: ENOSYS, EPERM where io_uring is absent or forbidden, or
 * lacks what we count on (Linux 5.5: iovecs need not outlive submission, no lost completion). It does what disks need, and nothing
 * else (Linux 5.10). */
int avmm_uring_open(struct avmm_uring *ring, uint32_t entries, uint32_t completions);

/* Nothing may be in flight. Idempotent. */
void avmm_uring_close(struct avmm_uring *ring);

/* The next SQE, zeroed; it goes with the next submit. NULL when all are filled. */
struct io_uring_sqe *avmm_uring_sqe(struct avmm_uring *ring);

/* Hand all filled SQEs to the kernel. 0, or -errno, with those that it did not take still pending: EAGAIN and EBUSY go by. */
int avmm_uring_submit(struct avmm_uring *ring);

/* Take back the latest SQE that is filled and that the kernel has not taken: its `user_data`. 0 if there is none. */
int avmm_uring_take_back(struct avmm_uring *ring, uint64_t *user_data);

/* The next completion, copied, and taken off the ring. 0 if there is none. */
int avmm_uring_reap(struct avmm_uring *ring, uint64_t *user_data, int32_t *result);

#endif
