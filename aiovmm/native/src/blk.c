#include "blk_parts.h"
#include <errno.h>
#include <sys/uio.h>

#define SEGMENTS (1u << 16) /* looked at in one call: an IOMMU lets a guest cut every request in thousands */

/* struct virtio_blk_req (§5.2.6): this, data, one status byte; "framing" is the driver's business (§2.7.4.1) */
struct header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};

/* Whether nothing outlives this process: an overlay without a map in its file. */
static bool is_fleeting(const struct avmm_blk *disk) { return disk->layer && !disk->layer->dirty; }

/* Split a chain into header, data and status byte (§5.2.6). A code if it does not have them. */
static int parse(struct avmm_blk_request *r, const struct avmm_chain *c, struct header *h) {
    uint32_t n_write = c->n_write;
    if (!c->write_bytes)
        return AVMM_BLK_NO_STATUS;
    if (c->read_bytes < sizeof *h)
        return AVMM_BLK_NO_HEADER;
    struct iovec *last = &r->store[c->n_read + n_write - 1];
    r->status = (uint8_t *)last->iov_base + --last->iov_len;
    if (!last->iov_len)
        n_write--;
    r->iov = r->store;
    r->n_iov = c->n_read;
    avmm_blk_copy(r, (uint8_t *)h, sizeof *h, false); /* once: the guest may change it at any time */
    r->type = h->type;
    r->done = r->began = 0;
    r->in_total = c->write_bytes - 1;
    r->punt = r->bounces = r->fills = r->guarded = r->copies = r->commits = r->partial = r->dsync = 0;
    r->cut_rest = 0;
    if (r->type == AVMM_BLK_IN || r->type == AVMM_BLK_GET_ID) {
        r->iov = r->store + c->n_read;
        r->n_iov = n_write;
        r->left = r->in_total;
    } else {
        r->left = c->read_bytes - sizeof *h;
    }
    return 0;
}

/* Whether this is a cached write that the kernel leaves to its threads of its own accord, as it does where the file system takes
 * none without waiting. To leave it to them here would have each such write wake or start one more thread, though the file lets in
 * one at a time. */
static bool is_left_to_threads(const struct avmm_blk_request *r) {
    return r->type == AVMM_BLK_OUT && r->queue->disk->writes_wait == AVMM_BLK_YES;
}

/* Ask the file, until it answers, with the first bytes of a large write, which are written again with the rest. */
static void ask_file(struct avmm_blk *disk, const struct avmm_blk_request *r) {
    if (r->type != AVMM_BLK_OUT || !disk->ring || disk->writes_wait || r->left <= disk->punt_bytes || r->dsync ||
        r->guarded)
        return;
    struct iovec some = {r->iov->iov_base, r->iov->iov_len < AVMM_BLK_SECTOR ? r->iov->iov_len : AVMM_BLK_SECTOR};
    uint64_t at = r->offset + (disk->layer ? disk->layer->data_at : 0);
    ssize_t n = pwritev2(disk->fd, &some, 1, (off_t)at, RWF_NOWAIT);
    if (n > 0)
        disk->writes_wait = AVMM_BLK_NO;
    else if (n < 0 && errno == EOPNOTSUPP)
        disk->writes_wait = AVMM_BLK_YES;
}

/* Whether it would make the image one of another format. */
static bool is_forgery(const struct avmm_blk_request *r) {
    uint8_t sector[AVMM_BLK_SECTOR];
    if (!r->offset) {
        avmm_blk_payload(r, 0, sector, sizeof sector);
        if (avmm_blk_is_marked(r->queue->disk, sector, false))
            return true;
    }
    if (!r->at_end)
        return false;
    avmm_blk_payload(r, r->left - sizeof sector, sector, sizeof sector);
    return avmm_blk_is_marked(r->queue->disk, sector, true);
}

static void begin_transfer(struct avmm_blk_request *r, uint64_t sector) {
    struct avmm_blk_queue *q = r->queue;
    struct avmm_blk *disk = q->disk;
    bool out = r->type == AVMM_BLK_OUT;
    if (r->left % AVMM_BLK_SECTOR || r->left > disk->max_bytes || sector > disk->capacity ||
        r->left / AVMM_BLK_SECTOR > disk->capacity - sector || (out && disk->readonly)) {
        avmm_blk_answer(r, AVMM_BLK_IOERR);
        return;
    }
    if (disk->allowance)
        disk->allowance->bytes -= (int64_t)r->left;
    *(out ? &q->writes : &q->reads) += 1;
    *(out ? &q->written_bytes : &q->read_bytes) += r->left;
    if (!r->left) {
        avmm_blk_answer(r, AVMM_BLK_OK);
        return;
    }
    r->began = avmm_blk_now();
    r->offset = r->origin = sector * AVMM_BLK_SECTOR;
    r->at_end = sector + r->left / AVMM_BLK_SECTOR == disk->capacity;
    r->guarded = out && disk->n_magics && (!sector || r->at_end);
    if (r->guarded && is_forgery(r)) {
        avmm_blk_finish(r, EPERM);
        return;
    }
    r->dsync = out && disk->write_through && !is_fleeting(disk);
    ask_file(disk, r);
    if (!is_left_to_threads(r)) {
        r->punt = r->left > disk->punt_bytes || r->left > disk->inline_left || disk->never_now >> r->type & 1 ||
                  (r->dsync && !disk->align_file);
        if (!r->punt)
            disk->inline_left -= (uint32_t)r->left;
    }
    int error = avmm_blk_route(r);
    if (error)
        avmm_blk_finish(r, -error);
    else
        avmm_blk_launch(r);
}

static void get_id(struct avmm_blk_request *r) {
    uint64_t n = r->left < sizeof r->queue->disk->id ? r->left : sizeof r->queue->disk->id;
    avmm_blk_copy(r, r->queue->disk->id, n, true);
    r->done = n;
    avmm_blk_answer(r, AVMM_BLK_OK);
}

static void begin(struct avmm_blk_request *r, uint64_t sector) {
    struct avmm_blk_queue *q = r->queue;
    const struct avmm_blk *disk = q->disk;
    avmm_allowance_spend(disk->allowance, 0);
    switch (r->type) {
    case AVMM_BLK_IN:
    case AVMM_BLK_OUT:
        begin_transfer(r, sector);
        return;
    case AVMM_BLK_FLUSH:
        q->flushes++;
        if (is_fleeting(disk))
            avmm_blk_answer(r, AVMM_BLK_OK);
        else
            avmm_blk_start(r);
        return;
    case AVMM_BLK_GET_ID:
        q->others++;
        get_id(r);
        return;
    case AVMM_BLK_DISCARD:
    case AVMM_BLK_WRITE_ZEROES:
        q->others++;
        if (!(r->type == AVMM_BLK_DISCARD ? disk->discard : disk->write_zeroes))
            break;
        if (disk->readonly)
            avmm_blk_answer(r, AVMM_BLK_IOERR);
        else
            avmm_blk_launch(r); /* zeroed sectors are not to come back with the rest of their block, either */
        return;
    }
    avmm_blk_answer(r, AVMM_BLK_UNSUPP);
}

/* Take one chain. False if there is none, if it is malformed, or if there is no room for it now. Counts down the `segments` that
 * it looks at. */
static bool take(struct avmm_blk_queue *q, uint32_t *segments) {
    if (!avmm_queue_available(q->vq))
        return false; /* an idle disk has no slot made */
    struct avmm_blk_request *r = avmm_blk_next_slot(q);
    struct avmm_ring_error error;
    struct avmm_chain chain;
    struct header header;
    int n;
    for (;;) {
        n = avmm_queue_pop(q->vq, q->mem, &chain, 1, r->store, NULL, r->room, &error);
        uint32_t seen = n > 0 ? chain.n_read + chain.n_write : n < 0 ? r->room : 0;
        *segments -= seen < *segments ? seen : *segments;
        if (n != AVMM_RING_NO_ROOM)
            break;
        if (r->room < avmm_blk_most_room(q) && !avmm_blk_may_grow(q)) {
            q->starved = 1;
            return false;
        }
        if (!avmm_blk_grow(r))
            break;
    }
    if (n < 0) {
        if (avmm_ring_has_taken(&error))
            avmm_queue_put_back(q->vq, 1);
        q->malformed = n;
        q->malformed_head = -1;
    }
    if (n <= 0) {
        avmm_blk_shrink(r);
        return false;
    }
    avmm_blk_trim(r, chain.n_read + chain.n_write);
    r->head = chain.head;
    int code = parse(r, &chain, &header);
    if (code < 0) {
        avmm_blk_shrink(r);
        avmm_blk_push_later(q, r->head, 0);
        q->malformed = code;
        q->malformed_head = r->head;
        return false;
    }
    q->n_free--;
    q->disk->in_flight++;
    begin(r, header.sector);
    return true;
}

uint64_t avmm_blk_serve(struct avmm_blk_queue *q) {
    /* As many as there are slots at first, though some may come free: a bound on what one guest gets of the loop. */
    q->disk->inline_left = q->disk->inline_bytes;
    uint32_t segments = SEGMENTS;
    q->starved = 0;
    for (uint32_t n = q->n_free; n && segments && avmm_allowance_left(q->disk->allowance); n--)
        if (!take(q, &segments))
            break;
    struct avmm_blk_ring *ring = q->disk->ring;
    if (ring)
        avmm_blk_ring_take_in(ring, q->disk);
    uint64_t mask = avmm_blk_publish(q->disk); /* and submit what goes on */
    if (ring && ring->touched)
        mask |= AVMM_BLK_OTHERS;
    if (!segments)
        mask |= AVMM_BLK_MORE;
    return q->malformed ? mask | AVMM_BLK_LOOK : mask;
}
