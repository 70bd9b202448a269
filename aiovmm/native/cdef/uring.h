struct avmm_uring {
    int fd;
    uint32_t setup_flags;
    uint32_t pending;
    uint32_t sq_entries;
    uint64_t enters;
    ...;
};
int avmm_uring_open(struct avmm_uring *ring, uint32_t entries);
void avmm_uring_close(struct avmm_uring *ring);
