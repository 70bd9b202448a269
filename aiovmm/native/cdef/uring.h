struct io_uring_sqe {
    uint8_t opcode;
    int32_t fd;
    uint64_t addr;
    ...;
};
struct avmm_uring {
    int fd;
    uint32_t setup_flags;
    uint32_t pending;
    uint32_t sq_entries, cq_entries;
    uint64_t enters;
    uint32_t cq_head, *cq_ktail;
    struct io_uring_sqe *sqes;
    ...;
};
int avmm_uring_open(struct avmm_uring *ring, uint32_t entries, uint32_t completions);
void avmm_uring_close(struct avmm_uring *ring);
struct io_uring_sqe *avmm_uring_sqe(struct avmm_uring *ring);
int avmm_uring_submit(struct avmm_uring *ring);
int avmm_uring_reap(struct avmm_uring *ring, uint64_t *user_data, int32_t *result);
struct avmm_blk_ring {
    struct avmm_uring uring;
    uint32_t cancels;
    int32_t refused;
    uint8_t given_up;
    ...;
};
int avmm_blk_ring_open(struct avmm_blk_ring *ring, uint32_t completions);
void avmm_blk_ring_close(struct avmm_blk_ring *ring);
struct avmm_blk *avmm_blk_ring_give_up(struct avmm_blk_ring *ring, uint64_t *mask);
struct avmm_blk *avmm_blk_ring_reap(struct avmm_blk_ring *ring, uint64_t *mask);
struct avmm_blk *avmm_blk_ring_next(struct avmm_blk_ring *ring, uint64_t *mask);
