#include "blk_parts.h"
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_IOV 1024u /* UIO_MAXIOV: what one system call takes */
#define PAGE 4096u /* what a buffer of our own is aligned to */
#define LARGE_BUFFER (128u << 10)
#define SMALL_BUFFER (8u << 10)
#define LARGE_BUFFERS 32u

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

void avmm_blk_copy(struct avmm_blk_request *r, uint8_t *buffer, uint64_t n, bool to_guest) {
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

uint32_t avmm_blk_payload(const struct avmm_blk_request *r, uint64_t from, uint8_t *to, uint32_t size) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->n_iov && n < size; i++) {
        uint64_t there = r->iov[i].iov_len;
        if (from >= there) {
            from -= there;
            continue;
        }
        uint32_t part = there - from < size - n ? (uint32_t)(there - from) : size - n;
        memcpy(to + n, (const char *)r->iov[i].iov_base + from, part);
        from = 0;
        n += part;
    }
    return n;
}

/* Where the first line begins that is neither a comment nor blank. */
static uint32_t past_comments(const uint8_t *sector) {
    uint32_t at = 0;
    while (at < AVMM_BLK_SECTOR) {
        uint32_t end = at;
        if (sector[end] == '#')
            while (end < AVMM_BLK_SECTOR && sector[end] != '\n')
                end++;
        else
            while (end < AVMM_BLK_SECTOR && (sector[end] == ' ' || sector[end] == '\r'))
                end++;
        if (end == AVMM_BLK_SECTOR || sector[end] != '\n')
            break;
        at = end + 1;
    }
    return at;
}

bool avmm_blk_is_marked(const struct avmm_blk *disk, const uint8_t *sector, bool last) {
    for (uint32_t i = 0; i < disk->n_magics; i++) {
        const struct avmm_blk_magic *m = &disk->magics[i];
        if ((m->place == AVMM_BLK_LAST) != last)
            continue;
        uint32_t at = m->place == AVMM_BLK_AFTER_COMMENTS ? past_comments(sector) : m->offset;
        if (m->size <= AVMM_BLK_SECTOR - at && !memcmp(sector + at, m->bytes, m->size))
            return true;
    }
    return false;
}

/* What the next system call for this request is given: a prefix of its iovecs that a call can take. */
static uint32_t span(const struct avmm_blk_request *r) {
    uint64_t bytes = 0;
    uint32_t n = 0;
    while (n < r->n_iov && n < MAX_IOV && (bytes += r->iov[n].iov_len) <= AVMM_BLK_MAX_TRANSFER)
        n++;
    return n ? n : 1; /* a single longer buffer is cut short by the kernel */
}

/* Also looked at by threads in avmm_blk_perform; nothing else depends on when they see it. */
bool avmm_blk_is_stopping(const struct avmm_blk *disk) {
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
 * page cache: what it holds beside the guest's sectors could overwrite what O_DIRECT wrote there. What is written to a guarded
 * sector goes through a buffer too: the guest could change its own after we have looked. If that is the last one, so does all
 * that is before it, which is simple, and seldom much. 0 or -ENOMEM. */
int avmm_blk_route(struct avmm_blk_request *r) {
    const struct avmm_blk *disk = r->queue->disk;
    uint64_t memory = 0, file = r->offset | r->left, block = disk->align_file;
    bool guarded = r->guarded && (r->at_end || r->offset < AVMM_BLK_SECTOR);
    r->bounces = r->fills = 0;
    if (!block && !guarded)
        return 0;
    if (!block)
        block = AVMM_BLK_SECTOR;
    for (uint32_t i = 0; i < r->n_iov; i++) {
        memory |= (uintptr_t)r->iov[i].iov_base;
        file |= r->iov[i].iov_len;
    }
    if (!guarded && !(file & (block - 1)) && !(memory & (disk->align_memory - 1)))
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

/* The clusters that a write of `n` bytes has filled are in the top layer. Those that it has only a part of were brought before. */
static void mark(struct avmm_blk_request *r, uint64_t n) {
    struct avmm_blk_layer *layer = r->queue->disk->layer;
    uint64_t begun = r->offset >> layer->shift << layer->shift;
    avmm_blk_layer_mark(layer, begun > r->origin ? begun : r->origin, r->offset + n);
}

/* `n` bytes were transferred, and the iovecs are past them. What `advance` returns. */
static int account(struct avmm_blk_request *r, uint64_t n) {
    if (r->type == AVMM_BLK_OUT && r->queue->disk->layer)
        mark(r, n);
    r->left -= n;
    r->offset += n;
    if (r->type == AVMM_BLK_IN)
        r->done += n;
    if (!r->left)
        return 0;
    if (avmm_blk_is_stopping(r->queue->disk))
        return -ECANCELED;
    int error = avmm_blk_route(r);
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
        avmm_blk_copy(r, r->bounce + before, n, true);
    else
        skip(r, n);
    return account(r, n);
}

int avmm_blk_zeros(struct avmm_blk_request *r) {
    const struct avmm_blk_layer *layer = r->queue->disk->layer;
    int more = 1;
    while (more > 0 && layer && r->type == AVMM_BLK_IN) {
        uint64_t run = r->left;
        if (avmm_blk_layer_at(layer, r->offset, &run))
            break;
        for (uint64_t n = run; n;) {
            uint64_t part = n < r->iov->iov_len ? n : r->iov->iov_len;
            memset(r->iov->iov_base, 0, part);
            skip(r, part);
            n -= part;
        }
        more = account(r, run);
    }
    return more;
}

/* The call is over, or is to be made anew: the iovec that it had a part of is whole again. */
static void uncut(struct avmm_blk_request *r) {
    if (r->cut_rest)
        r->cut->iov_len += r->cut_rest;
    r->cut_rest = 0;
}

int avmm_blk_advance(struct avmm_blk_request *r, int64_t result) {
    uncut(r);
    if (result < 0)
        return (int)result;
    if (r->type == AVMM_BLK_FLUSH)
        return 0;
    if (r->bounces)
        return advance_window(r, (uint64_t)result);
    if (result == 0) { /* the file ends here: legal only in the last sector of an image that is no multiple of it */
        if (r->type != AVMM_BLK_IN || !r->at_end || r->left >= AVMM_BLK_SECTOR)
            return -EIO;
        for (uint32_t i = 0; i < r->n_iov; i++)
            memset(r->iov[i].iov_base, 0, r->iov[i].iov_len);
        result = (int64_t)r->left;
    }
    skip(r, (uint64_t)result);
    return account(r, (uint64_t)result);
}

static void blank_if_marked(const struct avmm_blk *disk, uint8_t *sector, bool last) {
    if (avmm_blk_is_marked(disk, sector, last))
        memset(sector, 0, AVMM_BLK_SECTOR);
}

/* Take what is to be written into the buffer. It had no mark when the request came: if it has one now, the guest has changed it
 * meanwhile. */
static void fill_window(struct avmm_blk_request *r) {
    uint8_t *at = r->bounce + (r->offset - r->window_at);
    avmm_blk_payload(r, 0, at, (uint32_t)r->wanted);
    if (r->guarded && !r->window_at)
        blank_if_marked(r->queue->disk, r->bounce, false);
    if (r->guarded && r->at_end && r->wanted == r->left)
        blank_if_marked(r->queue->disk, at + r->left - AVMM_BLK_SECTOR, true);
}

/* Have a call take no more than `n` bytes. */
static void cut(struct avmm_blk_request *r, struct avmm_blk_call *c, struct iovec *iov, uint64_t n) {
    for (uint32_t i = 0; i < c->n_iov; n -= iov[i++].iov_len) {
        if (iov[i].iov_len < n)
            continue;
        r->cut = &iov[i];
        r->cut_rest = iov[i].iov_len - n;
        iov[i].iov_len = n;
        c->n_iov = i + 1;
        return;
    }
}

/* In an overlay: which file, and how far. All that is written goes to the top one, and so does what is read to be changed there:
 * the clusters of which a part stays as it is have been brought. */
static void locate(struct avmm_blk_request *r, struct avmm_blk_call *c, struct iovec *iov) {
    const struct avmm_blk_layer *layer = r->queue->disk->layer;
    if (c->in && !r->fills) {
        uint64_t run = 0;
        for (uint32_t i = 0; i < c->n_iov; i++)
            run += iov[i].iov_len;
        layer = avmm_blk_layer_at(layer, c->offset, &run);
        cut(r, c, iov, run);
    }
    c->fd = layer->fd;
    c->offset += layer->data_at;
}

struct avmm_blk_call avmm_blk_next_call(struct avmm_blk_request *r) {
    uncut(r);
    bool in = r->type == AVMM_BLK_IN || r->fills;
    struct avmm_blk_call c = {r->queue->disk->fd, in, r->iov, 0, r->offset};
    if (!r->bounces) {
        c.n_iov = span(r);
    } else {
        if (!in)
            fill_window(r);
        c = (struct avmm_blk_call){c.fd, in, &r->window, 1, r->window_at};
    }
    if (r->queue->disk->layer)
        locate(r, &c, r->bounces ? &r->window : r->iov);
    return c;
}

static int perform(struct avmm_blk_request *r) {
    struct avmm_blk *disk = r->queue->disk;
    int more = avmm_blk_is_stopping(disk) ? -ECANCELED : 1;
    if (more > 0 && r->copies && (more = -avmm_blk_layer_bring_edges(disk->layer, r->offset, r->offset + r->left)) == 0)
        more = 1;
    while (more > 0 && (more = avmm_blk_zeros(r)) > 0) {
        ssize_t n;
        struct avmm_blk_call c = {0};
        if (r->type != AVMM_BLK_FLUSH)
            c = avmm_blk_next_call(r);
        if (!c.iov)
            n = fdatasync(disk->fd);
        else if (c.in)
            n = preadv(c.fd, c.iov, (int)c.n_iov, (off_t)c.offset);
        else
            n = pwritev2(c.fd, c.iov, (int)c.n_iov, (off_t)c.offset, r->dsync ? RWF_DSYNC : 0);
        if (n < 0 && errno == EINTR)
            continue;
        more = avmm_blk_advance(r, n < 0 ? -errno : n);
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
