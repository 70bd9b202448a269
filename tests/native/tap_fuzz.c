/* Frames through the native network code under sanitizers, in chains of every shape and over every kind of descriptor. Each
 * segment is an allocation of its own, so a byte too far is a crash; what arrives is compared with what was sent.
 * Usage: tap_fuzz SEED ROUNDS; prints packets received, dropped, sent, refused, and calls that would have blocked. */
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

static uint64_t blocked;

static void receive_round(struct avmm_net_rx *rx, int wire) {
    uint32_t expected[4], pushed = 0, got = 0, used;
    uint16_t heads[MAX_CHAINS];
    uint32_t lens[MAX_CHAINS];
    rx->mergeable = below(4) != 0;
    for (uint32_t i = 1 + below(rx->kind == AVMM_NET_STREAM ? 1 : 3); i--;) { /* a stream must take a frame whole */
        uint32_t size = frame_size();
        fill_frame(size, (uint8_t)size);
        if (!put(wire, rx->kind, size))
            break;
        expected[pushed++] = size;
    }
    for (int turn = 0; turn < 60; turn++) {
        clear();
        for (uint32_t i = below(MAX_CHAINS); i--;)
            add_chain(rx->mergeable ? 12 + below(below(2) ? 100 : 6000) : 1500 + below(70000), 1 + below(below(4) ? 4 : 600), 1);
        int status = avmm_net_receive(rx, chains, n_chains, iov, 1 << 20, heads, lens, &used);
        assert(status != AVMM_NET_BAD && status != AVMM_NET_ENDED && used <= n_chains);
        for (uint32_t at = 0, size; at < used;) {
            uint32_t parts = byte_at(&chains[at], 10) | byte_at(&chains[at], 11) << 8, have = 0;
            assert(parts >= 1 && at + parts <= used && (rx->mergeable || parts == 1));
            for (uint32_t i = at; i < at + parts; i++)
                assert(heads[i] == chains[i].head && lens[i] <= chains[i].write_bytes), have += lens[i];
            do /* some were dropped */
                assert(got < pushed), size = expected[got++];
            while (size + 12 != have);
            for (uint32_t i = at, done = 0; i < at + parts; i++) {
                for (uint32_t j = done ? 0 : 12; j < lens[i]; j += 1 + below(50))
                    assert(byte_at(&chains[i], j) == (uint8_t)((uint8_t)size + (done + j - 12) * 7));
                done += lens[i];
            }
            at += parts;
        }
        if (status == AVMM_NET_WAIT) {
            blocked++;
            break;
        }
    }
    rx->discard = 1; /* what is left is lost, as while the link is down */
    rx->pending = 0;
    while (avmm_net_receive(rx, NULL, 0, NULL, 1, NULL, NULL, &used) == AVMM_NET_MORE)
        assert(!used && !rx->pending);
    rx->discard = 0;
}

static void send_round(struct avmm_net_tx *tx, int wire) {
    uint32_t used, done = 0;
    uint16_t heads[MAX_CHAINS];
    uint32_t lens[MAX_CHAINS];
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
    uint32_t total = n_chains;
    for (int turn = 0; done < total || tx->left_at < tx->left_end; turn++) {
        assert(turn < 100000);
        int status = avmm_net_send(tx, chains + done, total - done, iov, below(200000) + 1, heads, lens, &used);
        assert(status == AVMM_NET_MORE || status == AVMM_NET_WAIT);
        for (uint32_t i = 0; i < used; i++)
            assert(heads[i] == chains[done + i].head && lens[i] == 0);
        done += used;
        if (status == AVMM_NET_WAIT) {
            blocked++;
            assert(recv(wire, back, 1 + below(sizeof back), MSG_DONTWAIT) > 0);
        }
    }
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
    printf("%lu %lu %lu %lu %lu\n", sum[0], sum[1], sum[2], sum[3], blocked);
    return 0;
}
