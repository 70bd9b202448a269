#include "uring.h"
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef IORING_SETUP_COOP_TASKRUN /* Linux 5.19: completions need not interrupt us, we enter the kernel often */
#define IORING_SETUP_COOP_TASKRUN (1U << 8)
#endif
#ifndef IORING_SETUP_SINGLE_ISSUER /* Linux 6.0 */
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_SUBMIT_ALL /* Linux 5.18: a request that fails at submission does not stop those behind it */
#define IORING_SETUP_SUBMIT_ALL (1U << 7)
#endif

#ifndef IORING_SETUP_R_DISABLED /* Linux 5.10 */
#define IORING_SETUP_R_DISABLED (1U << 6)
#endif
#define REGISTER_RESTRICTIONS 11u
#define REGISTER_ENABLE_RINGS 12u
#define REGISTER_MAX_WORKERS 19u /* since Linux 5.15 */
#define WORKERS (1u << 15)       /* as many as are wanted: how many are is bounded by AVMM_BLK_WAITS */

/* What disks do by it. Whoever takes over a process that has given up system calls has its rings: and io_uring opens sockets, past
 * every filter, and connects them (Linux 5.19, 5.5). The layout is io_uring_register(2)'s. */
struct restriction {
    uint16_t kind;
    uint8_t what;
    uint8_t reserved[13];
};
enum { OF_OPERATIONS = 1, OF_FLAGS = 2 };
static const struct restriction restrictions[] = {
    {OF_OPERATIONS, IORING_OP_READ, {0}},  {OF_OPERATIONS, IORING_OP_WRITE, {0}}, {OF_OPERATIONS, IORING_OP_READV, {0}},
    {OF_OPERATIONS, IORING_OP_WRITEV, {0}}, {OF_OPERATIONS, IORING_OP_FSYNC, {0}}, {OF_OPERATIONS, IORING_OP_ASYNC_CANCEL, {0}},
    {OF_FLAGS, IOSQE_ASYNC, {0}},
};

#define NEEDED (IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE)

static const uint32_t wishes[] = {
    IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL,
    IORING_SETUP_R_DISABLED | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL,
    IORING_SETUP_R_DISABLED,
    0,
};

static int setup(uint32_t entries, uint32_t completions, struct io_uring_params *p) {
    for (size_t i = 0; i < sizeof wishes / sizeof *wishes; i++) {
        *p = (struct io_uring_params){.flags = wishes[i] | IORING_SETUP_CQSIZE,
                                      .cq_entries = completions > entries ? completions : entries};
        int fd = (int)syscall(SYS_io_uring_setup, entries, p);
        if (fd >= 0 || errno != EINVAL) /* EINVAL: a flag that this kernel does not know */
            return fd >= 0 ? fd : -errno;
    }
    return -EINVAL;
}

/* As it stays: nobody sets anything afterwards. */
static int settle(int fd, uint32_t flags) {
    uint32_t workers[2] = {WORKERS, 0}; /* for files, and for all else: as it is */
    syscall(SYS_io_uring_register, fd, REGISTER_MAX_WORKERS, workers, 2); /* refused: the kernel's own number must do */
    if (!(flags & IORING_SETUP_R_DISABLED))
        return 0;
    const size_t count = sizeof restrictions / sizeof *restrictions;
    if (syscall(SYS_io_uring_register, fd, REGISTER_RESTRICTIONS, restrictions, count) < 0 ||
        syscall(SYS_io_uring_register, fd, REGISTER_ENABLE_RINGS, NULL, 0) < 0)
        return -errno;
    return 0;
}

static int map(struct avmm_uring *r, const struct io_uring_params *p) {
    size_t sq = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
    size_t cq = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
    r->rings_size = sq > cq ? sq : cq;
    r->sqes_size = p->sq_entries * sizeof(struct io_uring_sqe);
    r->rings = mmap(NULL, r->rings_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQ_RING);
    if (r->rings == MAP_FAILED) {
        r->rings = NULL;
        return -errno;
    }
    void *sqes = mmap(NULL, r->sqes_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQES);
    if (sqes == MAP_FAILED)
        return -errno;
    r->sqes = sqes;
    madvise(r->rings, r->rings_size, MADV_DONTFORK); /* a child would keep the ring, and with it all files in flight */
    madvise(r->sqes, r->sqes_size, MADV_DONTFORK);
    return 0;
}

static uint32_t *at(struct avmm_uring *r, uint32_t offset) { return (uint32_t *)((char *)r->rings + offset); }

int avmm_uring_open(struct avmm_uring *r, uint32_t entries, uint32_t completions) {
    struct io_uring_params p;
    *r = (struct avmm_uring){.fd = setup(entries, completions, &p)};
    if (r->fd < 0)
        return r->fd;
    int error = (p.features & NEEDED) == NEEDED ? map(r, &p) : -ENOSYS;
    if (!error)
        error = settle(r->fd, p.flags);
    if (error) {
        avmm_uring_close(r);
        return error;
    }
    r->setup_flags = p.flags;
    r->sq_entries = p.sq_entries;
    r->cq_entries = p.cq_entries;
    r->sq_khead = at(r, p.sq_off.head);
    r->sq_ktail = at(r, p.sq_off.tail);
    r->sq_mask = *at(r, p.sq_off.ring_mask);
    r->cq_khead = at(r, p.cq_off.head);
    r->cq_ktail = at(r, p.cq_off.tail);
    r->cq_mask = *at(r, p.cq_off.ring_mask);
    r->cqes = (struct io_uring_cqe *)at(r, p.cq_off.cqes);
    r->sq_tail = *r->sq_ktail;
    r->cq_head = *r->cq_khead;
    for (uint32_t i = 0; i < p.sq_entries; i++) /* slot i always names SQE i */
        at(r, p.sq_off.array)[i] = i;
    return 0;
}

void avmm_uring_close(struct avmm_uring *r) {
    if (r->sqes)
        munmap(r->sqes, r->sqes_size);
    if (r->rings)
        munmap(r->rings, r->rings_size);
    if (r->fd >= 0)
        close(r->fd);
    *r = (struct avmm_uring){.fd = -1};
}

struct io_uring_sqe *avmm_uring_sqe(struct avmm_uring *r) {
    /* Acquire: pairs with the kernel's release of the SQEs that it has read. */
    uint32_t head = atomic_load_explicit((_Atomic uint32_t *)r->sq_khead, memory_order_acquire);
    if (r->sq_tail - head >= r->sq_entries)
        return NULL;
    struct io_uring_sqe *sqe = &r->sqes[r->sq_tail++ & r->sq_mask];
    memset(sqe, 0, sizeof *sqe);
    r->pending++;
    return sqe;
}

int avmm_uring_submit(struct avmm_uring *r) {
    /* Release: the SQEs are written before the tail; pairs with the kernel's acquire of the tail. */
    atomic_store_explicit((_Atomic uint32_t *)r->sq_ktail, r->sq_tail, memory_order_release);
    while (r->pending) {
        r->enters++;
        long n = syscall(SYS_io_uring_enter, r->fd, r->pending, 0, 0, NULL, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EAGAIN;
        r->pending -= (uint32_t)n;
    }
    return 0;
}

int avmm_uring_take_back(struct avmm_uring *r, uint64_t *user_data) {
    if (!r->pending)
        return 0;
    r->pending--;
    *user_data = r->sqes[--r->sq_tail & r->sq_mask].user_data;
    /* The kernel reads the tail only when it is entered, and then only as far as it is told. */
    atomic_store_explicit((_Atomic uint32_t *)r->sq_ktail, r->sq_tail, memory_order_release);
    return 1;
}

int avmm_uring_reap(struct avmm_uring *r, uint64_t *user_data, int32_t *result) {
    /* Acquire: pairs with the kernel's release of the tail after it has written the CQE. */
    if (r->cq_head == atomic_load_explicit((_Atomic uint32_t *)r->cq_ktail, memory_order_acquire))
        return 0;
    const struct io_uring_cqe *cqe = &r->cqes[r->cq_head & r->cq_mask];
    *user_data = cqe->user_data;
    *result = cqe->res;
    /* Release: the CQE has been read before its slot is given back. */
    atomic_store_explicit((_Atomic uint32_t *)r->cq_khead, ++r->cq_head, memory_order_release);
    return 1;
}
