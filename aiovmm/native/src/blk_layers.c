#include "blk_parts.h"
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The map is set where data has come to be, in the loop's thread or in one that performs requests, and read by both. A bit is set
 * with release after the data is in the file, and found with acquire before it is read from there. */

static uint64_t word(const struct avmm_blk_layer *layer, uint64_t i) {
    return atomic_load_explicit((const _Atomic uint64_t *)&layer->map[i], memory_order_acquire);
}

static bool has(const struct avmm_blk_layer *layer, uint64_t cluster) {
    return word(layer, cluster / 64) >> cluster % 64 & 1;
}

/* How many clusters from `first` on, `most` at the most, are like the first; and whether the layer has them. */
static uint64_t alike(const struct avmm_blk_layer *layer, uint64_t first, uint64_t most, bool *here) {
    uint64_t n = 0;
    *here = has(layer, first);
    while (n < most) {
        uint64_t at = first + n, w = word(layer, at / 64), left = 64 - at % 64;
        uint64_t different = (*here ? ~w : w) >> at % 64;
        uint64_t same = different ? (uint64_t)__builtin_ctzll(different) : left;
        n += same < left ? same : left;
        if (same < left)
            break;
    }
    return n < most ? n : most;
}

const struct avmm_blk_layer *avmm_blk_layer_at(const struct avmm_blk_layer *layer, uint64_t at, uint64_t *run) {
    for (; layer->map; layer = layer->below) {
        uint64_t first = at >> layer->shift, last = (at + *run - 1) >> layer->shift;
        bool here;
        uint64_t end = (first + alike(layer, first, last - first + 1, &here)) << layer->shift;
        if (end - at < *run)
            *run = end - at;
        if (here)
            break;
        if (!layer->below || at >= layer->below_size)
            return NULL;
        if (layer->below_size - at < *run)
            *run = layer->below_size - at;
    }
    return layer;
}

int avmm_blk_layer_find(const struct avmm_blk_layer *layer, uint64_t at, uint64_t size, uint64_t *run) {
    int depth = 0;
    *run = size;
    const struct avmm_blk_layer *found = avmm_blk_layer_at(layer, at, run);
    if (!found)
        return -1;
    for (; layer != found; layer = layer->below)
        depth++;
    return depth;
}

static void set_bits(struct avmm_blk_layer *layer, uint64_t i, uint64_t bits) {
    if (!(bits & ~word(layer, i)))
        return;
    atomic_fetch_or_explicit((_Atomic uint64_t *)&layer->map[i], bits, memory_order_release);
    if (!layer->dirty)
        return;
    /* After the bit: who takes the page clears this first. And before `changed`: who has seen that finds the page dirty. */
    atomic_exchange_explicit((_Atomic uint8_t *)&layer->dirty[i * 8 / AVMM_BLK_MAP_PAGE], 1, memory_order_seq_cst);
    atomic_fetch_add_explicit((_Atomic uint64_t *)&layer->changed, 1, memory_order_seq_cst);
}

void avmm_blk_layer_mark(struct avmm_blk_layer *layer, uint64_t from, uint64_t to) {
    uint64_t mask = (1ull << layer->shift) - 1;
    uint64_t first = (from + mask) >> layer->shift;
    uint64_t end = to >= layer->size ? (layer->size + mask) >> layer->shift : to >> layer->shift;
    while (first < end) {
        uint64_t n = 64 - first % 64;
        if (n > end - first)
            n = end - first;
        set_bits(layer, first / 64, (n == 64 ? ~0ull : (1ull << n) - 1) << first % 64);
        first += n;
    }
}

/* Whether `at` is within a cluster that the layer does not have. */
static bool cuts(const struct avmm_blk_layer *layer, uint64_t at) {
    return at & ((1ull << layer->shift) - 1) && at < layer->size && !has(layer, at >> layer->shift);
}

bool avmm_blk_layer_lacks(const struct avmm_blk_layer *layer, uint64_t from, uint64_t to) {
    return cuts(layer, from) || cuts(layer, to);
}

int avmm_blk_layer_bring_edges(struct avmm_blk_layer *layer, uint64_t from, uint64_t to) {
    int error = cuts(layer, from) ? avmm_blk_layer_bring(layer, from, 0, 0) : 0;
    if (!error && cuts(layer, to))
        error = avmm_blk_layer_bring(layer, to, 0, 0);
    return error;
}

/* [at, at + size) of the disk, whole blocks where O_DIRECT wants them; 0 or an errno. */
static int read_layers(const struct avmm_blk_layer *layer, uint8_t *to, uint64_t at, uint64_t size) {
    while (size) {
        uint64_t run = size;
        const struct avmm_blk_layer *from = avmm_blk_layer_at(layer, at, &run);
        ssize_t n = (ssize_t)run;
        if (!from)
            memset(to, 0, run);
        else
            while ((n = pread(from->fd, to, run, (off_t)(from->data_at + at))) < 0 && errno == EINTR)
                ;
        if (n <= 0)
            return n ? errno : EIO;
        to += n;
        at += (uint64_t)n;
        size -= (uint64_t)n;
    }
    return 0;
}

int avmm_blk_layer_bring(struct avmm_blk_layer *layer, uint64_t at, uint64_t from, uint64_t to) {
    uint64_t cluster = 1ull << layer->shift, begin = at & ~(cluster - 1);
    uint64_t size = layer->size - begin < cluster ? layer->size - begin : cluster;
    uint8_t *buffer = aligned_alloc(AVMM_BLK_MAP_PAGE, cluster);
    if (!buffer)
        return ENOMEM;
    int error = read_layers(layer, buffer, begin, size);
    if (from < to)
        memset(buffer + (from - begin), 0, to - from);
    for (uint64_t done = 0; !error && done < size;) {
        ssize_t n = pwrite(layer->fd, buffer + done, size - done, (off_t)(layer->data_at + begin + done));
        if (n > 0)
            done += (uint64_t)n;
        else if (n == 0 || errno != EINTR)
            error = n ? errno : EIO;
    }
    free(buffer);
    if (!error)
        avmm_blk_layer_mark(layer, begin, begin + size);
    return error;
}

uint32_t avmm_blk_layer_take(struct avmm_blk_layer *layer, uint32_t *page, uint32_t pages, uint32_t *numbers, uint8_t *copies, uint32_t room) {
    uint32_t n = 0;
    for (; *page < pages && n < room; ++*page) {
        if (!atomic_load_explicit((_Atomic uint8_t *)&layer->dirty[*page], memory_order_relaxed))
            continue;
        atomic_exchange_explicit((_Atomic uint8_t *)&layer->dirty[*page], 0, memory_order_seq_cst);
        for (uint32_t i = 0; i < AVMM_BLK_MAP_PAGE / 8; i++) {
            uint64_t bits = word(layer, *page * (AVMM_BLK_MAP_PAGE / 8) + i);
            memcpy(copies + n * AVMM_BLK_MAP_PAGE + i * 8, &bits, sizeof bits);
        }
        numbers[n++] = *page;
    }
    return n;
}

void avmm_blk_layer_settle(struct avmm_blk_layer *layer, uint64_t changed) {
    atomic_store_explicit((_Atomic uint64_t *)&layer->stable, changed, memory_order_release);
}

uint64_t avmm_blk_layer_changed(const struct avmm_blk_layer *layer) {
    return atomic_load_explicit((const _Atomic uint64_t *)&layer->changed, memory_order_seq_cst);
}

bool avmm_blk_layer_unstable(const struct avmm_blk_layer *layer) {
    return avmm_blk_layer_changed(layer) != atomic_load_explicit((const _Atomic uint64_t *)&layer->stable, memory_order_acquire);
}
