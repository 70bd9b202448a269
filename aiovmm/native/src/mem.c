#include "mem.h"

void *avmm_mem_span(const struct avmm_mem *mem, uint64_t base, uint32_t perm, uint64_t *room) {
    uint32_t lo = 0, hi = mem->count;
    while (lo < hi) { /* first region whose end lies beyond base */
        uint32_t mid = lo + (hi - lo) / 2;
        const struct avmm_region *r = &mem->regions[mid];
        if (base >= r->base && base - r->base >= r->size)
            lo = mid + 1;
        else if (base < r->base)
            hi = mid;
        else {
            uint64_t off = base - r->base;
            if ((r->perm & perm) != perm)
                return NULL;
            *room = r->size - off;
            return (void *)(uintptr_t)(r->host + off);
        }
    }
    return NULL;
}

void *avmm_mem_find(const struct avmm_mem *mem, uint64_t base, uint64_t size, uint32_t perm) {
    uint64_t room;
    void *host = avmm_mem_span(mem, base, perm, &room);
    return host && size <= room ? host : NULL;
}
