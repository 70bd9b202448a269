enum avmm_blk_type {
    AVMM_BLK_IN,
    AVMM_BLK_OUT,
    AVMM_BLK_FLUSH,
    AVMM_BLK_GET_ID,
    AVMM_BLK_DISCARD,
    AVMM_BLK_WRITE_ZEROES,
    ...
};
enum avmm_blk_status { AVMM_BLK_OK, AVMM_BLK_IOERR, AVMM_BLK_UNSUPP, ... };
enum avmm_blk_known { AVMM_BLK_UNKNOWN, AVMM_BLK_NO, AVMM_BLK_YES, ... };
enum avmm_blk_code { AVMM_BLK_NO_HEADER, AVMM_BLK_NO_STATUS, ... };
#define AVMM_BLK_LOOK ...
#define AVMM_BLK_AGAIN ...
#define AVMM_BLK_MORE ...
#define AVMM_BLK_OTHERS ...
#define AVMM_BLK_CANCELS ...
#define AVMM_BLK_WAITS ...
#define AVMM_BLK_QUEUE_BITS ...
struct avmm_blk_magic {
    uint32_t place;
    uint32_t offset, size;
    uint8_t bytes[24];
};
struct avmm_blk_layer {
    int fd;
    uint32_t shift;
    uint64_t data_at;
    uint64_t size;
    uint64_t below_size;
    uint64_t *map;
    uint8_t *dirty;
    uint64_t changed;
    uint64_t stable;
    struct avmm_blk_layer *below;
};
#define AVMM_BLK_MAP_PAGE ...
struct avmm_blk_request {
    uint32_t type;
    uint64_t offset;
    uint64_t left;
    uint8_t punt;
    uint8_t commits;
    ...;
};
struct avmm_blk {
    struct avmm_allowance *allowance;
    struct avmm_blk_layer *layer;
    struct avmm_blk_ring *ring;
    int fd;
    uint32_t align_file;
    uint32_t align_memory;
    uint32_t punt_bytes;
    uint32_t inline_bytes;
    uint8_t writes_wait;
    uint8_t one_writer;
    uint8_t never_now;
    uint64_t capacity;
    uint64_t max_bytes;
    uint8_t readonly;
    uint8_t write_through;
    uint8_t discard;
    uint8_t write_zeroes;
    uint8_t stopping;
    uint8_t abandoned;
    uint8_t id[20];
    uint32_t n_magics;
    struct avmm_blk_magic magics[16];
    uint32_t in_flight;
    uint32_t n_waits;
    uint32_t n_handed;
    uint32_t lent;
    uint32_t grown;
    uint32_t failures;
    int32_t failure;
    uint32_t failed_type;
    ...;
};
struct avmm_blk_latency {
    uint64_t count, sum, min, max;
};
struct avmm_blk_queue {
    struct avmm_blk *disk;
    struct avmm_queue *vq;
    const struct avmm_mem *mem;
    uint64_t bit;
    uint32_t depth;
    uint32_t n_free;
    uint32_t n_handed;
    int32_t malformed;
    int32_t malformed_head;
    uint8_t starved;
    uint16_t *handed;
    struct avmm_blk_request *slots;
    struct avmm_blk_latency read_latency, write_latency;
    uint64_t reads, writes, flushes, others, errors, read_bytes, written_bytes;
    ...;
};
int avmm_blk_queue_open(struct avmm_blk_queue *q, uint32_t depth, uint32_t room);
void avmm_blk_queue_close(struct avmm_blk_queue *q);
bool avmm_blk_can_take(const struct avmm_blk_queue *q);
uint64_t avmm_blk_serve(struct avmm_blk_queue *q);
uint64_t avmm_blk_stop(struct avmm_blk *disk);
uint64_t avmm_blk_cancel(struct avmm_blk_queue *q);
void avmm_blk_perform(struct avmm_blk_request **requests, uint32_t count);
void avmm_blk_finish_performed(struct avmm_blk_request **requests, uint32_t count);
uint32_t avmm_blk_payload(const struct avmm_blk_request *request, uint64_t from, uint8_t *to, uint32_t size);
void avmm_blk_finish(struct avmm_blk_request *request, int error);
void avmm_blk_answer(struct avmm_blk_request *request, uint8_t status);
uint64_t avmm_blk_publish(struct avmm_blk *disk);
uint8_t avmm_blk_status(int error);
int avmm_blk_fallocate(int fd, int mode, uint64_t offset, uint64_t size);
void avmm_blk_layer_mark(struct avmm_blk_layer *layer, uint64_t from, uint64_t to);
int avmm_blk_layer_bring(struct avmm_blk_layer *layer, uint64_t at, uint64_t from, uint64_t to);
uint32_t avmm_blk_layer_take(struct avmm_blk_layer *layer, uint32_t *page, uint32_t pages, uint32_t *numbers, uint8_t *copies, uint32_t room);
void avmm_blk_layer_settle(struct avmm_blk_layer *layer, uint64_t changed);
uint64_t avmm_blk_layer_changed(const struct avmm_blk_layer *layer);
int avmm_blk_layer_find(const struct avmm_blk_layer *layer, uint64_t at, uint64_t size, uint64_t *run);
