#include "frames.h"
#include "guard.h"
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

#define PARTS 256 /* iovecs of one system call: bounds the stack and one connection's turn; what is left waits */

/* The parts of `iov` that hold bytes [skip, skip + length); how many, at most PARTS. */
static uint32_t window(const struct iovec *iov, uint32_t n, uint64_t skip, uint64_t length, struct iovec *parts) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < n && length && count < PARTS; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        uint64_t room = iov[i].iov_len - skip, take = room < length ? room : length;
        parts[count++] = (struct iovec){(uint8_t *)iov[i].iov_base + skip, take};
        length -= take;
        skip = 0;
    }
    return count;
}

/* Copy the readable bytes [skip, skip + length) of a chain; how many there were. */
static uint32_t copy_from(const struct avmm_chain *c, const struct iovec *iov, uint64_t skip, uint8_t *to, uint32_t length) {
    const struct iovec *part = iov + c->iov;
    uint32_t done = 0;
    for (uint32_t i = 0; i < c->n_read && done < length; i++) {
        if (skip >= part[i].iov_len) {
            skip -= part[i].iov_len;
            continue;
        }
        uint64_t room = part[i].iov_len - skip;
        uint32_t take = room < length - done ? (uint32_t)room : length - done;
        memcpy(to + done, (const uint8_t *)part[i].iov_base + skip, take);
        done += take;
        skip = 0;
    }
    return done;
}

static ssize_t transfer(int fd, struct msghdr *message, bool receiving) {
    ssize_t done;
    do
        done = receiving ? recvmsg(fd, message, MSG_DONTWAIT) : sendmsg(fd, message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (done < 0 && errno == EINTR);
    return done;
}

/* Between a socket and guest memory, once, without waiting; -1, and errno. */
static ssize_t transfer_guest(int fd, struct msghdr *message, bool receiving) {
    ssize_t done = transfer(fd, message, receiving);
    if (done >= 0 || errno != EFAULT)
        return done;
    avmm_guard_touch(message->msg_iov, (uint32_t)message->msg_iovlen, UINT64_MAX, receiving); /* they are as long as wanted */
    return transfer(fd, message, receiving);
}

/* The headers of all chains to f->headers, and their heads. A chain that is shorter than its header gives one of zeros, and one that
 * is shorter than its header says has the largest length there is: whoever reads them drops the one, and refuses the other. */
static void read_headers(struct avmm_frames *f) {
    const struct avmm_frame_layout *l = &f->layout;
    uint8_t *header = f->headers;
    for (uint32_t i = 0; i < f->n; i++, header += l->size) {
        const struct avmm_chain *c = &f->chains[i];
        uint32_t length;
        f->heads[i] = c->head;
        if (copy_from(c, f->iov, 0, header, l->size) < l->size) {
            memset(header, 0, l->size);
            continue;
        }
        memcpy(&length, header + l->length_at, sizeof length);
        if (length > c->read_bytes - l->size)
            memset(header + l->length_at, 0xff, sizeof length);
    }
}

static uint32_t load32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static void store32(uint8_t *at, uint32_t value) { memcpy(at, &value, sizeof value); }

/* Whether a frame has payload, of the kind that can be joined, up to the end of its chain. */
static bool joins(const struct avmm_chain *c, const struct avmm_frame_layout *l, const uint8_t *header) {
    uint32_t length = load32(header + l->length_at);
    uint16_t kind;
    memcpy(&kind, header + l->kind_at, sizeof kind);
    return kind == l->kind && length && c->read_bytes >= l->size && length == c->read_bytes - l->size;
}

/* Whether two headers are equal but for their lengths and the latest of something. */
static bool same_stream(const struct avmm_frame_layout *l, const uint8_t *a, const uint8_t *b) {
    for (uint32_t at = 0; at < l->size; at += sizeof(uint32_t))
        if (at != l->length_at && at != l->latest_at && load32(a + at) != load32(b + at))
            return false;
    return true;
}

/* Join neighbours among the headers into runs; how many. */
static uint32_t join_runs(struct avmm_frames *f) {
    const struct avmm_frame_layout *l = &f->layout;
    uint8_t *headers = f->headers;
    uint32_t runs = 0;
    bool open = false; /* the last run may go on */
    for (uint32_t i = 0; i < f->n; i++) {
        const uint8_t *header = headers + (size_t)i * l->size;
        uint8_t *last = headers + (size_t)(runs ? runs - 1 : 0) * l->size;
        bool can = joins(&f->chains[i], l, header);
        uint32_t length = load32(header + l->length_at);
        if (open && can && same_stream(l, last, header) && length <= UINT32_MAX - load32(last + l->length_at)) {
            store32(last + l->length_at, load32(last + l->length_at) + length);
            store32(last + l->latest_at, load32(header + l->latest_at));
            continue;
        }
        memmove(headers + (size_t)runs * l->size, header, l->size);
        f->firsts[runs++] = i;
        open = can;
    }
    f->firsts[runs] = f->n;
    return runs;
}

int64_t avmm_frames_send(int fd, const struct avmm_chain *chains, uint32_t first, uint32_t count, const struct iovec *iov,
                         uint32_t header_size, uint32_t length) {
    struct iovec parts[2 * PARTS];
    uint32_t used = 0;
    for (uint32_t i = first; i < first + count && used < PARTS && length; i++) {
        const struct avmm_chain *c = &chains[i];
        uint64_t payload = c->read_bytes - header_size, take = payload < length ? payload : length;
        used += window(iov + c->iov, c->n_read, header_size, take, parts + used);
        length -= (uint32_t)take;
    }
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = used};
    ssize_t sent = transfer_guest(fd, &message, false);
    return sent < 0 ? -errno : sent;
}

uint32_t avmm_frames_copy(const struct avmm_chain *chains, uint32_t first, uint32_t count, const struct iovec *iov,
                          uint32_t header_size, uint64_t skip, uint8_t *to, uint32_t length) {
    uint32_t done = 0;
    for (uint32_t i = first; i < first + count && done < length; i++) {
        uint64_t payload = chains[i].read_bytes - header_size, left = length - done;
        if (skip >= payload) {
            skip -= payload;
            continue;
        }
        uint32_t take = (uint32_t)(payload - skip < left ? payload - skip : left);
        done += copy_from(&chains[i], iov, header_size + skip, to + done, take);
        skip = 0;
    }
    return done;
}

int avmm_frame_put(const struct avmm_chain *chains, uint32_t index, const struct iovec *iov, const uint8_t *header,
                   uint32_t header_size, uint16_t *heads, uint32_t *lengths) {
    const struct avmm_chain *c = &chains[index];
    const struct iovec *part = iov + c->iov + c->n_read;
    uint32_t done = 0;
    if (c->write_bytes < header_size)
        return -1;
    for (; done < header_size; part++) {
        uint32_t take = part->iov_len < header_size - done ? (uint32_t)part->iov_len : header_size - done;
        memcpy(part->iov_base, header + done, take);
        done += take;
    }
    heads[index] = c->head;
    lengths[index] = header_size;
    return 0;
}

int64_t avmm_frames_recv(int fd, const struct avmm_chain *chains, uint32_t first, uint32_t end, const struct iovec *iov,
                         const uint8_t *header, uint32_t header_size, uint32_t length_at, uint32_t limit, uint16_t *heads,
                         uint32_t *lengths, struct avmm_frames_taken *taken) {
    struct iovec parts[2 * PARTS];
    uint32_t room[PARTS], count = 0, i, wanted = 0;
    uint8_t copy[64];
    *taken = (struct avmm_frames_taken){0};
    if (header_size > sizeof copy || length_at + sizeof(uint32_t) > header_size)
        return -EINVAL;
    for (i = first; i < end && i - first < PARTS && count < PARTS && wanted < limit; i++) {
        const struct avmm_chain *c = &chains[i];
        uint64_t size;
        if (c->write_bytes <= header_size)
            break;
        size = c->write_bytes - header_size;
        if (size > limit - wanted)
            size = limit - wanted;
        uint32_t added = window(iov + c->iov + c->n_read, c->n_write, header_size, size, parts + count);
        room[i - first] = 0;
        for (uint32_t k = count; k < count + added; k++)
            room[i - first] += (uint32_t)parts[k].iov_len;
        wanted += room[i - first];
        count += added;
    }
    if (!count)
        return -EMSGSIZE;
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
    ssize_t got = transfer_guest(fd, &message, true);
    if (got < 0)
        return -errno;
    /* A unix socket also stops behind descriptors that were sent along, which are lost here (MSG_CTRUNC): there may be more. */
    taken->drained = (uint32_t)got < wanted && !(message.msg_flags & MSG_CTRUNC);
    memcpy(copy, header, header_size);
    uint32_t left = (uint32_t)got;
    for (i = first; left; i++) {
        uint32_t payload = room[i - first] < left ? room[i - first] : left;
        memcpy(copy + length_at, &payload, sizeof payload);
        avmm_frame_put(chains, i, iov, copy, header_size, heads, lengths);
        lengths[i] = header_size + payload;
        left -= payload;
        taken->chains++;
    }
    return got;
}

static int pop(struct avmm_frames *f) {
    int n = avmm_queue_pop(f->queue, f->mem, f->chains, f->max_chains, f->iov, NULL, f->max_iov, &f->error);
    f->n = n < 0 ? 0 : (uint32_t)n;
    return n;
}

int avmm_frames_take(struct avmm_frames *f) {
    int n = pop(f);
    if (n <= 0)
        return n < 0 ? AVMM_FRAMES_RING : 0;
    read_headers(f);
    return (int)join_runs(f);
}

int64_t avmm_frames_give(struct avmm_frames *f, int fd, const uint8_t *header, uint32_t limit) {
    struct avmm_frames_taken taken;
    f->drained = f->interrupt = 0;
    int n = pop(f);
    if (n <= 0)
        return n < 0 ? AVMM_FRAMES_RING : 0;
    int64_t got = avmm_frames_recv(fd, f->chains, 0, f->n, f->iov, header, f->layout.size, f->layout.length_at, limit,
                                   f->heads, f->lengths, &taken);
    f->drained = taken.drained;
    f->interrupt = avmm_queue_finish(f->queue, f->n - taken.chains, f->heads, f->lengths, taken.chains) > 0;
    if (got == -EMSGSIZE) { /* the chain is no receive buffer; it has been put back and is the next again */
        f->bad = f->chains[0].head;
        return AVMM_FRAMES_SHORT;
    }
    return got;
}
