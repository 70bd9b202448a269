#include "blk_parts.h"
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

uint8_t avmm_blk_status(int error) {
    switch (error) {
    case 0:
        return AVMM_BLK_OK;
    case EOPNOTSUPP:
    case ENOSYS:
    case ENOTTY:
        return AVMM_BLK_UNSUPP;
    default:
        return AVMM_BLK_IOERR;
    }
}

/* ---- ends of requests --------------------------------------------------------------------------------------------- */

void avmm_blk_push_later(struct avmm_blk_queue *q, uint16_t head, uint32_t length) {
    if (!q->n_used) {
        q->next = q->disk->finished;
        q->disk->finished = q;
    }
    q->heads[q->n_used] = head;
    q->lengths[q->n_used++] = length;
}

static void start_deferred(struct avmm_blk *disk);

static void release(struct avmm_blk_request *r) {
    struct avmm_blk_queue *q = r->queue;
    avmm_blk_shrink(r);
    if (r->bounce) {
        atomic_fetch_sub_explicit((_Atomic uint32_t *)&q->disk->lent, 1, memory_order_relaxed);
        free(r->bounce);
        r->bounce = NULL;
    }
    q->free[q->n_free++] = (uint16_t)(r - q->slots);
    q->disk->in_flight--;
}

uint64_t avmm_blk_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void time_request(const struct avmm_blk_request *r) {
    struct avmm_blk_latency *l = r->type == AVMM_BLK_OUT ? &r->queue->write_latency : &r->queue->read_latency;
    uint64_t took = avmm_blk_now() - r->began;
    l->min = l->count++ && l->min < took ? l->min : took;
    l->max = l->max > took ? l->max : took;
    l->sum += took;
}

void avmm_blk_answer(struct avmm_blk_request *r, uint8_t status) {
    if (r->queue->disk->abandoned) { /* nobody is there to hear of it */
        r->writing = 0;
        release(r);
        return;
    }
    if (r->began)
        time_request(r);
    *r->status = status; /* seen before the used index, which is stored with release */
    if (status != AVMM_BLK_OK)
        r->queue->errors++;
    /* §2.7.8.2: no more than was written from the start; the status byte counts if nothing before it was left out */
    uint64_t length = r->done + (r->done == r->in_total);
    avmm_blk_push_later(r->queue, r->head, length > UINT32_MAX ? UINT32_MAX : (uint32_t)length);
    struct avmm_blk *disk = r->queue->disk;
    bool wrote = r->writing;
    if (wrote && disk->alone == r)
        disk->alone = NULL;
    else if (wrote)
        disk->writers--;
    r->writing = 0;
    release(r);
    if (wrote)
        start_deferred(disk);
}

static void hand_over(struct avmm_blk_request *r) {
    struct avmm_blk_queue *q = r->queue;
    q->handed[q->n_handed++] = (uint16_t)(r - q->slots);
    q->disk->n_handed++;
}

void avmm_blk_finish(struct avmm_blk_request *r, int error) {
    struct avmm_blk *disk = r->queue->disk;
    /* A write that is to be stable is so only when the map says that it is there. */
    if (!error && r->type == AVMM_BLK_OUT && r->dsync && !r->commits && disk->layer && !disk->abandoned &&
        avmm_blk_layer_unstable(disk->layer)) {
        r->commits = 1;
        hand_over(r);
        return;
    }
    uint8_t status = avmm_blk_status(error);
    if (status == AVMM_BLK_IOERR && error != ECANCELED) { /* which is a reset's doing */
        disk->failures++;
        disk->failure = error;
        disk->failed_type = r->type;
    }
    avmm_blk_answer(r, status);
}

uint64_t avmm_blk_publish(struct avmm_blk *disk) {
    uint64_t mask = 0;
    for (struct avmm_blk_queue *q; (q = disk->finished) != NULL; disk->finished = q->next) {
        avmm_queue_push(q->vq, q->heads, q->lengths, q->n_used);
        q->n_used = 0;
        mask |= q->bit;
    }
    if (disk->ring && disk->ring->uring.pending && avmm_blk_ring_submit(disk->ring))
        mask |= AVMM_BLK_AGAIN;
    return disk->n_handed ? mask | AVMM_BLK_LOOK : mask;
}

/* ---- running ------------------------------------------------------------------------------------------------------ */

/* Whether this is more than a transfer, in an overlay: content has to be brought up first, or the map is to be written. */
static bool changes_layers(const struct avmm_blk_request *r) {
    const struct avmm_blk_layer *layer = r->queue->disk->layer;
    return layer && (r->type == AVMM_BLK_FLUSH ? avmm_blk_layer_unstable(layer) : r->copies);
}

void avmm_blk_start(struct avmm_blk_request *r) {
    struct avmm_blk_queue *q = r->queue;
    if (!q->disk->ring || q->disk->ring->given_up || r->type == AVMM_BLK_DISCARD || r->type == AVMM_BLK_WRITE_ZEROES ||
        changes_layers(r)) {
        hand_over(r);
        return;
    }
    int more = avmm_blk_zeros(r);
    if (more <= 0) {
        avmm_blk_finish(r, -more);
        return;
    }
    avmm_blk_ring_start(r);
}

/* Cached writes to a file the kernel tries so by itself, and else does one after the other in a thread. */
bool avmm_blk_is_now(const struct avmm_blk_request *r) {
    const struct avmm_blk *disk = r->queue->disk;
    return !r->punt && r->type != AVMM_BLK_FLUSH && !(r->type == AVMM_BLK_OUT && disk->one_writer);
}

void avmm_blk_order(struct io_uring_sqe *sqe, struct avmm_blk_request *r) {
    r->now = 0;
    sqe->fd = r->queue->disk->fd;
    sqe->user_data = (uintptr_t)r;
    if (r->punt)
        sqe->flags = IOSQE_ASYNC;
    if (r->type == AVMM_BLK_FLUSH) {
        sqe->opcode = IORING_OP_FSYNC;
        sqe->fsync_flags = IORING_FSYNC_DATASYNC;
        return;
    }
    struct avmm_blk_call c = avmm_blk_next_call(r);
    sqe->fd = c.fd;
    sqe->off = c.offset;
    r->now = avmm_blk_is_now(r);
    sqe->rw_flags = (r->dsync && !c.in ? RWF_DSYNC : 0) | (r->now ? RWF_NOWAIT : 0);
    if (c.n_iov == 1) {
        sqe->opcode = c.in ? IORING_OP_READ : IORING_OP_WRITE;
        sqe->addr = (uintptr_t)c.iov->iov_base;
        sqe->len = c.iov->iov_len < AVMM_BLK_MAX_TRANSFER ? (uint32_t)c.iov->iov_len : AVMM_BLK_MAX_TRANSFER;
    } else {
        sqe->opcode = c.in ? IORING_OP_READV : IORING_OP_WRITEV;
        sqe->addr = (uintptr_t)c.iov;
        sqe->len = c.n_iov;
    }
}

/* ---- the order of writes under O_DIRECT and in overlays ----------------------------------------------------------- */

static bool may_write(const struct avmm_blk *disk, const struct avmm_blk_request *r) {
    return !disk->alone && !(r->partial && disk->writers);
}

static void start_write(struct avmm_blk *disk, struct avmm_blk_request *r) {
    if (r->partial)
        disk->alone = r;
    else
        disk->writers++;
    r->writing = 1;
    avmm_blk_start(r);
}

static void defer(struct avmm_blk *disk, struct avmm_blk_request *r) {
    struct avmm_blk_request **end = &disk->deferred;
    while (*end)
        end = &(*end)->next;
    r->next = NULL;
    *end = r;
}

static void start_deferred(struct avmm_blk *disk) {
    for (struct avmm_blk_request *r; (r = disk->deferred) != NULL && may_write(disk, r);) {
        disk->deferred = r->next;
        start_write(disk, r);
    }
}

void avmm_blk_launch(struct avmm_blk_request *r) {
    struct avmm_blk *disk = r->queue->disk;
    bool out = r->type == AVMM_BLK_OUT;
    r->copies = out && disk->layer && avmm_blk_layer_lacks(disk->layer, r->offset, r->offset + r->left);
    r->partial = (out && disk->align_file && ((r->offset | r->left) & (disk->align_file - 1))) || r->copies ||
                 (!out && disk->layer); /* zeroes may have to bring what is beside them */
    if (r->type == AVMM_BLK_IN || (!disk->align_file && !disk->layer))
        avmm_blk_start(r);
    else if (disk->deferred || !may_write(disk, r))
        defer(disk, r);
    else
        start_write(disk, r);
}

uint64_t avmm_blk_stop(struct avmm_blk *disk) {
    atomic_store_explicit((_Atomic uint8_t *)&disk->stopping, 1, memory_order_relaxed);
    for (struct avmm_blk_request *r; (r = disk->deferred) != NULL;) {
        disk->deferred = r->next;
        avmm_blk_finish(r, ECANCELED);
    }
    if (disk->ring)
        avmm_blk_ring_withdraw(disk);
    return avmm_blk_publish(disk);
}

void avmm_blk_completed(struct avmm_blk_request *r, int32_t result) {
    if (r->queue->disk->abandoned) {
        avmm_blk_answer(r, AVMM_BLK_IOERR);
        return;
    }
    if (result == -EOPNOTSUPP && r->now) {
        r->queue->disk->never_now |= (uint8_t)(1u << r->type); /* it is AVMM_BLK_IN or AVMM_BLK_OUT */
        result = -EAGAIN;
    }
    bool stopping = avmm_blk_is_stopping(r->queue->disk);
    if (result == -EAGAIN || result == -EINTR) {
        if (!stopping) {
            r->punt = 1; /* in a kernel thread it may wait */
            avmm_blk_start(r);
            return;
        }
        result = -ECANCELED; /* it would have gone on: no failure of the host's */
    }
    if (result == -ECANCELED && !stopping) {
        hand_over(r); /* nobody asked for that: a cancellation of what was in its place before, or the host's file system says so */
        return;
    }
    int more = avmm_blk_advance(r, result);
    if (more > 0)
        avmm_blk_start(r);
    else
        avmm_blk_finish(r, -more);
}
