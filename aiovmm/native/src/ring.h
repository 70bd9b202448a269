/* Split virtqueues, the device's side (VIRTIO 1.2 §2.7): chains are taken whole, validated and flattened to iovecs of host
 * addresses; used elements are published in batches. A queue belongs to one thread (the event loop's); the driver at the
 * other end runs concurrently and is hostile. Indices are C11 atomics; each fence names its partner in the driver. */
#ifndef AIOVMM_RING_H
#define AIOVMM_RING_H
#include "mem.h"
#include <stdint.h>
#include <sys/uio.h>

/* One of the three areas of a ring. Contiguous on the host, or (behind an IOMMU) found page by page. */
struct avmm_ring_part {
    uint64_t host;         /* host address of its first byte if it is contiguous, else 0 */
    const uint64_t *pages; /* else the host address of each 4 KiB page that it touches */
    uint64_t skew;         /* offset of its first byte in the first page */
};

/* The record of requests in flight that a vhost-user front end keeps for its back end (vhost-user, "Inflight I/O tracking",
 * split virtqueue). It is memory shared with another process: nothing in it is trusted. */
struct avmm_inflight_desc {
    uint8_t inflight;
    uint8_t pad[5];
    uint16_t next;    /* the head that was returned before this one in the last batch */
    uint64_t counter; /* orders the requests in flight */
};

struct avmm_inflight {
    uint64_t features;
    uint16_t version; /* 1 */
    uint16_t desc_num;
    uint16_t last_batch_head;
    uint16_t used_idx;
    struct avmm_inflight_desc desc[];
};

struct avmm_queue {
    struct avmm_ring_part desc, avail, used;
    uint32_t size;        /* entries, a power of two */
    uint32_t max_chain;   /* descriptors in one chain, those of an indirect table included */
    uint16_t last_avail;  /* next available-ring position to take; last_avail - used_idx chains are in flight */
    uint16_t used_idx;    /* next used-ring position to fill */
    uint16_t signalled;   /* used_idx when an interrupt was last considered */
    uint8_t event_idx;    /* VIRTIO_F_EVENT_IDX negotiated */
    uint8_t indirect;     /* VIRTIO_F_INDIRECT_DESC negotiated */
    uint32_t unsignalled; /* elements published since an interrupt was last considered */
    uint32_t pad;
    uint64_t popped;      /* chains taken, for statistics */
    uint64_t pushed;      /* chains returned */
    struct avmm_inflight *inflight; /* record with room for `size` entries, or NULL: none is kept */
    uint16_t *again;      /* heads that were in flight when the last server died: taken before those of the ring */
    uint32_t n_again;
    uint32_t again_at;    /* the next of them */
    uint64_t counter;     /* of the next request in the record */
};

/* One chain: `n_read` device-readable iovecs, then `n_write` device-writable ones, from index `iov` of the batch's array. */
struct avmm_chain {
    uint32_t iov;
    uint32_t n_read;
    uint32_t n_write;
    uint16_t head;
    uint16_t pad;
    uint64_t read_bytes;
    uint64_t write_bytes;
};

enum avmm_ring_code {
    AVMM_RING_BAD_INDEX = -1,    /* avail.idx is further ahead than there are descriptors not in flight */
    AVMM_RING_BAD_HEAD = -2,     /* head index outside the table */
    AVMM_RING_BAD_NEXT = -3,     /* next index outside the table */
    AVMM_RING_TOO_LONG = -4,     /* a loop, or more descriptors than max_chain */
    AVMM_RING_TOO_LARGE = -5,    /* more than 2^32 bytes in total */
    AVMM_RING_BAD_ORDER = -6,    /* device-readable after device-writable */
    AVMM_RING_FAULT = -7,        /* a buffer or table outside memory, or without the access right */
    AVMM_RING_BAD_INDIRECT = -8, /* indirect: not negotiated, nested, with NEXT, or of a size that is no table's */
    AVMM_RING_NO_ROOM = -9,      /* one chain needs more iovecs than the caller has; nothing was taken */
};

struct avmm_ring_error {
    int32_t code;     /* enum avmm_ring_code */
    int32_t head;     /* the chain's head, or -1 */
    uint64_t address; /* AVMM_RING_FAULT: the range that is not memory */
    uint64_t length;
};

/* Resolve the area of `size` bytes at `address`. `pages` has room for every 4 KiB page that it touches and stays with
 * the caller. 0, or -1 if it is not memory with `perm`. */
int avmm_ring_bind(struct avmm_ring_part *part, const struct avmm_mem *mem, uint64_t address, uint64_t size, uint32_t perm,
                   uint64_t *pages);

/* Take at most `max_chains` chains. Segment i of `iov` lies at the guest's address `address[i]` (if not NULL). Chains
 * before a malformed one are delivered first; a malformed chain that comes first fills `err` and gives its code. */
int avmm_queue_pop(struct avmm_queue *q, const struct avmm_mem *mem, struct avmm_chain *chains, uint32_t max_chains,
                   struct iovec *iov, uint64_t *address, uint32_t max_iov, struct avmm_ring_error *err);

/* Whether the malformed chain of a failed pop was taken, and is to be returned or put back. Not so where it has no head that could
 * be returned, or where there was no room for it: such a chain is met again. */
static inline int avmm_ring_has_taken(const struct avmm_ring_error *err) {
    return err->code != AVMM_RING_NO_ROOM && err->head >= 0;
}

/* The head that stands at a position of the available ring, which the driver may change at any time. */
uint16_t avmm_queue_offered(const struct avmm_queue *q, uint16_t position);

/* Undo the last `n` pops; their chains will be taken again. 0, or -1 if not so many are in flight. */
int avmm_queue_put_back(struct avmm_queue *q, uint32_t n);

/* Publish `n` used elements at once. 0, or -1 (and nothing done) if a head is out of range or more than are in flight. */
int avmm_queue_push(struct avmm_queue *q, const uint16_t *heads, const uint32_t *lens, uint32_t n);
int avmm_queue_push_one(struct avmm_queue *q, uint16_t head, uint32_t len);

/* Take up a record, which may be new (zeros) or what a server left behind that died: sets last_avail and used_idx by it and the
 * used ring, and fills `again` (room for `size` entries, stays the caller's). Call once, before the first pop. */
void avmm_queue_recover(struct avmm_queue *q, struct avmm_inflight *record, uint16_t *again);

/* Whether the driver wants an interrupt for what was published since the last call. */
int avmm_queue_needs_interrupt(struct avmm_queue *q);

/* The end of a batch in one call: undo the last `unused` pops, publish `n` used elements, and whether the driver wants an
 * interrupt for all that was published since it was last asked about. -1 if one of the first two cannot be done. */
int avmm_queue_finish(struct avmm_queue *q, uint32_t unused, const uint16_t *heads, const uint32_t *lens, uint32_t n);

/* Chains that wait to be taken (also when more wait than can be: pop tells). */
uint32_t avmm_queue_available(const struct avmm_queue *q);

/* Ask for a kick once more than `held` chains are available (`held` at most the queue size; those that a device has put
 * back because they did not suffice). 1: so many wait already, do not sleep. */
int avmm_queue_enable_notify_after(struct avmm_queue *q, uint16_t held);
int avmm_queue_enable_notify(struct avmm_queue *q);
void avmm_queue_disable_notify(struct avmm_queue *q);

/* Atomics for a driver written in Python (the simulator). `address` is a host address, naturally aligned. */
uint16_t avmm_load16(uint64_t address);
void avmm_store16(uint64_t address, uint16_t value);
void avmm_fence(void);

#endif
