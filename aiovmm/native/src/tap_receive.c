#include "guard.h"
#include "nowait.h"
#include "tap_turn.h"
#include <arpa/inet.h>
#include <errno.h>
#include <stdbool.h>
#include <sys/socket.h>

#define NUM_BUFFERS offsetof(struct virtio_net_hdr_v1, num_buffers)
#define NEEDS_CSUM 1u
#define FIRST 2u    /* chains that a turn takes first: for the packet that there is, and to look for another */
/* Bytes that a read is charged besides those it gave. A peer whose packets all come to nothing (too short, too long, too large for
 * the guest's buffers, a link that is down) would else hold the turn for as long as it sends. */
#define READ_COST 2048u

/* §5.1.6.3.1: receive buffers are device-writable, and each holds a header at least. */
static inline bool is_receive_buffer(const struct avmm_chain *c) { return !c->n_read && c->write_bytes >= AVMM_NET_HDR; }

/* Return the next `n`. The driver goes on with them while the turn does with others, unless it wants an interrupt: that comes
 * first, so the turn ends. A driver that is busy with earlier packets wants none. */
static void give(struct avmm_net_turn *t, const uint16_t *heads, const uint32_t *lens, uint32_t n) {
    t->used += n;
    t->interrupt = avmm_queue_finish(t->queue, 0, heads, lens, n);
}

struct receive {
    struct avmm_net_rx *rx;
    struct avmm_net_turn *turn;
    uint32_t step;    /* chains to take the next time */
    uint32_t charged; /* against the turn's budget */
    bool dry;         /* there is no further chain, for this turn */
    bool empty;       /* because the driver has posted none */
    bool cramped;     /* because there is no room for its segments: the caller makes some, or has it refused */
    bool malformed;   /* not even a first one */
};

/* Take twice as many as the last time. False: there are none. */
static bool take_more(struct receive *r) {
    struct avmm_net_turn *t = r->turn;
    uint32_t left = t->max_chains - t->n, most = r->step < left ? r->step : left;
    if (r->dry || !most)
        return false;
    int got = avmm_net_take(t, most);
    r->dry = got <= 0; /* fewer than asked for may be those before a malformed one: the next look tells */
    r->empty = !got;
    r->cramped = got == AVMM_RING_NO_ROOM;
    r->step *= 2;
    r->malformed = got < 0 && !t->n;
    return got > 0;
}

static inline bool has_chain(struct receive *r, uint32_t i) { return i < r->turn->n || take_more(r); }

/* Whether the next chains hold `size` bytes, as many of them as a packet may span. */
static bool has_room(struct receive *r, uint32_t size) {
    uint64_t room = 0;
    for (uint32_t i = r->turn->used; has_chain(r, i) && is_receive_buffer(&r->turn->chains[i]); i++) {
        room += r->turn->chains[i].write_bytes;
        if (room >= size || !r->rx->mergeable)
            break;
    }
    return room >= size;
}

/* The segments of the chains that are next. Receive chains have no readable part, so there is nothing between them. */
static inline const struct iovec *segments(const struct receive *r) {
    return r->turn->iov + r->turn->chains[r->turn->used].iov;
}

/* A packet of `size` bytes now lies in the next chains, which have room for it. */
static void complete(struct receive *r, uint32_t size) {
    struct avmm_net_turn *t = r->turn;
    uint16_t buffers = 0;
    for (uint32_t left = size; left; buffers++) {
        const struct avmm_chain *c = &t->chains[t->used + buffers];
        uint32_t part = c->write_bytes < left ? (uint32_t)c->write_bytes : left;
        t->heads[buffers] = c->head;
        t->lens[buffers] = part;
        left -= part;
    }
    avmm_net_scatter(segments(r), NUM_BUFFERS, &buffers, sizeof buffers);
    if (!r->rx->checked) { /* §5.1.6.4.1: no DATA_VALID without GUEST_CSUM; a TAP tells of checked packets all the same */
        uint8_t flags;
        avmm_net_gather(segments(r), &flags, sizeof flags);
        flags &= NEEDS_CSUM; /* the host sends none of these then; a socket's peer that does left the sum out */
        avmm_net_scatter(segments(r), 0, &flags, sizeof flags);
    }
    give(t, t->heads, t->lens, buffers);
    avmm_allowance_spend(r->rx->allowance, size - AVMM_NET_HDR);
    r->rx->packets++;
    r->rx->bytes += size - AVMM_NET_HDR;
}

/* Copy the pending packet into chains. False: they have not enough room. */
static bool place_pending(struct receive *r) {
    struct avmm_net_rx *rx = r->rx;
    if (!has_room(r, rx->pending))
        return false;
    avmm_net_scatter(segments(r), 0, rx->packet, rx->pending);
    complete(r, rx->pending);
    rx->pending = 0;
    return true;
}

static int read_failed(struct avmm_net_rx *rx) {
    rx->error = errno;
    return errno == EAGAIN ? AVMM_NET_WAIT : AVMM_NET_ENDED;
}

/* The open file may be another process's as well, which can make it block at any time. */
static ssize_t read_once(const struct avmm_net_rx *rx, const struct iovec *vec, uint32_t n) {
    struct msghdr message = {.msg_iov = (struct iovec *)vec, .msg_iovlen = n};
    ssize_t got;
    if (!rx->socket)
        return avmm_readv_now(rx->fd, vec, (int)n);
    do
        got = recvmsg(rx->fd, &message, MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    return got;
}

static ssize_t read_now(const struct avmm_net_rx *rx, const struct iovec *vec, uint32_t n) {
    ssize_t got = read_once(rx, vec, n);
    if (got >= 0 || errno != EFAULT)
        return got;
    avmm_guard_touch(vec, n, AVMM_NET_PACKET + 1, true);
    return read_once(rx, vec, n);
}

/* The only way to packets of a driver: every read is charged, whatever becomes of what it gave. */
static ssize_t read_charged(struct receive *r, const struct iovec *vec, uint32_t n) {
    ssize_t got = read_now(r->rx, vec, n);
    r->charged += READ_COST + (got > 0 ? (uint32_t)got : 0);
    return got;
}

/* One packet, header included, into rx->packet, as far as it is legal; `skip` is what the descriptor does not deliver. */
static int read_whole(struct receive *r, uint32_t skip) {
    struct avmm_net_rx *rx = r->rx;
    struct iovec vec = {rx->packet + skip, AVMM_NET_PACKET + 1 - skip};
    ssize_t got = read_charged(r, &vec, 1);
    if (got < 0)
        return read_failed(rx);
    if (!got && rx->zero_ends) {
        rx->error = 0;
        return AVMM_NET_ENDED;
    }
    memset(rx->packet, 0, skip);
    uint32_t size = skip + (uint32_t)got;
    if (size < AVMM_NET_HDR + AVMM_NET_MIN_FRAME || size > AVMM_NET_PACKET || rx->discard)
        rx->dropped++;
    else
        rx->pending = size;
    return AVMM_NET_MORE;
}

/* The segments for a packet of the expected size, one at least, as far as there are chains; how many, and their `room`. */
static uint32_t offer(struct receive *r, struct iovec *vec, uint64_t *room) {
    uint32_t n = 0, last = r->rx->mergeable ? UINT32_MAX : r->turn->used, aim = r->rx->aim ? r->rx->aim : 1;
    *room = 0;
    for (uint32_t i = r->turn->used; *room < aim && n + 1 < AVMM_NET_MAX_VEC && i <= last && has_chain(r, i); i++) {
        const struct avmm_chain *c = &r->turn->chains[i];
        if (!is_receive_buffer(c))
            break;
        for (uint32_t j = 0; j < c->n_write && *room < aim && n + 1 < AVMM_NET_MAX_VEC; j++) {
            vec[n] = r->turn->iov[c->iov + j];
            *room += vec[n++].iov_len;
        }
    }
    return n;
}

/* A packet of `size` bytes was read: `room` of them into guest memory, the others behind so many in rx->packet. */
static void settle(struct receive *r, const struct iovec *vec, uint64_t room, uint32_t size) {
    struct avmm_net_rx *rx = r->rx;
    rx->aim = size > rx->aim ? size : rx->aim - (rx->aim - size) / 8;
    if (size > room && !has_room(r, size)) {
        avmm_net_gather(vec, rx->packet, (uint32_t)room);
        rx->pending = size;
        return;
    }
    if (size > room)
        avmm_net_scatter(segments(r), (uint32_t)room, rx->packet + room, size - (uint32_t)room);
    complete(r, size);
}

/* One packet straight into the next chains. The kernel looks at every segment that it is given, so they are no more
 * than a packet like the last ones needs. What does not fit goes to its place in rx->packet, and is copied. */
static int read_direct(struct receive *r) {
    struct avmm_net_rx *rx = r->rx;
    struct iovec vec[AVMM_NET_MAX_VEC];
    uint64_t room;
    uint32_t n = offer(r, vec, &room);
    if (room <= AVMM_NET_PACKET)
        vec[n++] = (struct iovec){rx->packet + room, AVMM_NET_PACKET + 1 - room};
    ssize_t got = read_charged(r, vec, n);
    if (got < 0)
        return read_failed(rx);
    if (!got && rx->zero_ends) {
        rx->error = 0;
        return AVMM_NET_ENDED;
    }
    if ((size_t)got < AVMM_NET_HDR + AVMM_NET_MIN_FRAME || (size_t)got > AVMM_NET_PACKET)
        rx->dropped++;
    else
        settle(r, vec, room, (uint32_t)got);
    return AVMM_NET_MORE;
}

/* Length of the frame that is next in the buffer; 0 while that is not there. */
static uint32_t stream_size(const struct avmm_net_rx *rx) {
    uint32_t size = 0;
    if (rx->stream_end - rx->stream_at >= sizeof size)
        memcpy(&size, rx->stream + rx->stream_at, sizeof size);
    return ntohl(size);
}

/* The next frame of a stream, if the buffer holds all of it: charged as a read is, for one read may have brought thousands. */
static bool next_frame(struct receive *r) {
    struct avmm_net_rx *rx = r->rx;
    const uint8_t *from = rx->stream + rx->stream_at;
    uint32_t have = rx->stream_end - rx->stream_at, size = stream_size(rx);
    if (have < 4 || size > AVMM_NET_FRAME || have < 4 + size)
        return false;
    rx->stream_at += 4 + size;
    r->charged += READ_COST;
    if (size < AVMM_NET_MIN_FRAME || rx->discard) {
        rx->dropped++;
    } else {
        memset(rx->packet, 0, AVMM_NET_HDR);
        memcpy(rx->packet + AVMM_NET_HDR, from + 4, size);
        rx->pending = AVMM_NET_HDR + size;
    }
    return true;
}

/* A frame out of the buffer, or one read into it. */
static int read_stream(struct receive *r) {
    struct avmm_net_rx *rx = r->rx;
    if (next_frame(r))
        return AVMM_NET_MORE;
    if (stream_size(rx) > AVMM_NET_FRAME) { /* caps what a peer makes us wait for and keep */
        rx->error = EPROTO;
        return AVMM_NET_ENDED;
    }
    uint32_t have = rx->stream_end - rx->stream_at;
    memmove(rx->stream, rx->stream + rx->stream_at, have);
    rx->stream_at = 0;
    rx->stream_end = have;
    struct iovec vec = {rx->stream + have, AVMM_NET_STREAM_BUFFER - have};
    ssize_t got = read_charged(r, &vec, 1);
    if (got < 0)
        return read_failed(rx);
    if (!got) {
        rx->error = 0;
        return AVMM_NET_ENDED;
    }
    rx->stream_end += (uint32_t)got;
    return AVMM_NET_MORE;
}

static int read_packet(struct receive *r) {
    struct avmm_net_rx *rx = r->rx;
    if (rx->kind == AVMM_NET_STREAM)
        return read_stream(r);
    if (rx->kind == AVMM_NET_PLAIN)
        return read_whole(r, AVMM_NET_HDR);
    return rx->discard ? read_whole(r, 0) : read_direct(r);
}

/* A packet waits in rx->packet: give it to the guest, or lose it where it can have no chains: more of them than a turn takes, or
 * such as come behind one that is not legal, would not be had in a further turn either. */
static int give_pending(struct receive *r, bool chain) {
    struct avmm_net_rx *rx = r->rx;
    if (place_pending(r))
        return AVMM_NET_MORE;
    if (!rx->discard && r->cramped && !r->turn->used)
        return AVMM_NET_RING;
    if (!rx->discard && (!chain || (rx->mergeable && (r->empty || r->turn->used))))
        return AVMM_NET_ROOM;
    rx->pending = 0;
    rx->dropped++;
    return AVMM_NET_MORE;
}

static int receive(struct receive *r) {
    struct avmm_net_rx *rx = r->rx;
    const struct avmm_net_turn *t = r->turn;
    int status = AVMM_NET_MORE;
    while (status == AVMM_NET_MORE && r->charged < t->budget && !t->interrupt && avmm_allowance_left(rx->allowance)) {
        bool chain = (!rx->discard || rx->pending) && has_chain(r, t->used);
        if (r->malformed) {
            status = AVMM_NET_RING;
        } else if (chain && !is_receive_buffer(&t->chains[t->used])) {
            status = AVMM_NET_BAD;
        } else if (rx->pending) {
            status = give_pending(r, chain);
        } else if (!chain && !rx->discard) {
            status = AVMM_NET_ROOM;
        } else {
            status = read_packet(r);
        }
    }
    return status;
}

int avmm_net_receive_turn(struct avmm_net_rx *rx, struct avmm_net_turn *turn) {
    struct receive r = {.rx = rx, .turn = turn, .step = FIRST};
    avmm_net_begin(turn);
    int status = receive(&r);
    avmm_net_end(turn);
    return status;
}

uint32_t avmm_net_drain(struct avmm_net_rx *rx, uint32_t most) {
    uint32_t n = 0;
    uint8_t header[AVMM_NET_HDR]; /* a TAP refuses to read less, and loses the packet all the same */
    struct iovec vec = {header, sizeof header};
    while (n < most && read_now(rx, &vec, 1) > 0)
        n++;
    return n;
}
