/* Frames between a queue and a socket: what the guest sends, and what a peer puts on the wire, in each of the three forms. */
#include "guest.h"
#include "tap.h"
#include <sys/socket.h>

enum { MAX_CHAINS = 16, MAX_IOV = 96 };

static int wires[3][2]; /* by kind; the guest's side first */
static uint8_t packets[2][AVMM_NET_PACKET + 1], stream[AVMM_NET_STREAM_BUFFER];
static struct avmm_chain chains[MAX_CHAINS];
static struct iovec iov[MAX_IOV];
static uint16_t heads[MAX_CHAINS];
static uint32_t lens[MAX_CHAINS];

static void open_wires(void) {
    static const int types[] = {SOCK_SEQPACKET, SOCK_DGRAM, SOCK_STREAM};
    for (int kind = 0; kind < 3; kind++)
        EXPECT(socketpair(AF_UNIX, types[kind] | SOCK_NONBLOCK, 0, wires[kind]) == 0);
}

static void peer_sends(int fd, uint8_t kind) {
    uint8_t bytes[1024] = {0};
    uint32_t size = (uint32_t)take(2) % sizeof bytes, at = 0;
    if (kind == AVMM_NET_STREAM && below(4)) { /* a length that is right, or about */
        uint32_t length = size + below(3) - 1;
        bytes[0] = 0, bytes[1] = 0, bytes[2] = (uint8_t)(length >> 8), bytes[3] = (uint8_t)length, at = 4;
    }
    for (uint32_t n = below(24); n-- && at < sizeof bytes;)
        bytes[at++] = (uint8_t)take(1);
    (void)!send(fd, bytes, size > sizeof bytes - 4 ? sizeof bytes : size + (kind == AVMM_NET_STREAM ? 4 : 0), MSG_DONTWAIT);
}

static void drain(int fd) {
    static uint8_t sink[1 << 17];
    while (recv(fd, sink, sizeof sink, MSG_DONTWAIT) > 0)
        ;
}

/* False: the device is broken, or its peer gone. */
static bool check(const struct avmm_queue *q, const struct avmm_net_turn *t, int status, uint16_t before) {
    EXPECT(t->used <= t->n && t->n <= t->max_chains);
    if (status != AVMM_NET_RING)
        EXPECT(in_flight(q) == before);
    return status == AVMM_NET_WAIT || status == AVMM_NET_MORE || status == AVMM_NET_ROOM ||
           (status == AVMM_NET_RING && t->error.code == AVMM_RING_NO_ROOM);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct avmm_queue q;
    uint64_t pages[3][8];
    if (!wires[0][0])
        open_wires();
    guest_new(data, size);
    if (!guest_bind(&q, pages))
        return 0;
    guest_align(&q);
    uint8_t kind = (uint8_t)below(3), flags = (uint8_t)take(1);
    int fd = wires[kind][0], peer = wires[kind][1];
    bool sends = below(2), used = false;
    struct avmm_net_rx rx = {.fd = fd, .kind = kind, .zero_ends = kind != AVMM_NET_PLAIN, .mergeable = flags & 1, .socket = 1,
                             .discard = !(flags >> 1 & 15), .checked = flags >> 5 & 1, .packet = packets[0], .stream = stream};
    struct avmm_net_tx tx = {.fd = fd, .kind = kind, .socket = 1, .checksum = flags & 1, .gso = (uint32_t)flags >> 1,
                             .ecn = flags >> 6 & 1, .packet = packets[1]};
    struct avmm_net_own own = {.any_ip = flags >> 5 & 1, .n_prefixes = 2,
                               .prefixes = {{{[10] = 0xff, [11] = 0xff, [12] = 10}, 104}, {{0xfd}, 8 + (flags & 7)}}};
    tx.own = flags >> 7 & 1 ? &own : NULL; /* the card's address is all zeros, as memory is */
    struct avmm_net_turn t = {.queue = &q, .mem = &memory, .chains = chains, .iov = iov, .max_chains = 1 + below(MAX_CHAINS),
                              .max_iov = MAX_IOV, .heads = heads, .lens = lens, .budget = 1 + (uint32_t)take(2)};
    for (bool goes = true; goes && input_left();) {
        uint16_t before = in_flight(&q);
        switch (below(4)) {
        case 0: case 1: guest_acts(&q); continue;
        case 2:
            if (sends)
                drain(peer);
            else
                peer_sends(peer, kind);
            used = true;
            continue;
        default: break;
        }
        used = true;
        goes = check(&q, &t, sends ? avmm_net_send_turn(&tx, &t) : avmm_net_receive_turn(&rx, &t), before);
        EXPECT(rx.pending <= sizeof packets[0] && tx.left_at <= tx.left_end && tx.left_end <= sizeof packets[1]);
    }
    if (used)
        drain(fd), drain(peer);
    return 0;
}
