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

/* ---- receiving ------------------------------------------------------------------------------------------------------- */

struct receive {
    struct avmm_net_rx *rx;
    const struct avmm_chain *chains;
    uint32_t n;
    const struct iovec *iov;
    uint16_t *heads;
    uint32_t *lens;
    uint32_t at;     /* chains filled */
    uint32_t passed; /* bytes */
};

/* A packet of `size` bytes now lies in the chains from `at` on, which have room for it. */
static void complete(struct receive *r, uint32_t size) {
    uint32_t first = r->at, left = size;
    while (left) {
        const struct avmm_chain *c = &r->chains[r->at];
        uint32_t part = c->write_bytes < left ? (uint32_t)c->write_bytes : left;
        r->heads[r->at] = c->head;
        r->lens[r->at] = part;
        left -= part;
        r->at++;
    }
    uint16_t buffers = (uint16_t)(r->at - first);
    scatter(r->iov + r->chains[first].iov, NUM_BUFFERS, &buffers, sizeof buffers);
    r->passed += size;
    r->rx->packets++;
    r->rx->bytes += size - AVMM_NET_HDR;
}

/* Copy the pending packet into chains. False: they have not enough room. */
static bool place_pending(struct receive *r) {
    struct avmm_net_rx *rx = r->rx;
    uint64_t room = 0;
    uint32_t i = r->at, last = rx->mergeable || r->at == r->n ? r->n : r->at + 1;
    for (; i < last && room < rx->pending && is_receive_buffer(&r->chains[i]); i++)
        room += r->chains[i].write_bytes;
    if (room < rx->pending)
        return false;
    const struct avmm_chain *c = &r->chains[r->at]; /* receive chains have no readable part: their iovecs are consecutive */
    scatter(r->iov + c->iov, 0, rx->packet, rx->pending);
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

/* One packet straight into the chains from `at` on. What does not fit goes to its place in rx->packet, and the rest after it. */
static int read_direct(struct receive *r) {
    struct avmm_net_rx *rx = r->rx;
    struct iovec vec[MAX_VEC];
    uint32_t n = 0, last = rx->mergeable ? r->n : r->at + 1;
    uint64_t room = 0;
    for (uint32_t i = r->at; i < last && room <= AVMM_NET_PACKET && n + 1 < MAX_VEC; i++) {
        const struct avmm_chain *c = &r->chains[i];
        if (!is_receive_buffer(c))
            break;
        for (uint32_t j = 0; j < c->n_write && room <= AVMM_NET_PACKET && n + 1 < MAX_VEC; j++) {
            vec[n] = r->iov[c->iov + j];
            room += vec[n++].iov_len;
        }
    }
    if (room <= AVMM_NET_PACKET)
        vec[n++] = (struct iovec){rx->packet + room, AVMM_NET_PACKET + 1 - room};
    ssize_t got = read_retrying(rx->fd, vec, n);
    if (got < 0)
        return read_failed(rx);
    if (!got && rx->zero_ends) {
        rx->error = 0;
        return AVMM_NET_ENDED;
    }
    if ((size_t)got < AVMM_NET_HDR + MIN_FRAME || (size_t)got > AVMM_NET_PACKET) {
        rx->dropped++;
    } else if ((uint64_t)got > room) {
        gather(vec, rx->packet, (uint32_t)room);
        rx->pending = (uint32_t)got;
    } else {
        complete(r, (uint32_t)got);
    }
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

int avmm_net_receive(struct avmm_net_rx *rx, const struct avmm_chain *chains, uint32_t n, const struct iovec *iov,
                     uint32_t budget, uint16_t *heads, uint32_t *lens, uint32_t *used) {
    struct receive r = {rx, chains, n, iov, heads, lens, 0, 0};
    uint32_t discarded = 0;
    int status = AVMM_NET_MORE;
    while (status == AVMM_NET_MORE && r.passed < budget && discarded < 64) {
        if (r.at < n && !is_receive_buffer(&chains[r.at])) {
            status = AVMM_NET_BAD;
        } else if (rx->pending) {
            if (place_pending(&r))
                continue;
            if (rx->discard || (!rx->mergeable && r.at < n)) {
                rx->pending = 0;
                rx->dropped++;
            } else {
                status = AVMM_NET_ROOM;
            }
        } else if (r.at == n && !rx->discard) {
            status = AVMM_NET_ROOM;
        } else {
            discarded += rx->discard;
            status = read_packet(&r);
        }
    }
    *used = r.at;
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

int avmm_net_send(struct avmm_net_tx *tx, const struct avmm_chain *chains, uint32_t n, const struct iovec *iov,
                  uint32_t budget, uint16_t *heads, uint32_t *lens, uint32_t *used) {
    uint64_t passed = 0;
    uint32_t i = 0;
    int status = write_rest(tx);
    while (status == AVMM_NET_MORE && i < n && passed < budget) {
        const struct avmm_chain *c = &chains[i];
        status = is_transmit_buffer(c) ? send_frame(tx, c, iov) : AVMM_NET_BAD;
        if (status == AVMM_NET_MORE) {
            heads[i] = c->head;
            lens[i++] = 0;
            passed += c->read_bytes;
            status = write_rest(tx); /* also after the last frame: the caller must learn that it has to wait */
        }
    }
    *used = i;
    return status;
}
