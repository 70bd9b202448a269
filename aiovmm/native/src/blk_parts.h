/* What the parts of the block data path have for each other:
 *
 *   blk.c           chains become requests
 *   blk_slots.c     where requests and their iovecs are kept
 *   blk_run.c       requests are started, in order where that matters, and end
 *   blk_ring.c      the io_uring that they go through, together with other disks' requests
 *   blk_transfer.c  the data of a request, a system call at a time
 *   blk_layers.c    which file has what, for an overlay */
#ifndef AIOVMM_BLK_PARTS_H
#define AIOVMM_BLK_PARTS_H
#include "blk.h"

#define AVMM_BLK_SECTOR 512u
#define AVMM_BLK_MAX_TRANSFER (1u << 30) /* a system call moves less than 2 GiB and says so in 31 bits */

/* ---- slots ----------------------------------------------------------------------------------------------------------- */

/* The slot that is taken next, while there is one: it is made when it is first wanted. */
struct avmm_blk_request *avmm_blk_next_slot(struct avmm_blk_queue *q);
/* The iovecs that a legal chain can need at most. */
uint32_t avmm_blk_most_room(const struct avmm_blk_queue *q);
/* Whether a request may get that many on the heap, and give it them. False: there is no memory, or it has them. */
bool avmm_blk_may_grow(const struct avmm_blk_queue *q);
bool avmm_blk_grow(struct avmm_blk_request *r);
/* Keep `n` iovecs of what has grown; or none. */
void avmm_blk_trim(struct avmm_blk_request *r, uint32_t n);
void avmm_blk_shrink(struct avmm_blk_request *r);

/* ---- running --------------------------------------------------------------------------------------------------------- */

/* Start a request: by io_uring, or it is handed to the caller of avmm_blk_serve. */
void avmm_blk_start(struct avmm_blk_request *r);
/* The kernel's order for what is next to do of a request; `sqe` is zeroed. */
void avmm_blk_order(struct io_uring_sqe *sqe, struct avmm_blk_request *r);
/* Start a request that changes the disk, or a read, when it may. */
void avmm_blk_launch(struct avmm_blk_request *r);
/* io_uring is done with one. */
void avmm_blk_completed(struct avmm_blk_request *r, int32_t result);
/* Return a chain to the driver with the next publish. */
void avmm_blk_push_later(struct avmm_blk_queue *q, uint16_t head, uint32_t length);

/* ---- ring ------------------------------------------------------------------------------------------------------------ */

/* Have io_uring carry out what is next to do of a request, with the next submission or a later one. */
void avmm_blk_ring_start(struct avmm_blk_request *r);
/* Whether io_uring is to try what is next to do of one at once, without waiting for anything. */
bool avmm_blk_is_now(const struct avmm_blk_request *r);
/* 0, or -errno with those that the kernel did not take still pending. */
int avmm_blk_ring_submit(struct avmm_blk_ring *ring);
/* Submit, and take in completions up to a bound. Disks that have some are touched by that, all but `own`. */
void avmm_blk_ring_take_in(struct avmm_blk_ring *ring, const struct avmm_blk *own);
/* What of a disk has not reached the kernel ends with ECANCELED. */
void avmm_blk_ring_withdraw(struct avmm_blk *disk);

/* ---- data ------------------------------------------------------------------------------------------------------------ */

/* The next system call for a read or write. */
struct avmm_blk_call {
    int fd;
    bool in;
    const struct iovec *iov;
    uint32_t n_iov;
    uint64_t offset; /* in the file */
};

struct avmm_blk_call avmm_blk_next_call(struct avmm_blk_request *r);
/* What came of it: 1 if there is more to do, 0 if the request is complete, else a negative errno. */
int avmm_blk_advance(struct avmm_blk_request *r, int64_t result);
/* Choose between the guest's buffers and one of our own for what comes next; 0 or a negative errno. */
int avmm_blk_route(struct avmm_blk_request *r);
/* Before the next system call: give a read the zeros that no layer has. What avmm_blk_advance returns. */
int avmm_blk_zeros(struct avmm_blk_request *r);
/* Copy between the iovecs' next `n` bytes and `buffer`, and pass over them. */
void avmm_blk_copy(struct avmm_blk_request *r, uint8_t *buffer, uint64_t n, bool to_guest);
/* Whether `sector`, the first or the last one, has what makes an image one of another format. */
bool avmm_blk_is_marked(const struct avmm_blk *disk, const uint8_t *sector, bool last);
bool avmm_blk_is_stopping(const struct avmm_blk *disk);

/* ---- layers ---------------------------------------------------------------------------------------------------------- */

/* Whether a write is to parts of clusters that are not in the layer: of the rest of these it has to bring the content. */
bool avmm_blk_layer_lacks(const struct avmm_blk_layer *layer, uint64_t from, uint64_t to);
/* Bring that; 0 or an errno. */
int avmm_blk_layer_bring_edges(struct avmm_blk_layer *layer, uint64_t from, uint64_t to);
/* The layer that has the byte at `at`, and in `*run`, at most what it was, how many from there on; NULL: zeros. */
const struct avmm_blk_layer *avmm_blk_layer_at(const struct avmm_blk_layer *layer, uint64_t at, uint64_t *run);
/* Whether the map on the medium may lack something. */
bool avmm_blk_layer_unstable(const struct avmm_blk_layer *layer);

/* Nanoseconds of the monotonic clock. */
uint64_t avmm_blk_now(void);

#endif
