#define AVMM_FILL_BAD_CHAIN -4096
int avmm_chains_fill(int fd, const struct avmm_chain *chains, uint32_t n, const struct iovec *iov, uint32_t limit,
                     uint64_t budget, uint16_t *heads, uint32_t *lengths);
struct avmm_gather {
    uint32_t chain;
    uint32_t segment;
    uint64_t offset;
};
struct avmm_output {
    struct avmm_chain *chains;
    struct iovec *iov;
    uint16_t *heads;
    const uint32_t *lengths;
    uint32_t max_chains, max_iov;
    uint32_t count;
    struct avmm_gather at;
    uint32_t taken;
    uint32_t found;
};
uint32_t avmm_queue_output(struct avmm_queue *q, const struct avmm_mem *mem, struct avmm_output *o, uint8_t *out,
                           uint32_t room, uint64_t look, uint64_t turn, struct avmm_ring_error *err);
struct avmm_input {
    struct iovec *iov;
    uint16_t *heads;
    uint32_t *lengths;
    uint32_t max_iov, max_chains;
    uint32_t returned;
};
uint32_t avmm_queue_input(struct avmm_queue *q, const struct avmm_mem *mem, struct avmm_input *in, const uint8_t *data,
                          uint32_t size, struct avmm_ring_error *err);
