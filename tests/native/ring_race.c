/* A driver and a device in two threads, each sleeping whenever it has nothing to do: a lost kick or a lost interrupt is a
 * sleep that does not end. Every chain carries its number, and comes back with it, in order.
 * Usage: ring_race EVENT_IDX(0/1) SIZE CHAINS */
#include "ring.h"
#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 64, DESC = 0, AVAIL = 8 * PAGE, USED = 16 * PAGE, DATA = 32 * PAGE, SLEEP_S = 10 };

static uint8_t *ram;
static struct avmm_region region;
static struct avmm_mem mem = {1, 0, &region};
static int event_idx;
static uint32_t size, total;

/* A doorbell is a counter that its sleeper watches: no system call, whose barriers would hide a missing one of ours. */
struct bell {
    _Alignas(128) atomic_uint rung;
    unsigned seen;
};
static struct bell kick_bell, irq_bell;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void sleep_on(struct bell *bell, const char *what) {
    double deadline = 0;
    for (unsigned spins = 1; atomic_load_explicit(&bell->rung, memory_order_acquire) == bell->seen; spins++) {
        if (spins % 4096)
            continue;
        sched_yield(); /* one core must do, too */
        deadline = deadline ? deadline : now_s() + SLEEP_S;
        if (now_s() > deadline) {
            fprintf(stderr, "lost %s\n", what);
            _exit(1);
        }
    }
    bell->seen = atomic_load_explicit(&bell->rung, memory_order_relaxed);
}

static void wake(struct bell *bell) {
    unsigned n = atomic_load_explicit(&bell->rung, memory_order_relaxed);
    atomic_store_explicit(&bell->rung, n + 1, memory_order_release);
}

static uint64_t at(uint32_t offset) { return (uint64_t)(uintptr_t)ram + offset; }

static int need_event(uint16_t event, uint16_t now, uint16_t old) {
    return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

static void *device(void *arg) {
    struct avmm_queue q = {.size = size, .max_chain = size, .event_idx = event_idx};
    struct avmm_chain chains[64];
    struct iovec iov[128];
    struct avmm_ring_error err;
    uint64_t *irqs = arg;
    uint32_t done = 0;
    assert(!avmm_ring_bind(&q.desc, &mem, DESC, 16 * size, 1, NULL));
    assert(!avmm_ring_bind(&q.avail, &mem, AVAIL, 6 + 2 * size, 1, NULL));
    assert(!avmm_ring_bind(&q.used, &mem, USED, 6 + 8 * size, 3, NULL));
    while (done < total) {
        int n = avmm_queue_pop(&q, &mem, chains, 64, iov, NULL, 128, &err);
        assert(n >= 0);
        for (int i = 0; i < n; i++, done++) {
            uint32_t number;
            memcpy(&number, iov[chains[i].iov].iov_base, 4);
            assert(number == done);
            memcpy(iov[chains[i].iov + 1].iov_base, &number, 4);
            avmm_queue_push_one(&q, chains[i].head, 4);
        }
        if (avmm_queue_needs_interrupt(&q)) {
            wake(&irq_bell);
            ++*irqs;
        }
        if (n == 0 && done < total && !avmm_queue_enable_notify(&q)) {
            sleep_on(&kick_bell, "kick");
            avmm_queue_disable_notify(&q);
        }
    }
    return NULL;
}

static uint64_t driver(void) {
    uint32_t sent = 0, done = 0, chains = size / 2;
    uint16_t kicked = 0, used = 0;
    uint64_t kicks = 0;
    for (uint32_t i = 0; i < chains; i++) { /* chain i: descriptors 2i (readable) and 2i + 1 (writable) */
        struct { uint64_t addr; uint32_t len; uint16_t flags, next; } d[2] = {
            {DATA + 16 * i, 4, 1, 2 * i + 1}, {DATA + 16 * i + 8, 4, 2, 0}};
        memcpy(ram + DESC + 32 * i, d, 32);
    }
    while (done < total) {
        for (; sent < total && sent - done < chains; sent++) {
            uint16_t head = 2 * (sent % chains);
            memcpy(ram + DATA + 8 * head, &sent, 4);
            memcpy(ram + AVAIL + 4 + 2 * (sent % size), &head, 2);
            avmm_store16(at(AVAIL + 2), sent + 1);
            if (sent % 3 == 0 || sent - done + 1 == chains || sent + 1 == total) {
                avmm_fence();
                int wanted = event_idx ? need_event(avmm_load16(at(USED + 4 + 8 * size)), sent + 1, kicked)
                                       : !(avmm_load16(at(USED)) & 1);
                kicked = sent + 1;
                if (wanted) {
                    kicks++;
                    wake(&kick_bell);
                }
            }
        }
        while (used != avmm_load16(at(USED + 2))) {
            uint32_t e[2], number;
            memcpy(e, ram + USED + 4 + 8 * (used % size), 8);
            memcpy(&number, ram + DATA + 8 * e[0] + 8, 4);
            assert(number == done && e[0] == 2 * (done % chains) && e[1] == 4);
            used++, done++;
        }
        if (done == total || (sent < total && sent - done < chains))
            continue;
        if (event_idx)
            avmm_store16(at(AVAIL + 4 + 2 * size), used);
        else
            avmm_store16(at(AVAIL), 0);
        avmm_fence();
        if (used == avmm_load16(at(USED + 2)))
            sleep_on(&irq_bell, "interrupt");
        if (!event_idx)
            avmm_store16(at(AVAIL), 1);
    }
    return kicks;
}

int main(int argc, char **argv) {
    assert(argc == 4);
    event_idx = atoi(argv[1]), size = atoi(argv[2]), total = atoi(argv[3]);
    ram = aligned_alloc(PAGE, PAGES * PAGE);
    memset(ram, 0, PAGES * PAGE);
    region = (struct avmm_region){0, PAGES * PAGE, (uint64_t)(uintptr_t)ram, 3, 0};
    uint64_t irqs = 0, kicks;
    pthread_t thread;
    pthread_create(&thread, NULL, device, &irqs);
    kicks = driver();
    pthread_join(thread, NULL);
    printf("%llu %llu\n", (unsigned long long)kicks, (unsigned long long)irqs);
    free(ram);
    return 0;
}
