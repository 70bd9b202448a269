/* A driver as Linux's hvc is: it writes a chain, kicks if that is wanted, and spins until the chain is back. The device takes
 * output by avmm_queue_output, and sleeps when there is none. Every byte is to arrive, in order, whatever fits into a piece.
 * Each has a processor of its own if there are two.
 * Usage: ring_print EVENT_IDX(0/1) LOOK_NS CHAINS BURST (the driver pauses after so many chains). Prints how often the device slept, was kicked, and found a chain by looking; and its longest call in nanoseconds. */
#include "stream.h"
#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PAGE = 4096, PAGES = 16, DESC = 0, AVAIL = PAGE, USED = 2 * PAGE, DATA = 4 * PAGE, SIZE = 4, PIECE = 1000 };

static uint8_t *ram;
static struct avmm_region region;
static struct avmm_mem mem = {1, 0, &region};
static int event_idx;
static uint32_t chains, pause_after;
static atomic_uint kicks;
static atomic_int over;

static uint64_t at(uint32_t offset) { return (uint64_t)(uintptr_t)ram + offset; }
static uint32_t length_of(uint32_t chain) { return 1 + chain * 7919 % 2500; }
static uint8_t byte_of(uint64_t n) { return (uint8_t)(n * 31 + (n >> 8)); }

static void *driver(void *unused) {
    uint64_t printed = 0;
    for (uint32_t i = 0; i < chains; i++) {
        struct { uint64_t addr; uint32_t len; uint16_t flags, next; } d = {DATA, length_of(i), 0, 0};
        for (uint32_t k = 0; k < d.len; k++)
            ram[DATA + k] = byte_of(printed++);
        memcpy(ram + DESC, &d, sizeof d);
        memset(ram + AVAIL + 4 + 2 * (i % SIZE), 0, 2);
        avmm_store16(at(AVAIL + 2), i + 1);
        avmm_fence();
        if (event_idx ? avmm_load16(at(USED + 4 + 8 * SIZE)) == (uint16_t)i : !(avmm_load16(at(USED)) & 1))
            atomic_fetch_add(&kicks, 1);
        for (uint32_t spins = 1; avmm_load16(at(USED + 2)) != (uint16_t)(i + 1); spins++)
            if (spins % 1024 == 0)
                sched_yield(); /* one core must do, too */
        if (i % pause_after == pause_after - 1)
            nanosleep(&(struct timespec){0, 2000000}, NULL);
    }
    atomic_store(&over, 1);
    return unused;
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void place(pthread_t thread, int nth) {
    cpu_set_t all, one;
    sched_getaffinity(0, sizeof all, &all);
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all) && nth-- == 0) {
            CPU_SET(cpu, &one);
            pthread_setaffinity_np(thread, sizeof one, &one);
        }
}

int main(int argc, char **argv) {
    assert(argc == 5);
    uint64_t look = strtoull(argv[2], NULL, 0), seen = 0, sleeps = 0, found = 0, longest = 0;
    event_idx = atoi(argv[1]), chains = atoi(argv[3]), pause_after = atoi(argv[4]);
    ram = aligned_alloc(PAGE, PAGES * PAGE);
    memset(ram, 0, PAGES * PAGE);
    region = (struct avmm_region){0, PAGES * PAGE, at(0), 3, 0};
    struct avmm_queue q = {.size = SIZE, .max_chain = SIZE, .event_idx = event_idx};
    assert(!avmm_ring_bind(&q.desc, &mem, DESC, 16 * SIZE, 1, NULL));
    assert(!avmm_ring_bind(&q.avail, &mem, AVAIL, 6 + 2 * SIZE, 1, NULL));
    assert(!avmm_ring_bind(&q.used, &mem, USED, 6 + 8 * SIZE, 3, NULL));
    struct avmm_chain batch[SIZE];
    struct iovec iov[SIZE];
    uint16_t heads[SIZE];
    uint32_t zeros[SIZE] = {0};
    struct avmm_output output = {.chains = batch, .iov = iov, .heads = heads, .lengths = zeros, .max_chains = SIZE, .max_iov = SIZE};
    struct avmm_ring_error err;
    uint8_t piece[PIECE];
    unsigned kicked = 0;
    pthread_t thread;
    pthread_create(&thread, NULL, driver, NULL);
    place(thread, 1); /* before our own: it looks which there are */
    place(pthread_self(), 0);
    for (;;) {
        uint64_t began = now_ns();
        uint32_t n = avmm_queue_output(&q, &mem, &output, piece, PIECE, look, 500000, &err);
        uint64_t took = now_ns() - began;
        longest = took > longest ? took : longest;
        found += output.found;
        assert(!err.code);
        for (uint32_t i = 0; i < n; i++)
            assert(piece[i] == byte_of(seen++));
        if (n || output.taken)
            continue;
        if (atomic_load(&over) && !avmm_queue_available(&q))
            break;
        if (avmm_queue_enable_notify(&q))
            continue;
        sleeps++;
        while (atomic_load(&kicks) == kicked && !atomic_load(&over))
            sched_yield();
        kicked = atomic_load(&kicks);
        avmm_queue_disable_notify(&q);
    }
    pthread_join(thread, NULL);
    uint64_t all = 0;
    for (uint32_t i = 0; i < chains; i++)
        all += length_of(i);
    assert(seen == all);
    printf("%llu %u %llu %llu\n", (unsigned long long)sleeps, atomic_load(&kicks), (unsigned long long)found,
           (unsigned long long)longest);
    free(ram);
    return 0;
}
