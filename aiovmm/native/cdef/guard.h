struct avmm_guard;
struct avmm_guard *avmm_guard_add(uint64_t start, uint64_t size, int writable);
void avmm_guard_remove(struct avmm_guard *g);
void avmm_guard_tell(struct avmm_guard *g, int eventfd, uint32_t *flag);
uint64_t avmm_guard_lost(const struct avmm_guard *g);
