#include "increment.h"
#include "pages_parts.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static bool bit(const uint8_t *bits, uint64_t number) { return bits[number / 8] >> number % 8 & 1; }

static void set(uint8_t *bits, uint64_t number) { bits[number / 8] |= (uint8_t)(1u << number % 8); }

/* ---- transfers: pages from all over the memory, which lie one after the other in the file ---- */

struct transfer {
    struct avmm_increment *file;
    ssize_t (*move)(int, const struct iovec *, int, off_t);
    uint32_t count;
    struct iovec parts[BATCH];
};

/* All that waits, however often the kernel moves less than it was asked to. */
static int flush(struct transfer *t) {
    struct iovec *part = t->parts, *end = part + t->count;
    while (part < end) {
        ssize_t moved = t->move(t->file->fd, part, (int)(end - part), (off_t)t->file->at);
        if (moved < 0 && errno == EINTR)
            continue;
        if (moved <= 0)
            return moved < 0 ? errno : EIO;
        t->file->at += (uint64_t)moved;
        for (size_t left = (size_t)moved; left;) {
            size_t some = left < part->iov_len ? left : part->iov_len;
            part->iov_base = (char *)part->iov_base + some;
            part->iov_len -= some;
            left -= some;
            part += !part->iov_len;
        }
    }
    t->count = 0;
    return 0;
}

static int add(struct transfer *t, uint64_t host) {
    struct iovec *last = t->count ? &t->parts[t->count - 1] : NULL;
    if (last && (uint64_t)(uintptr_t)last->iov_base + last->iov_len == host) {
        last->iov_len += PAGE;
        return 0;
    }
    int error = t->count == BATCH ? flush(t) : 0;
    if (!error)
        t->parts[t->count++] = (struct iovec){.iov_base = (void *)(uintptr_t)host, .iov_len = PAGE};
    return error;
}

/* ---- pieces ---- */

typedef int page_fn(struct transfer *t, uint64_t host, uint64_t number, bool there, struct avmm_kept *kept);

static int each(const struct avmm_piece *piece, struct transfer *t, page_fn *page, struct avmm_kept *kept) {
    struct search s;
    bool there[BATCH];
    int error = 0;
    avmm_search_begin(&s, piece);
    for (uint64_t at = 0; !error && at < piece->size; at += BATCH * PAGE) {
        uint64_t left = (piece->size - at) / PAGE, count = left < BATCH ? left : BATCH;
        if (avmm_kept_given_up(kept)) {
            error = ECANCELED;
            break;
        }
        avmm_search_look(&s, at, count, there);
        for (uint64_t i = 0; !error && i < count; i++) {
            uint64_t number = piece->number + at / PAGE + i;
            if (bit(t->file->has, number))
                error = page(t, piece->host + at + i * PAGE, number, there[i], kept);
        }
    }
    avmm_search_end(&s);
    return error ? error : flush(t);
}

static int keep(struct transfer *t, uint64_t host, uint64_t number, bool there, struct avmm_kept *kept) {
    const uint64_t *page = (const uint64_t *)(uintptr_t)host;
    if (!there || avmm_page_is_zero(page))
        return 0;
    struct avmm_increment *to = t->file;
    set(to->full, number);
    if (to->filled < to->room) {
        memcpy(to->buffer + to->filled, page, PAGE);
        to->filled += PAGE;
        return 0;
    }
    kept->pages++;
    kept->sum ^= avmm_page_sum(page, number);
    return add(t, host);
}

int avmm_increment_keep(const struct avmm_piece *piece, struct avmm_increment *to, struct avmm_kept *kept) {
    struct transfer t = {.file = to, .move = pwritev};
    return each(piece, &t, keep, kept);
}

int avmm_increment_flush(const struct avmm_increment *to, uint64_t at, struct avmm_kept *kept) {
    uint64_t number = 0;
    for (uint64_t page = 0; page < to->filled; page += PAGE, number++) {
        while (!bit(to->full, number))
            number++;
        kept->pages++;
        kept->sum ^= avmm_page_sum((const uint64_t *)(const void *)(to->buffer + page), number);
    }
    return avmm_write_out(to->fd, (uint64_t)(uintptr_t)to->buffer, to->filled, at);
}

static int apply(struct transfer *t, uint64_t host, uint64_t number, bool there, struct avmm_kept *kept) {
    struct avmm_increment *from = t->file;
    bool full = bit(from->full, number);
    int error = 0;
    if (bit(from->applied, number)) {
        if (full) { /* it is passed over */
            error = flush(t);
            from->at += PAGE;
        }
        return error;
    }
    set(from->applied, number);
    kept->pages += full;
    if (full)
        return add(t, host);
    if (there)
        memset((void *)(uintptr_t)host, 0, PAGE);
    return 0;
}

int avmm_increment_apply(const struct avmm_piece *piece, struct avmm_increment *from, struct avmm_kept *kept) {
    struct transfer t = {.file = from, .move = preadv};
    return each(piece, &t, apply, kept);
}
