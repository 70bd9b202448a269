#include "blk.h"
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef IORING_ASYNC_CANCEL_ALL
#define IORING_ASYNC_CANCEL_ALL (1U << 0)
#endif
#ifndef IORING_ASYNC_CANCEL_ANY
#define IORING_ASYNC_CANCEL_ANY (1U << 2)
#endif
#define SECTOR 512u
#define MAX_IOV 1024u           /* UIO_MAXIOV: what one system call takes */
#define PAGE 4096u              /* the least that an IOMMU maps */
#define MAX_ROOM (1u << 16)     /* iovecs of one request, whatever the queue's size */
#define MAX_GROWN (1u << 18)    /* iovecs on the heap, over all requests of a disk: 4 MiB */
#define SEGMENTS (1u << 16)     /* looked at in one call: an IOMMU lets a guest cut every request in thousands */
#define LARGE_BUFFER (128u << 10)
#define SMALL_BUFFER (8u << 10)
#define LARGE_BUFFERS 32u
#define MAX_TRANSFER (1u << 30) /* a system call moves less than 2 GiB and says so in 31 bits */

/* struct virtio_blk_req (§5.2.6): this, data, one status byte; "framing" is the driver's business (§2.7.4.1) */
struct header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};

uint8_t avmm_blk_status(int error) {
    switch (error) {
    case 0:
        return AVMM_BLK_OK;
    case EOPNOTSUPP:
    case ENOSYS:
    case ENOTTY:
        return AVMM_BLK_UNSUPP;
    default:
        return AVMM_BLK_IOERR;
    }
}

/* ---- slots ----------------------------------------------------------------------------------------------------------- */

int avmm_blk_queue_open(struct avmm_blk_queue *q, uint32_t depth, uint32_t room) {
    q->depth = q->n_free = depth;
    q->room = room;
    q->free = calloc(depth, sizeof *q->free);
    q->handed = calloc(depth, sizeof *q->handed);
    q->heads = calloc(depth, sizeof *q->heads);
    q->lengths = calloc(depth, sizeof *q->lengths);
    q->slots = calloc(depth, sizeof *q->slots);
    q->arena_size = (size_t)depth * room * sizeof(struct iovec);
    /* Free slots are taken last in, first out, so of all this only what the actual depth needs becomes resident. */
    q->arena = mmap(NULL, q->arena_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (q->arena == MAP_FAILED)
        q->arena = NULL;
    if (!q->free || !q->handed || !q->heads || !q->lengths || !q->slots || !q->arena) {
        avmm_blk_queue_close(q);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < depth; i++) {
        q->free[i] = (uint16_t)(depth - 1 - i);
        q->slots[i] = (struct avmm_blk_request){.queue = q, .store = q->arena + (size_t)i * room, .room = room};
    }
    return 0;
}

static void shrink(struct avmm_blk_request *r) {
    struct avmm_blk_queue *q = r->queue;
    struct iovec *own = q->arena + (size_t)(r - q->slots) * q->room;
    if (r->store == own)
        return;
    q->disk->grown -= r->room;
    free(r->store);
    r->store = own;
    r->room = q->room;
}

/* What a legal chain can need: a buffer of n bytes touches at most n / PAGE + 2 pages. */
static uint32_t most_room(const struct avmm_blk_queue *q) {
    uint64_t most = q->disk->max_bytes / PAGE + 2 * (uint64_t)q->vq->max_chain + 1;
    return most < MAX_ROOM ? (uint32_t)most : MAX_ROOM;
}

static bool may_grow(const struct avmm_blk_queue *q) { return q->disk->grown + most_room(q) <= MAX_GROWN; }

static bool grow(struct avmm_blk_request *r) {
    uint32_t room = most_room(r->queue);
    struct iovec *store = room > r->room ? malloc(room * sizeof *store) : NULL;
    if (!store)
        return false;
    shrink(r);
    r->store = store;
    r->room = room;
    r->queue->disk->grown += room;
    return true;
}

/* Keep `n` iovecs of what has grown. */
static void trim(struct avmm_blk_request *r, uint32_t n) {
    struct avmm_blk_queue *q = r->queue;
    if (r->store == q->arena + (size_t)(r - q->slots) * q->room || !n)
        return;
    struct iovec *store = realloc(r->store, n * sizeof *store);
    if (!store)
        return;
    q->disk->grown -= r->room - n;
    r->store = store;
    r->room = n;
}

bool avmm_blk_can_take(const struct avmm_blk_queue *q) { return q->n_free && (!q->starved || may_grow(q)); }

void avmm_blk_queue_close(struct avmm_blk_queue *q) {
    for (uint32_t i = 0; q->arena && q->slots && i < q->depth; i++)
        if (q->slots[i].store)
            shrink(&q->slots[i]);
    if (q->arena)
        munmap(q->arena, q->arena_size);
    free(q->free);
    free(q->handed);
    free(q->heads);
    free(q->lengths);
    free(q->slots);
    q->free = q->handed = q->heads = NULL;
    q->lengths = NULL;
    q->slots = NULL;
    q->arena = NULL;
    q->depth = q->n_free = 0;
}

/* ---- ends of requests ------------------------------------------------------------------------------------------------ */

static void push_later(struct avmm_blk_queue *q, uint16_t head, uint32_t length) {
    if (!q->n_used) {
        q->next = q->disk->finished;
        q->disk->finished = q;
    }
    q->heads[q->n_used] = head;
    q->lengths[q->n_used++] = length;
}

static void start_deferred(struct avmm_blk *disk);

static void release(struct avmm_blk_request *r) {
    struct avmm_blk_queue *q = r->queue;
    shrink(r);
    if (r->bounce) {
        atomic_fetch_sub_explicit((_Atomic uint32_t *)&q->disk->lent, 1, memory_order_relaxed);
        free(r->bounce);
        r->bounce = NULL;
    }
    q->free[q->n_free++] = (uint16_t)(r - q->slots);
    q->disk->in_flight--;
}

void avmm_blk_answer(struct avmm_blk_request *r, uint8_t status) {
    *r->status = status; /* seen before the used index, which is stored with release */
    if (status != AVMM_BLK_OK)
        r->queue->errors++;
    /* §2.7.8.2: no more than was written from the start; the status byte counts if nothing before it was left out */
    uint64_t length = r->done + (r->done == r->in_total);
    push_later(r->queue, r->head, length > UINT32_MAX ? UINT32_MAX : (uint32_t)length);
    struct avmm_blk *disk = r->queue->disk;
    bool wrote = r->writing;
    if (wrote && disk->alone == r)
        disk->alone = NULL;
    else if (wrote)
        disk->writers--;
    r->writing = 0;
    release(r);
    if (wrote)
        start_deferred(disk);
}

void avmm_blk_finish(struct avmm_blk_request *r, int error) { avmm_blk_answer(r, avmm_blk_status(error)); }

uint64_t avmm_blk_publish(struct avmm_blk *disk) {
    uint64_t mask = 0;
    for (struct avmm_blk_queue *q; (q = disk->finished) != NULL; disk->finished = q->next) {
        avmm_queue_push(q->vq, q->heads, q->lengths, q->n_used);
        q->n_used = 0;
        mask |= q->bit;
    }
    if (disk->ring && disk->ring->pending && avmm_uring_submit(disk->ring))
        mask |= AVMM_BLK_AGAIN;
    return disk->n_handed ? mask | AVMM_BLK_LOOK : mask;
}

/* ---- data ------------------------------------------------------------------------------------------------------------ */

/* Pass over `n` bytes of the iovecs; there are so many. */
static void skip(struct avmm_blk_request *r, uint64_t n) {
    while (n) {
        if (n < r->iov->iov_len) {
            r->iov->iov_base = (char *)r->iov->iov_base + n;
            r->iov->iov_len -= n;
            return;
        }
        n -= r->iov->iov_len;
        r->iov++;
        r->n_iov--;
    }
}

/* Copy between the iovecs' next `n` bytes and `buffer`, and pass over them. */
static void copy(struct avmm_blk_request *r, uint8_t *buffer, uint64_t n, bool to_guest) {
    while (n) {
        uint64_t part = n < r->iov->iov_len ? n : r->iov->iov_len;
        if (to_guest)
            memcpy(r->iov->iov_base, buffer, part);
        else
            memcpy(buffer, r->iov->iov_base, part);
        skip(r, part);
        buffer += part;
        n -= part;
    }
}

uint32_t avmm_blk_payload(const struct avmm_blk_request *r, uint8_t *to, uint32_t size) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->n_iov && n < size; i++) {
        uint32_t part = r->iov[i].iov_len < size - n ? (uint32_t)r->iov[i].iov_len : size - n;
        memcpy(to + n, r->iov[i].iov_base, part);
        n += part;
    }
    return n;
}

/* What the next system call for this request is given: a prefix of its iovecs that a call can take. */
static uint32_t span(const struct avmm_blk_request *r) {
    uint64_t bytes = 0;
    uint32_t n = 0;
    while (n < r->n_iov && n < MAX_IOV && (bytes += r->iov[n].iov_len) <= MAX_TRANSFER)
        n++;
    return n ? n : 1; /* a single longer buffer is cut short by the kernel */
}

/* Also looked at by threads in avmm_blk_perform; nothing else depends on when they see it. */
static bool is_stopping(const struct avmm_blk *disk) {
    return atomic_load_explicit((const _Atomic uint8_t *)&disk->stopping, memory_order_relaxed);
}

/* A few requests have large buffers, the rest make do with small ones: bounds what a guest can make us allocate. */
static bool lend(struct avmm_blk_request *r) {
    struct avmm_blk *disk = r->queue->disk;
    uint32_t others = atomic_fetch_add_explicit((_Atomic uint32_t *)&disk->lent, 1, memory_order_relaxed);
    r->bounce_size = others < LARGE_BUFFERS ? LARGE_BUFFER : SMALL_BUFFER;
    if (r->bounce_size < 2 * disk->align_file)
        r->bounce_size = 2 * disk->align_file;
    r->bounce = aligned_alloc(PAGE, r->bounce_size);
    if (!r->bounce)
        atomic_fetch_sub_explicit((_Atomic uint32_t *)&disk->lent, 1, memory_order_relaxed);
    return r->bounce;
}

/* O_DIRECT takes only what is aligned; all else goes through a buffer that is, a window of the image at a time. Not through the
 * page cache: what it holds beside the guest's sectors could overwrite what O_DIRECT wrote there. 0 or -ENOMEM. */
static int route(struct avmm_blk_request *r) {
    const struct avmm_blk *disk = r->queue->disk;
    uint64_t memory = 0, file = r->offset | r->left, block = disk->align_file;
    r->bounces = r->fills = 0;
    if (!block)
        return 0;
    for (uint32_t i = 0; i < r->n_iov; i++) {
        memory |= (uintptr_t)r->iov[i].iov_base;
        file |= r->iov[i].iov_len;
    }
    if (!(file & (block - 1)) && !(memory & (disk->align_memory - 1)))
        return 0;
    if (!r->bounce && !lend(r))
        return -ENOMEM;
    r->window_at = r->offset & ~(block - 1);
    uint64_t room = r->bounce_size - (r->offset - r->window_at), end;
    r->wanted = r->left < room ? r->left : room;
    end = (r->offset + r->wanted + block - 1) & ~(block - 1);
    r->window = (struct iovec){r->bounce, end - r->window_at};
    r->bounces = 1;
    r->fills = r->type == AVMM_BLK_OUT && (r->window_at != r->offset || end != r->offset + r->wanted);
    return 0;
}

/* `n` bytes were transferred, and the iovecs are past them. What `advance` returns. */
static int account(struct avmm_blk_request *r, uint64_t n) {
    r->left -= n;
    r->offset += n;
    if (r->type == AVMM_BLK_IN)
        r->done += n;
    if (!r->left)
        return 0;
    if (is_stopping(r->queue->disk))
        return -ECANCELED;
    int error = route(r);
    return error ? error : 1;
}

static int advance_window(struct avmm_blk_request *r, uint64_t result) {
    uint64_t before = r->offset - r->window_at, n;
    if (r->fills) { /* blocks beyond the end of the file read as zeros */
        memset(r->bounce + result, 0, r->window.iov_len - result);
        r->fills = 0;
        return 1;
    }
    if (result <= before)
        return -EIO;
    n = result - before < r->wanted ? result - before : r->wanted;
    if (r->type == AVMM_BLK_IN)
        copy(r, r->bounce + before, n, true);
    else
        skip(r, n);
    return account(r, n);
}

/* The outcome of one system call: 1 if there is more to do, 0 if the request is complete, else a negative errno. */
static int advance(struct avmm_blk_request *r, int64_t result) {
    if (result < 0)
        return (int)result;
    if (r->type == AVMM_BLK_FLUSH)
        return 0;
    if (r->bounces)
        return advance_window(r, (uint64_t)result);
    if (result == 0) { /* the file ends here: legal only in the last sector of an image that is no multiple of it */
        if (r->type != AVMM_BLK_IN || !r->at_end || r->left >= SECTOR)
            return -EIO;
        for (uint32_t i = 0; i < r->n_iov; i++)
            memset(r->iov[i].iov_base, 0, r->iov[i].iov_len);
        result = (int64_t)r->left;
    }
    skip(r, (uint64_t)result);
    return account(r, (uint64_t)result);
}

/* The next system call for a read or write. */
struct call {
    bool in;
    const struct iovec *iov;
    uint32_t n_iov;
    uint64_t offset;
};

static struct call next_call(struct avmm_blk_request *r) {
    bool in = r->type == AVMM_BLK_IN || r->fills;
    if (!r->bounces)
        return (struct call){in, r->iov, span(r), r->offset};
    if (!in)
        avmm_blk_payload(r, r->bounce + (r->offset - r->window_at), (uint32_t)r->wanted);
    return (struct call){in, &r->window, 1, r->window_at};
}

static int perform(struct avmm_blk_request *r) {
    int more = is_stopping(r->queue->disk) ? -ECANCELED : 1;
    while (more > 0) {
        ssize_t n;
        struct call c = {0};
        int fd = r->queue->disk->fd;
        if (r->type != AVMM_BLK_FLUSH)
            c = next_call(r);
        if (!c.iov)
            n = fdatasync(fd);
        else if (c.in)
            n = preadv(fd, c.iov, (int)c.n_iov, (off_t)c.offset);
        else
            n = pwritev2(fd, c.iov, (int)c.n_iov, (off_t)c.offset, r->dsync ? RWF_DSYNC : 0);
        if (n < 0 && errno == EINTR)
            continue;
        more = advance(r, n < 0 ? -errno : n);
    }
    return -more;
}

void avmm_blk_perform(struct avmm_blk_request **requests, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        requests[i]->error = perform(requests[i]);
}

void avmm_blk_finish_performed(struct avmm_blk_request **requests, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        avmm_blk_finish(requests[i], requests[i]->error);
}

int avmm_blk_fallocate(int fd, int mode, uint64_t offset, uint64_t size) {
    while (fallocate(fd, mode, (off_t)offset, (off_t)size) < 0)
        if (errno != EINTR)
            return errno;
    return 0;
}

static void hand_over(struct avmm_blk_request *r) {
    struct avmm_blk_queue *q = r->queue;
    q->handed[q->n_handed++] = (uint16_t)(r - q->slots);
    q->disk->n_handed++;
}

static void start(struct avmm_blk_request *r) {
    struct avmm_blk_queue *q = r->queue;
    if (!q->disk->ring || r->type == AVMM_BLK_DISCARD || r->type == AVMM_BLK_WRITE_ZEROES) {
        hand_over(r);
        return;
    }
    /* A request has one SQE at a time and the ring has as many as there are slots, so there is always one. */
    struct io_uring_sqe *sqe = avmm_uring_sqe(q->disk->ring);
    sqe->fd = q->disk->fd;
    sqe->user_data = (uintptr_t)r;
    if (r->punt)
        sqe->flags = IOSQE_ASYNC;
    if (r->type == AVMM_BLK_FLUSH) {
        sqe->opcode = IORING_OP_FSYNC;
        sqe->fsync_flags = IORING_FSYNC_DATASYNC;
        return;
    }
    struct call c = next_call(r);
    sqe->off = c.offset;
    if (r->dsync && !c.in)
        sqe->rw_flags = RWF_DSYNC;
    if (c.n_iov == 1) {
        sqe->opcode = c.in ? IORING_OP_READ : IORING_OP_WRITE;
        sqe->addr = (uintptr_t)c.iov->iov_base;
        sqe->len = c.iov->iov_len < MAX_TRANSFER ? (uint32_t)c.iov->iov_len : MAX_TRANSFER;
    } else {
        sqe->opcode = c.in ? IORING_OP_READV : IORING_OP_WRITEV;
        sqe->addr = (uintptr_t)c.iov;
        sqe->len = c.n_iov;
    }
}

/* ---- the order of writes under O_DIRECT -------------------------------------------------------------------------------- */

static bool may_write(const struct avmm_blk *disk, const struct avmm_blk_request *r) {
    return !disk->alone && !(r->partial && disk->writers);
}

static void start_write(struct avmm_blk *disk, struct avmm_blk_request *r) {
    if (r->partial)
        disk->alone = r;
    else
        disk->writers++;
    r->writing = 1;
    start(r);
}

static void defer(struct avmm_blk *disk, struct avmm_blk_request *r) {
    struct avmm_blk_request **end = &disk->deferred;
    while (*end)
        end = &(*end)->next;
    r->next = NULL;
    *end = r;
}

static void start_deferred(struct avmm_blk *disk) {
    for (struct avmm_blk_request *r; (r = disk->deferred) != NULL && may_write(disk, r);) {
        disk->deferred = r->next;
        start_write(disk, r);
    }
}

/* Start a request that changes the disk, or a read, when it may. */
static void launch(struct avmm_blk_request *r) {
    struct avmm_blk *disk = r->queue->disk;
    r->partial = r->type == AVMM_BLK_OUT && disk->align_file && ((r->offset | r->left) & (disk->align_file - 1));
    if (r->type == AVMM_BLK_IN || !disk->align_file)
        start(r);
    else if (disk->deferred || !may_write(disk, r))
        defer(disk, r);
    else
        start_write(disk, r);
}

void avmm_blk_stop(struct avmm_blk *disk) {
    struct io_uring_sqe *sqe;
    atomic_store_explicit((_Atomic uint8_t *)&disk->stopping, 1, memory_order_relaxed);
    for (struct avmm_blk_request *r; (r = disk->deferred) != NULL;) {
        disk->deferred = r->next;
        avmm_blk_finish(r, ECANCELED);
    }
    avmm_blk_publish(disk);
    if (!disk->ring || !disk->in_flight || avmm_uring_submit(disk->ring) || !(sqe = avmm_uring_sqe(disk->ring)))
        return; /* then it takes longer */
    sqe->opcode = IORING_OP_ASYNC_CANCEL; /* all requests: Linux 5.19; before it, -EINVAL and no harm */
    sqe->fd = -1;
    sqe->cancel_flags = IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_ANY;
    avmm_uring_submit(disk->ring);
}

static void completed(struct avmm_blk_request *r, int32_t result) {
    if (!r) /* the cancellation itself */
        return;
    if ((result == -EAGAIN || result == -EINTR) && !is_stopping(r->queue->disk)) {
        r->punt = 1; /* in a kernel thread it may wait */
        start(r);
        return;
    }
    int more = advance(r, result);
    if (more > 0)
        start(r);
    else
        avmm_blk_finish(r, -more);
}

/* ---- parsing --------------------------------------------------------------------------------------------------------- */

/* Split a chain into header, data and status byte (§5.2.6). A code if it does not have them. */
static int parse(struct avmm_blk_request *r, const struct avmm_chain *c, struct header *h) {
    uint32_t n_write = c->n_write;
    if (!c->write_bytes)
        return AVMM_BLK_NO_STATUS;
    if (c->read_bytes < sizeof *h)
        return AVMM_BLK_NO_HEADER;
    struct iovec *last = &r->store[c->n_read + n_write - 1];
    r->status = (uint8_t *)last->iov_base + --last->iov_len;
    if (!last->iov_len)
        n_write--;
    r->iov = r->store;
    r->n_iov = c->n_read;
    copy(r, (uint8_t *)h, sizeof *h, false); /* once: the guest may change it at any time */
    r->type = h->type;
    r->done = 0;
    r->in_total = c->write_bytes - 1;
    r->punt = r->bounces = r->fills = 0;
    if (r->type == AVMM_BLK_IN || r->type == AVMM_BLK_GET_ID) {
        r->iov = r->store + c->n_read;
        r->n_iov = n_write;
        r->left = r->in_total;
    } else {
        r->left = c->read_bytes - sizeof *h;
    }
    return 0;
}

/* Whether this is a cached write that the kernel leaves to its threads of its own accord, as it does where the file system takes
 * none without waiting. To leave it to them here would have each such write wake or start one more thread, though the file lets in
 * one at a time. The file is asked once, with the first piece of a large write, which is written again with the rest. */
static bool is_left_to_threads(const struct avmm_blk_request *r) {
    struct avmm_blk *disk = r->queue->disk;
    if (r->type != AVMM_BLK_OUT || !disk->ring)
        return false;
    if (!disk->writes_wait && r->left > disk->punt_bytes && !r->dsync) {
        ssize_t n = pwritev2(disk->fd, r->iov, 1, (off_t)r->offset, RWF_NOWAIT);
        if (n > 0)
            disk->writes_wait = AVMM_BLK_NO;
        else if (n < 0 && errno == EOPNOTSUPP)
            disk->writes_wait = AVMM_BLK_YES;
    }
    return disk->writes_wait == AVMM_BLK_YES;
}

static void begin_transfer(struct avmm_blk_request *r, uint64_t sector) {
    struct avmm_blk_queue *q = r->queue;
    struct avmm_blk *disk = q->disk;
    bool out = r->type == AVMM_BLK_OUT;
    if (r->left % SECTOR || r->left > disk->max_bytes || sector > disk->capacity ||
        r->left / SECTOR > disk->capacity - sector || (out && disk->readonly)) {
        avmm_blk_answer(r, AVMM_BLK_IOERR);
        return;
    }
    *(out ? &q->writes : &q->reads) += 1;
    *(out ? &q->written_bytes : &q->read_bytes) += r->left;
    if (!r->left) {
        avmm_blk_answer(r, AVMM_BLK_OK);
        return;
    }
    r->offset = sector * SECTOR;
    r->at_end = sector + r->left / SECTOR == disk->capacity;
    r->dsync = out && disk->write_through;
    if (!is_left_to_threads(r)) {
        r->punt = r->left > disk->punt_bytes || r->left > disk->inline_left;
        if (!r->punt)
            disk->inline_left -= (uint32_t)r->left;
    }
    int error = route(r);
    if (error)
        avmm_blk_finish(r, -error);
    else
        launch(r);
}

static void get_id(struct avmm_blk_request *r) {
    uint64_t n = r->left < sizeof r->queue->disk->id ? r->left : sizeof r->queue->disk->id;
    copy(r, r->queue->disk->id, n, true);
    r->done = n;
    avmm_blk_answer(r, AVMM_BLK_OK);
}

static void begin(struct avmm_blk_request *r, uint64_t sector) {
    struct avmm_blk_queue *q = r->queue;
    const struct avmm_blk *disk = q->disk;
    switch (r->type) {
    case AVMM_BLK_IN:
    case AVMM_BLK_OUT:
        begin_transfer(r, sector);
        return;
    case AVMM_BLK_FLUSH:
        q->flushes++;
        start(r);
        return;
    case AVMM_BLK_GET_ID:
        q->others++;
        get_id(r);
        return;
    case AVMM_BLK_DISCARD:
    case AVMM_BLK_WRITE_ZEROES:
        q->others++;
        if (!(r->type == AVMM_BLK_DISCARD ? disk->discard : disk->write_zeroes))
            break;
        if (disk->readonly)
            avmm_blk_answer(r, AVMM_BLK_IOERR);
        else
            launch(r); /* zeroed sectors are not to come back with the rest of their block, either */
        return;
    }
    avmm_blk_answer(r, AVMM_BLK_UNSUPP);
}

/* Take one chain. False if there is none, if it is malformed, or if there is no room for it now. Counts down the `segments` that
 * it looks at. */
static bool take(struct avmm_blk_queue *q, uint32_t *segments) {
    struct avmm_blk_request *r = &q->slots[q->free[q->n_free - 1]];
    struct avmm_ring_error error;
    struct avmm_chain chain;
    struct header header;
    int n;
    for (;;) {
        n = avmm_queue_pop(q->vq, q->mem, &chain, 1, r->store, NULL, r->room, &error);
        uint32_t seen = n > 0 ? chain.n_read + chain.n_write : n < 0 ? r->room : 0;
        *segments -= seen < *segments ? seen : *segments;
        if (n != AVMM_RING_NO_ROOM)
            break;
        if (r->room < most_room(q) && !may_grow(q)) {
            q->starved = 1;
            return false;
        }
        if (!grow(r))
            break;
    }
    if (n < 0) {
        if (n != AVMM_RING_BAD_INDEX && n != AVMM_RING_NO_ROOM)
            avmm_queue_put_back(q->vq, 1);
        q->malformed = n;
        q->malformed_head = -1;
    }
    if (n <= 0) {
        shrink(r);
        return false;
    }
    trim(r, chain.n_read + chain.n_write);
    r->head = chain.head;
    int code = parse(r, &chain, &header);
    if (code < 0) {
        shrink(r);
        push_later(q, r->head, 0);
        q->malformed = code;
        q->malformed_head = r->head;
        return false;
    }
    q->n_free--;
    q->disk->in_flight++;
    begin(r, header.sector);
    return true;
}

uint64_t avmm_blk_serve(struct avmm_blk_queue *q) {
    /* As many as there are slots at first, though some may come free: a bound on what one guest gets of the loop. */
    q->disk->inline_left = q->disk->inline_bytes;
    uint32_t segments = SEGMENTS;
    q->starved = 0;
    for (uint32_t n = q->n_free; n && segments; n--)
        if (!take(q, &segments))
            break;
    uint64_t mask = avmm_blk_reap(q->disk);
    if (!segments)
        mask |= AVMM_BLK_MORE;
    return q->malformed ? mask | AVMM_BLK_LOOK : mask;
}

uint64_t avmm_blk_reap(struct avmm_blk *disk) {
    struct avmm_uring *ring = disk->ring;
    uint64_t request;
    int32_t result;
    if (ring) {
        if (ring->pending)
            avmm_uring_submit(ring);
        uint32_t n = ring->sq_entries; /* bounds the loop: completions of guests' requests come as fast as we start them */
        while (n-- && avmm_uring_reap(ring, &request, &result))
            completed((struct avmm_blk_request *)(uintptr_t)request, result);
    }
    return avmm_blk_publish(disk); /* and submit what goes on */
}
