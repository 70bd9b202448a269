/* Frames through the native network code under sanitizers, in chains of every shape and over every kind of descriptor. Each
 * segment is an allocation of its own, so a byte too far is a crash; what arrives is compared with what was sent. The ring is
 * not a real one: it hands out the chains below, has a malformed one at times, and wants an interrupt when it likes.
 * Usage: tap_fuzz SEED ROUNDS; prints packets received, dropped, sent, refused, calls that would have blocked, turns in which
 * packets got larger than expected, malformed chains that were met first, and behind others. */
#include "tap.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_CHAINS = 48, MAX_IOV = 2048, SEGMENTS = 1400 };

static uint64_t state;
static uint64_t rnd(void) { /* xorshift64* */
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * 2685821657736338717ull;
}
static uint32_t below(uint32_t n) { return (uint32_t)(rnd() % n); }

static struct avmm_chain chains[MAX_CHAINS];
static struct iovec iov[MAX_IOV];
static uint32_t n_chains, n_iov;
static uint8_t packet[2][AVMM_NET_PACKET + 1], stream[AVMM_NET_STREAM_BUFFER];
static uint8_t frame[1 << 17];

static void clear(void) {
    for (uint32_t i = 0; i < n_iov; i++)
        free(iov[i].iov_base);
    n_iov = n_chains = 0;
}

static struct avmm_chain *add_chain(uint32_t total, uint32_t pieces, int writable) {
    struct avmm_chain *c = &chains[n_chains];
    if (n_chains == MAX_CHAINS || n_iov + pieces + 1 > MAX_IOV)
        return NULL;
    *c = (struct avmm_chain){.iov = n_iov, .head = (uint16_t)n_chains++};
    for (uint32_t left = total, i = 0; left; i++) {
        uint32_t size = i + 1 >= pieces ? left : below(2 * (left / (pieces - i)) + 1);
        size = size > left ? left : size;
        if (!size)
            continue;
        iov[n_iov++] = (struct iovec){malloc(size), size};
        memset(iov[n_iov - 1].iov_base, 0xa5, size);
        *(writable ? &c->n_write : &c->n_read) += 1;
        left -= size;
    }
    *(writable ? &c->write_bytes : &c->read_bytes) = total;
    return c;
}

/* ---- the ring -------------------------------------------------------------------------------------------------------- */

static struct avmm_queue ring;
static uint32_t ring_at, ring_done, malformed_at; /* chains taken, chains returned */
static int headless;                             /* the malformed one has no head, so it is not taken */
static uint32_t written[MAX_CHAINS];              /* bytes, of those returned */
static int wants;                                 /* one in so many times an interrupt */
static uint64_t first, behind;                    /* malformed chains */

static uint32_t copy_chain(uint32_t from, struct avmm_chain *to, struct iovec *segments, uint32_t filled) {
    const struct avmm_chain *c = &chains[from];
    uint32_t n = c->n_read + c->n_write;
    memcpy(segments + filled, iov + c->iov, n * sizeof *iov);
    *to = *c;
    to->iov = filled;
    return filled + n;
}

int avmm_queue_pop(struct avmm_queue *q, const struct avmm_mem *mem, struct avmm_chain *to, uint32_t max_chains,
                   struct iovec *segments, uint64_t *address, uint32_t max_iov, struct avmm_ring_error *err) {
    uint32_t n = 0, filled = 0;
    assert(q == &ring && !mem && !address && max_chains);
    for (; n < max_chains && ring_at < n_chains; n++, ring_at++) {
        if (ring_at == malformed_at) {
            if (n)
                break;
            err->head = headless ? -1 : 0;
            if (!headless)
                ring_at++;
            return err->code = AVMM_RING_TOO_LONG;
        }
        if (filled + chains[ring_at].n_read + chains[ring_at].n_write > max_iov)
            return n ? (int)n : (err->code = AVMM_RING_NO_ROOM);
        filled = copy_chain(ring_at, &to[n], segments, filled);
    }
    return (int)n;
}

int avmm_queue_put_back(struct avmm_queue *q, uint32_t n) {
    assert(q == &ring && n <= ring_at - ring_done);
    ring_at -= n;
    behind += n == 1 && ring_at == malformed_at;
    return 0;
}

int avmm_queue_push(struct avmm_queue *q, const uint16_t *heads, const uint32_t *lens, uint32_t n) {
    assert(q == &ring && n && n <= ring_at - ring_done);
    for (uint32_t i = 0; i < n; i++) {
        const struct avmm_chain *c = &chains[ring_done];
        assert(heads[i] == c->head && lens[i] <= c->write_bytes);
        written[ring_done++] = lens[i];
    }
    q->unsignalled += n;
    return 0;
}

int avmm_queue_needs_interrupt(struct avmm_queue *q) {
    int unsignalled = q->unsignalled != 0;
    q->unsignalled = 0;
    return unsignalled && below((uint32_t)wants) == 0;
}

int avmm_queue_finish(struct avmm_queue *q, uint32_t unused, const uint16_t *heads, const uint32_t *lens, uint32_t n) {
    assert(!unused && !avmm_queue_push(q, heads, lens, n));
    return avmm_queue_needs_interrupt(q);
}

static struct avmm_net_turn turn;

/* Arrays of random sizes, which are allocations too. `most`: chains, 0 for none at all. */
static void new_turn(uint32_t most, uint32_t budget) {
    free(turn.chains), free(turn.iov), free(turn.heads), free(turn.lens);
    turn = (struct avmm_net_turn){.queue = &ring, .max_chains = most, .max_iov = below(4) ? MAX_IOV : 40 + below(400), .budget = budget};
    turn.chains = malloc(most * sizeof *turn.chains);
    turn.iov = malloc(turn.max_iov * sizeof *turn.iov);
    turn.heads = malloc(most * sizeof *turn.heads);
    turn.lens = malloc(most * sizeof *turn.lens);
}

/* What a caller must find after a turn. True: it was the ring. */
static int was_malformed(int status) {
    assert(turn.used <= turn.n && turn.n <= turn.max_chains && (turn.interrupt == 0 || turn.interrupt == 1));
    if (status == AVMM_NET_RING) {
        int malformed = ring_at > ring_done || (headless && ring_at == malformed_at);
        assert(turn.error.code == (malformed ? AVMM_RING_TOO_LONG : AVMM_RING_NO_ROOM) && !(malformed && turn.n));
        first += malformed;
        ring_done = ring_at; /* the malformed one is given back, or mended */
        malformed_at = malformed ? UINT32_MAX : malformed_at;
        return 1;
    }
    assert(ring_at == ring_done);
    return 0;
}

/* ---- rounds ---------------------------------------------------------------------------------------------------------- */

static uint32_t frame_size(void) {
    switch (below(6)) {
    case 0: return 14 + below(50);
    case 1: return 65000 + below(569);
    case 2: return 1400 + below(200);
    case 3: return below(16); /* runts */
    default: return 14 + below(9000);
    }
}

static void fill_frame(uint32_t size, uint8_t seed) {
    for (uint32_t i = 0; i < size; i++)
        frame[i] = (uint8_t)(seed + i * 7);
}

static uint8_t byte_at(const struct avmm_chain *c, uint32_t at) {
    const struct iovec *v = &iov[c->iov];
    while (at >= v->iov_len)
        at -= (uint32_t)(v++)->iov_len;
    return ((uint8_t *)v->iov_base)[at];
}

/* Put a message on the wire as `kind` has it. 0 if the socket is full. */
static int put(int fd, int kind, uint32_t size) {
    uint8_t lead[12] = {0};
    uint32_t lead_size = kind == AVMM_NET_VNET ? 12 : kind == AVMM_NET_STREAM ? 4 : 0;
    if (kind == AVMM_NET_STREAM)
        lead[2] = (uint8_t)(size >> 8), lead[3] = (uint8_t)size, lead[1] = (uint8_t)(size >> 16);
    struct iovec v[2] = {{lead, lead_size}, {frame, size}};
    struct msghdr m = {.msg_iov = v, .msg_iovlen = 2};
    return sendmsg(fd, &m, MSG_DONTWAIT) == (ssize_t)(size + lead_size);
}

static uint64_t blocked, grown;

/* A stream must take a frame whole, so it gets one. */
static uint32_t put_frames(struct avmm_net_rx *rx, int wire, uint32_t *expected) {
    uint32_t pushed = 0;
    for (uint32_t i = 1 + below(rx->kind == AVMM_NET_STREAM ? 1 : 3); i--;) {
        uint32_t size = frame_size();
        fill_frame(size, (uint8_t)size);
        if (!put(wire, rx->kind, size))
            break;
        expected[pushed++] = size;
    }
    return pushed;
}

/* The packet that begins in chain `at` is one of those expected; how many chains it has. */
static uint32_t check_packet(const struct avmm_net_rx *rx, uint32_t at, const uint32_t *expected, uint32_t pushed, uint32_t *got) {
    uint32_t parts = byte_at(&chains[at], 10) | byte_at(&chains[at], 11) << 8, have = 0, size;
    assert(parts >= 1 && at + parts <= turn.used && (rx->mergeable || parts == 1));
    for (uint32_t i = at; i < at + parts; i++) {
        have += written[i];
        assert(i + 1 == at + parts || written[i] == chains[i].write_bytes);
    }
    do /* some were dropped */
        assert(*got < pushed), size = expected[(*got)++];
    while (size + 12 != have);
    for (uint32_t i = at, done = 0; i < at + parts; i++) {
        for (uint32_t j = done ? 0 : 12; j < written[i]; j += 1 + below(50))
            assert(byte_at(&chains[i], j) == (uint8_t)((uint8_t)size + (done + j - 12) * 7));
        done += written[i];
    }
    return parts;
}

static void receive_round(struct avmm_net_rx *rx, int wire) {
    uint32_t expected[4], got = 0;
    rx->mergeable = below(4) != 0;
    rx->aim = below(3) ? rx->aim : below(2000);
    uint32_t pushed = put_frames(rx, wire, expected);
    for (int i = 0; i < 60; i++) {
        uint32_t aim = rx->aim;
        clear();
        for (uint32_t n = below(MAX_CHAINS); n--;)
            add_chain(rx->mergeable ? 12 + below(below(2) ? 100 : 6000) : 1500 + below(70000), 1 + below(below(4) ? 4 : 600), 1);
        ring_at = ring_done = 0;
        malformed_at = below(4) ? UINT32_MAX : below(10), headless = below(2);
        wants = 1 + (int)below(8);
        new_turn(below(8) ? MAX_CHAINS : below(MAX_CHAINS), 1 << 20);
        int status = avmm_net_receive_turn(rx, &turn);
        assert(status != AVMM_NET_BAD && status != AVMM_NET_ENDED);
        if (was_malformed(status))
            continue;
        assert(!ring.unsignalled && (turn.interrupt || status != AVMM_NET_MORE));
        grown += rx->aim > aim && turn.used;
        for (uint32_t at = 0; at < turn.used;)
            at += check_packet(rx, at, expected, pushed, &got);
        if (status == AVMM_NET_WAIT) {
            blocked++;
            break;
        }
    }
    rx->discard = 1; /* what is left is lost, as while the link is down */
    rx->pending = 0;
    new_turn(0, 1);
    while (avmm_net_receive_turn(rx, &turn) == AVMM_NET_MORE)
        assert(!turn.n && !rx->pending);
    rx->discard = 0;
}

static void send_round(struct avmm_net_tx *tx, int wire) {
    static uint8_t back[1 << 18];
    clear();
    tx->checksum = (uint8_t)below(2), tx->gso = (uint32_t)rnd(), tx->ecn = (uint8_t)below(2);
    for (uint32_t i = below(MAX_CHAINS); i--;) {
        uint32_t size = below(20) ? frame_size() : 65000 + below(2000);
        struct avmm_chain *c = add_chain(12 + size, 1 + below(below(8) ? 6 : SEGMENTS), 0);
        if (!c)
            break;
        for (uint32_t k = 0; k < c->n_read; k++)
            memset(iov[c->iov + k].iov_base, below(3) ? 0 : (int)rnd(), iov[c->iov + k].iov_len);
    }
    ring_at = ring_done = 0;
    malformed_at = below(4) ? UINT32_MAX : below(10), headless = below(2);
    wants = 1 + (int)below(8);
    for (int i = 0; ring_done < n_chains || tx->left_at < tx->left_end; i++) {
        assert(i < 100000);
        new_turn(1 + below(MAX_CHAINS), below(200000) + 1);
        int status = avmm_net_send_turn(tx, &turn);
        if (was_malformed(status))
            continue;
        assert(status == AVMM_NET_MORE || status == AVMM_NET_WAIT);
        for (uint32_t k = 0; k < turn.used; k++)
            assert(written[ring_done - turn.used + k] == 0);
        assert(!ring.unsignalled || (turn.used && status == AVMM_NET_MORE && !turn.interrupt));
        if (status == AVMM_NET_WAIT) {
            blocked++;
            assert(recv(wire, back, 1 + below(sizeof back), MSG_DONTWAIT) > 0);
        }
    }
    assert(avmm_net_send_turn(tx, &turn) == AVMM_NET_MORE && !turn.n && !ring.unsignalled); /* the turn that follows */
    while (recv(wire, back, sizeof back, MSG_DONTWAIT) > 0)
        ;
}

int main(int argc, char **argv) {
    static const int types[] = {SOCK_SEQPACKET, SOCK_DGRAM, SOCK_STREAM};
    uint64_t sum[4] = {0};
    assert(argc == 3);
    state = strtoull(argv[1], NULL, 0) * 0x9e3779b97f4a7c15ull + 1;
    long rounds = atol(argv[2]);
    for (int kind = AVMM_NET_VNET; kind <= AVMM_NET_STREAM; kind++) {
        int fds[2];
        assert(!socketpair(AF_UNIX, types[kind] | SOCK_NONBLOCK, 0, fds));
        struct avmm_net_rx rx = {.fd = fds[0], .kind = (uint8_t)kind, .packet = packet[0], .stream = stream};
        struct avmm_net_tx tx = {.fd = fds[0], .kind = (uint8_t)kind, .socket = 1, .packet = packet[1]};
        for (long i = 0; i < rounds; i++) {
            if (below(2))
                receive_round(&rx, fds[1]);
            else
                send_round(&tx, fds[1]);
        }
        sum[0] += rx.packets, sum[1] += rx.dropped, sum[2] += tx.packets, sum[3] += tx.errors;
        close(fds[0]), close(fds[1]);
    }
    clear();
    new_turn(0, 0);
    free(turn.chains), free(turn.iov), free(turn.heads), free(turn.lens);
    printf("%lu %lu %lu %lu %lu %lu %lu %lu\n", sum[0], sum[1], sum[2], sum[3], blocked, grown, first, behind);
    return 0;
}
