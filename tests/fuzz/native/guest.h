/* A guest that the fuzzer's input plays: its memory, its rings and what it does between two steps of a device.
 *
 * The input is a string of numbers, each taken when it is asked for; at its end all are zero. Whatever the device side is given
 * points into memory whose neighbours the address sanitizer watches. Everything is as new for each input. */
#ifndef AIOVMM_FUZZ_GUEST_H
#define AIOVMM_FUZZ_GUEST_H
#include "ring.h"
#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Coverage is that of the code under test. */
#define HARNESS __attribute__((no_sanitize("coverage"), unused)) static inline

#define EXPECT(what)                                                                                                   \
    do {                                                                                                               \
        if (!(what))                                                                                                   \
            __builtin_trap();                                                                                          \
    } while (0)

enum { PAGE = 4096, REGIONS = 4, REGION = 2 * PAGE, MAX_SIZE = 32 };
enum { AREA_DESC = 0, AREA_AVAIL = 1024, AREA_USED = 2048, TABLES = 3072 }; /* where a tidy guest has them, in the first region */

static const uint8_t *input_at, *input_end;

HARNESS bool input_left(void) { return input_at < input_end; }

HARNESS uint64_t take(uint32_t bytes) {
    uint64_t value = 0;
    for (uint32_t i = 0; i < bytes && input_left(); i++)
        value |= (uint64_t)*input_at++ << 8 * i;
    return value;
}

HARNESS uint32_t below(uint32_t n) { return (uint32_t)take(n > 256 ? 2 : 1) % n; }

/* Regions 0 and 1 adjoin; 2 is read-only; 3 ends at the last address there is. */
static struct avmm_region regions[REGIONS] = {
    {0, REGION, 0, 3, 0}, {REGION, REGION, 0, 3, 0}, {8 * PAGE, REGION, 0, 1, 0}, {0ull - REGION, REGION, 0, 3, 0}};
static struct avmm_mem memory = {REGIONS, 0, regions};

HARNESS uint8_t *ram(uint32_t region) { return (uint8_t *)(uintptr_t)regions[region].host; }

HARNESS void guest_new(const uint8_t *data, size_t size) {
    input_at = data, input_end = data + size;
    for (uint32_t i = 0; i < REGIONS; i++) {
        if (!regions[i].host)
            regions[i].host = (uint64_t)(uintptr_t)aligned_alloc(PAGE, REGION);
        memset(ram(i), 0, REGION);
    }
}

HARNESS uint64_t some_address(void) {
    uint32_t how = below(8);
    if (how == 7)
        return take(8);
    const struct avmm_region *r = &regions[how % REGIONS];
    uint32_t offset = (uint32_t)take(2);
    return how < REGIONS ? r->base + offset % REGION : r->base + REGION - offset % 64;
}

HARNESS uint32_t some_length(void) {
    uint32_t how = below(8);
    return how == 7 ? (uint32_t)take(4) : how == 6 ? PAGE + (uint32_t)take(2) % (3 * PAGE) : how > 3 ? 16 * below(20) : below(200);
}

HARNESS void put_descriptor(uint8_t *to, uint64_t address, uint32_t length, uint16_t flags, uint16_t next) {
    memcpy(to, &address, 8), memcpy(to + 8, &length, 4), memcpy(to + 12, &flags, 2), memcpy(to + 14, &next, 2);
}

/* A descriptor that is more often right than wrong. */
HARNESS void some_descriptor(uint8_t *to) {
    uint64_t address = some_address();
    uint32_t length = some_length();
    uint16_t flags = below(16) == 15 ? (uint16_t)take(2) : below(8);
    put_descriptor(to, address, length, flags, (uint16_t)take(below(8) == 7 ? 2 : 1) % 64);
}

/* Bind the queue: where a tidy guest has its areas, or anywhere. False: a device would not go live with that. */
HARNESS bool guest_bind(struct avmm_queue *q, uint64_t pages[3][8]) {
    uint64_t at[3] = {AREA_DESC, AREA_AVAIL, AREA_USED};
    *q = (struct avmm_queue){.size = 1u << below(6), .event_idx = below(2), .indirect = below(4) != 0};
    q->max_chain = q->size < 32 ? 32 : q->size;
    q->last_avail = q->used_idx = q->signalled = (uint16_t)take(below(2) ? 2 : 0);
    if (below(4) == 3)
        at[0] = some_address() & ~15ull, at[1] = some_address() & ~1ull, at[2] = some_address() & ~3ull;
    return avmm_ring_bind(&q->desc, &memory, at[0], 16 * q->size, AVMM_MEM_READ, pages[0]) == 0 &&
           avmm_ring_bind(&q->avail, &memory, at[1], 6 + 2 * q->size, AVMM_MEM_READ, pages[1]) == 0 &&
           avmm_ring_bind(&q->used, &memory, at[2], 6 + 8 * q->size, AVMM_MEM_READ | AVMM_MEM_WRITE, pages[2]) == 0;
}

HARNESS uint8_t *part_byte(const struct avmm_ring_part *p, uint32_t offset) {
    uint64_t at = p->skew + offset;
    return (uint8_t *)(uintptr_t)(p->host ? p->host + offset : p->pages[at / PAGE] + at % PAGE);
}

HARNESS void part_put16(const struct avmm_ring_part *p, uint32_t offset, uint16_t value) {
    memcpy(part_byte(p, offset), &value, 2);
}

/* Offer `n` more positions of the available ring, of which the guest has said before what stands there. */
HARNESS void guest_publish(const struct avmm_queue *q, uint16_t n) {
    uint16_t idx;
    memcpy(&idx, part_byte(&q->avail, 2), 2);
    part_put16(&q->avail, 2, (uint16_t)(idx + n));
}

HARNESS void guest_align(const struct avmm_queue *q) { part_put16(&q->avail, 2, q->last_avail); }

/* A chain of up to eight descriptors from `first` on in the table, whose data is `regions` 1's or wherever; offered. */
HARNESS void guest_offer(const struct avmm_queue *q) {
    uint32_t first = below(q->size), n = 1 + below(6);
    uint16_t idx;
    memcpy(&idx, part_byte(&q->avail, 2), 2);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t slot = (first + i) & (q->size - 1), how = below(8);
        uint8_t *to = part_byte(&q->desc, 16 * slot);
        uint16_t more = i + 1 < n ? 1 : 0;
        if (how == 7)
            some_descriptor(to);
        else
            put_descriptor(to, REGION + (uint32_t)take(2) % REGION, below(2) ? below(200) : (uint32_t)take(2),
                           (uint16_t)(more | (how & 1) << 1 | (how == 6 ? 4 : 0)), (uint16_t)((slot + 1) & (q->size - 1)));
    }
    part_put16(&q->avail, 4 + 2 * (idx & (q->size - 1)), (uint16_t)first);
    guest_publish(q, 1);
}

/* One thing that a guest may do at any moment. */
HARNESS void guest_acts(const struct avmm_queue *q) {
    switch (below(8)) {
    case 0: case 1: case 2: guest_offer(q); break;
    case 3: some_descriptor(part_byte(&q->desc, 16 * below(q->size))); break;
    case 4: { /* an indirect table, or any other memory */
        uint32_t at = below(64) * 16;
        for (uint32_t n = 1 + below(4); n--; at += 16)
            some_descriptor(ram(below(2)) + TABLES + at % (REGION - TABLES - 16));
        break;
    }
    case 5: part_put16(&q->avail, 4 + 2 * below(q->size), (uint16_t)take(2)); break;
    case 6: guest_publish(q, (uint16_t)take(below(4) == 3 ? 2 : 1)); break;
    default: { /* flags, used_event, or bytes anywhere */
        if (below(2))
            part_put16(&q->avail, below(2) ? 0 : 4 + 2 * q->size, (uint16_t)take(2));
        else
            for (uint32_t at = (uint32_t)take(2), region = below(REGIONS), n = below(32); n--; at++)
                ram(region)[at % REGION] = (uint8_t)take(1);
    }
    }
}

/* How many chains the device has and the ring does not. */
HARNESS uint16_t in_flight(const struct avmm_queue *q) { return (uint16_t)(q->last_avail - q->used_idx); }

#endif
