#include "stream.h"
#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#define MAX_SEGMENTS 64 /* of one chain that are filled; giving less than was asked for is legal (VIRTIO 1.2, 5.4.6.1) */

/* The first `limit` writable bytes of a chain; how many segments. Empty ones are left out. */
static int first_bytes(const struct avmm_chain *chain, const struct iovec *iov, uint32_t limit, struct iovec *part)
{
    int count = 0;
    iov += chain->iov + chain->n_read;
    for (uint32_t i = 0; i < chain->n_write && limit && count < MAX_SEGMENTS; i++) {
        size_t length = iov[i].iov_len < limit ? iov[i].iov_len : limit;
        if (!length)
            continue;
        part[count].iov_base = iov[i].iov_base;
        part[count++].iov_len = length;
        limit -= length;
    }
    return count;
}

/* Bytes written into one chain; 0, -errno or AVMM_FILL_BAD_CHAIN. */
static ssize_t fill_one(int fd, const struct avmm_chain *chain, const struct iovec *iov, uint32_t limit)
{
    struct iovec part[MAX_SEGMENTS];
    ssize_t done;

    if (chain->n_read || !chain->write_bytes)
        return AVMM_FILL_BAD_CHAIN;
    int count = first_bytes(chain, iov, limit, part);
    do
        done = readv(fd, part, count);
    while (done < 0 && errno == EINTR);
    return done < 0 ? -errno : done;
}

int avmm_chains_fill(int fd, const struct avmm_chain *chains, uint32_t n, const struct iovec *iov, uint32_t limit,
                     uint64_t budget, uint16_t *heads, uint32_t *lengths)
{
    uint64_t total = 0;
    uint32_t i;

    for (i = 0; i < n && total < budget; i++) {
        ssize_t done = fill_one(fd, &chains[i], iov, limit);
        if (done <= 0)
            return i ? (int)i : (int)done;
        heads[i] = chains[i].head;
        lengths[i] = (uint32_t)done;
        total += (uint64_t)done;
    }
    return (int)i;
}

uint32_t avmm_chains_gather(const struct avmm_chain *chains, uint32_t n, const struct iovec *iov, struct avmm_gather *at,
                            uint8_t *out, uint32_t room, uint16_t *heads)
{
    uint32_t done = 0;

    for (; at->chain < n; at->chain++, at->segment = 0) {
        const struct avmm_chain *chain = &chains[at->chain];
        for (; at->segment < chain->n_read; at->segment++, at->offset = 0) {
            const struct iovec *segment = &iov[chain->iov + at->segment];
            uint64_t length = segment->iov_len - at->offset;
            if (length > room - done)
                length = room - done;
            memcpy(out + done, (const uint8_t *)segment->iov_base + at->offset, length);
            done += (uint32_t)length;
            at->offset += length;
            if (at->offset < segment->iov_len)
                return done;
        }
        heads[at->chain] = chain->head;
    }
    return done;
}
