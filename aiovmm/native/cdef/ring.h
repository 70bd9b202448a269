struct iovec {
    void *iov_base;
    size_t iov_len;
};
struct avmm_ring_part {
    uint64_t host;
    const uint64_t *pages;
    uint64_t skew;
};
struct avmm_inflight;
struct avmm_queue {
    struct avmm_ring_part desc, avail, used;
    uint32_t size;
    uint32_t max_chain;
    uint16_t last_avail;
    uint16_t used_idx;
    uint16_t signalled;
    uint8_t event_idx;
    uint8_t indirect;
    uint32_t unsignalled;
    uint32_t pad;
    uint64_t popped;
    uint64_t pushed;
    struct avmm_inflight *inflight;
    uint16_t *again;
    uint32_t n_again;
    uint32_t again_at;
    uint64_t counter;
};
struct avmm_chain {
    uint32_t iov;
    uint32_t n_read;
    uint32_t n_write;
    uint16_t head;
    uint16_t pad;
    uint64_t read_bytes;
    uint64_t write_bytes;
};
enum avmm_ring_code {
    AVMM_RING_BAD_INDEX = -1,
    AVMM_RING_BAD_HEAD = -2,
    AVMM_RING_BAD_NEXT = -3,
    AVMM_RING_TOO_LONG = -4,
    AVMM_RING_TOO_LARGE = -5,
    AVMM_RING_BAD_ORDER = -6,
    AVMM_RING_FAULT = -7,
    AVMM_RING_BAD_INDIRECT = -8,
    AVMM_RING_NO_ROOM = -9,
};
struct avmm_ring_error {
    int32_t code;
    int32_t head;
    uint64_t address;
    uint64_t length;
};
int avmm_ring_bind(struct avmm_ring_part *part, const struct avmm_mem *mem, uint64_t address, uint64_t size, uint32_t perm,
                   uint64_t *pages);
int avmm_queue_pop(struct avmm_queue *q, const struct avmm_mem *mem, struct avmm_chain *chains, uint32_t max_chains,
                   struct iovec *iov, uint64_t *address, uint32_t max_iov, struct avmm_ring_error *err);
uint16_t avmm_queue_offered(const struct avmm_queue *q, uint16_t position);
int avmm_queue_put_back(struct avmm_queue *q, uint32_t n);
int avmm_queue_push(struct avmm_queue *q, const uint16_t *heads, const uint32_t *lens, uint32_t n);
int avmm_queue_push_one(struct avmm_queue *q, uint16_t head, uint32_t len);
void avmm_queue_recover(struct avmm_queue *q, struct avmm_inflight *record, uint16_t *again);
int avmm_queue_needs_interrupt(struct avmm_queue *q);
int avmm_queue_finish(struct avmm_queue *q, uint32_t unused, const uint16_t *heads, const uint32_t *lens, uint32_t n);
uint32_t avmm_queue_available(const struct avmm_queue *q);
int avmm_queue_enable_notify_after(struct avmm_queue *q, uint16_t held);
int avmm_queue_enable_notify(struct avmm_queue *q);
void avmm_queue_disable_notify(struct avmm_queue *q);
uint16_t avmm_load16(uint64_t address);
void avmm_store16(uint64_t address, uint16_t value);
void avmm_fence(void);
