/* The data path of a virtio block device (VIRTIO 1.2 §5.2.6): chains become requests, requests become I/O straight on guest memory,
 * completions become status bytes and used elements. One `avmm_blk` a disk with one `avmm_blk_queue` a virtqueue, all used by
 * the event loop's thread, except `avmm_blk_perform`, which any thread may call. */
#ifndef AIOVMM_BLK_H
#define AIOVMM_BLK_H
#include "allowance.h"
#include "ring.h"
#include "uring.h"
#include <stdbool.h>

enum avmm_blk_type {
    AVMM_BLK_IN = 0,
    AVMM_BLK_OUT = 1,
    AVMM_BLK_FLUSH = 4,
    AVMM_BLK_GET_ID = 8,
    AVMM_BLK_DISCARD = 11,
    AVMM_BLK_WRITE_ZEROES = 13,
};

enum avmm_blk_status { AVMM_BLK_OK = 0, AVMM_BLK_IOERR = 1, AVMM_BLK_UNSUPP = 2 };

/* What a malformed chain lacks; beside enum avmm_ring_code. */
enum avmm_blk_code { AVMM_BLK_NO_HEADER = -100, AVMM_BLK_NO_STATUS = -101 };

enum avmm_blk_known { AVMM_BLK_UNKNOWN = 0, AVMM_BLK_NO, AVMM_BLK_YES };

struct avmm_blk_queue;

/* How long requests took, from the chain that was taken to the status byte, in nanoseconds. */
struct avmm_blk_latency {
    uint64_t count, sum, min, max;
};

/* Where a magic makes an image one of another format: in the first sector, there after lines of comments (a VMDK descriptor is
 * text), or in the last one. */
enum avmm_blk_place { AVMM_BLK_FIRST = 0, AVMM_BLK_AFTER_COMMENTS = 1, AVMM_BLK_LAST = 2 };

/* What the guest may not write there. */
struct avmm_blk_magic {
    uint32_t place;        /* enum avmm_blk_place */
    uint32_t offset, size; /* both within the sector */
    uint8_t bytes[24];
};
#define AVMM_BLK_MAGICS 16

/* A file with content of a disk, the overlay on top or one of those below it. What a layer does not have is the next one's, up to
 * `below_size`; beyond that are zeros. Only the top one is ever written to. */
struct avmm_blk_layer {
    int fd;
    uint32_t shift;      /* a cluster is 1 << shift bytes */
    uint64_t data_at;    /* where the disk's first byte lies in the file; the others follow */
    uint64_t size;       /* of the disk, bytes */
    uint64_t below_size; /* bytes of it that show what is below */
    uint64_t *map;       /* a bit a cluster: it is here, or has been written. Bits are only ever set. NULL: all is here */
    uint8_t *dirty;      /* a byte for each AVMM_BLK_MAP_PAGE bytes of the map that differ from the file's; NULL: the file has none */
    uint64_t changed;    /* how often bits were set ... */
    uint64_t stable;     /* ... as of the map that is on the medium */
    struct avmm_blk_layer *below;
};
#define AVMM_BLK_MAP_PAGE 4096u

/* A parsed request in one of the slots of its queue; `iov`, `offset` and `left` advance as its data is transferred. */
struct avmm_blk_request {
    struct avmm_blk_queue *queue;
    struct iovec *store; /* the chain's iovecs, `room` of them: from the queue's arena, or on the heap for an uncommon chain */
    struct iovec *iov;   /* the data that is left to transfer */
    uint32_t room, n_iov;
    uint32_t type;   /* enum avmm_blk_type, or anything else */
    struct avmm_blk_request *next; /* in disk->deferred, disk->parked or ring->stalled */
    uint8_t *bounce;     /* O_DIRECT with what is not aligned: a buffer of `bounce_size` bytes, else NULL */
    uint32_t bounce_size;
    struct iovec window; /* the part of it in use, whole blocks of the image ... */
    uint64_t window_at;  /* ... from here on, of which the guest wants `wanted` bytes from `offset` on */
    uint64_t wanted;
    uint64_t offset; /* in the image, bytes */
    uint64_t origin; /* where a write began */
    struct iovec *cut; /* of the system call that runs: its last iovec, and how much of that is left to the next one */
    uint64_t cut_rest;
    uint64_t left;   /* bytes */
    uint64_t done;   /* bytes written to the guest's buffers, from their start */
    uint64_t in_total; /* bytes that the driver has room for before the status byte */
    uint8_t *status;
    int32_t error; /* what avmm_blk_perform met: 0 or an errno */
    uint64_t began; /* nanoseconds of the monotonic clock; 0: it is not timed */
    uint16_t head;
    uint8_t in_ring; /* io_uring has it, and will complete it */
    uint8_t punt;  /* have io_uring not try it at once */
    uint8_t now;   /* it was to try it at once, and not to wait */
    uint8_t waits; /* one of disk->n_waits */
    uint8_t dsync; /* a write that is complete only when it is stable */
    uint8_t at_end; /* it ends with the disk: the file may end up to 511 bytes earlier */
    uint8_t bounces;  /* the next system call goes through `bounce` */
    uint8_t fills;    /* and reads blocks of which a part is to be overwritten */
    uint8_t partial;  /* a write of parts of blocks: no other write may run */
    uint8_t guarded;  /* a write to the first or the last sector of a disk with magics */
    uint8_t copies;   /* a write of parts of clusters that the top layer does not have yet */
    uint8_t commits;  /* a write that is there, and the map that says so is on its way */
    uint8_t writing;  /* counted in disk->writers, or the one that is disk->alone */
};

/* The io_uring that the disks of an event loop share, used by its thread. Each disk has a share of its completions, as many as it can
 * have in flight, so there is a place for every one, and a disk whose storage hangs takes nothing from the others. Submissions have
 * no share: the kernel takes them from all in the order they came.
 *
 * What may wait, for a block that is not in memory, a lock, or a disk's queue that is full, must not do so in the loop's thread:
 * so what is tried at once is not to wait (RWF_NOWAIT), and what then cannot be done is left to threads of the kernel's. Those are
 * all rings' of a thread, so they have shares, too: a disk has AVMM_BLK_WAITS of its requests there at once, the others are parked,
 * and the kernel is told to have as many threads as that takes. */
struct avmm_blk_ring {
    struct avmm_uring uring;
    struct avmm_blk *touched; /* disks of which completions were taken in, and their caller does not know */
    struct avmm_blk_request *stalled, **stalled_end; /* that wait for a place among the submissions, in order */
    uint32_t cancels; /* under way */
    int32_t refused; /* the errno of the latest submission that the kernel did not take, all of it */
    uint8_t given_up; /* nothing more is submitted: requests are handed to their callers, as by disks without a ring */
};
#define AVMM_BLK_CANCELS 32u /* at once: so many completions are no disk's share */
#define AVMM_BLK_WAITS 16u   /* of a disk, in threads of the kernel's at once */

struct avmm_blk {
    struct avmm_allowance *allowance; /* what its rate limit lets through, or NULL */
    struct avmm_blk_layer *layer; /* the top one of an overlay, whose file is `fd`, or NULL */
    struct avmm_blk_ring *ring; /* NULL: every request is handed to the caller, to be performed in threads */
    int fd;                  /* open with O_DIRECT if `align_file` is not 0 */
    uint32_t align_file;     /* O_DIRECT: alignment of offsets and lengths, bytes, a power of two; 0: none */
    uint32_t align_memory;   /* O_DIRECT: alignment of addresses */
    uint32_t punt_bytes;     /* what is copied from the page cache at once, in the loop's thread, of one request */
    uint32_t inline_bytes;   /* and of all requests of one call; the rest is left to kernel threads */
    uint32_t inline_left;
    uint8_t writes_wait;     /* enum avmm_blk_known: cached writes to this file are never done at once */
    uint8_t one_writer;      /* cached, in a file: the kernel does its writes one after the other, in one thread, however many it has */
    uint8_t never_now;       /* bits of 1 << type: the file does not know how not to wait for that */
    uint64_t capacity;       /* sectors of 512 bytes */
    uint64_t max_bytes;      /* of one request */
    uint8_t readonly;
    uint8_t write_through;
    uint8_t discard;      /* DISCARD was negotiated */
    uint8_t write_zeroes; /* WRITE_ZEROES was negotiated */
    uint8_t stopping;     /* set by avmm_blk_stop */
    uint8_t abandoned;    /* set by the caller: guest memory and queues may have gone, so what is in flight ends without a word */
    uint8_t is_touched;
    uint8_t id[20];
    uint32_t n_magics;
    struct avmm_blk_magic magics[AVMM_BLK_MAGICS];
    /* Blocks that are overwritten in part are read, changed and written; a write to their other sectors must not run meanwhile. */
    uint32_t writers;                  /* writes of whole blocks that run */
    struct avmm_blk_request *alone;    /* the write of parts of blocks that runs, by itself */
    struct avmm_blk_request *deferred; /* writes that wait, in order */
    uint32_t n_waits;                  /* requests in the ring for which a thread of the kernel's may wait */
    struct avmm_blk_request *parked, **parked_end; /* that would be more than AVMM_BLK_WAITS of them, in order */
    uint32_t lent;                     /* buffers in use for what is not aligned */
    uint32_t n_handed;                 /* requests in all queues' `handed` */
    uint32_t in_flight; /* requests taken and not finished, over all queues */
    uint32_t grown;     /* iovecs on the heap, of chains in more pieces than a slot of the arena takes */
    uint32_t failures;    /* requests that the host failed, since the caller set this to 0 */
    int32_t failure;      /* the errno of the last of them */
    uint32_t failed_type; /* and its type */
    struct avmm_blk_queue *finished; /* queues with requests that are finished and not published */
    struct avmm_blk *next_touched;
};

struct avmm_blk_queue {
    struct avmm_blk *disk;
    struct avmm_queue *vq;
    const struct avmm_mem *mem;
    uint64_t bit;    /* in the masks of queues that functions return */
    uint32_t depth;  /* slots */
    uint32_t n_free; /* of them */
    uint32_t n_handed; /* requests for the caller, in `handed` */
    uint32_t n_used;
    uint32_t room; /* iovecs of a slot in the arena */
    uint32_t cancelled; /* slots that avmm_blk_cancel has got to, which goes on there */
    int32_t malformed; /* a code, if the last chain was: the device is broken */
    int32_t malformed_head; /* returned unused already, or -1: the next pop of the queue meets the chain again */
    uint8_t starved; /* the next chain waits until others in many pieces have ended */
    uint16_t *handed; /* slot numbers */
    uint16_t *free;
    uint16_t *heads;
    uint32_t *lengths;
    struct avmm_blk_request *slots;
    struct iovec *arena;
    size_t arena_size;
    struct avmm_blk_queue *next; /* in disk->finished */
    struct avmm_blk_latency read_latency, write_latency;
    uint64_t reads, writes, flushes, others, errors, read_bytes, written_bytes;
};

/* Beside the bits of queues in a mask: a queue has requests `handed` over, or a malformed chain; and submissions wait that the
 * kernel did not take, so call avmm_blk_ring_reap again in a while even if nothing completes; and this call has done its share, so
 * call avmm_blk_serve again when others have had their turn: nobody kicks for what is left in the ring; and requests of other disks
 * have ended, so call avmm_blk_ring_next. */
#define AVMM_BLK_OTHERS (1ull << 60)
#define AVMM_BLK_MORE (1ull << 61)
#define AVMM_BLK_LOOK (1ull << 62)
#define AVMM_BLK_AGAIN (1ull << 63)
#define AVMM_BLK_QUEUE_BITS 60

/* Make a ring for `completions` in flight, cancellations among them; what avmm_uring_open returns. */
int avmm_blk_ring_open(struct avmm_blk_ring *ring, uint32_t completions);
/* Nothing may be in flight. Idempotent. */
void avmm_blk_ring_close(struct avmm_blk_ring *ring);

/* From now on nothing is submitted. What the kernel has not taken is handed to its callers, or ends if its disk is stopping: those
 * disks are touched. The next one with its mask, as by avmm_blk_ring_reap; NULL: there is none. Requests that the kernel has
 * complete as ever. */
struct avmm_blk *avmm_blk_ring_give_up(struct avmm_blk_ring *ring, uint64_t *mask);

/* Slots for `depth` requests whose chains have `room` iovecs (larger ones get them on demand). 0 or -ENOMEM. */
int avmm_blk_queue_open(struct avmm_blk_queue *q, uint32_t depth, uint32_t room);
/* Nothing may be in flight. Idempotent. */
void avmm_blk_queue_close(struct avmm_blk_queue *q);

/* Whether avmm_blk_serve can take a chain; if not, ends of requests on any queue of the disk may change that. */
bool avmm_blk_can_take(const struct avmm_blk_queue *q);

/* Take chains, as far as there are slots and up to a bound on their segments, start their I/O and publish what has ended already. Returns the mask of queues on
 * which something was published, with the bits above. */
uint64_t avmm_blk_serve(struct avmm_blk_queue *q);

/* Take in completions, up to a bound, and publish what has ended. Returns a disk of which there were some, or NULL, with the same
 * mask for it. The next one while that has AVMM_BLK_OTHERS. */
struct avmm_blk *avmm_blk_ring_reap(struct avmm_blk_ring *ring, uint64_t *mask);
struct avmm_blk *avmm_blk_ring_next(struct avmm_blk_ring *ring, uint64_t *mask);

/* Have what is in flight end soon: what has not been begun is cancelled, in the kernel for each queue by a call of its own, what is
 * in the middle goes no further than the system call that it is in. The status of such requests is IOERR. Until `stopping` is
 * cleared. The same masks; AVMM_BLK_MORE of avmm_blk_cancel: there was no place for all cancellations yet, so call it again in a
 * while, and it goes on there. Without: all have been cancelled once, which some may not have heeded, so call it again in a longer
 * while as long as some are in flight. */
uint64_t avmm_blk_stop(struct avmm_blk *disk);
uint64_t avmm_blk_cancel(struct avmm_blk_queue *q);

/* Do reads, writes and flushes here and now, blocking. Then, in the loop's thread, finish them. */
void avmm_blk_perform(struct avmm_blk_request **requests, uint32_t count);
void avmm_blk_finish_performed(struct avmm_blk_request **requests, uint32_t count);

/* Copy up to `size` bytes of the data of a request, `from` bytes on; how many there were. */
uint32_t avmm_blk_payload(const struct avmm_blk_request *request, uint64_t from, uint8_t *to, uint32_t size);

/* A request that was handed over has ended with `error`, an errno or 0. The status goes to the guest with the next publish. */
void avmm_blk_finish(struct avmm_blk_request *request, int error);
void avmm_blk_answer(struct avmm_blk_request *request, uint8_t status); /* the same with a status byte */
uint64_t avmm_blk_publish(struct avmm_blk *disk); /* and submit what was started for them; the mask */

/* fallocate(2), blocking; 0 or an errno. */
int avmm_blk_fallocate(int fd, int mode, uint64_t offset, uint64_t size);

/* ---- layers; what may block is for threads, while no other request changes the disk ------------------------------------ */

/* Say that a layer has all of [from, to), whole clusters as far as they are within the disk. */
void avmm_blk_layer_mark(struct avmm_blk_layer *layer, uint64_t from, uint64_t to);
/* Have the cluster at `at`, or what of it is within the disk, in the layer, with zeros in [from, to), which may be empty; 0 or an errno. */
int avmm_blk_layer_bring(struct avmm_blk_layer *layer, uint64_t at, uint64_t from, uint64_t to);
/* Copy up to `room` dirty pages of the map, from number `*page` on, with their numbers, and take them for clean; how many. `*page`
 * becomes where to go on, or the number of pages when there are no more. All bits set before it was called are in the copies. */
uint32_t avmm_blk_layer_take(struct avmm_blk_layer *layer, uint32_t *page, uint32_t pages, uint32_t *numbers, uint8_t *copies, uint32_t room);
/* The map as of `changed` is on the medium. */
void avmm_blk_layer_settle(struct avmm_blk_layer *layer, uint64_t changed);
/* How often bits were set: before the ones that are taken later, after the ones that have been. */
uint64_t avmm_blk_layer_changed(const struct avmm_blk_layer *layer);
/* How many bytes of [at, at + size) are in one place, and which: 0 the layer itself, 1 the next one, ...; -1 for zeros. */
int avmm_blk_layer_find(const struct avmm_blk_layer *layer, uint64_t at, uint64_t size, uint64_t *run);

/* The one place where an errno becomes a status byte. */
uint8_t avmm_blk_status(int error);

#endif
