/* What the parts of the device's side share: where the areas of a ring lie, chains (ring_chain.c) and the record of what is in flight
 * (ring_record.c). Private to them. */
#ifndef AIOVMM_RING_PARTS_H
#define AIOVMM_RING_PARTS_H
#include "ring.h"
#include <stdatomic.h>
#include <stdbool.h>

#define AVMM_PAGE 4096u

static inline void *avmm_part_at(const struct avmm_ring_part *p, uint32_t offset) {
    if (__builtin_expect(p->host != 0, 1))
        return (void *)(uintptr_t)(p->host + offset);
    uint64_t at = p->skew + offset;
    return (void *)(uintptr_t)(p->pages[at / AVMM_PAGE] + at % AVMM_PAGE);
}

static inline uint16_t avmm_part_load16(const struct avmm_ring_part *p, uint32_t offset, memory_order order) {
    return atomic_load_explicit((const _Atomic uint16_t *)avmm_part_at(p, offset), order);
}

static inline void avmm_part_store16(const struct avmm_ring_part *p, uint32_t offset, uint16_t value, memory_order order) {
    atomic_store_explicit((_Atomic uint16_t *)avmm_part_at(p, offset), value, order);
}

static inline void avmm_part_store32(const struct avmm_ring_part *p, uint32_t offset, uint32_t value) {
    atomic_store_explicit((_Atomic uint32_t *)avmm_part_at(p, offset), value, memory_order_relaxed);
}

#define AVMM_RING_IDX 2 /* offset of idx in either area: struct virtq_avail and virtq_used both begin with flags and idx */

struct avmm_walk { /* over the descriptors of one chain */
    struct avmm_queue *q;
    const struct avmm_mem *mem;
    struct avmm_chain *chain;
    struct iovec *iov;
    uint64_t *address;
    uint32_t room; /* iovecs left from chain->iov on */
    uint32_t count; /* descriptors seen */
    struct avmm_ring_error *err;
};

/* Fill in the chain at `head`, from its descriptors. 0, or an avmm_ring_code. */
int avmm_walk_chain(struct avmm_walk *w, uint16_t head);

/* Before `n` used elements are visible to the driver, and after that. */
void avmm_record_batch(struct avmm_inflight *record, const uint16_t *heads, uint32_t n);
void avmm_record_returned(struct avmm_inflight *record, const uint16_t *heads, uint32_t n, uint16_t used_idx);

#endif
