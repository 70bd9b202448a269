/* Chains as streams of bytes: filled from a file descriptor (entropy), copied out or filled from a buffer (console). */
#ifndef AIOVMM_STREAM_H
#define AIOVMM_STREAM_H
#include "ring.h"

#define AVMM_FILL_BAD_CHAIN (-4096) /* below every -errno: a chain that is readable, or has no room */

/* Fill `n` chains by one readv each from `fd`, which must never block: at most `limit` bytes a chain, and no further chain
 * once `budget` bytes are done. `heads` and `lengths` take what was filled. The number of chains filled; or, if the first
 * cannot be, 0 at the end of the file, -errno, or AVMM_FILL_BAD_CHAIN. */
int avmm_chains_fill(int fd, const struct avmm_chain *chains, uint32_t n, const struct iovec *iov, uint32_t limit,
                     uint64_t budget, uint16_t *heads, uint32_t *lengths);

/* A position in the readable bytes of a batch; `chain` is also the number of chains that are wholly behind it. */
struct avmm_gather {
    uint32_t chain;
    uint32_t segment;
    uint64_t offset;
};

/* Chains of a queue on their way into a buffer. The arrays are the caller's: room for `max_chains` chains and heads and for
 * `max_iov` segments. `count` and `at` say what of them is still to be copied, from call to call; zero at first. */
struct avmm_output {
    struct avmm_chain *chains;
    struct iovec *iov;
    uint16_t *heads;
    const uint32_t *lengths; /* `max_chains` zeros: nothing is written to the guest */
    uint32_t max_chains, max_iov;
    uint32_t count;
    struct avmm_gather at;
    uint32_t taken; /* by the last call: chains */
    uint32_t found; /* by the last call: how often a chain came while it looked for one */
};

/* Copy the bytes of chains into `out`, returning each chain as soon as it is behind; how many bytes. When nothing more is there
 * after some was, look at the ring for up to `look` nanoseconds: a driver that spins until its chain is back has the next one
 * there soon, and needs to ring no doorbell for it. Ends after `turn` nanoseconds at the latest, but for one batch. No interrupt
 * is raised. `err->code` is 0, or what was wrong with the chain behind the last (as for avmm_queue_pop). */
uint32_t avmm_queue_output(struct avmm_queue *q, const struct avmm_mem *mem, struct avmm_output *o, uint8_t *out,
                           uint32_t room, uint64_t look, uint64_t turn, struct avmm_ring_error *err);

/* Where avmm_queue_input works: room for `max_chains` (the queue's size) heads and lengths, and `max_iov` segments. */
struct avmm_input {
    struct iovec *iov;
    uint16_t *heads;
    uint32_t *lengths;
    uint32_t max_iov, max_chains;
    uint32_t returned; /* by the last call: chains */
};

/* Fill as many chains as `data` needs, or as there are, each to its end before the next is begun; returns them, at once, and
 * says how many bytes they took. No interrupt is raised. Chains without room go back empty. Without data (`size` 0) it only does
 * this, and looks whether the chain behind them is well formed. `err` as for avmm_queue_output. */
uint32_t avmm_queue_input(struct avmm_queue *q, const struct avmm_mem *mem, struct avmm_input *in, const uint8_t *data,
                          uint32_t size, struct avmm_ring_error *err);

#endif
