struct avmm_piece {
    uint64_t host;
    uint64_t size;
    int data_fd;
    uint32_t release;
    uint64_t data_offset;
    uint64_t number;
};
struct avmm_kept {
    uint64_t pages;
    uint64_t sum;
    uint32_t given_up;
    uint32_t pad;
};
int avmm_pages_keep(const struct avmm_piece *piece, int out, uint64_t out_offset, struct avmm_kept *kept);
