/* Chains as streams of bytes: a console's output and input, and entropy from a file. */
#include "guest.h"
#include "stream.h"
#include <fcntl.h>

enum { MAX_CHAINS = 24, MAX_IOV = 96 };

static struct avmm_chain chains[MAX_CHAINS];
static struct iovec iov[MAX_IOV];
static const uint32_t zeros[MAX_CHAINS];

/* False: the ring is malformed, and the device broken. */
static bool goes_on(const struct avmm_ring_error *err) { return !err->code || err->code == AVMM_RING_NO_ROOM; }

static bool output(struct avmm_queue *q, struct avmm_output *o) {
    struct avmm_ring_error err;
    uint32_t room = 1 + below(700);
    uint8_t *bytes = malloc(room);
    EXPECT(avmm_queue_output(q, &memory, o, bytes, room, 0, UINT64_MAX / 4, &err) <= room);
    free(bytes);
    EXPECT(!goes_on(&err) || in_flight(q) == o->count - o->at.chain);
    return goes_on(&err);
}

static bool input(struct avmm_queue *q) {
    struct avmm_ring_error err;
    uint32_t size = below(700), most = q->size;
    uint8_t *bytes = calloc(1, size + 1);
    uint16_t *heads = malloc(most * sizeof *heads), before = in_flight(q);
    uint32_t *lengths = malloc(most * sizeof *lengths);
    struct avmm_input in = {iov, heads, lengths, MAX_IOV, most, 0};
    EXPECT(avmm_queue_input(q, &memory, &in, bytes, size, &err) <= size);
    EXPECT(!goes_on(&err) || in_flight(q) == before);
    free(bytes), free(heads), free(lengths);
    return goes_on(&err);
}

static bool fill(struct avmm_queue *q, int fd) {
    struct avmm_ring_error err;
    uint16_t heads[MAX_CHAINS];
    uint32_t lengths[MAX_CHAINS];
    int n = avmm_queue_pop(q, &memory, chains, 1 + below(MAX_CHAINS), iov, NULL, MAX_IOV, &err);
    if (n <= 0)
        return n == 0 || n == AVMM_RING_NO_ROOM;
    int filled = avmm_chains_fill(fd, chains, (uint32_t)n, iov, 1 + (uint32_t)take(2), 1 + (uint32_t)take(2), heads, lengths);
    EXPECT(filled <= n);
    for (int i = 0; i < filled; i++)
        EXPECT(heads[i] == chains[i].head && lengths[i] <= chains[i].write_bytes);
    filled = filled < 0 ? 0 : filled;
    EXPECT(avmm_queue_finish(q, (uint32_t)(n - filled), heads, lengths, (uint32_t)filled) >= 0);
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int fd = -1;
    struct avmm_queue q;
    uint64_t pages[3][8];
    uint16_t heads[MAX_CHAINS];
    if (fd < 0)
        fd = open("/dev/zero", O_RDONLY);
    guest_new(data, size);
    if (!guest_bind(&q, pages))
        return 0;
    guest_align(&q);
    struct avmm_output o = {chains, iov, heads, zeros, 1 + below(MAX_CHAINS), MAX_IOV, 0, {0}, 0, 0};
    uint32_t device = below(3);
    for (bool goes = true; goes && input_left();) {
        if (below(2))
            guest_acts(&q);
        else
            goes = device == 0 ? output(&q, &o) : device == 1 ? input(&q) : fill(&q, fd);
    }
    return 0;
}
