/* The record of what is in flight, which outlives the server that keeps it: its stores as chains are returned, and what the next server
 * makes of it. */
#include "ring_parts.h"

/* vhost-user, "Inflight I/O tracking": the order of stores is what makes every moment of death recoverable. Only the death of
 * this process matters, not another processor's view, so a compiler barrier is enough. */
void avmm_record_batch(struct avmm_inflight *record, const uint16_t *heads, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        record->desc[heads[i]].next = record->last_batch_head;
        atomic_signal_fence(memory_order_seq_cst);
        record->last_batch_head = heads[i];
    }
    atomic_signal_fence(memory_order_seq_cst);
}

void avmm_record_returned(struct avmm_inflight *record, const uint16_t *heads, uint32_t n, uint16_t used_idx) {
    atomic_signal_fence(memory_order_seq_cst);
    for (uint32_t i = 0; i < n; i++)
        record->desc[heads[i]].inflight = 0;
    atomic_signal_fence(memory_order_seq_cst);
    record->used_idx = used_idx;
}

/* The server died between publishing a batch and clearing its entries: finish that. */
static void finish_batch(struct avmm_queue *q, struct avmm_inflight *record, uint16_t used) {
    uint16_t batch = used - record->used_idx, head = record->last_batch_head;
    for (uint32_t i = 0; i < batch && i < q->size && head < q->size; i++) {
        record->desc[head].inflight = 0;
        head = __atomic_load_n(&record->desc[head].next, __ATOMIC_RELAXED); /* what was checked is what is used: others have it, too */
    }
    atomic_signal_fence(memory_order_seq_cst);
    record->used_idx = used;
}

/* Whether it came before. Whoever shares the record may change what it says meanwhile: nothing but the order follows from it. */
static bool before(const struct avmm_inflight *record, uint16_t head, uint16_t other) {
    uint64_t its = __atomic_load_n(&record->desc[head].counter, __ATOMIC_RELAXED);
    uint64_t others = __atomic_load_n(&record->desc[other].counter, __ATOMIC_RELAXED);
    return its != others ? its < others : head < other;
}

/* The last of heap[at] and those below it comes up. */
static void sift(const struct avmm_inflight *record, uint16_t *heap, uint32_t at, uint32_t n) {
    uint16_t head = heap[at];
    for (uint32_t below; (below = 2 * at + 1) < n; at = below) {
        below += below + 1 < n && before(record, heap[below], heap[below + 1]);
        if (before(record, heap[below], head))
            break;
        heap[at] = heap[below];
    }
    heap[at] = head;
}

/* In the order in which they came. Not by insertion, however well they mostly stand: a peer may have 32768 in the wrong one. */
static void sort(const struct avmm_inflight *record, uint16_t *heads, uint32_t n) {
    for (uint32_t at = n / 2; at-- > 0;)
        sift(record, heads, at, n);
    for (uint32_t end = n; end-- > 1;) {
        uint16_t last = heads[0];
        heads[0] = heads[end];
        heads[end] = last;
        sift(record, heads, 0, end);
    }
}

void avmm_queue_recover(struct avmm_queue *q, struct avmm_inflight *record, uint16_t *again) {
    uint16_t used = avmm_part_load16(&q->used, AVMM_RING_IDX, memory_order_acquire);
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
    for (uint32_t head = 0; head < q->size; head++)
        if (record->desc[head].inflight)
            again[n++] = (uint16_t)head;
    sort(record, again, n);
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
