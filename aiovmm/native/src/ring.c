#include "ring.h"
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian and read without conversion");

/* VIRTIO 1.2 §2.7.5, §2.7.6, §2.7.8 */
#define DESC_F_NEXT 1
#define DESC_F_WRITE 2
#define DESC_F_INDIRECT 4
#define AVAIL_F_NO_INTERRUPT 1
#define USED_F_NO_NOTIFY 1

#define PAGE 4096u
#define MAX_CHAIN_BYTES (1ull << 32) /* §2.7.5: "a descriptor chain longer than 2^32 bytes in total" is forbidden */
#define MAX_TABLE 65536u /* entries that a 16-bit next can name; bounds the walk over the regions that a table crosses */

struct desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

/* ---- where things lie ------------------------------------------------------------------------------------------------ */

static inline void *part_at(const struct avmm_ring_part *p, uint32_t offset) {
    if (__builtin_expect(p->host != 0, 1))
        return (void *)(uintptr_t)(p->host + offset);
    uint64_t at = p->skew + offset;
    return (void *)(uintptr_t)(p->pages[at / PAGE] + at % PAGE);
}

static inline uint16_t load16(const struct avmm_ring_part *p, uint32_t offset, memory_order order) {
    return atomic_load_explicit((const _Atomic uint16_t *)part_at(p, offset), order);
}

static inline void store16(const struct avmm_ring_part *p, uint32_t offset, uint16_t value, memory_order order) {
    atomic_store_explicit((_Atomic uint16_t *)part_at(p, offset), value, order);
}

static inline void store32(const struct avmm_ring_part *p, uint32_t offset, uint32_t value) {
    atomic_store_explicit((_Atomic uint32_t *)part_at(p, offset), value, memory_order_relaxed);
}

/* struct virtq_avail: flags, idx, ring[size], used_event; struct virtq_used: flags, idx, ring[size], avail_event */
#define FLAGS 0
#define IDX 2
static inline uint32_t avail_slot(const struct avmm_queue *q, uint16_t pos) { return 4 + 2 * (pos & (q->size - 1)); }
static inline uint32_t used_slot(const struct avmm_queue *q, uint16_t pos) { return 4 + 8 * (pos & (q->size - 1)); }
static inline uint32_t used_event(const struct avmm_queue *q) { return 4 + 2 * q->size; }
static inline uint32_t avail_event(const struct avmm_queue *q) { return 4 + 8 * q->size; }

int avmm_ring_bind(struct avmm_ring_part *part, const struct avmm_mem *mem, uint64_t address, uint64_t size, uint32_t perm,
                   uint64_t *pages) {
    uint64_t end = address + size, first = address & ~(uint64_t)(PAGE - 1);
    void *host = avmm_mem_find(mem, address, size, perm);
    part->skew = address - first;
    part->pages = pages;
    part->host = (uint64_t)(uintptr_t)host;
    if (host) /* a host page for a guest page: the natural alignment that the atomics need survives translation */
        return (part->host ^ address) % PAGE ? -1 : 0;
    if (end < address || !pages)
        return -1;
    for (uint64_t page = first; page < end; page += PAGE) {
        uint64_t from = page < address ? address : page, to = end - page < PAGE ? end : page + PAGE;
        host = avmm_mem_find(mem, from, to - from, perm);
        if (!host || ((uint64_t)(uintptr_t)host ^ from) % PAGE)
            return -1;
        pages[(page - first) / PAGE] = (uint64_t)(uintptr_t)host - (from - page);
        if (page + PAGE < page)
            break;
    }
    return 0;
}

/* ---- taking chains --------------------------------------------------------------------------------------------------- */

/* The guest may change a descriptor at any time, so it is copied once and only the copy is looked at. */
static inline struct desc fetch(const void *from) {
    struct desc d;
    memcpy(&d, from, sizeof d);
    atomic_signal_fence(memory_order_seq_cst); /* no second read of guest memory by the compiler */
    return d;
}

struct walk {
    struct avmm_queue *q;
    const struct avmm_mem *mem;
    struct avmm_chain *chain;
    struct iovec *iov;
    uint64_t *address;
    uint32_t room; /* iovecs left from chain->iov on */
    uint32_t count; /* descriptors seen */
    struct avmm_ring_error *err;
};

static int fault(struct walk *w, uint64_t address, uint64_t length) {
    w->err->address = address;
    w->err->length = length;
    return AVMM_RING_FAULT;
}

/* A buffer becomes one iovec, or several where it crosses regions. Zero length is legal and becomes none. */
static int add_buffer(struct walk *w, const struct desc *d) {
    struct avmm_chain *c = w->chain;
    bool write = d->flags & DESC_F_WRITE;
    uint64_t addr = d->addr, left = d->len;
    if (c->n_write && !write) /* §2.7.4.2: device-writable elements come after device-readable ones */
        return AVMM_RING_BAD_ORDER;
    if (c->read_bytes + c->write_bytes + left > MAX_CHAIN_BYTES)
        return AVMM_RING_TOO_LARGE;
    if (addr + left < addr)
        return fault(w, addr, left);
    *(write ? &c->write_bytes : &c->read_bytes) += left;
    while (left) {
        uint64_t room, n;
        void *host = avmm_mem_span(w->mem, addr, write ? AVMM_MEM_WRITE : AVMM_MEM_READ, &room);
        if (!host)
            return fault(w, addr, left);
        uint32_t at = c->n_read + c->n_write;
        if (at >= w->room)
            return AVMM_RING_NO_ROOM;
        n = left < room ? left : room;
        w->iov[c->iov + at] = (struct iovec){host, n};
        if (w->address)
            w->address[c->iov + at] = addr;
        *(write ? &c->n_write : &c->n_read) += 1;
        addr += n;
        left -= n;
    }
    return 0;
}

/* Copy guest memory that may cross regions (the rare path of an indirect table behind an IOMMU). */
static bool copy_in(const struct avmm_mem *mem, uint64_t addr, void *to, uint32_t n) {
    uint8_t *out = to;
    while (n) {
        uint64_t room;
        const void *host = avmm_mem_span(mem, addr, AVMM_MEM_READ, &room);
        if (!host)
            return false;
        uint32_t part = room < n ? (uint32_t)room : n;
        memcpy(out, host, part);
        out += part;
        addr += part;
        n -= part;
    }
    atomic_signal_fence(memory_order_seq_cst);
    return true;
}

static bool is_memory(const struct avmm_mem *mem, uint64_t addr, uint64_t n, uint32_t perm) {
    for (uint64_t room; n; addr += room, n -= room) {
        if (!avmm_mem_span(mem, addr, perm, &room))
            return false;
        room = room < n ? room : n;
    }
    return true;
}

/* §2.7.5.3: the table holds len / 16 descriptors, its chain begins at the first; only one level. */
static int walk_indirect(struct walk *w, const struct desc *table) {
    uint32_t n = table->len / sizeof(struct desc), i = 0;
    if (!w->q->indirect || (table->flags & DESC_F_NEXT) || !n || n > MAX_TABLE || table->len % sizeof(struct desc))
        return AVMM_RING_BAD_INDIRECT;
    if (table->addr + table->len < table->addr)
        return fault(w, table->addr, table->len);
    const struct desc *host = avmm_mem_find(w->mem, table->addr, table->len, AVMM_MEM_READ);
    if (!host && !is_memory(w->mem, table->addr, table->len, AVMM_MEM_READ))
        return fault(w, table->addr, table->len);
    for (;;) {
        struct desc d;
        if (host)
            d = fetch(host + i);
        else if (!copy_in(w->mem, table->addr + i * sizeof d, &d, sizeof d))
            return fault(w, table->addr + i * sizeof d, sizeof d);
        if (++w->count > w->q->max_chain)
            return AVMM_RING_TOO_LONG;
        if (d.flags & DESC_F_INDIRECT)
            return AVMM_RING_BAD_INDIRECT;
        int r = add_buffer(w, &d);
        if (r < 0 || !(d.flags & DESC_F_NEXT))
            return r;
        i = d.next;
        if (i >= n)
            return AVMM_RING_BAD_NEXT;
    }
}

static int walk_chain(struct walk *w, uint16_t head) {
    uint32_t i = head;
    if (i >= w->q->size)
        return AVMM_RING_BAD_HEAD;
    w->err->head = head;
    for (;;) {
        struct desc d = fetch(part_at(&w->q->desc, i * sizeof d));
        if (d.flags & DESC_F_INDIRECT) /* "zero or more normal chained descriptors followed by a single" indirect one */
            return walk_indirect(w, &d);
        if (++w->count > w->q->max_chain)
            return AVMM_RING_TOO_LONG;
        int r = add_buffer(w, &d);
        if (r < 0 || !(d.flags & DESC_F_NEXT))
            return r;
        i = d.next;
        if (i >= w->q->size)
            return AVMM_RING_BAD_NEXT;
    }
}

uint16_t avmm_queue_offered(const struct avmm_queue *q, uint16_t position) {
    return load16(&q->avail, avail_slot(q, position), memory_order_relaxed);
}

/* Requests that a dead server left in flight come first; they are counted as in flight already. */
static inline uint16_t next_head(const struct avmm_queue *q) {
    if (__builtin_expect(q->again_at < q->n_again, 0))
        return q->again[q->again_at];
    return load16(&q->avail, avail_slot(q, q->last_avail), memory_order_relaxed);
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
    uint16_t idx = load16(&q->avail, IDX, memory_order_acquire);
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
        struct walk w = {q, mem, c, iov, address, max_iov - filled, 0, err};
        int r = walk_chain(&w, head);
        if (r < 0) {
            if (n)
                break; /* met again, and reported, by the next call */
            if (r != AVMM_RING_NO_ROOM)
                took(q, head);
            return err->code = r;
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

/* vhost-user, "Inflight I/O tracking": the order of stores is what makes every moment of death recoverable. Only the death of
 * this process matters, not another processor's view, so a compiler barrier is enough. */
static void record_batch(struct avmm_inflight *record, const uint16_t *heads, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        record->desc[heads[i]].next = record->last_batch_head;
        atomic_signal_fence(memory_order_seq_cst);
        record->last_batch_head = heads[i];
    }
    atomic_signal_fence(memory_order_seq_cst);
}

static void record_returned(struct avmm_inflight *record, const uint16_t *heads, uint32_t n, uint16_t used_idx) {
    atomic_signal_fence(memory_order_seq_cst);
    for (uint32_t i = 0; i < n; i++)
        record->desc[heads[i]].inflight = 0;
    atomic_signal_fence(memory_order_seq_cst);
    record->used_idx = used_idx;
}

int avmm_queue_push(struct avmm_queue *q, const uint16_t *heads, const uint32_t *lens, uint32_t n) {
    if (n > (uint16_t)(q->last_avail - q->used_idx))
        return -1;
    for (uint32_t i = 0; i < n; i++)
        if (heads[i] >= q->size)
            return -1;
    for (uint32_t i = 0; i < n; i++) { /* two 32-bit stores: an 8-byte element may straddle a page */
        uint32_t slot = used_slot(q, q->used_idx + i);
        store32(&q->used, slot, heads[i]);
        store32(&q->used, slot + 4, lens[i]);
    }
    if (q->inflight)
        record_batch(q->inflight, heads, n);
    q->used_idx += n;
    q->unsignalled += n;
    q->pushed += n;
    /* Release: elements and buffers are visible before idx; pairs with the driver's read barrier after it reads idx. */
    store16(&q->used, IDX, q->used_idx, memory_order_release);
    if (q->inflight)
        record_returned(q->inflight, heads, n, q->used_idx);
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
        return !(load16(&q->avail, FLAGS, memory_order_relaxed) & AVAIL_F_NO_INTERRUPT);
    if (published > 0xffff) /* the index went round: the difference below means nothing */
        return 1;
    uint16_t event = load16(&q->avail, used_event(q), memory_order_relaxed);
    return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

int avmm_queue_finish(struct avmm_queue *q, uint32_t unused, const uint16_t *heads, const uint32_t *lens, uint32_t n) {
    if (avmm_queue_put_back(q, unused) < 0 || avmm_queue_push(q, heads, lens, n) < 0)
        return -1;
    return avmm_queue_needs_interrupt(q);
}

/* ---- a record that outlives its server ------------------------------------------------------------------------------- */

/* The server died between publishing a batch and clearing its entries: finish that. */
static void finish_batch(struct avmm_queue *q, struct avmm_inflight *record, uint16_t used) {
    uint16_t batch = used - record->used_idx, head = record->last_batch_head;
    for (uint32_t i = 0; i < batch && i < q->size && head < q->size; i++) {
        record->desc[head].inflight = 0;
        head = record->desc[head].next;
    }
    atomic_signal_fence(memory_order_seq_cst);
    record->used_idx = used;
}

void avmm_queue_recover(struct avmm_queue *q, struct avmm_inflight *record, uint16_t *again) {
    uint16_t used = load16(&q->used, IDX, memory_order_acquire);
    bool new = record->version == 0; /* zeros from who made it */
    if (new) { /* nothing of it is in flight: whoever gave it may say so all the same, and the ring would then be exceeded */
        for (uint32_t head = 0; head < q->size; head++)
            record->desc[head].inflight = 0;
        record->version = 1;
        record->desc_num = q->size;
        record->used_idx = used;
    }
    if (record->used_idx != used)
        finish_batch(q, record, used);
    uint32_t n = 0;
    for (uint32_t head = 0; head < q->size; head++) {
        if (!record->desc[head].inflight)
            continue;
        uint64_t counter = record->desc[head].counter;
        uint32_t at = n++; /* insertion: once a connection, and the requests of a queue mostly stand in order */
        for (; at > 0 && record->desc[again[at - 1]].counter > counter; at--)
            again[at] = again[at - 1];
        again[at] = head;
    }
    if (n)
        q->counter = record->desc[again[n - 1]].counter + 1;
    q->inflight = record;
    q->again = again;
    q->n_again = n;
    q->again_at = 0;
    q->used_idx = q->signalled = used;
    if (!new) /* else whoever gave the record has said where the ring stands */
        q->last_avail = used + n;
    q->unsignalled = 1 << 16; /* an interrupt may have been lost with the dead server: give one more */
}

/* ---- kicks ----------------------------------------------------------------------------------------------------------- */

uint32_t avmm_queue_available(const struct avmm_queue *q) {
    return (uint16_t)(load16(&q->avail, IDX, memory_order_acquire) - q->last_avail) + (q->n_again - q->again_at);
}

int avmm_queue_enable_notify_after(struct avmm_queue *q, uint16_t held) {
    if (q->event_idx)
        store16(&q->used, avail_event(q), q->last_avail + held, memory_order_relaxed);
    else
        store16(&q->used, FLAGS, 0, memory_order_relaxed);
    /* Full fence between our store of avail_event (or flags) and our second look at avail.idx; pairs with the driver's
     * between its store of avail.idx and its load of avail_event: a chain is seen here or kicked there (§2.7.13.4.1). */
    atomic_thread_fence(memory_order_seq_cst);
    return avmm_queue_available(q) > held;
}

int avmm_queue_enable_notify(struct avmm_queue *q) { return avmm_queue_enable_notify_after(q, 0); }

void avmm_queue_disable_notify(struct avmm_queue *q) {
    if (!q->event_idx) /* with EVENT_IDX an avail_event that stays behind suppresses kicks by itself */
        store16(&q->used, FLAGS, USED_F_NO_NOTIFY, memory_order_relaxed);
}

/* ---- the simulated driver's side ------------------------------------------------------------------------------------- */

uint16_t avmm_load16(uint64_t address) {
    return atomic_load_explicit((const _Atomic uint16_t *)(uintptr_t)address, memory_order_acquire);
}

void avmm_store16(uint64_t address, uint16_t value) {
    atomic_store_explicit((_Atomic uint16_t *)(uintptr_t)address, value, memory_order_release);
}

void avmm_fence(void) { atomic_thread_fence(memory_order_seq_cst); }
