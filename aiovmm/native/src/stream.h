/* Chains as streams of bytes: filled from a file descriptor (entropy), or gathered into a buffer (console output). */
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

/* Copy readable bytes from `at` on into `out`, until it is full or the batch ends; how many. Moves `at`, and notes in
 * `heads` the heads of chains that were finished, each at its own index. */
uint32_t avmm_chains_gather(const struct avmm_chain *chains, uint32_t n, const struct iovec *iov, struct avmm_gather *at,
                            uint8_t *out, uint32_t room, uint16_t *heads);

#endif
