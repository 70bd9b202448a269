/* Frames, a header and a payload in one descriptor chain, between virtqueues and stream sockets: payloads go from and to
 * guest memory by one system call and no copy here. Which header belongs to which payload is the caller's business.
 * A chain's iovecs are our own copies, so a hostile driver changes contents at most. Nothing here blocks. */
#ifndef AIOVMM_FRAMES_H
#define AIOVMM_FRAMES_H
#include "ring.h"

/* Copy the first `header_size` readable bytes of each chain to `headers`, and the chains' heads to `heads`. `n`, or
 * -1 - i if chain i is shorter than a header, or than the payload that the 32 bits at `length_at` of it announce. */
int avmm_frames_read(const struct avmm_chain *chains, uint32_t n, const struct iovec *iov, uint32_t header_size,
                     uint32_t length_at, uint8_t *headers, uint16_t *heads);

/* Send the readable bytes [skip, skip + length) of a chain, as far as the socket takes them: bytes, or -errno. */
int64_t avmm_frame_send(int fd, const struct avmm_chain *chains, uint32_t index, const struct iovec *iov, uint32_t skip,
                        uint32_t length);

/* Copy the readable bytes [skip, skip + length) of a chain; how many there were. */
uint32_t avmm_frame_copy(const struct avmm_chain *chains, uint32_t index, const struct iovec *iov, uint64_t skip,
                         uint8_t *to, uint32_t length);

/* Make `header` the whole content of a chain. 0, or -1 if it has no room. */
int avmm_frame_put(const struct avmm_chain *chains, uint32_t index, const struct iovec *iov, const uint8_t *header,
                   uint32_t header_size, uint16_t *heads, uint32_t *lengths);

/* Receive at most `limit` bytes as the payloads of the chains [first, end), each after a copy of `header` with the
 * payload's size as 32 bits at `length_at`. Bytes (0: end of the stream) or -errno; -EMSGSIZE: the first chain has no
 * room for a payload. `used` chains were filled; `heads` and `lengths` are set for these, from index `first` on. */
int64_t avmm_frames_recv(int fd, const struct avmm_chain *chains, uint32_t first, uint32_t end, const struct iovec *iov,
                         const uint8_t *header, uint32_t header_size, uint32_t length_at, uint32_t limit, uint16_t *heads,
                         uint32_t *lengths, uint32_t *used);

#endif
