int avmm_frames_read(const struct avmm_chain *chains, uint32_t n, const struct iovec *iov, uint32_t header_size,
                     uint32_t length_at, uint8_t *headers, uint16_t *heads);
struct avmm_frame_layout {
    uint32_t size, length_at, latest_at, kind_at;
    uint16_t kind;
};
uint32_t avmm_frames_join(const struct avmm_chain *chains, uint32_t n, const struct avmm_frame_layout *layout,
                          uint8_t *headers, uint32_t *firsts);
int avmm_frames_runs(const struct avmm_chain *chains, uint32_t n, const struct iovec *iov,
                     const struct avmm_frame_layout *layout, uint8_t *headers, uint16_t *heads, uint32_t *firsts);
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
