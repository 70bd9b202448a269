/* Random rings through the native queue, under sanitizers: every byte of every segment that it yields is touched, so a
 * segment outside the regions is a crash. A second thread scribbles on the rings meanwhile, as a hostile vCPU would.
 * Usage: ring_fuzz SEED ROUNDS */
#include "stream.h"
#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 4096u
enum { REGIONS = 4, MAX_IOV = 96, MAX_CHAINS = 24 };

static uint64_t state;
static uint64_t rnd(void) { /* xorshift64* */
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * 2685821657736338717ull;
}
static uint64_t below(uint64_t n) { return rnd() % n; }

static struct avmm_region regions[REGIONS];
static struct avmm_mem mem = {REGIONS, 0, regions};
static atomic_int stop;

static uint64_t some_address(void) {
    const struct avmm_region *r = &regions[below(REGIONS)];
    switch (below(8)) {
    case 0: return rnd();
    case 1: return r->base + r->size - below(40);
    case 2: return r->base - below(40);
    default: return r->base + below(r->size);
    }
}

static uint32_t some_length(void) {
    switch (below(8)) {
    case 0: return 0;
    case 1: return below(2) ? (uint32_t)rnd() : 0xffffffffu;
    case 2: return PAGE + below(3 * PAGE);
    case 3: case 4: return 16 * below(12);
    default: return below(200);
    }
}

/* 16 bytes of a descriptor that is more often right than wrong */
static void some_descriptor(uint8_t *to, uint32_t limit, int in_table) {
    uint64_t addr = some_address();
    uint32_t len = some_length();
    uint16_t flags = below(3) ? below(2) : below(8), next = below(10) ? below(limit) : rnd();
    if (in_table && below(20))
        flags &= 3;
    memcpy(to, &addr, 8), memcpy(to + 8, &len, 4), memcpy(to + 12, &flags, 2), memcpy(to + 14, &next, 2);
}

static void *scribble(void *arg) {
    uint64_t s = (uint64_t)(uintptr_t)arg | 1;
    while (!atomic_load(&stop)) {
        s ^= s >> 12, s ^= s << 25, s ^= s >> 27;
        const struct avmm_region *r = &regions[s % REGIONS];
        if (r->perm & AVMM_MEM_WRITE)
            ((volatile uint8_t *)(uintptr_t)r->host)[(s >> 8) % r->size] = (uint8_t)(s >> 40);
    }
    return NULL;
}

static uint64_t touch(const struct avmm_chain *c, const struct iovec *iov, uint32_t budget) {
    uint64_t sum = 0, bytes[2] = {0, 0};
    assert(c->iov + c->n_read + c->n_write <= MAX_IOV);
    for (uint32_t i = 0; i < c->n_read + c->n_write; i++) {
        const struct iovec *v = &iov[c->iov + i];
        volatile uint8_t *p = v->iov_base;
        assert(v->iov_len > 0);
        for (size_t k = 0; k < v->iov_len && budget; k += 1 + v->iov_len / 64, budget--)
            i < c->n_read ? (void)(sum += p[k]) : (void)(p[k] = (uint8_t)k);
        i < c->n_read ? (void)(sum += p[v->iov_len - 1]) : (void)(p[v->iov_len - 1] = 1);
        bytes[i >= c->n_read] += v->iov_len;
    }
    assert(bytes[0] == c->read_bytes && bytes[1] == c->write_bytes);
    return sum;
}

/* Output as the ring has it; 0 if it is malformed. In flight afterwards is what of the batch is not behind yet. */
static int output_turn(struct avmm_queue *q, struct avmm_output *o, struct iovec *iov) {
    struct avmm_ring_error err;
    uint8_t bytes[700];
    memset(bytes, 7, sizeof bytes);
    uint32_t room = 1 + below(sizeof bytes);
    o->iov = iov, o->max_iov = below(8) ? MAX_IOV : 1;
    assert(avmm_queue_output(q, &mem, o, bytes, room, below(2) * 100, 20000, &err) <= room);
    if (err.code && err.code != AVMM_RING_NO_ROOM)
        return 0; /* the device is broken; a head that is none stays in flight */
    assert((uint16_t)(q->last_avail - q->used_idx) == o->count - o->at.chain);
    return 1;
}

static int input_turn(struct avmm_queue *q) {
    struct avmm_ring_error err;
    struct iovec iov[MAX_IOV];
    uint16_t heads[64];
    uint32_t lengths[64];
    uint8_t bytes[700];
    uint32_t size = below(4) ? below(sizeof bytes) : 0;
    uint16_t in_flight = q->last_avail - q->used_idx;
    struct avmm_input in = {iov, heads, lengths, below(8) ? MAX_IOV : 1, q->size, 0};
    memset(bytes, 7, sizeof bytes);
    assert(avmm_queue_input(q, &mem, &in, bytes, size, &err) <= size);
    if (err.code && err.code != AVMM_RING_NO_ROOM)
        return 0;
    assert((uint16_t)(q->last_avail - q->used_idx) == in_flight);
    return 1;
}

static int round_trip(uint64_t counts[16]) {
    struct avmm_queue q = {.size = 1u << below(6), .event_idx = below(2), .indirect = below(8) != 0};
    uint64_t pages[3][8];
    struct avmm_chain chains[MAX_CHAINS];
    struct iovec iov[MAX_IOV];
    uint64_t address[MAX_IOV];
    struct avmm_ring_error err;
    q.max_chain = q.size < 32 ? 32 : q.size;
    q.last_avail = q.used_idx = q.signalled = below(2) ? 0 : 65536 - below(8);
    uint64_t at[3] = {some_address() & ~15ull, some_address() & ~1ull, some_address() & ~3ull};
    if (avmm_ring_bind(&q.desc, &mem, at[0], 16 * q.size, AVMM_MEM_READ, pages[0]) < 0 ||
        avmm_ring_bind(&q.avail, &mem, at[1], 6 + 2 * q.size, AVMM_MEM_READ, pages[1]) < 0 ||
        avmm_ring_bind(&q.used, &mem, at[2], 6 + 8 * q.size, AVMM_MEM_READ | AVMM_MEM_WRITE, pages[2]) < 0)
        return 0;
    for (int i = 0; i < 30; i++) { /* tables and descriptors all over memory, at 16-byte steps */
        const struct avmm_region *r = &regions[below(REGIONS)];
        for (uint64_t off = below(r->size / 16) * 16, k = 0; k < 8 && off + 16 <= r->size; k++, off += 16)
            some_descriptor((uint8_t *)(uintptr_t)r->host + off, 8, 1);
    }
    for (uint32_t i = 0; i < q.size; i++) {
        uint64_t room;
        uint8_t *d = avmm_mem_span(&mem, at[0] + 16 * i, AVMM_MEM_READ, &room);
        some_descriptor(d, q.size, 0);
        uint16_t head = below(20) ? below(q.size) : rnd();
        memcpy(avmm_mem_span(&mem, at[1] + 4 + 2 * i, AVMM_MEM_READ, &room), &head, 2);
    }
    struct avmm_chain batch[MAX_CHAINS];
    struct iovec batch_iov[MAX_IOV];
    uint16_t heads[MAX_CHAINS];
    uint32_t zeros[MAX_CHAINS] = {0};
    struct avmm_output output = {.chains = batch, .heads = heads, .lengths = zeros, .max_chains = 1 + below(MAX_CHAINS)};
    int streams = below(3); /* 0: output, 1: input, else the parts */
    for (int turn = 0; turn < 4; turn++) {
        uint64_t room;
        uint16_t idx = q.last_avail + below(below(20) ? q.size + 1 : 70000);
        memcpy(avmm_mem_span(&mem, at[1] + 2, AVMM_MEM_READ, &room), &idx, 2);
        if (streams < 2) {
            if (!(streams ? input_turn(&q) : output_turn(&q, &output, batch_iov)))
                break;
            continue;
        }
        int n = avmm_queue_pop(&q, &mem, chains, 1 + below(MAX_CHAINS), iov, below(2) ? address : NULL,
                               below(8) ? MAX_IOV : 1, &err);
        counts[n < 0 ? -n : 0]++;
        uint16_t in_flight = q.last_avail - q.used_idx;
        assert(in_flight <= q.size);
        if (n < 0 && err.head >= 0 && n != AVMM_RING_NO_ROOM)
            assert(avmm_queue_push_one(&q, err.head, 0) == 0);
        for (int i = 0; i < n; i++) {
            touch(&chains[i], iov, 4096);
            if (below(4))
                assert(avmm_queue_push_one(&q, chains[i].head, below(100)) == 0);
        }
        avmm_queue_needs_interrupt(&q);
        avmm_queue_enable_notify(&q);
        avmm_queue_disable_notify(&q);
        if (below(3) == 0)
            avmm_queue_put_back(&q, below(3));
    }
    return 1;
}

int main(int argc, char **argv) {
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1, rounds = argc > 2 ? strtoull(argv[2], NULL, 0) : 1000;
    uint64_t bases[REGIONS] = {0, 4 * PAGE, 16 * PAGE, 0ull - 4 * PAGE}, counts[16] = {0}, bound = 0;
    state = seed * 0x9E3779B97F4A7C15ull | 1;
    for (int i = 0; i < REGIONS; i++) { /* 0 and 1 adjoin; 2 is read-only; 3 ends at the last address there is */
        uint8_t *host = aligned_alloc(PAGE, 4 * PAGE);
        memset(host, 0, 4 * PAGE);
        regions[i] = (struct avmm_region){bases[i], 4 * PAGE, (uint64_t)(uintptr_t)host, i == 2 ? 1 : 3, 0};
    }
    pthread_t thread;
    int hostile = seed % 2;
    if (hostile)
        pthread_create(&thread, NULL, scribble, (void *)(uintptr_t)seed);
    for (uint64_t i = 0; i < rounds; i++)
        bound += round_trip(counts);
    atomic_store(&stop, 1);
    if (hostile)
        pthread_join(thread, NULL);
    for (int i = 0; i < REGIONS; i++)
        free((void *)(uintptr_t)regions[i].host);
    printf("%llu", (unsigned long long)bound);
    for (int i = 0; i < 10; i++)
        printf(" %llu", (unsigned long long)counts[i]);
    printf("\n");
    return 0;
}
