#define AVMM_MEM_READ 1
#define AVMM_MEM_WRITE 2
struct avmm_region {
    uint64_t base;
    uint64_t size;
    uint64_t host;
    uint32_t perm;
    uint32_t within;
};
struct avmm_mem {
    uint32_t count;
    uint32_t pad;
    struct avmm_region *regions;
};
struct avmm_span {
    uint64_t host;
    uint64_t size;
};
enum { AVMM_SANITIZED = ... };
void avmm_mem_trim(void);
int avmm_mem_map(uint64_t host, uint64_t size, int fd, uint64_t offset, int writable, int shared);
int avmm_mem_blank(uint64_t host, uint64_t size);
int avmm_mem_give_back(const struct avmm_span *spans, uint32_t count);
int avmm_mem_give_back_blocks(uint64_t host, uint64_t size, const uint8_t *blocks, uint32_t count);
uint64_t avmm_mem_resident(uint64_t host, uint64_t size);
uint64_t avmm_mem_own(uint64_t host, uint64_t size);
void avmm_mem_page_out(uint64_t host, uint64_t size);
int avmm_mem_populate(uint64_t host, uint64_t size);
int avmm_mem_bind(uint64_t host, uint64_t size, uint32_t node);
void *avmm_mem_find(const struct avmm_mem *mem, uint64_t base, uint64_t size, uint32_t perm);
