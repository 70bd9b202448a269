/* Frames of a stream socket and a queue: headers are read, joined into runs, and payloads go through a socket both ways. */
#include "frames.h"
#include "guest.h"
#include <sys/socket.h>

enum { MAX_CHAINS = 16, MAX_IOV = 96, HEADER = 44 }; /* struct virtio_vsock_hdr */

static int ends[2];
static uint8_t headers[MAX_CHAINS * HEADER];
static uint32_t firsts[MAX_CHAINS + 1], lengths[MAX_CHAINS];
static uint16_t heads[MAX_CHAINS];
static struct avmm_chain chains[MAX_CHAINS];
static struct iovec iov[MAX_IOV];

static uint32_t payload_of(uint32_t run, const struct avmm_frames *f) {
    uint32_t length;
    memcpy(&length, headers + run * HEADER + f->layout.length_at, 4);
    return length;
}

static bool takes(struct avmm_frames *f) {
    uint8_t copy[300];
    int runs = avmm_frames_take(f);
    if (runs < 0)
        return f->error.code == AVMM_RING_NO_ROOM;
    EXPECT((uint32_t)runs <= f->n && (!runs || (firsts[0] == 0 && firsts[runs] == f->n)));
    for (int r = 0; r < runs; r++) {
        uint64_t room = 0;
        EXPECT(firsts[r] < firsts[r + 1]);
        for (uint32_t c = firsts[r]; c < firsts[r + 1]; c++)
            room += chains[c].read_bytes - (chains[c].read_bytes < HEADER ? chains[c].read_bytes : HEADER);
        uint32_t length = payload_of((uint32_t)r, f), count = firsts[r + 1] - firsts[r];
        if (chains[firsts[r]].read_bytes < HEADER || length > room)
            continue; /* as its reader does: such a header is refused */
        uint32_t skip = below(300), want = below(sizeof copy + 1);
        uint32_t got = avmm_frames_copy(chains, firsts[r], count, iov, HEADER, skip, copy, want);
        EXPECT(got == (room <= skip ? 0 : room - skip < want ? room - skip : want));
        EXPECT(avmm_frames_send(ends[0], chains, firsts[r], count, iov, HEADER, length) <= length);
    }
    EXPECT(f->n == 0 || avmm_queue_push(f->queue, heads, (uint32_t[MAX_CHAINS]){0}, f->n) == 0);
    return true;
}

static bool gives(struct avmm_frames *f) {
    uint8_t header[HEADER] = {1}, bytes[256] = {2};
    uint16_t before = in_flight(f->queue);
    if (below(2))
        (void)!send(ends[1], bytes, 1 + below(sizeof bytes), MSG_DONTWAIT);
    int64_t got = avmm_frames_give(f, ends[0], header, 1 + (uint32_t)take(2));
    if (got == AVMM_FRAMES_RING)
        return f->error.code == AVMM_RING_NO_ROOM;
    EXPECT(in_flight(f->queue) == (got > 0 ? before : in_flight(f->queue)));
    return got != AVMM_FRAMES_SHORT;
}

static void drain(int fd) {
    static uint8_t sink[1 << 16];
    while (recv(fd, sink, sizeof sink, MSG_DONTWAIT) > 0)
        ;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct avmm_queue q;
    uint64_t pages[3][8];
    if (!ends[0])
        EXPECT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
    guest_new(data, size);
    if (!guest_bind(&q, pages))
        return 0;
    guest_align(&q);
    struct avmm_frames f = {.queue = &q, .mem = &memory, .chains = chains, .iov = iov, .max_chains = 1 + below(MAX_CHAINS),
                            .max_iov = MAX_IOV, .headers = headers, .firsts = firsts, .heads = heads, .lengths = lengths,
                            .layout = {HEADER, 24, 40, 30, 5}};
    bool giving = below(2), used = false;
    for (bool goes = true; goes && input_left();) {
        if (below(2))
            guest_acts(&q);
        else
            goes = giving ? gives(&f) : takes(&f), used = true;
    }
    if (used)
        drain(ends[0]), drain(ends[1]);
    return 0;
}
