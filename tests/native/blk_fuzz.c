/* Random block requests in random framing through the native data path, under sanitizers, with io_uring and without. A second
 * thread scribbles on guest memory meanwhile, as a hostile vCPU would. Every chain that is taken comes back exactly once,
 * nothing stays in flight, the image never becomes larger than the disk, and never gets a mark of another format. For some seeds it
 * is an overlay, whose base is never written to. A neighbour, a disk of its own, goes through the same ring; either is reset now
 * and then, and that waits for its own requests alone.
 * With "threads" there is no ring: four threads perform what is handed over, as a disk's own do, while the loop's goes on; buffers are
 * each request's own then, and nobody scribbles, so that the thread sanitizer sees no races but ours.
 * Usage: blk_fuzz SEED ROUNDS IMAGE [threads]; prints how often each status was seen, how many chains were malformed, and 1 for io_uring */
#include "blk_parts.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 64, SIZE = 16, SECTORS = 40, REGIONS = 4 };
enum { DESC = 0, AVAIL = PAGE, USED = 2 * PAGE, DATA = 3 * PAGE };

static uint64_t state;
static uint64_t rnd(void) { /* xorshift64* */
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * 2685821657736338717ull;
}
static uint64_t below(uint64_t n) { return rnd() % n; }

/* A file system that takes cached writes without waiting, now and then. */
ssize_t pwritev2(int fd, const struct iovec *iov, int n, off_t offset, int flags) {
    if (!(flags & RWF_NOWAIT) || below(3) == 0)
        return pwritev(fd, iov, n, offset);
    errno = below(2) ? EOPNOTSUPP : EAGAIN;
    return -1;
}

static uint8_t *ram; /* of the guest whose turn it is */
static int with_threads;
static uint64_t own; /* the next place in it that is nobody's, if requests have their own */
static atomic_int stop;

static void *scribble(void *memory) {
    uint64_t s = (uint64_t)(uintptr_t)memory | 1;
    while (!atomic_load(&stop)) {
        s ^= s >> 12, s ^= s << 25, s ^= s >> 27;
        ((volatile uint8_t *)memory)[s % (PAGES * PAGE)] = (uint8_t)(s >> 40);
    }
    return NULL;
}

static uint64_t address(uint32_t length) {
    if (!below(40))
        return rnd();
    if (!with_threads)
        return DATA + below(PAGES * PAGE - DATA - length);
    own += length + below(16);
    assert(own < PAGES * PAGE - DATA);
    return DATA + own - length;
}

/* Data that is full of marks, and of what they may stand behind. */
static void sow(void) {
    static const char marks[] = "ABC#\n \r";
    for (uint32_t at = DATA; at < PAGES * PAGE; at++)
        if (below(2))
            ram[at] = (uint8_t)marks[below(sizeof marks)];
}

static void check_marks(const struct avmm_blk *disk) {
    uint8_t sector[512] = {0};
    assert(pread(disk->fd, sector, 512, 0) == 512 && !avmm_blk_is_marked(disk, sector, false));
    memset(sector, 0, sizeof sector);
    assert(pread(disk->fd, sector, 512, (SECTORS - 1) * 512) > 0 && !avmm_blk_is_marked(disk, sector, true));
}

static void put(uint32_t i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next) {
    uint8_t *d = ram + DESC + 16 * i;
    memcpy(d, &addr, 8), memcpy(d + 8, &len, 4), memcpy(d + 12, &flags, 2), memcpy(d + 14, &next, 2);
}

/* One request in the table from `first` on; how many descriptors it took. */
static uint32_t some_request(uint32_t first) {
    static const uint32_t kinds[] = {0, 0, 0, 1, 1, 4, 8, 11, 13, 77};
    uint32_t kind = kinds[below(10)], n = first;
    uint64_t sector = below(10) ? below(SECTORS) : rnd(), at = address(64);
    uint8_t header[16] = {0};
    memcpy(header, &kind, 4), memcpy(header + 8, &sector, 8);
    if (at + 64 <= PAGES * PAGE)
        memcpy(ram + at, header, 16);
    uint32_t cut = below(6) ? 16 : (uint32_t)below(17);
    put(n, at, cut, 1, n + 1), n++;
    if (cut < 16)
        put(n, at + cut, 16 - cut + (below(3) ? 0 : (uint32_t)below(600)), 1, n + 1), n++;
    for (uint64_t parts = below(3); parts--; n++) {
        uint32_t len = below(3) ? 512 * (uint32_t)below(8) : (uint32_t)below(1200);
        put(n, address(len), len, kind == 0 || kind == 8 ? 3 : 1, n + 1);
    }
    put(n, address(1), 1, below(40) ? 2 : 0, 0);
    return n + 1 - first;
}

/* What `Layer.flush` does, but for the medium. */
static void settle(struct avmm_blk_layer *layer) {
    static uint8_t copies[AVMM_BLK_MAP_PAGE];
    uint32_t page = 0, number;
    uint64_t changed = avmm_blk_layer_changed(layer);
    assert(avmm_blk_layer_take(layer, &page, 1, &number, copies, 1) <= 1);
    avmm_blk_layer_settle(layer, changed);
}

/* What an overlay's image does for a part of a cluster. */
static int zero(struct avmm_blk_layer *layer) {
    uint64_t at = below(SECTORS) * 512, end = at + 512;
    uint64_t cluster = at >> layer->shift << layer->shift;
    return avmm_blk_layer_bring(layer, cluster, at, end);
}

/* A disk with one queue, and its guest's memory. */
struct side {
    struct avmm_blk *disk;
    uint8_t *ram;
    struct avmm_mem mem;
    struct avmm_region regions[REGIONS];
    struct avmm_queue vq;
    struct avmm_blk_queue q;
};
static struct side sides[2];

/* What threads have to perform, and what they have performed: of either no more than both disks have in flight. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct avmm_blk_request *to_do[4 * SIZE], *done[4 * SIZE];
    uint32_t n_to_do, n_done;
    int ends;
} work = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};

static void *perform(void *unused) {
    pthread_mutex_lock(&work.lock);
    while (!work.ends)
        if (!work.n_to_do) {
            pthread_cond_wait(&work.more, &work.lock);
        } else {
            struct avmm_blk_request *r = work.to_do[--work.n_to_do];
            pthread_mutex_unlock(&work.lock);
            usleep(50); /* others take theirs before this one is done: nothing orders them */
            avmm_blk_perform(&r, 1);
            pthread_mutex_lock(&work.lock);
            work.done[work.n_done++] = r;
        }
    pthread_mutex_unlock(&work.lock);
    return unused;
}

static void hand_over(struct avmm_blk_request *r) {
    pthread_mutex_lock(&work.lock);
    work.to_do[work.n_to_do++] = r;
    pthread_cond_signal(&work.more);
    pthread_mutex_unlock(&work.lock);
}

/* Of either disk. */
static void finish_performed(void) {
    struct avmm_blk_request *done[4 * SIZE];
    pthread_mutex_lock(&work.lock);
    uint32_t n = work.n_done;
    memcpy(done, work.done, n * sizeof *done);
    work.n_done = 0;
    pthread_mutex_unlock(&work.lock);
    for (uint32_t i = 0; i < n; i++) {
        struct avmm_blk *disk = done[i]->queue->disk;
        avmm_blk_finish_performed(&done[i], 1);
        avmm_blk_publish(disk);
    }
}

static void carry_out(struct avmm_blk_queue *q) {
    finish_performed();
    uint16_t handed[SIZE + 1];
    uint32_t n = q->n_handed;
    memcpy(handed, q->handed, n * sizeof *handed);
    q->disk->n_handed -= n;
    q->n_handed = 0; /* what ends may be handed over again */
    for (uint32_t i = 0; i < n; i++) {
        struct avmm_blk_request *r = &q->slots[handed[i]];
        uint8_t payload[64];
        if (r->commits || (r->type == AVMM_BLK_FLUSH && q->disk->layer)) {
            settle(q->disk->layer);
            avmm_blk_finish(r, 0);
        } else if (r->type == AVMM_BLK_DISCARD || r->type == AVMM_BLK_WRITE_ZEROES) {
            if (q->disk->layer)
                assert(zero(q->disk->layer) == 0);
            avmm_blk_answer(r, avmm_blk_payload(r, 0, payload, sizeof payload) % 16 ? AVMM_BLK_IOERR : AVMM_BLK_OK);
        } else if (with_threads) {
            hand_over(r);
        } else {
            avmm_blk_perform(&r, 1);
            avmm_blk_finish_performed(&r, 1);
        }
    }
    avmm_blk_publish(q->disk);
}

/* What is told of other disks, which come one by one and once each. */
static void tell(struct avmm_blk *disk, uint64_t *mask) {
    for (; disk; disk = *mask & AVMM_BLK_OTHERS ? avmm_blk_ring_next(disk->ring, mask) : NULL) {
        assert(disk == sides[0].disk || disk == sides[1].disk);
        carry_out(&sides[disk == sides[1].disk].q);
    }
}

static void heed(const struct avmm_blk *disk, uint64_t mask) {
    if (mask & AVMM_BLK_OTHERS)
        tell(avmm_blk_ring_next(disk->ring, &mask), &mask);
}

static void wait_for_all(struct side *s) {
    for (int spins = 0; s->disk->in_flight; spins++) {
        uint64_t mask = 0;
        assert(spins < 1000000);
        if (s->disk->ring)
            tell(avmm_blk_ring_reap(s->disk->ring, &mask), &mask);
        carry_out(&s->q);
        if (spins > 100)
            usleep(20);
    }
}

static void begin(struct side *s) {
    struct avmm_queue *vq = &s->vq;
    ram = s->ram;
    own = 0;
    *vq = (struct avmm_queue){.size = SIZE, .max_chain = 32, .event_idx = 1, .indirect = 1};
    s->q = (struct avmm_blk_queue){.disk = s->disk, .vq = vq, .mem = &s->mem, .bit = 1};
    vq->last_avail = vq->used_idx = vq->signalled = below(2) ? 0 : 65536 - below(8);
    assert(avmm_ring_bind(&vq->desc, &s->mem, DESC, 16 * SIZE, 1, NULL) == 0);
    assert(avmm_ring_bind(&vq->avail, &s->mem, AVAIL, 6 + 2 * SIZE, 1, NULL) == 0);
    assert(avmm_ring_bind(&vq->used, &s->mem, USED, 6 + 8 * SIZE, 3, NULL) == 0);
    assert(avmm_blk_queue_open(&s->q, 1 + below(SIZE), 2 + below(36)) == 0);
    uint16_t idx = vq->last_avail;
    for (uint32_t i = 0; i + 8 < SIZE;) {
        memcpy(ram + AVAIL + 4 + 2 * (idx % SIZE), &(uint16_t){(uint16_t)i}, 2);
        idx++;
        i += some_request(i);
    }
    memcpy(ram + AVAIL + 2, &idx, 2);
}

static void turn(struct side *s, uint64_t counts[3]) {
    if (s->q.malformed)
        return;
    heed(s->disk, avmm_blk_serve(&s->q));
    carry_out(&s->q);
    counts[1] += s->q.malformed != 0;
}

static void reset(struct side *s) {
    heed(s->disk, avmm_blk_stop(s->disk));
    heed(s->disk, avmm_blk_cancel(&s->q));
    wait_for_all(s);
    s->disk->stopping = 0;
}

static void end(struct side *s, uint64_t counts[3]) {
    struct avmm_blk_queue *q = &s->q;
    struct avmm_blk *disk = s->disk;
    wait_for_all(s);
    counts[0] += s->vq.pushed;
    counts[2] += q->errors;
    assert(s->vq.popped == s->vq.pushed && s->vq.last_avail == s->vq.used_idx && q->n_free == q->depth && !q->n_handed);
    assert(!disk->writers && !disk->alone && !disk->deferred && !disk->lent && !disk->n_handed && !disk->is_touched);
    assert(q->reads + q->writes + q->flushes + q->others <= s->vq.popped);
    avmm_blk_queue_close(q);
}

static void round_trip(uint64_t counts[3]) {
    begin(&sides[0]), begin(&sides[1]);
    for (int n = 0; n < 12; n++) {
        struct side *s = &sides[n % 2];
        turn(s, counts);
        if (below(2))
            wait_for_all(s);
        else if (below(8) == 0)
            reset(s);
    }
    end(&sides[0], counts), end(&sides[1], counts);
    if (sides[0].disk->ring)
        assert(sides[0].disk->ring->cancels <= AVMM_BLK_CANCELS && !sides[0].disk->ring->stalled);
}

static uint8_t *some_memory(struct side *s) {
    s->ram = aligned_alloc(PAGE, PAGES * PAGE);
    memset(s->ram, 0, PAGES * PAGE);
    for (uint64_t i = 0; i < REGIONS; i++) { /* adjoining: buffers that cross are several segments */
        uint64_t size = PAGES / REGIONS * PAGE;
        s->regions[i] = (struct avmm_region){i * size, size, (uint64_t)(uintptr_t)s->ram + i * size, 3, 0};
    }
    s->mem = (struct avmm_mem){REGIONS, 0, s->regions};
    return s->ram;
}

static int open_beside(const char *image, const char *ending) {
    char name[4096];
    snprintf(name, sizeof name, "%s.%s", image, ending);
    int fd = open(name, O_RDWR | O_CREAT, 0600);
    assert(fd >= 0);
    return fd;
}

int main(int argc, char **argv) {
    assert(argc == 4 || (argc == 5 && !strcmp(argv[4], "threads")));
    with_threads = argc == 5;
    uint64_t seed = strtoull(argv[1], NULL, 0), rounds = strtoull(argv[2], NULL, 0), counts[3] = {0};
    state = seed * 0x9E3779B97F4A7C15ull | 1;
    uint8_t *memory = some_memory(&sides[0]), *others = some_memory(&sides[1]);
    struct avmm_blk_ring ring;
    struct avmm_blk neighbour = {.capacity = SECTORS, .max_bytes = 1 << 20, .fd = open_beside(argv[3], "neighbour")};
    neighbour.punt_bytes = neighbour.inline_bytes = 2048;
    assert(ftruncate(neighbour.fd, SECTORS * 512) == 0);
    struct avmm_blk disk = {.capacity = SECTORS, .max_bytes = 1 << 20, .discard = 1, .write_zeroes = 1};
    disk.fd = open(argv[3], O_RDWR | O_CREAT, 0600);
    assert(disk.fd >= 0 && ftruncate(disk.fd, SECTORS * 512 - 100) == 0);
    static uint64_t map[AVMM_BLK_MAP_PAGE / 8];
    uint8_t dirty = 0, old[SECTORS * 512 - 700];
    memset(old, 'o', sizeof old);
    struct avmm_blk_layer base = {.fd = open_beside(argv[3], "base"), .size = sizeof old};
    assert(pwrite(base.fd, old, sizeof old, 0) == sizeof old);
    struct avmm_blk_layer top = {.fd = disk.fd, .shift = 12, .size = SECTORS * 512, .below_size = sizeof old,
                                 .map = map, .dirty = seed % 2 ? &dirty : NULL, .below = &base};
    if (seed % 5 < 2)
        disk.layer = &top;
    disk.punt_bytes = disk.inline_bytes = 2048;
    disk.n_magics = seed / 2 % 2 ? 3 : 0;
    disk.magics[0] = (struct avmm_blk_magic){AVMM_BLK_FIRST, 0, 1, "A"};
    disk.magics[1] = (struct avmm_blk_magic){AVMM_BLK_AFTER_COMMENTS, 0, 1, "B"};
    disk.magics[2] = (struct avmm_blk_magic){AVMM_BLK_LAST, 0, 1, "C"};
    int with_ring = !with_threads && seed % 3 && avmm_blk_ring_open(&ring, 2 * SIZE + AVMM_BLK_CANCELS) == 0;
    disk.ring = neighbour.ring = with_ring ? &ring : NULL;
    sides[0].disk = &disk, sides[1].disk = &neighbour;
    pthread_t thread, performers[4];
    int scribbles = seed % 2 && !with_threads;
    if (scribbles)
        pthread_create(&thread, NULL, scribble, memory);
    for (int i = 0; with_threads && i < 4; i++)
        pthread_create(&performers[i], NULL, perform, NULL);
    for (uint64_t i = 0; i < rounds; i++) {
        disk.readonly = below(8) == 0;
        disk.write_through = below(8) == 0;
        disk.align_file = below(2) ? 0 : below(2) ? 512 : 4096; /* as if for O_DIRECT */
        disk.align_memory = 16;
        disk.writes_wait = (uint8_t)below(3);
        disk.one_writer = !disk.align_file && below(2);
        disk.never_now = (uint8_t)below(4);
        if (i % 16 == 0)
            map[0] = 0; /* as in a new overlay */
        ram = memory;
        if (i % 16 == 0)
            sow();
        round_trip(counts);
        check_marks(&disk);
    }
    atomic_store(&stop, 1);
    if (scribbles)
        pthread_join(thread, NULL);
    pthread_mutex_lock(&work.lock);
    work.ends = 1;
    pthread_cond_broadcast(&work.more);
    pthread_mutex_unlock(&work.lock);
    for (int i = 0; with_threads && i < 4; i++)
        pthread_join(performers[i], NULL);
    struct stat st;
    uint8_t now[sizeof old + 1];
    assert(pread(base.fd, now, sizeof now, 0) == sizeof old && !memcmp(old, now, sizeof old));
    close(base.fd);
    assert(fstat(disk.fd, &st) == 0 && st.st_size <= SECTORS * 512);
    if (with_ring)
        avmm_blk_ring_close(&ring);
    close(disk.fd), close(neighbour.fd);
    free(memory), free(others);
    printf("%llu %llu %llu %d\n", (unsigned long long)counts[0], (unsigned long long)counts[1],
           (unsigned long long)counts[2], with_ring);
    return 0;
}
