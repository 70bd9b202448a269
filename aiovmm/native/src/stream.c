#include "stream.h"
#include "guard.h"
#include "look.h"
#include <errno.h>
#include <stdbool.h>
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
    if (done < 0 && errno == EFAULT) {
        avmm_guard_touch(part, (uint32_t)count, limit, true);
        done = readv(fd, part, count);
    }
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

/* Copy readable bytes from `o->at` on into `out`, until it is full or the batch ends; how many. Notes the heads of chains that
 * are behind, each at its own index. */
static uint32_t copy_out(struct avmm_output *o, uint8_t *out, uint32_t room)
{
    struct avmm_gather *at = &o->at;
    uint32_t done = 0;

    for (; at->chain < o->count; at->chain++, at->segment = 0) {
        const struct avmm_chain *chain = &o->chains[at->chain];
        for (; at->segment < chain->n_read; at->segment++, at->offset = 0) {
            const struct iovec *segment = &o->iov[chain->iov + at->segment];
            uint64_t length = segment->iov_len - at->offset;
            if (length > room - done)
                length = room - done;
            memcpy(out + done, (const uint8_t *)segment->iov_base + at->offset, length);
            done += (uint32_t)length;
            at->offset += length;
            if (at->offset < segment->iov_len)
                return done;
        }
        o->heads[at->chain] = chain->head;
    }
    return done;
}

/* Whether a chain is there by the time `until`. */
static bool look_for_chain(const struct avmm_queue *q, uint64_t until)
{
    do {
        for (int i = 0; i < 32; i++, avmm_relax())
            if (avmm_queue_available(q))
                return true;
    } while (avmm_now_ns() < until);
    return false;
}

uint32_t avmm_queue_output(struct avmm_queue *q, const struct avmm_mem *mem, struct avmm_output *o, uint8_t *out,
                           uint32_t room, uint64_t look, uint64_t turn, struct avmm_ring_error *err)
{
    uint64_t now = avmm_now_ns(), end = now + turn;
    uint32_t done = 0;

    err->code = 0;
    o->taken = o->found = 0;
    for (; done < room && now < end; now = avmm_now_ns()) {
        if (o->at.chain == o->count) {
            int n = avmm_queue_pop(q, mem, o->chains, o->max_chains, o->iov, NULL, o->max_iov, err);
            o->at = (struct avmm_gather){0};
            o->count = n > 0 ? (uint32_t)n : 0;
            o->taken += o->count;
            if (n < 0)
                break;
            if (!n) {
                if (!(done || o->taken) || !look || !look_for_chain(q, now + look < end ? now + look : end))
                    break;
                o->found++;
                continue;
            }
        }
        uint32_t first = o->at.chain;
        done += copy_out(o, out + done, room - done);
        if (o->at.chain > first)
            avmm_queue_push(q, o->heads + first, o->lengths, o->at.chain - first);
    }
    return done;
}

/* Copy `data` into the writable bytes of a chain, as far as it has room; how many. */
static uint32_t copy_in(const struct avmm_chain *chain, const struct iovec *iov, const uint8_t *data, uint32_t size)
{
    uint32_t done = 0;

    iov += chain->n_read;
    for (uint32_t i = 0; i < chain->n_write && done < size; i++) {
        uint32_t length = iov[i].iov_len < size - done ? (uint32_t)iov[i].iov_len : size - done;
        memcpy(iov[i].iov_base, data + done, length);
        done += length;
    }
    return done;
}

uint32_t avmm_queue_input(struct avmm_queue *q, const struct avmm_mem *mem, struct avmm_input *in, const uint8_t *data,
                          uint32_t size, struct avmm_ring_error *err)
{
    struct avmm_chain chain;
    uint32_t done = 0, n = 0;

    err->code = 0;
    while (n < in->max_chains && (done < size || !size)) {
        if (avmm_queue_pop(q, mem, &chain, 1, in->iov, NULL, in->max_iov, err) <= 0)
            break;
        if (!size && chain.write_bytes) {
            avmm_queue_put_back(q, 1);
            break;
        }
        in->lengths[n] = copy_in(&chain, in->iov, data + done, size - done);
        done += in->lengths[n];
        in->heads[n++] = chain.head;
    }
    avmm_queue_push(q, in->heads, in->lengths, n);
    in->returned = n;
    return done;
}
