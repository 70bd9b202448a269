#include "tap.h"
#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <linux/virtio_net.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

_Static_assert(sizeof(struct virtio_net_hdr_v1) == AVMM_NET_HDR, "VIRTIO 1.2 §5.1.6");

#define NUM_BUFFERS offsetof(struct virtio_net_hdr_v1, num_buffers)
#define MAX_VEC 1024u /* IOV_MAX */
#define MIN_FRAME 14u /* an Ethernet header */
#define FIRST 2u      /* chains that a turn takes first: for the packet that there is, and to look for another */
#define AT_ONCE 16u   /* chains to send that are taken at once; those behind an interrupt are put back */
#define ASK_FRAMES 64u /* sent without a look whether the driver wants an interrupt; likewise bytes: of a segmented frame or two */
#define ASK_BYTES (32u << 10)
#define DISCARD 64u   /* packets thrown away in a turn while the link is down */

/* ---- guest buffers --------------------------------------------------------------------------------------------------- */

/* Copy `size` bytes between `buffer` and a scattered area that is at least so large, from its byte `offset` on. */
static void scatter(const struct iovec *iov, uint32_t offset, const void *buffer, uint32_t size) {
    const uint8_t *from = buffer;
    for (; size; iov++) {
        if (offset >= iov->iov_len) {
            offset -= iov->iov_len;
            continue;
        }
        size_t room = iov->iov_len - offset, n = room < size ? room : size;
        memcpy((uint8_t *)iov->iov_base + offset, from, n);
        from += n;
        size -= n;
        offset = 0;
    }
}

static void gather(const struct iovec *iov, void *buffer, uint32_t size) {
    uint8_t *to = buffer;
    for (; size; iov++) {
        size_t n = iov->iov_len < size ? iov->iov_len : size;
        memcpy(to, iov->iov_base, n);
        to += n;
        size -= n;
    }
}

/* §5.1.6.3.1: receive buffers are device-writable, and each holds a header at least. */
static inline bool is_receive_buffer(const struct avmm_chain *c) { return !c->n_read && c->write_bytes >= AVMM_NET_HDR; }
static inline bool is_transmit_buffer(const struct avmm_chain *c) { return !c->n_write && c->read_bytes >= AVMM_NET_HDR; }

/* ---- the chains of a turn -------------------------------------------------------------------------------------------- */

static void begin(struct avmm_net_turn *t) {
    t->n = t->used = 0;
    t->interrupt = 0;
}

/* Take up to `most` chains behind those that are there, their segments behind theirs; how many, or enum avmm_ring_code. If there
 * are some, that is no error: the next turn meets the malformed one again, and reports it. */
static int take(struct avmm_net_turn *t, uint32_t most) {
    uint32_t base = 0;
    if (t->n) {
        const struct avmm_chain *last = &t->chains[t->n - 1];
        base = last->iov + last->n_read + last->n_write;
    }
    int got = avmm_queue_pop(t->queue, t->mem, t->chains + t->n, most, t->iov + base, NULL, t->max_iov - base, &t->error);
    if (got < 0 && t->n && got != AVMM_RING_BAD_INDEX && got != AVMM_RING_NO_ROOM)
        avmm_queue_put_back(t->queue, 1);
    for (int i = 0; i < got; i++)
        t->chains[t->n++].iov += base;
    return got;
}

/* Return the next `n`. The driver goes on with them while the turn does with others, unless it wants an interrupt: that comes
 * first, so the turn ends. A driver that is busy with earlier packets wants none. */
static void give(struct avmm_net_turn *t, const uint16_t *heads, const uint32_t *lens, uint32_t n) {
    t->used += n;
    t->interrupt = avmm_queue_finish(t->queue, 0, heads, lens, n);
}

/* Put those back that were not used. */
static void end(struct avmm_net_turn *t) {
    if (t->n > t->used)
        avmm_queue_put_back(t->queue, t->n - t->used);
}

/* ---- receiving ------------------------------------------------------------------------------------------------------- */

struct receive {
    struct avmm_net_rx *rx;
    struct avmm_net_turn *turn;
    uint32_t step;   /* chains to take the next time */
    uint32_t passed; /* bytes */
    bool dry;        /* the ring has no further chain, for this turn */
    bool malformed;  /* not even a first one */
};

/* Take twice as many as the last time. False: there are none. */
static bool take_more(struct receive *r) {
    struct avmm_net_turn *t = r->turn;
    uint32_t left = t->max_chains - t->n, most = r->step < left ? r->step : left;
    if (r->dry || !most)
        return false;
    int got = take(t, most);
    r->dry = got < (int)most;
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
    scatter(segments(r), NUM_BUFFERS, &buffers, sizeof buffers);
    give(t, t->heads, t->lens, buffers);
    r->passed += size;
    r->rx->packets++;
    r->rx->bytes += size - AVMM_NET_HDR;
}

/* Copy the pending packet into chains. False: they have not enough room. */
static bool place_pending(struct receive *r) {
    struct avmm_net_rx *rx = r->rx;
    if (!has_room(r, rx->pending))
        return false;
    scatter(segments(r), 0, rx->packet, rx->pending);
    complete(r, rx->pending);
    rx->pending = 0;
    return true;
}

static int read_failed(struct avmm_net_rx *rx) {
    rx->error = errno;
    return errno == EAGAIN ? AVMM_NET_WAIT : AVMM_NET_ENDED;
}

static ssize_t read_retrying(int fd, const struct iovec *vec, uint32_t n) {
    ssize_t got;
    do
        got = readv(fd, vec, (int)n);
    while (got < 0 && errno == EINTR);
    return got;
}

/* One packet, header included, into rx->packet, as far as it is legal; `skip` is what the descriptor does not deliver. */
static int read_whole(struct avmm_net_rx *rx, uint32_t skip) {
    struct iovec vec = {rx->packet + skip, AVMM_NET_PACKET + 1 - skip};
    ssize_t got = read_retrying(rx->fd, &vec, 1);
    if (got < 0)
        return read_failed(rx);
    if (!got && rx->zero_ends) {
        rx->error = 0;
        return AVMM_NET_ENDED;
    }
    memset(rx->packet, 0, skip);
    uint32_t size = skip + (uint32_t)got;
    if (size < AVMM_NET_HDR + MIN_FRAME || size > AVMM_NET_PACKET || rx->discard)
        rx->dropped++;
    else
        rx->pending = size;
    return AVMM_NET_MORE;
}

/* The segments for a packet of the expected size, one at least, as far as there are chains; how many, and their `room`. */
static uint32_t offer(struct receive *r, struct iovec *vec, uint64_t *room) {
    uint32_t n = 0, last = r->rx->mergeable ? UINT32_MAX : r->turn->used, aim = r->rx->aim ? r->rx->aim : 1;
    *room = 0;
    for (uint32_t i = r->turn->used; *room < aim && n + 1 < MAX_VEC && i <= last && has_chain(r, i); i++) {
        const struct avmm_chain *c = &r->turn->chains[i];
        if (!is_receive_buffer(c))
            break;
        for (uint32_t j = 0; j < c->n_write && *room < aim && n + 1 < MAX_VEC; j++) {
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
        gather(vec, rx->packet, (uint32_t)room);
        rx->pending = size;
        return;
    }
    if (size > room)
        scatter(segments(r), (uint32_t)room, rx->packet + room, size - (uint32_t)room);
    complete(r, size);
}

/* One packet straight into the next chains. The kernel looks at every segment that it is given, so they are no more
 * than a packet like the last ones needs. What does not fit goes to its place in rx->packet, and is copied. */
static int read_direct(struct receive *r) {
    struct avmm_net_rx *rx = r->rx;
    struct iovec vec[MAX_VEC];
    uint64_t room;
    uint32_t n = offer(r, vec, &room);
    if (room <= AVMM_NET_PACKET)
        vec[n++] = (struct iovec){rx->packet + room, AVMM_NET_PACKET + 1 - room};
    ssize_t got = read_retrying(rx->fd, vec, n);
    if (got < 0)
        return read_failed(rx);
    if (!got && rx->zero_ends) {
        rx->error = 0;
        return AVMM_NET_ENDED;
    }
    if ((size_t)got < AVMM_NET_HDR + MIN_FRAME || (size_t)got > AVMM_NET_PACKET)
        rx->dropped++;
    else
        settle(r, vec, room, (uint32_t)got);
    return AVMM_NET_MORE;
}

static int read_stream(struct avmm_net_rx *rx) {
    for (;;) {
        uint32_t have = rx->stream_end - rx->stream_at, size = 0;
        uint8_t *from = rx->stream + rx->stream_at;
        if (have >= 4) {
            memcpy(&size, from, 4);
            size = ntohl(size);
            if (size > AVMM_NET_FRAME) { /* caps what a peer makes us wait for and keep */
                rx->error = EPROTO;
                return AVMM_NET_ENDED;
            }
            if (have >= 4 + size) {
                rx->stream_at += 4 + size;
                if (size < MIN_FRAME || rx->discard) {
                    rx->dropped++;
                } else {
                    memset(rx->packet, 0, AVMM_NET_HDR);
                    memcpy(rx->packet + AVMM_NET_HDR, from + 4, size);
                    rx->pending = AVMM_NET_HDR + size;
                }
                return AVMM_NET_MORE;
            }
        }
        memmove(rx->stream, from, have);
        rx->stream_at = 0;
        rx->stream_end = have;
        struct iovec vec = {rx->stream + have, AVMM_NET_STREAM_BUFFER - have};
        ssize_t got = read_retrying(rx->fd, &vec, 1);
        if (got < 0)
            return read_failed(rx);
        if (!got) {
            rx->error = 0;
            return AVMM_NET_ENDED;
        }
        rx->stream_end += (uint32_t)got;
    }
}

static int read_packet(struct receive *r) {
    struct avmm_net_rx *rx = r->rx;
    if (rx->kind == AVMM_NET_STREAM)
        return read_stream(rx);
    if (rx->kind == AVMM_NET_PLAIN)
        return read_whole(rx, AVMM_NET_HDR);
    return rx->discard ? read_whole(rx, 0) : read_direct(r);
}

/* A packet waits in rx->packet: give it to the guest, or lose it where it can have no chains. */
static int give_pending(struct receive *r, bool chain) {
    struct avmm_net_rx *rx = r->rx;
    if (place_pending(r))
        return AVMM_NET_MORE;
    if (!rx->discard && (rx->mergeable || !chain))
        return AVMM_NET_ROOM;
    rx->pending = 0;
    rx->dropped++;
    return AVMM_NET_MORE;
}

static int receive(struct receive *r) {
    struct avmm_net_rx *rx = r->rx;
    const struct avmm_net_turn *t = r->turn;
    uint32_t discarded = 0;
    int status = AVMM_NET_MORE;
    while (status == AVMM_NET_MORE && r->passed < t->budget && discarded < DISCARD && !t->interrupt) {
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
            discarded += rx->discard;
            status = read_packet(r);
        }
    }
    return status;
}

int avmm_net_receive_turn(struct avmm_net_rx *rx, struct avmm_net_turn *turn) {
    struct receive r = {.rx = rx, .turn = turn, .step = FIRST};
    begin(turn);
    int status = receive(&r);
    end(turn);
    return status;
}

uint32_t avmm_net_drain(struct avmm_net_rx *rx, uint32_t most) {
    uint32_t n = 0;
    uint8_t nothing[1];
    while (n < most && read(rx->fd, nothing, sizeof nothing) > 0)
        n++;
    return n;
}

/* ---- sending --------------------------------------------------------------------------------------------------------- */

/* §5.1.6.2: only what was negotiated; flags that a driver has no use for are ignored. */
static bool check_header(const struct avmm_net_tx *tx, struct virtio_net_hdr_v1 *h) {
    uint8_t type = h->gso_type & (uint8_t)~VIRTIO_NET_HDR_GSO_ECN;
    h->flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM;
    h->num_buffers = 0;
    if (h->flags && !tx->checksum)
        return false;
    if (type != VIRTIO_NET_HDR_GSO_NONE && (type >= 32 || !(tx->gso & 1u << type)))
        return false;
    return !(h->gso_type & VIRTIO_NET_HDR_GSO_ECN) || (tx->ecn && type != VIRTIO_NET_HDR_GSO_NONE);
}

static ssize_t write_out(struct avmm_net_tx *tx, struct iovec *vec, uint32_t n) {
    struct msghdr message = {.msg_iov = vec, .msg_iovlen = n};
    ssize_t put;
    do
        put = tx->socket ? sendmsg(tx->fd, &message, MSG_NOSIGNAL) : writev(tx->fd, vec, (int)n);
    while (put < 0 && errno == EINTR);
    return put;
}

static bool is_end(int error) {
    return error == EPIPE || error == ECONNRESET || error == ECONNREFUSED || error == ENOTCONN || error == EBADFD ||
           error == EBADF;
}

/* What a stream has not taken of the last frame. Nothing else may be written before it. */
static int write_rest(struct avmm_net_tx *tx) {
    while (tx->left_at < tx->left_end) {
        struct iovec vec = {tx->packet + tx->left_at, tx->left_end - tx->left_at};
        ssize_t put = write_out(tx, &vec, 1);
        if (put < 0) {
            tx->error = errno;
            return errno == EAGAIN ? AVMM_NET_WAIT : AVMM_NET_ENDED;
        }
        tx->left_at += (uint32_t)put;
    }
    return AVMM_NET_MORE;
}

static void keep_rest(struct avmm_net_tx *tx, const struct iovec *vec, uint32_t n, uint32_t put, uint32_t total) {
    uint32_t filled = 0, skip = put;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t gone = skip < vec[i].iov_len ? skip : (uint32_t)vec[i].iov_len;
        uint32_t part = (uint32_t)vec[i].iov_len - gone;
        memmove(tx->packet + filled, (uint8_t *)vec[i].iov_base + gone, part); /* it may lie in tx->packet itself */
        filled += part;
        skip -= gone;
    }
    tx->left_at = 0;
    tx->left_end = total - put;
}

/* The frame of a chain, without its virtio header, as at most `most` pieces of `vec`; how many. */
static uint32_t frame_pieces(struct avmm_net_tx *tx, const struct avmm_chain *c, const struct iovec *iov, struct iovec *vec,
                             uint32_t most) {
    uint32_t skip = AVMM_NET_HDR, n = 0;
    iov += c->iov;
    if (c->n_read > most) {
        gather(iov, tx->packet, (uint32_t)c->read_bytes);
        vec[0] = (struct iovec){tx->packet + AVMM_NET_HDR, (uint32_t)c->read_bytes - AVMM_NET_HDR};
        return 1;
    }
    for (uint32_t i = 0; i < c->n_read; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= (uint32_t)iov[i].iov_len;
            continue;
        }
        vec[n++] = (struct iovec){(uint8_t *)iov[i].iov_base + skip, iov[i].iov_len - skip};
        skip = 0;
    }
    return n;
}

static int send_frame(struct avmm_net_tx *tx, const struct avmm_chain *c, const struct iovec *iov) {
    struct virtio_net_hdr_v1 header; /* a copy: what was checked is what is sent */
    struct iovec vec[MAX_VEC];
    uint64_t size = c->read_bytes - AVMM_NET_HDR;
    if (tx->discard) {
        tx->dropped++;
        return AVMM_NET_MORE;
    }
    gather(iov + c->iov, &header, sizeof header);
    if (size < MIN_FRAME || size > AVMM_NET_FRAME || !check_header(tx, &header)) {
        tx->errors++;
        return AVMM_NET_MORE;
    }
    uint32_t length = htonl((uint32_t)size), n = 0, total = (uint32_t)size;
    if (tx->kind == AVMM_NET_VNET)
        vec[n++] = (struct iovec){&header, sizeof header};
    else if (tx->kind == AVMM_NET_STREAM)
        vec[n++] = (struct iovec){&length, sizeof length};
    total += n ? (uint32_t)vec[0].iov_len : 0;
    n += frame_pieces(tx, c, iov, vec + n, MAX_VEC - n);
    ssize_t put = write_out(tx, vec, n);
    if (put < 0) {
        tx->error = errno;
        if (errno == EAGAIN)
            return AVMM_NET_WAIT;
        if (is_end(errno))
            return AVMM_NET_ENDED;
        *(errno == EINVAL ? &tx->errors : &tx->dropped) += 1; /* EINVAL: the host's kernel refuses the header */
        return AVMM_NET_MORE;
    }
    if (tx->kind == AVMM_NET_STREAM && (uint32_t)put < total)
        keep_rest(tx, vec, n, (uint32_t)put, total);
    tx->packets++;
    tx->bytes += size;
    return AVMM_NET_MORE;
}

/* A frame was sent: return its chain at once, for sockets of the guest have only so much under way. Whether the driver wants an
 * interrupt is asked more seldom: Linux frees what was sent whenever it sends, and moves the point of its next interrupt on. */
static void sent(struct avmm_net_turn *t, uint64_t *unasked) {
    const struct avmm_chain *c = &t->chains[t->used++];
    *unasked += c->read_bytes;
    if (avmm_queue_push(t->queue, &c->head, &(uint32_t){0}, 1) < 0) {
        t->interrupt = -1;
    } else if (*unasked >= ASK_BYTES || t->queue->unsignalled >= ASK_FRAMES) {
        *unasked = 0;
        t->interrupt = avmm_queue_needs_interrupt(t->queue);
    }
}

/* The frames of the chains that were taken, as far as the budget goes. */
static int send_frames(struct avmm_net_tx *tx, struct avmm_net_turn *t, uint64_t *passed, uint64_t *unasked) {
    int status = AVMM_NET_MORE;
    while (status == AVMM_NET_MORE && t->used < t->n && *passed < t->budget && !t->interrupt) {
        const struct avmm_chain *c = &t->chains[t->used];
        status = is_transmit_buffer(c) ? send_frame(tx, c, t->iov) : AVMM_NET_BAD;
        if (status == AVMM_NET_MORE) {
            *passed += c->read_bytes;
            sent(t, unasked);
            status = write_rest(tx); /* also after the last frame: the caller must learn that it has to wait */
        }
    }
    return status;
}

int avmm_net_send_turn(struct avmm_net_tx *tx, struct avmm_net_turn *turn) {
    uint64_t passed = 0, unasked = 0;
    begin(turn);
    int got = 1, status = write_rest(tx);
    while (status == AVMM_NET_MORE && got > 0 && turn->n < turn->max_chains && passed < turn->budget && !turn->interrupt) {
        uint32_t left = turn->max_chains - turn->n;
        got = take(turn, left < AT_ONCE ? left : AT_ONCE); /* at last none: the driver goes on meanwhile */
        if (got < 0 && !turn->n)
            return AVMM_NET_RING;
        status = send_frames(tx, turn, &passed, &unasked);
    }
    if (turn->max_chains && !turn->interrupt && (!turn->n || status != AVMM_NET_MORE)) /* else another turn follows, and asks */
        turn->interrupt = avmm_queue_needs_interrupt(turn->queue);
    end(turn);
    return status;
}
