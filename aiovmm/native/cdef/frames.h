struct avmm_frame_layout {
    uint32_t size, length_at, latest_at, kind_at;
    uint16_t kind;
};
int64_t avmm_frames_send(int fd, const struct avmm_chain *chains, uint32_t first, uint32_t count, const struct iovec *iov,
                         uint32_t header_size, uint32_t length);
uint32_t avmm_frames_copy(const struct avmm_chain *chains, uint32_t first, uint32_t count, const struct iovec *iov,
                          uint32_t header_size, uint64_t skip, uint8_t *to, uint32_t length);
int avmm_frame_put(const struct avmm_chain *chains, uint32_t index, const struct iovec *iov, const uint8_t *header,
                   uint32_t header_size, uint16_t *heads, uint32_t *lengths);
struct avmm_frames_taken {
    uint32_t chains;
    uint32_t drained;
};
int64_t avmm_frames_recv(int fd, const struct avmm_chain *chains, uint32_t first, uint32_t end, const struct iovec *iov,
                         const uint8_t *header, uint32_t header_size, uint32_t length_at, uint32_t limit, uint16_t *heads,
                         uint32_t *lengths, struct avmm_frames_taken *taken);
struct avmm_frames {
    struct avmm_queue *queue;
    const struct avmm_mem *mem;
    struct avmm_chain *chains;
    struct iovec *iov;
    uint32_t max_chains, max_iov;
    uint8_t *headers;
    uint32_t *firsts;
    uint16_t *heads;
    uint32_t *lengths;
    struct avmm_frame_layout layout;
    uint32_t n;
    uint32_t bad;
    uint32_t drained;
    uint32_t interrupt;
    struct avmm_ring_error error;
};
enum avmm_frames_code {
    AVMM_FRAMES_RING = -4096,
    AVMM_FRAMES_SHORT = -4097,
};
int avmm_frames_take(struct avmm_frames *f);
int64_t avmm_frames_give(struct avmm_frames *f, int fd, const uint8_t *header, uint32_t limit);
