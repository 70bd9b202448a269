/* Rings: chains are taken, put back and returned in any order, with a record of what is in flight that is as hostile as the ring. */
#include "guest.h"

enum { MAX_CHAINS = 24, MAX_IOV = 96 };

static void touch(const struct avmm_chain *c, const struct iovec *iov, const uint64_t *address) {
    uint64_t bytes[2] = {0, 0};
    EXPECT(c->iov + c->n_read + c->n_write <= MAX_IOV);
    for (uint32_t i = 0; i < c->n_read + c->n_write; i++) {
        const struct iovec *v = &iov[c->iov + i];
        volatile uint8_t *p = v->iov_base;
        EXPECT(v->iov_len > 0);
        EXPECT(avmm_mem_find(&memory, address[c->iov + i], v->iov_len, i < c->n_read ? AVMM_MEM_READ : AVMM_MEM_WRITE) == p);
        uint8_t first = p[0], last = p[v->iov_len - 1];
        if (i >= c->n_read)
            p[0] = first, p[v->iov_len - 1] = last;
        bytes[i >= c->n_read] += v->iov_len;
    }
    EXPECT(bytes[0] == c->read_bytes && bytes[1] == c->write_bytes);
}

static int pop(struct avmm_queue *q) {
    struct avmm_chain chains[MAX_CHAINS];
    struct iovec iov[MAX_IOV];
    uint64_t address[MAX_IOV];
    struct avmm_ring_error err;
    int n = avmm_queue_pop(q, &memory, chains, 1 + below(MAX_CHAINS), iov, address, below(8) ? MAX_IOV : 1 + below(4), &err);
    EXPECT(n == (n < 0 ? err.code : n) && (in_flight(q) <= q->size || n == AVMM_RING_BAD_INDEX));
    if (n < 0 && err.head >= 0 && n != AVMM_RING_NO_ROOM && below(4))
        EXPECT(avmm_queue_push_one(q, (uint16_t)err.head, 0) == 0);
    int put_back = n > 0 && below(4) == 0 ? (int)below((uint32_t)n + 1) : 0;
    EXPECT(avmm_queue_put_back(q, (uint32_t)put_back) == 0);
    for (int i = 0; i < n; i++) {
        touch(&chains[i], iov, address);
        if (i < n - put_back && below(4))
            EXPECT(avmm_queue_push_one(q, chains[i].head, below(100)) == 0);
    }
    return n;
}

/* Take up a record of random bytes. False: the ring stands where none can, and says so when it is first looked at. */
static bool recover(struct avmm_queue *q, struct avmm_inflight *record, size_t size, uint16_t *again) {
    for (size_t i = 0; i < size; i++)
        ((uint8_t *)record)[i] = (uint8_t)take(1);
    bool new = record->version == 0;
    part_put16(&q->used, 2, below(2) ? (uint16_t)take(2) : q->last_avail);
    avmm_queue_recover(q, record, again);
    EXPECT(q->n_again <= q->size && (!new || !q->n_again));
    if (in_flight(q) <= q->size)
        return true;
    EXPECT(new && pop(q) == AVMM_RING_BAD_INDEX);
    return false;
}

static void give_back(struct avmm_queue *q) {
    uint16_t heads[4] = {(uint16_t)below(64), (uint16_t)below(64), (uint16_t)take(2), (uint16_t)below(64)};
    uint32_t lens[4] = {0}, n = below(5);
    uint16_t before = in_flight(q);
    if (q->again_at < q->n_again)
        return; /* which count as in flight, and which no device has */
    if (avmm_queue_push(q, heads, lens, n) == 0)
        EXPECT(before >= n && in_flight(q) == before - n);
    else
        EXPECT(in_flight(q) == before);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct avmm_queue q;
    uint64_t pages[3][8];
    uint16_t again[MAX_SIZE];
    struct avmm_inflight *record = NULL;
    guest_new(data, size);
    if (!guest_bind(&q, pages))
        return 0;
    guest_align(&q);
    if (below(4) == 3) {
        size_t bytes = sizeof *record + q.size * sizeof *record->desc;
        record = malloc(bytes);
        if (!recover(&q, record, bytes, again)) {
            free(record);
            return 0;
        }
    }
    while (input_left()) {
        switch (below(8)) {
        case 0: case 1: case 2: guest_acts(&q); break;
        case 3: case 4: pop(&q); break;
        case 5: give_back(&q); break;
        case 6: EXPECT(avmm_queue_put_back(&q, in_flight(&q) + 1u) < 0); break;
        default:
            avmm_queue_needs_interrupt(&q);
            avmm_queue_enable_notify_after(&q, (uint16_t)below(MAX_SIZE));
            avmm_queue_disable_notify(&q);
            avmm_queue_available(&q);
            if (record && below(2)) /* another process has it, too */
                record->desc[below(q.size)].next = (uint16_t)take(2);
        }
        EXPECT(in_flight(&q) <= q.size);
    }
    free(record);
    return 0;
}
