#include "ring_parts.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian and read without conversion");

/* VIRTIO 1.2 §2.7.6, §2.7.8 */
#define AVAIL_F_NO_INTERRUPT 1
#define USED_F_NO_NOTIFY 1

/* ---- where things lie ------------------------------------------------------------------------------------------------ */

/* struct virtq_avail: flags, idx, ring[size], used_event; struct virtq_used: flags, idx, ring[size], avail_event */
#define FLAGS 0
static inline uint32_t avail_slot(const struct avmm_queue *q, uint16_t pos) { return 4 + 2 * (pos & (q->size - 1)); }
static inline uint32_t used_slot(const struct avmm_queue *q, uint16_t pos) { return 4 + 8 * (pos & (q->size - 1)); }
static inline uint32_t used_event(const struct avmm_queue *q) { return 4 + 2 * q->size; }
static inline uint32_t avail_event(const struct avmm_queue *q) { return 4 + 8 * q->size; }

int avmm_ring_bind(struct avmm_ring_part *part, const struct avmm_mem *mem, uint64_t address, uint64_t size, uint32_t perm,
                   uint64_t *pages) {
    uint64_t end = address + size, first = address & ~(uint64_t)(AVMM_PAGE - 1);
    void *host = avmm_mem_find(mem, address, size, perm);
    part->skew = address - first;
    part->pages = pages;
    part->host = (uint64_t)(uintptr_t)host;
    if (host) /* a host page for a guest page: the natural alignment that the atomics need survives translation */
        return (part->host ^ address) % AVMM_PAGE ? -1 : 0;
    if (end < address || !pages)
        return -1;
    for (uint64_t page = first; page < end; page += AVMM_PAGE) {
        uint64_t from = page < address ? address : page, to = end - page < AVMM_PAGE ? end : page + AVMM_PAGE;
        host = avmm_mem_find(mem, from, to - from, perm);
        if (!host || ((uint64_t)(uintptr_t)host ^ from) % AVMM_PAGE)
            return -1;
        pages[(page - first) / AVMM_PAGE] = (uint64_t)(uintptr_t)host - (from - page);
        if (page + AVMM_PAGE < page)
            break;
    }
    return 0;
}

/* ---- taking chains --------------------------------------------------------------------------------------------------- */

uint16_t avmm_queue_offered(const struct avmm_queue *q, uint16_t position) {
    return avmm_part_load16(&q->avail, avail_slot(q, position), memory_order_relaxed);
}

/* Requests that a dead server left in flight come first; they are counted as in flight already. */
static inline uint16_t next_head(const struct avmm_queue *q) {
    if (__builtin_expect(q->again_at < q->n_again, 0))
        return q->again[q->again_at];
    return avmm_part_load16(&q->avail, avail_slot(q, q->last_avail), memory_order_relaxed);
}

static inline void took(struct avmm_queue *q, uint16_t head) {
    q->popped++;
    if (__builtin_expect(q->again_at < q->n_again, 0)) {
        q->again_at++;
        return;
    }
    q->last_avail++;
    if (q->inflight && head < q->size) {
        struct avmm_inflight_desc *d = &q->inflight->desc[head];
        d->counter = q->counter++;
        atomic_signal_fence(memory_order_seq_cst);
        d->inflight = 1;
    }
}

int avmm_queue_pop(struct avmm_queue *q, const struct avmm_mem *mem, struct avmm_chain *chains, uint32_t max_chains,
                   struct iovec *iov, uint64_t *address, uint32_t max_iov, struct avmm_ring_error *err) {
    *err = (struct avmm_ring_error){0, -1, 0, 0};
    /* Acquire: pairs with the driver's write barrier between filling ring entries and publishing idx (§2.7.13.3.1). */
    uint16_t idx = avmm_part_load16(&q->avail, AVMM_RING_IDX, memory_order_acquire);
    uint16_t fresh = idx - q->last_avail;
    /* The descriptors in flight are not the driver's to offer again: caps what a device must remember for one queue. */
    if ((uint16_t)(q->last_avail - q->used_idx) + (uint32_t)fresh > q->size)
        return err->code = AVMM_RING_BAD_INDEX;
    uint32_t ready = fresh + (q->n_again - q->again_at);
    uint32_t n = 0, filled = 0;
    for (; n < ready && n < max_chains; n++) {
        struct avmm_chain *c = &chains[n];
        uint16_t head = next_head(q);
        *c = (struct avmm_chain){.iov = filled, .head = head};
        struct avmm_walk w = {q, mem, c, iov, address, max_iov - filled, 0, err};
        int r = avmm_walk_chain(&w, head);
        if (r < 0) {
            if (n)
                break; /* met again, and reported, by the next call */
            err->code = r;
            if (avmm_ring_has_taken(err))
                took(q, head);
            return r;
        }
        filled += c->n_read + c->n_write;
        took(q, head);
    }
    return (int)n;
}

int avmm_queue_put_back(struct avmm_queue *q, uint32_t n) {
    if (n > (uint16_t)(q->last_avail - q->used_idx))
        return -1;
    uint64_t fresh = q->popped - q->again_at; /* the last pops are of the ring, those before them of `again` */
    uint32_t of_ring = n < fresh ? n : (uint32_t)fresh;
    if (n - of_ring > q->again_at)
        return -1;
    q->last_avail -= of_ring;
    q->again_at -= n - of_ring;
    q->popped -= n;
    return 0;
}

/* ---- returning chains ------------------------------------------------------------------------------------------------ */

int avmm_queue_push(struct avmm_queue *q, const uint16_t *heads, const uint32_t *lens, uint32_t n) {
    if (n > (uint16_t)(q->last_avail - q->used_idx))
        return -1;
    for (uint32_t i = 0; i < n; i++)
        if (heads[i] >= q->size)
            return -1;
    for (uint32_t i = 0; i < n; i++) { /* two 32-bit stores: an 8-byte element may straddle a page */
        uint32_t slot = used_slot(q, q->used_idx + i);
        avmm_part_store32(&q->used, slot, heads[i]);
        avmm_part_store32(&q->used, slot + 4, lens[i]);
    }
    if (q->inflight)
        avmm_record_batch(q->inflight, heads, n);
    q->used_idx += n;
    q->unsignalled += n;
    q->pushed += n;
    /* Release: elements and buffers are visible before idx; pairs with the driver's read barrier after it reads idx. */
    avmm_part_store16(&q->used, AVMM_RING_IDX, q->used_idx, memory_order_release);
    if (q->inflight)
        avmm_record_returned(q->inflight, heads, n, q->used_idx);
    return 0;
}

int avmm_queue_push_one(struct avmm_queue *q, uint16_t head, uint32_t len) { return avmm_queue_push(q, &head, &len, 1); }

int avmm_queue_needs_interrupt(struct avmm_queue *q) {
    uint16_t old = q->signalled, now = q->used_idx;
    uint32_t published = q->unsignalled;
    if (!published)
        return 0;
    q->signalled = now;
    q->unsignalled = 0;
    /* Full fence between our store of used.idx and our load of used_event (or flags); pairs with the driver's between
     * its store of used_event and its second look at used.idx: one of the two sees the other (§2.7.7.2). */
    atomic_thread_fence(memory_order_seq_cst);
    if (!q->event_idx)
        return !(avmm_part_load16(&q->avail, FLAGS, memory_order_relaxed) & AVAIL_F_NO_INTERRUPT);
    if (published > 0xffff) /* the index went round: the difference below means nothing */
        return 1;
    uint16_t event = avmm_part_load16(&q->avail, used_event(q), memory_order_relaxed);
    return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

int avmm_queue_finish(struct avmm_queue *q, uint32_t unused, const uint16_t *heads, const uint32_t *lens, uint32_t n) {
    if (avmm_queue_put_back(q, unused) < 0 || avmm_queue_push(q, heads, lens, n) < 0)
        return -1;
    return avmm_queue_needs_interrupt(q);
}

/* ---- kicks ----------------------------------------------------------------------------------------------------------- */

uint32_t avmm_queue_available(const struct avmm_queue *q) {
    return (uint16_t)(avmm_part_load16(&q->avail, AVMM_RING_IDX, memory_order_acquire) - q->last_avail) + (q->n_again - q->again_at);
}

int avmm_queue_enable_notify_after(struct avmm_queue *q, uint16_t held) {
    if (q->event_idx)
        avmm_part_store16(&q->used, avail_event(q), q->last_avail + held, memory_order_relaxed);
    else
        avmm_part_store16(&q->used, FLAGS, 0, memory_order_relaxed);
    /* Full fence between our store of avail_event (or flags) and our second look at avail.idx; pairs with the driver's
     * between its store of avail.idx and its load of avail_event: a chain is seen here or kicked there (§2.7.13.4.1). */
    atomic_thread_fence(memory_order_seq_cst);
    return avmm_queue_available(q) > held;
}

int avmm_queue_enable_notify(struct avmm_queue *q) { return avmm_queue_enable_notify_after(q, 0); }

void avmm_queue_disable_notify(struct avmm_queue *q) {
    if (!q->event_idx) /* with EVENT_IDX an avail_event that stays behind suppresses kicks by itself */
        avmm_part_store16(&q->used, FLAGS, USED_F_NO_NOTIFY, memory_order_relaxed);
}

/* ---- the simulated driver's side ------------------------------------------------------------------------------------- */

uint16_t avmm_load16(uint64_t address) {
    return atomic_load_explicit((const _Atomic uint16_t *)(uintptr_t)address, memory_order_acquire);
}

void avmm_store16(uint64_t address, uint16_t value) {
    atomic_store_explicit((_Atomic uint16_t *)(uintptr_t)address, value, memory_order_release);
}

void avmm_fence(void) { atomic_thread_fence(memory_order_seq_cst); }
