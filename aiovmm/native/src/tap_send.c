#include "guard.h"
#include "nowait.h"
#include "tap_turn.h"
#include <arpa/inet.h>
#include <errno.h>
#include <stdbool.h>
#include <sys/socket.h>

#define AT_ONCE 16u /* chains that are taken at once; those behind an interrupt are put back */
/* After so many frames, or bytes, which are a segmented frame or two, the driver is asked whether it wants an interrupt. */
#define ASK_FRAMES 64u
#define ASK_BYTES (32u << 10)

static bool is_transmit_buffer(const struct avmm_chain *c) { return !c->n_write && c->read_bytes >= AVMM_NET_HDR; }

/* §5.1.6.2: only what was negotiated; flags that a driver has no use for are ignored. */
static bool check_header(const struct avmm_net_tx *tx, struct virtio_net_hdr_v1 *h, uint64_t size) {
    uint8_t type = h->gso_type & (uint8_t)~VIRTIO_NET_HDR_GSO_ECN;
    h->flags &= VIRTIO_NET_HDR_F_NEEDS_CSUM;
    h->num_buffers = 0;
    if (h->flags && (!tx->checksum || h->csum_start + h->csum_offset + 2u > size)) /* §5.1.6.2: it lies in the packet */
        return false;
    if (type != VIRTIO_NET_HDR_GSO_NONE && (type >= 32 || !(tx->gso & 1u << type)))
        return false;
    return !(h->gso_type & VIRTIO_NET_HDR_GSO_ECN) || (tx->ecn && type != VIRTIO_NET_HDR_GSO_NONE);
}

static ssize_t write_once(const struct avmm_net_tx *tx, struct iovec *vec, uint32_t n) {
    struct msghdr message = {.msg_iov = vec, .msg_iovlen = n};
    ssize_t put;
    if (!tx->socket)
        return avmm_writev_now(tx->fd, vec, (int)n);
    do
        put = sendmsg(tx->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (put < 0 && errno == EINTR);
    return put;
}

static ssize_t write_out(const struct avmm_net_tx *tx, struct iovec *vec, uint32_t n) {
    ssize_t put = write_once(tx, vec, n);
    if (put >= 0 || errno != EFAULT)
        return put;
    avmm_guard_touch(vec, n, AVMM_NET_PACKET, false);
    return write_once(tx, vec, n);
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

/* What a chain has behind its first `skip` bytes, as at most `most` pieces of `vec`; how many. */
static uint32_t frame_pieces(struct avmm_net_tx *tx, const struct avmm_chain *c, const struct iovec *iov, uint32_t skip,
                             struct iovec *vec, uint32_t most) {
    uint32_t n = 0;
    iov += c->iov;
    if (c->n_read > most) {
        avmm_net_gather(iov, tx->packet, (uint32_t)c->read_bytes);
        vec[0] = (struct iovec){tx->packet + skip, (uint32_t)c->read_bytes - skip};
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

/* The beginning of a frame after its virtio header, copied: what was checked is what is sent. */
struct start {
    uint8_t bytes[AVMM_NET_HDR + AVMM_NET_HEAD];
    uint32_t size; /* all of it */
};

/* Whether the guest may send that; `s` is then filled, if it was asked. */
static bool is_own(const struct avmm_net_tx *tx, const struct virtio_net_hdr_v1 *header, const struct iovec *iov, uint64_t total,
                   struct start *s) {
    s->size = AVMM_NET_HDR;
    if (!tx->own)
        return true;
    s->size = total < sizeof s->bytes ? (uint32_t)total : (uint32_t)sizeof s->bytes;
    avmm_net_gather(iov, s->bytes, s->size);
    return avmm_net_is_own(tx->own, s->bytes + AVMM_NET_HDR, s->size - AVMM_NET_HDR, (uint32_t)total - AVMM_NET_HDR, header);
}

static int send_frame(struct avmm_net_tx *tx, const struct avmm_chain *c, const struct iovec *iov) {
    struct virtio_net_hdr_v1 header; /* a copy: what was checked is what is sent */
    struct iovec vec[AVMM_NET_MAX_VEC];
    struct start start;
    uint64_t size = c->read_bytes - AVMM_NET_HDR;
    if (tx->discard) {
        tx->dropped++;
        return AVMM_NET_MORE;
    }
    avmm_net_gather(iov + c->iov, &header, sizeof header);
    if (size < AVMM_NET_MIN_FRAME || size > AVMM_NET_FRAME || !check_header(tx, &header, size) ||
        !is_own(tx, &header, iov + c->iov, c->read_bytes, &start)) {
        tx->errors++;
        return AVMM_NET_MORE;
    }
    uint32_t length = htonl((uint32_t)size), n = 0, total = (uint32_t)size;
    if (tx->kind == AVMM_NET_VNET)
        vec[n++] = (struct iovec){&header, sizeof header};
    else if (tx->kind == AVMM_NET_STREAM)
        vec[n++] = (struct iovec){&length, sizeof length};
    total += n ? (uint32_t)vec[0].iov_len : 0;
    if (start.size > AVMM_NET_HDR)
        vec[n++] = (struct iovec){start.bytes + AVMM_NET_HDR, start.size - AVMM_NET_HDR};
    n += frame_pieces(tx, c, iov, start.size, vec + n, AVMM_NET_MAX_VEC - n);
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
    avmm_allowance_spend(tx->allowance, size);
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
    while (status == AVMM_NET_MORE && t->used < t->n && *passed < t->budget && !t->interrupt &&
           avmm_allowance_left(tx->allowance)) {
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
    avmm_net_begin(turn);
    int got = 1, status = write_rest(tx);
    while (status == AVMM_NET_MORE && got > 0 && turn->n < turn->max_chains && passed < turn->budget && !turn->interrupt &&
           avmm_allowance_left(tx->allowance)) {
        uint32_t left = turn->max_chains - turn->n;
        got = avmm_net_take(turn, left < AT_ONCE ? left : AT_ONCE); /* at last none: the driver goes on meanwhile */
        if (got < 0 && !turn->n)
            return AVMM_NET_RING;
        status = send_frames(tx, turn, &passed, &unasked);
    }
    if (turn->max_chains && !turn->interrupt && (!turn->n || status != AVMM_NET_MORE)) /* else another turn follows, and asks */
        turn->interrupt = avmm_queue_needs_interrupt(turn->queue);
    avmm_net_end(turn);
    return status;
}
