/* The descriptors of a chain, each as the guest has written it: nothing is looked at but a copy. */
#include "ring_parts.h"
#include <string.h>

/* VIRTIO 1.2 §2.7.5 */
#define DESC_F_NEXT 1
#define DESC_F_WRITE 2
#define DESC_F_INDIRECT 4

#define MAX_CHAIN_BYTES (1ull << 32) /* §2.7.5: "a descriptor chain longer than 2^32 bytes in total" is forbidden */
#define MAX_TABLE 65536u /* entries that a 16-bit next can name; bounds the walk over the regions that a table crosses */

struct desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

/* The guest may change a descriptor at any time, so it is copied once and only the copy is looked at. */
static inline struct desc fetch(const void *from) {
    struct desc d;
    memcpy(&d, from, sizeof d);
    atomic_signal_fence(memory_order_seq_cst); /* no second read of guest memory by the compiler */
    return d;
}

static int fault(struct avmm_walk *w, uint64_t address, uint64_t length) {
    w->err->address = address;
    w->err->length = length;
    return AVMM_RING_FAULT;
}

/* A buffer becomes one iovec, or several where it crosses regions. Zero length is legal and becomes none. */
static int add_buffer(struct avmm_walk *w, const struct desc *d) {
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
static int walk_indirect(struct avmm_walk *w, const struct desc *table) {
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

int avmm_walk_chain(struct avmm_walk *w, uint16_t head) {
    uint32_t i = head;
    if (i >= w->q->size)
        return AVMM_RING_BAD_HEAD;
    w->err->head = head;
    for (;;) {
        struct desc d = fetch(avmm_part_at(&w->q->desc, i * sizeof d));
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
