#include "blk_parts.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#define PAGE 4096u           /* the least that an IOMMU maps */
#define MAX_ROOM (1u << 16)  /* iovecs of one request, whatever the queue's size */
#define MAX_GROWN (1u << 18) /* iovecs on the heap, over all requests of a disk: 4 MiB */

int avmm_blk_queue_open(struct avmm_blk_queue *q, uint32_t depth, uint32_t room) {
    q->depth = q->n_free = depth;
    q->room = room;
    q->free = calloc(depth, sizeof *q->free);
    q->handed = calloc(depth, sizeof *q->handed);
    q->heads = calloc(depth, sizeof *q->heads);
    q->lengths = calloc(depth, sizeof *q->lengths);
    size_t iovecs = (size_t)depth * room * sizeof(struct iovec);
    q->arena_size = iovecs + depth * sizeof *q->slots;
    /* Free slots are taken last in, first out, so of all this only what the actual depth needs becomes resident. */
    q->arena = mmap(NULL, q->arena_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (q->arena == MAP_FAILED)
        q->arena = NULL;
    if (!q->free || !q->handed || !q->heads || !q->lengths || !q->arena) {
        avmm_blk_queue_close(q);
        return -ENOMEM;
    }
    q->slots = (void *)((char *)q->arena + iovecs);
    for (uint32_t i = 0; i < depth; i++)
        q->free[i] = (uint16_t)(depth - 1 - i);
    return 0;
}

struct avmm_blk_request *avmm_blk_next_slot(struct avmm_blk_queue *q) {
    uint32_t i = q->free[q->n_free - 1];
    struct avmm_blk_request *r = &q->slots[i];
    if (!r->queue)
        *r = (struct avmm_blk_request){.queue = q, .store = q->arena + (size_t)i * q->room, .room = q->room};
    return r;
}

void avmm_blk_shrink(struct avmm_blk_request *r) {
    struct avmm_blk_queue *q = r->queue;
    struct iovec *own = q->arena + (size_t)(r - q->slots) * q->room;
    if (r->store == own)
        return;
    q->disk->grown -= r->room;
    free(r->store);
    r->store = own;
    r->room = q->room;
}

/* What a legal chain can need: a buffer of n bytes touches at most n / PAGE + 2 pages. */
uint32_t avmm_blk_most_room(const struct avmm_blk_queue *q) {
    uint64_t most = q->disk->max_bytes / PAGE + 2 * (uint64_t)q->vq->max_chain + 1;
    return most < MAX_ROOM ? (uint32_t)most : MAX_ROOM;
}

bool avmm_blk_may_grow(const struct avmm_blk_queue *q) { return q->disk->grown + avmm_blk_most_room(q) <= MAX_GROWN; }

bool avmm_blk_grow(struct avmm_blk_request *r) {
    uint32_t room = avmm_blk_most_room(r->queue);
    struct iovec *store = room > r->room ? malloc(room * sizeof *store) : NULL;
    if (!store)
        return false;
    avmm_blk_shrink(r);
    r->store = store;
    r->room = room;
    r->queue->disk->grown += room;
    return true;
}

void avmm_blk_trim(struct avmm_blk_request *r, uint32_t n) {
    struct avmm_blk_queue *q = r->queue;
    if (r->store == q->arena + (size_t)(r - q->slots) * q->room || !n)
        return;
    struct iovec *store = realloc(r->store, n * sizeof *store);
    if (!store)
        return;
    q->disk->grown -= r->room - n;
    r->store = store;
    r->room = n;
}

bool avmm_blk_can_take(const struct avmm_blk_queue *q) { return q->n_free && (!q->starved || avmm_blk_may_grow(q)); }

void avmm_blk_queue_close(struct avmm_blk_queue *q) {
    for (uint32_t i = 0; q->slots && i < q->depth; i++)
        if (q->slots[i].queue)
            avmm_blk_shrink(&q->slots[i]);
    if (q->arena)
        munmap(q->arena, q->arena_size);
    free(q->free);
    free(q->handed);
    free(q->heads);
    free(q->lengths);
    q->free = q->handed = q->heads = NULL;
    q->lengths = NULL;
    q->slots = NULL;
    q->arena = NULL;
    q->depth = q->n_free = 0;
}
