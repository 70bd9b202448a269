#include "frames.h"
#include <errno.h>
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

uint32_t avmm_frame_copy(const struct avmm_chain *chains, uint32_t index, const struct iovec *iov, uint64_t skip,
                         uint8_t *to, uint32_t length) {
    const struct avmm_chain *c = &chains[index];
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

int avmm_frames_read(const struct avmm_chain *chains, uint32_t n, const struct iovec *iov, uint32_t header_size,
                     uint32_t length_at, uint8_t *headers, uint16_t *heads) {
    for (uint32_t i = 0; i < n; i++, headers += header_size) {
        uint32_t length;
        heads[i] = chains[i].head;
        if (avmm_frame_copy(chains, i, iov, 0, headers, header_size) < header_size)
            return -1 - (int)i;
        memcpy(&length, headers + length_at, sizeof length);
        if (length > chains[i].read_bytes - header_size)
            return -1 - (int)i;
    }
    return (int)n;
}

int64_t avmm_frame_send(int fd, const struct avmm_chain *chains, uint32_t index, const struct iovec *iov, uint32_t skip,
                        uint32_t length) {
    const struct avmm_chain *c = &chains[index];
    struct iovec parts[PARTS];
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = window(iov + c->iov, c->n_read, skip, length, parts)};
    ssize_t sent;
    do
        sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : sent;
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
                         uint32_t *lengths, uint32_t *used) {
    struct iovec parts[2 * PARTS];
    uint32_t room[PARTS], count = 0, i, wanted = 0;
    uint8_t copy[64];
    *used = 0;
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
    ssize_t got;
    do
        got = recvmsg(fd, &message, MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return -errno;
    memcpy(copy, header, header_size);
    uint32_t left = (uint32_t)got;
    for (i = first; left; i++) {
        uint32_t payload = room[i - first] < left ? room[i - first] : left;
        memcpy(copy + length_at, &payload, sizeof payload);
        avmm_frame_put(chains, i, iov, copy, header_size, heads, lengths);
        lengths[i] = header_size + payload;
        left -= payload;
        ++*used;
    }
    return got;
}
