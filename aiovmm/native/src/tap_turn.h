/* What receiving and sending have in common: scattered buffers, and the chains of a turn. */
#ifndef AIOVMM_TAP_TURN_H
#define AIOVMM_TAP_TURN_H
#include "tap.h"
#include <linux/virtio_net.h>
#include <string.h>

_Static_assert(sizeof(struct virtio_net_hdr_v1) == AVMM_NET_HDR, "VIRTIO 1.2 §5.1.6");

#define AVMM_NET_MAX_VEC 1024u /* IOV_MAX */
#define AVMM_NET_MIN_FRAME 14u /* an Ethernet header */

/* Copy `size` bytes between `buffer` and a scattered area that is at least so large, from its byte `offset` on. */
static inline void avmm_net_scatter(const struct iovec *iov, uint32_t offset, const void *buffer, uint32_t size) {
    const uint8_t *from = buffer;
    for (; size; iov++) {
        if (offset >= iov->iov_len) {
            offset -= iov->iov_len;
            continue;
        }
        size_t room = iov->iov_len - offset, n = room < size ? room : size;
        memcpy((uint8_t *)iov->iov_base + offset, from, n);
        from += n;
        size -= n;
        offset = 0;
    }
}

static inline void avmm_net_gather(const struct iovec *iov, void *buffer, uint32_t size) {
    uint8_t *to = buffer;
    for (; size; iov++) {
        size_t n = iov->iov_len < size ? iov->iov_len : size;
        memcpy(to, iov->iov_base, n);
        to += n;
        size -= n;
    }
}

static inline void avmm_net_begin(struct avmm_net_turn *t) {
    t->n = t->used = 0;
    t->interrupt = 0;
}

/* Take up to `most` chains behind those that are there, their segments behind theirs; how many, or enum avmm_ring_code. If there
 * are some, that is no error: the next turn meets the malformed one again, and reports it. */
static inline int avmm_net_take(struct avmm_net_turn *t, uint32_t most) {
    uint32_t base = 0;
    if (t->n) {
        const struct avmm_chain *last = &t->chains[t->n - 1];
        base = last->iov + last->n_read + last->n_write;
    }
    int got = avmm_queue_pop(t->queue, t->mem, t->chains + t->n, most, t->iov + base, NULL, t->max_iov - base, &t->error);
    if (got < 0 && t->n && avmm_ring_has_taken(&t->error))
        avmm_queue_put_back(t->queue, 1);
    for (int i = 0; i < got; i++)
        t->chains[t->n++].iov += base;
    return got;
}

/* Put those back that were not used. */
static inline void avmm_net_end(struct avmm_net_turn *t) {
    if (t->n > t->used)
        avmm_queue_put_back(t->queue, t->n - t->used);
}

#endif
