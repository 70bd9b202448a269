#include "pages_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define THERE (1ull << 63 | 1ull << 62) /* in an entry of /proc/self/pagemap: in memory, or in swap */

/* ---- which pages there may be something in ---- */

static void next_data(struct search *s, uint64_t at) {
    const struct avmm_piece *p = s->piece;
    off_t from = (off_t)(p->data_offset + at);
    off_t data = p->data_fd < 0 ? -1 : lseek(p->data_fd, from, SEEK_DATA);
    if (p->data_fd < 0 || (data < 0 && errno == ENXIO)) { /* there is none */
        s->data = s->hole = UINT64_MAX;
        return;
    }
    if (data < 0) /* it is not known where; what the pages themselves cannot give ends the guest when they are read */
        data = from;
    off_t hole = lseek(p->data_fd, data, SEEK_HOLE);
    s->data = (uint64_t)data - p->data_offset;
    s->hole = hole < 0 ? UINT64_MAX : (uint64_t)hole - p->data_offset;
}

void avmm_search_begin(struct search *s, const struct avmm_piece *piece) {
    *s = (struct search){.piece = piece, .pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)};
    next_data(s, 0);
}

void avmm_search_end(struct search *s) {
    if (s->pagemap >= 0)
        close(s->pagemap);
}

bool avmm_search_look(struct search *s, uint64_t at, uint64_t count, bool there[BATCH]) {
    uint64_t entries[BATCH];
    uint64_t host = s->piece->host + at;
    ssize_t want = (ssize_t)(count * sizeof *entries);
    bool any = false;
    if (s->pagemap < 0 || pread(s->pagemap, entries, (size_t)want, (off_t)(host / PAGE * sizeof *entries)) != want)
        memset(entries, 0xff, sizeof entries);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t page = at + i * PAGE;
        if (page >= s->hole)
            next_data(s, page);
        there[i] = entries[i] & THERE || (page + PAGE > s->data && page < s->hole);
        any |= there[i];
    }
    return any;
}

bool avmm_page_is_zero(const uint64_t *page) {
    return !page[0] && !page[PAGE / 16] && !memcmp(page, page + 1, PAGE - sizeof *page);
}

/* ---- the sum ---- */

static uint64_t rotate(uint64_t x) { return x << 29 | x >> 35; }

/* Four lanes, so that the processor works on all at once; each word and its place counts. It finds damage, not malice. */
uint64_t avmm_page_sum(const uint64_t *page, uint64_t number) {
    const uint64_t odd = 0x9e3779b97f4a7c15u;
    uint64_t a = number + 1, b = a * odd, c = ~a, d = ~b;
    for (unsigned i = 0; i < PAGE / sizeof *page; i += 4) {
        a = rotate(a ^ page[i]) * odd;
        b = rotate(b ^ page[i + 1]) * odd;
        c = rotate(c ^ page[i + 2]) * odd;
        d = rotate(d ^ page[i + 3]) * odd;
    }
    a = rotate(a ^ rotate(b ^ rotate(c ^ d) * odd) * odd) * odd;
    return a ^ a >> 32;
}

/* ---- copying ---- */

int avmm_write_out(int out, uint64_t host, uint64_t size, uint64_t offset) {
    while (size) {
        ssize_t done = pwrite(out, (const void *)(uintptr_t)host, size, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? errno : EIO;
        host += (uint64_t)done;
        offset += (uint64_t)done;
        size -= (uint64_t)done;
    }
    return 0;
}

/* The pages from `at` that have something: runs of them go out by one call. */
static int keep_batch(const struct avmm_piece *p, uint64_t at, uint64_t count, const bool there[BATCH], int out,
                      uint64_t out_offset, struct avmm_kept *kept) {
    uint64_t run = 0; /* pages that wait to be written, up to the one that is looked at */
    for (uint64_t i = 0; i <= count; i++) {
        const uint64_t *page = (const uint64_t *)(uintptr_t)(p->host + at + i * PAGE);
        if (i < count && there[i] && !avmm_page_is_zero(page)) {
            kept->pages++;
            kept->sum ^= avmm_page_sum(page, p->number + at / PAGE + i);
            run++;
            continue;
        }
        uint64_t first = at + (i - run) * PAGE;
        int error = run && out >= 0 ? avmm_write_out(out, p->host + first, run * PAGE, out_offset + first) : 0;
        if (error)
            return error;
        run = 0;
    }
    return 0;
}

int avmm_pages_keep(const struct avmm_piece *piece, int out, uint64_t out_offset, struct avmm_kept *kept) {
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
        if (!avmm_search_look(&s, at, count, there))
            continue;
        error = keep_batch(piece, at, count, there, out, out_offset, kept);
        if (!error && piece->release)
            madvise((void *)(uintptr_t)(piece->host + at), count * PAGE, MADV_DONTNEED);
    }
    avmm_search_end(&s);
    return error;
}
