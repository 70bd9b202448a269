/* Requests to a disk: parsed, carried out on an image or on an overlay of one, and returned. Neither gets larger than the disk, the
 * base stays as it is, no mark of another format gets where it would count, and each chain comes back once. */
#include "blk_parts.h"
#include "guest.h"
#include <sys/mman.h>
#include <unistd.h>

enum { SECTORS = 24, BASE = SECTORS * 512 - 700 };

static int image, base;
static off_t image_size;             /* as it was left */
static uint8_t *in_image, *in_base; /* what is in the files */
static uint64_t map[AVMM_BLK_MAP_PAGE / 8];
static uint8_t old[BASE];

static void open_files(void) {
    memset(old, 'o', sizeof old);
    image = memfd_create("image", 0), base = memfd_create("base", 0);
    EXPECT(image >= 0 && base >= 0 && pwrite(base, old, sizeof old, 0) == sizeof old);
    in_image = mmap(NULL, SECTORS * 512, PROT_READ | PROT_WRITE, MAP_SHARED, image, 0);
    in_base = mmap(NULL, BASE, PROT_READ, MAP_SHARED, base, 0);
    EXPECT(in_image != MAP_FAILED && in_base != MAP_FAILED);
}

/* An image of zeros, in a file whose last sector is whole or not. */
static void clear_image(bool whole) {
    off_t size = SECTORS * 512 - (whole ? 0 : 100);
    if (size != image_size)
        EXPECT(ftruncate(image, image_size = size) == 0);
    memset(in_image, 0, SECTORS * 512);
}

static void check_files(const struct avmm_blk *disk) {
    off_t was = image_size;
    image_size = lseek(image, 0, SEEK_END);
    EXPECT(was <= image_size && image_size <= SECTORS * 512);
    EXPECT(!avmm_blk_is_marked(disk, in_image, false));
    EXPECT(!avmm_blk_is_marked(disk, in_image + (SECTORS - 1) * 512, true));
    if (!disk->layer)
        return;
    EXPECT(lseek(base, 0, SEEK_END) == BASE && !memcmp(in_base, old, BASE));
}

/* A request whose header is about right, from descriptor 0 on. */
static void offer_request(const struct avmm_queue *q) {
    static const uint32_t kinds[] = {0, 1, 1, 4, 8, 11, 13, 77};
    uint32_t kind = kinds[below(8)], n = 0, first = below(q->size), parts = below(4);
    uint64_t sector = below(16) == 15 ? take(8) : below(SECTORS + 2);
    uint8_t *header = ram(1) + below(64) * 16;
    memcpy(header, &kind, 4), memcpy(header + 8, &sector, 8);
    uint16_t idx, mask = (uint16_t)(q->size - 1);
#define PUT(address, length, flags) \
    put_descriptor(part_byte(&q->desc, 16 * ((first + n) & mask)), address, length, flags, (uint16_t)((first + n + 1) & mask)), n++
    PUT(REGION + (uint64_t)(header - ram(1)), below(16) == 15 ? below(17) : 16, 1);
    for (uint32_t i = 0; i < parts && i < 3; i++)
        PUT(below(16) == 15 ? some_address() : REGION + 1024 + 512 * (uint64_t)below(8), below(4) ? 512 * below(5) : below(1200),
            kind == 0 || kind == 8 ? 3 : 1);
    PUT(REGION + 1000 + below(8), 1, below(16) == 15 ? 0 : 2);
    memcpy(&idx, part_byte(&q->avail, 2), 2);
    part_put16(&q->avail, 4 + 2 * (idx & mask), (uint16_t)first);
    guest_publish(q, 1);
}

static void settle(struct avmm_blk_layer *layer) {
    static uint8_t copies[AVMM_BLK_MAP_PAGE];
    uint32_t page = 0, number;
    uint64_t changed = avmm_blk_layer_changed(layer);
    EXPECT(avmm_blk_layer_take(layer, &page, 1, &number, copies, 1) <= 1);
    avmm_blk_layer_settle(layer, changed);
}

/* What the device's Python does with what it is handed. */
static void carry_out(struct avmm_blk_queue *q) {
    for (uint32_t turns = 0; q->n_handed; turns++) {
        uint16_t handed[MAX_SIZE + 1];
        uint32_t n = q->n_handed;
        EXPECT(turns < 1000 && n <= q->depth);
        memcpy(handed, q->handed, n * sizeof *handed);
        q->disk->n_handed -= n, q->n_handed = 0; /* what ends may be handed over again */
        for (uint32_t i = 0; i < n; i++) {
            struct avmm_blk_request *r = &q->slots[handed[i]];
            uint8_t payload[64];
            if (r->commits || (r->type == AVMM_BLK_FLUSH && q->disk->layer)) {
                settle(q->disk->layer);
                avmm_blk_finish(r, 0);
            } else if (r->type == AVMM_BLK_DISCARD || r->type == AVMM_BLK_WRITE_ZEROES) {
                EXPECT(avmm_blk_payload(r, 0, payload, sizeof payload) <= sizeof payload);
                avmm_blk_answer(r, AVMM_BLK_OK);
            } else {
                avmm_blk_perform(&r, 1);
                avmm_blk_finish_performed(&r, 1);
            }
        }
        avmm_blk_publish(q->disk);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct avmm_queue vq;
    uint64_t pages[3][8];
    uint8_t dirty = 0;
    if (!image)
        open_files();
    guest_new(data, size);
    if (!guest_bind(&vq, pages))
        return 0;
    guest_align(&vq);
    vq.max_chain = 32;
    uint8_t flags = (uint8_t)take(1), how = (uint8_t)take(1);
    struct avmm_blk disk = {.fd = image, .capacity = SECTORS, .max_bytes = 1 << 16, .discard = 1, .write_zeroes = 1,
                            .punt_bytes = 2048, .inline_bytes = 2048, .readonly = !(flags & 7), .write_through = flags >> 3 & 1,
                            .align_file = flags >> 4 & 1 ? 512 : 0, .align_memory = 16, .n_magics = flags >> 5 & 1 ? 3 : 0};
    disk.magics[0] = (struct avmm_blk_magic){AVMM_BLK_FIRST, 0, 1, "A"};
    disk.magics[1] = (struct avmm_blk_magic){AVMM_BLK_AFTER_COMMENTS, 0, 1, "B"};
    disk.magics[2] = (struct avmm_blk_magic){AVMM_BLK_LAST, 0, 1, "C"};
    struct avmm_blk_layer below_it = {.fd = base, .size = BASE};
    struct avmm_blk_layer top = {.fd = image, .shift = 12, .size = SECTORS * 512, .below_size = BASE, .map = map,
                                 .dirty = how & 1 ? &dirty : NULL, .below = &below_it};
    map[0] = 0;
    if (how & 6)
        disk.layer = NULL;
    else
        disk.layer = &top;
    clear_image(!(how >> 3 & 1));
    struct avmm_blk_queue q = {.disk = &disk, .vq = &vq, .mem = &memory, .bit = 1};
    EXPECT(avmm_blk_queue_open(&q, 1 + below(vq.size), 2 + below(36)) == 0);
    while (input_left() && !q.malformed) {
        uint32_t what = below(8);
        if (what < 3)
            offer_request(&vq);
        else if (what < 5)
            guest_acts(&vq);
        else if (what < 7)
            avmm_blk_serve(&q);
        if (what == 7 || q.n_handed > 4)
            carry_out(&q);
        EXPECT(in_flight(&vq) <= vq.size && q.n_free <= q.depth);
    }
    carry_out(&q);
    EXPECT(!disk.in_flight && !disk.writers && !disk.alone && !disk.deferred && !disk.lent && !disk.n_handed);
    EXPECT(q.n_free == q.depth && vq.popped == vq.pushed);
    avmm_blk_queue_close(&q);
    check_files(&disk);
    return 0;
}
