struct avmm_increment {
    int fd;
    uint32_t pad;
    uint64_t at;
    uint8_t *buffer;
    uint64_t room;
    uint64_t filled;
    const uint8_t *has;
    uint8_t *full;
    uint8_t *applied;
};
int avmm_increment_keep(const struct avmm_piece *piece, struct avmm_increment *to, struct avmm_kept *kept);
int avmm_increment_flush(const struct avmm_increment *to, uint64_t at, struct avmm_kept *kept);
int avmm_increment_apply(const struct avmm_piece *piece, struct avmm_increment *from, struct avmm_kept *kept);
