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
        head = record->desc[head].next;
    }
    atomic_signal_fence(memory_order_seq_cst);
    record->used_idx = used;
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
