int avmm_dirty_open(void);
int avmm_dirty_watch(int fd, uint64_t host, uint64_t size);
struct avmm_dirty {
    uint64_t host;
    uint64_t size;
    uint64_t number;
    uint8_t *marks;
    const uint8_t *moved;
    uint64_t there;
    uint32_t of_file;
    uint32_t how;
};
#define AVMM_DIRTY_OWN 0
#define AVMM_DIRTY_LOOK 1
#define AVMM_DIRTY_PROTECT 2
int avmm_dirty_scan(struct avmm_dirty *of);
