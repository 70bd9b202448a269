/* Frames, a header and a payload in one descriptor chain, between virtqueues and stream sockets: payloads go from and to
 * guest memory by one system call and no copy here. Which header belongs to which payload is the caller's business.
 * A chain's iovecs are our own copies, so a hostile driver changes contents at most. Nothing here blocks. */
#ifndef AIOVMM_FRAMES_H
#define AIOVMM_FRAMES_H
#include "ring.h"

/* Where frames can be joined: those with payload whose 16 bits at `kind_at` are `kind`. Bytes of a header that may differ
 * between two of one run are its payload's size, at `length_at`, and the 32 bits at `latest_at`, of which the last count. */
struct avmm_frame_layout {
    uint32_t size, length_at, latest_at, kind_at;
    uint16_t kind;
};

/* Send `length` bytes of the payloads of a run of `count` chains, as far as the socket takes them: bytes, or -errno. */
int64_t avmm_frames_send(int fd, const struct avmm_chain *chains, uint32_t first, uint32_t count, const struct iovec *iov,
                         uint32_t header_size, uint32_t length);

/* Copy the bytes [skip, skip + length) of the payloads of a run; how many there were. */
uint32_t avmm_frames_copy(const struct avmm_chain *chains, uint32_t first, uint32_t count, const struct iovec *iov,
                          uint32_t header_size, uint64_t skip, uint8_t *to, uint32_t length);

/* Make `header` the whole content of a chain. 0, or -1 if it has no room. */
int avmm_frame_put(const struct avmm_chain *chains, uint32_t index, const struct iovec *iov, const uint8_t *header,
                   uint32_t header_size, uint16_t *heads, uint32_t *lengths);

struct avmm_frames_taken {
    uint32_t chains;  /* filled */
    uint32_t drained; /* the socket had less than there was room for: whatever it has next will be an event */
};

/* Receive at most `limit` bytes as the payloads of the chains [first, end), each after a copy of `header` with the
 * payload's size as 32 bits at `length_at`. Bytes (0: end of the stream) or -errno; -EMSGSIZE: the first chain has no
 * room for a payload. `heads` and `lengths` are set for the chains that were filled, from index `first` on. */
int64_t avmm_frames_recv(int fd, const struct avmm_chain *chains, uint32_t first, uint32_t end, const struct iovec *iov,
                         const uint8_t *header, uint32_t header_size, uint32_t length_at, uint32_t limit, uint16_t *heads,
                         uint32_t *lengths, struct avmm_frames_taken *taken);

/* What the turns of one queue work with, so that a turn is one call: set up once, but for what the calls fill in. */
struct avmm_frames {
    struct avmm_queue *queue;
    const struct avmm_mem *mem;
    struct avmm_chain *chains; /* room for `max_chains`, with `max_iov` segments in all */
    struct iovec *iov;
    uint32_t max_chains, max_iov;
    uint8_t *headers;          /* taking: one for each chain */
    uint32_t *firsts;          /* taking: max_chains + 1 */
    uint16_t *heads;
    uint32_t *lengths;         /* giving */
    struct avmm_frame_layout layout;
    /* filled in */
    uint32_t n;                /* chains that there were */
    uint32_t bad;              /* AVMM_FRAMES_SHORT: the head of the chain */
    uint32_t drained;          /* giving: see avmm_frames_taken */
    uint32_t interrupt;        /* giving: the driver wants one */
    struct avmm_ring_error error;
};

enum avmm_frames_code {
    AVMM_FRAMES_RING = -4096,  /* below all of -errno. A malformed chain came first: see `error` */
    AVMM_FRAMES_SHORT = -4097, /* a frame is shorter than its header, or than that says */
};

/* Take chains and join neighbours among their frames into runs, each with one header, whose payload's size is the sum: the
 * number of runs, or a code. `headers` then holds as many headers as there are runs; run r is of the chains
 * [firsts[r], firsts[r + 1]). Only frames whose payload fills their chain are joined. */
int avmm_frames_take(struct avmm_frames *f);

/* Receive from the socket into the first few chains, at most `limit` bytes, and return them: bytes, or -errno, as
 * avmm_frames_recv; or a code. With no chain at all (`n`) nothing is received, and it gives 0. */
int64_t avmm_frames_give(struct avmm_frames *f, int fd, const uint8_t *header, uint32_t limit);

#endif
