#define AVMM_FILL_BAD_CHAIN -4096
int avmm_chains_fill(int fd, const struct avmm_chain *chains, uint32_t n, const struct iovec *iov, uint32_t limit,
                     uint64_t budget, uint16_t *heads, uint32_t *lengths);
struct avmm_gather {
    uint32_t chain;
    uint32_t segment;
    uint64_t offset;
};
uint32_t avmm_chains_gather(const struct avmm_chain *chains, uint32_t n, const struct iovec *iov, struct avmm_gather *at,
                            uint8_t *out, uint32_t room, uint16_t *heads);
