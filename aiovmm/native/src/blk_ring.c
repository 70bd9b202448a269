#include "blk_parts.h"
#include <errno.h>

#define SUBMISSIONS 128u /* in one system call */
#define TURN 128u        /* completions taken in by one call: those of guests' requests come as fast as we start them */

int avmm_blk_ring_open(struct avmm_blk_ring *ring, uint32_t completions) {
    *ring = (struct avmm_blk_ring){0};
    ring->stalled_end = &ring->stalled;
    return avmm_uring_open(&ring->uring, SUBMISSIONS, completions);
}

void avmm_blk_ring_close(struct avmm_blk_ring *ring) { avmm_uring_close(&ring->uring); }

static int submit(struct avmm_blk_ring *ring) {
    int error = avmm_uring_submit(&ring->uring);
    ring->refused = -error;
    return error;
}

/* A place among the submissions, of which the kernel takes what is there, if it must. NULL: it does not for now. */
static struct io_uring_sqe *place(struct avmm_blk_ring *ring) {
    struct io_uring_sqe *sqe = avmm_uring_sqe(&ring->uring);
    if (sqe)
        return sqe;
    submit(ring);
    return avmm_uring_sqe(&ring->uring);
}

static void order(struct io_uring_sqe *sqe, struct avmm_blk_request *r) {
    sqe->user_data = (uintptr_t)r;
    r->in_ring = 1;
    avmm_blk_order(sqe, r);
}

static bool may_wait(const struct avmm_blk_request *r) {
    return !(r->type == AVMM_BLK_OUT && r->queue->disk->one_writer) && !avmm_blk_is_now(r);
}

static void park(struct avmm_blk *disk, struct avmm_blk_request *r) {
    r->next = NULL;
    *(disk->parked ? disk->parked_end : &disk->parked) = r;
    disk->parked_end = &r->next;
}

static struct avmm_blk_request *unpark(struct avmm_blk *disk) {
    struct avmm_blk_request *r = disk->parked;
    disk->parked = r->next;
    return r;
}

/* One is in the ring no more. Some are parked only while as many as may wait are there, so nobody else need look. */
static void left(struct avmm_blk_request *r) {
    r->queue->disk->n_waits -= r->waits;
    r->waits = 0;
}

static void go_on(struct avmm_blk *disk) {
    while (disk->parked && disk->n_waits < AVMM_BLK_WAITS) {
        if (disk->abandoned || avmm_blk_is_stopping(disk))
            avmm_blk_finish(unpark(disk), ECANCELED);
        else
            avmm_blk_start(unpark(disk));
    }
}

void avmm_blk_ring_start(struct avmm_blk_request *r) {
    struct avmm_blk *disk = r->queue->disk;
    struct avmm_blk_ring *ring = disk->ring;
    if (may_wait(r)) {
        if (disk->n_waits == AVMM_BLK_WAITS) {
            park(disk, r);
            return;
        }
        disk->n_waits++;
        r->waits = 1;
    }
    struct io_uring_sqe *sqe = ring->stalled ? NULL : place(ring);
    if (sqe) {
        order(sqe, r);
        return;
    }
    r->next = NULL;
    *ring->stalled_end = r;
    ring->stalled_end = &r->next;
}

/* The stalled request that `*at` points at is so no longer. */
static struct avmm_blk_request *unstall(struct avmm_blk_ring *ring, struct avmm_blk_request **at) {
    struct avmm_blk_request *r = *at;
    *at = r->next;
    if (ring->stalled_end == &r->next)
        ring->stalled_end = at;
    return r;
}

int avmm_blk_ring_submit(struct avmm_blk_ring *ring) {
    struct io_uring_sqe *sqe;
    int error;
    while (!(error = submit(ring)) && ring->stalled)
        while (ring->stalled && (sqe = avmm_uring_sqe(&ring->uring)) != NULL)
            order(sqe, unstall(ring, &ring->stalled));
    return error;
}

void avmm_blk_ring_withdraw(struct avmm_blk *disk) {
    while (disk->parked) /* starts none: what waits for writes to end has been cancelled */
        avmm_blk_finish(unpark(disk), ECANCELED);
    for (struct avmm_blk_request **at = &disk->ring->stalled; *at;) {
        if ((*at)->queue->disk == disk) {
            struct avmm_blk_request *r = unstall(disk->ring, at);
            left(r);
            avmm_blk_finish(r, ECANCELED);
        } else {
            at = &(*at)->next;
        }
    }
}

static void touch(struct avmm_blk_ring *ring, struct avmm_blk *disk) {
    if (disk->is_touched)
        return;
    disk->is_touched = 1;
    disk->next_touched = ring->touched;
    ring->touched = disk;
}

void avmm_blk_ring_take_in(struct avmm_blk_ring *ring, const struct avmm_blk *own) {
    uint64_t request;
    int32_t result;
    if (ring->uring.pending)
        avmm_blk_ring_submit(ring);
    for (uint32_t n = TURN; n && avmm_uring_reap(&ring->uring, &request, &result); n--) {
        struct avmm_blk_request *r = (struct avmm_blk_request *)(uintptr_t)request;
        if (!r) { /* a cancellation itself */
            ring->cancels--;
            continue;
        }
        struct avmm_blk *disk = r->queue->disk;
        r->in_ring = 0;
        if (disk != own)
            touch(ring, disk);
        left(r);
        avmm_blk_completed(r, result);
        go_on(disk);
    }
}

struct avmm_blk *avmm_blk_ring_next(struct avmm_blk_ring *ring, uint64_t *mask) {
    struct avmm_blk *disk = ring->touched;
    if (!disk)
        return NULL;
    ring->touched = disk->next_touched;
    disk->is_touched = 0;
    *mask = avmm_blk_publish(disk) | (ring->touched ? AVMM_BLK_OTHERS : 0);
    return disk;
}

struct avmm_blk *avmm_blk_ring_reap(struct avmm_blk_ring *ring, uint64_t *mask) {
    avmm_blk_ring_take_in(ring, NULL);
    return avmm_blk_ring_next(ring, mask);
}

/* What was to be done by io_uring, and has not been begun. */
static void take_back(struct avmm_blk_ring *ring, struct avmm_blk_request *r) {
    struct avmm_blk *disk = r->queue->disk;
    r->in_ring = 0;
    touch(ring, disk);
    left(r);
    if (disk->abandoned || avmm_blk_is_stopping(disk))
        avmm_blk_finish(r, ECANCELED);
    else
        avmm_blk_start(r);
    go_on(disk);
}

struct avmm_blk *avmm_blk_ring_give_up(struct avmm_blk_ring *ring, uint64_t *mask) {
    uint64_t request;
    ring->given_up = 1; /* first: what is started from here on does not come back */
    while (avmm_uring_take_back(&ring->uring, &request)) {
        if (request)
            take_back(ring, (struct avmm_blk_request *)(uintptr_t)request);
        else
            ring->cancels--;
    }
    while (ring->stalled)
        take_back(ring, unstall(ring, &ring->stalled));
    return avmm_blk_ring_next(ring, mask);
}

/* By the address of each request: other disks' are in the same ring, and the same files may be theirs. What comes of a cancellation
 * says little: the kernel has none for a request that is on its way from one of its threads to a poll, or back, and that may take no
 * notice. Who is still there later is cancelled again. */
uint64_t avmm_blk_cancel(struct avmm_blk_queue *q) {
    struct avmm_blk_ring *ring = q->disk->ring;
    uint64_t more = 0;
    for (; ring && !ring->given_up && q->cancelled < q->depth; q->cancelled++) {
        struct avmm_blk_request *r = &q->slots[q->cancelled];
        struct io_uring_sqe *sqe;
        if (ring->cancels == AVMM_BLK_CANCELS)
            avmm_blk_ring_take_in(ring, q->disk);
        if (!r->in_ring)
            continue;
        if (ring->cancels == AVMM_BLK_CANCELS || ring->stalled || !(sqe = place(ring))) {
            more = AVMM_BLK_MORE;
            break;
        }
        sqe->opcode = IORING_OP_ASYNC_CANCEL;
        sqe->fd = -1;
        sqe->addr = (uintptr_t)r;
        ring->cancels++;
    }
    if (!more)
        q->cancelled = 0;
    uint64_t mask = avmm_blk_publish(q->disk) | more;
    return ring && ring->touched ? mask | AVMM_BLK_OTHERS : mask;
}
