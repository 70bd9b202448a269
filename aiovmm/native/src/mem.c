#include "mem.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21 /* Linux 5.4 */
#endif
#define PAGE 4096u
#define NODES 1024u /* the most a kernel can have */
#define BITS (8u * (unsigned)sizeof(long))
#define PRESENT (1ull << 63) /* in an entry of /proc/self/pagemap */
#define OF_FILE (1ull << 61) /* likewise: a file's, or of memory that is shared */
#define POPULATE (16u << 20)

void *avmm_mem_span(const struct avmm_mem *mem, uint64_t base, uint32_t perm, uint64_t *room) {
    const struct avmm_region *regions = mem->regions;
    uint32_t lo = 0, hi = mem->count;
    while (lo < hi) { /* first region whose end lies beyond base */
        uint32_t mid = lo + (hi - lo) / 2;
        const struct avmm_region *r = &regions[mid];
        if (base >= r->base && base - r->base >= r->size)
            lo = mid + 1;
        else if (base < r->base)
            hi = mid;
        else if (r->within) {
            regions = (const struct avmm_region *)(uintptr_t)r->host;
            lo = 0;
            hi = r->within;
        } else {
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

/* In pieces: a call holds the lock of the process's mappings, for which other threads wait that map or unmap anything. */
int avmm_mem_populate(uint64_t host, uint64_t size) {
    while (size) {
        uint64_t some = size < POPULATE ? size : POPULATE;
        if (!madvise((void *)(uintptr_t)host, some, MADV_POPULATE_WRITE)) {
            host += some;
            size -= some;
        } else if (errno != EINTR) {
            return errno;
        }
    }
    return 0;
}

int avmm_mem_bind(uint64_t host, uint64_t size, uint32_t node) {
    unsigned long nodes[NODES / BITS] = {0};
    if (node >= NODES)
        return EINVAL;
    nodes[node / BITS] = 1ul << node % BITS;
    return syscall(SYS_mbind, host, size, MPOL_BIND, nodes, NODES + 1ul, MPOL_MF_STRICT) ? errno : 0;
}

/* MADV_REMOVE punches a hole into what is shared, and refuses private memory, which MADV_DONTNEED frees. In pieces, as above. */
static int give_back(void *host, uint64_t size) {
    if (!madvise(host, size, MADV_REMOVE))
        return 0;
    if (errno == EINVAL || errno == EACCES)
        return madvise(host, size, MADV_DONTNEED) ? errno : 0;
    return errno;
}

int avmm_mem_map(uint64_t host, uint64_t size, int fd, uint64_t offset, int writable, int shared) {
    int flags = MAP_FIXED | MAP_NORESERVE | (shared ? MAP_SHARED : MAP_PRIVATE);
    int prot = PROT_READ | (writable ? PROT_WRITE : 0);
    return mmap((void *)(uintptr_t)host, size, prot, flags, fd, (off_t)offset) == MAP_FAILED ? errno : 0;
}

int avmm_mem_blank(uint64_t host, uint64_t size) {
    int flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    return mmap((void *)(uintptr_t)host, size, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED ? errno : 0;
}

static int give_back_span(uint64_t host, uint64_t size) {
    for (uint64_t at = 0; at < size; at += POPULATE) {
        uint64_t left = size - at;
        int error = give_back((void *)(uintptr_t)(host + at), left < POPULATE ? left : POPULATE);
        if (error)
            return error;
    }
    return 0;
}

int avmm_mem_give_back(const struct avmm_span *spans, uint32_t count) {
    int error = 0;
    for (uint32_t i = 0; i < count && !error; i++)
        error = give_back_span(spans[i].host, spans[i].size);
    return error;
}

int avmm_mem_give_back_blocks(uint64_t host, uint64_t size, const uint8_t *blocks, uint32_t count) {
    for (uint32_t begin = 0, end; begin < count; begin = end) {
        for (end = begin + 1; end < count && !blocks[end] == !blocks[begin]; end++)
            ;
        int error = blocks[begin] ? give_back_span(host + begin * size, (end - begin) * size) : 0;
        if (error)
            return error;
    }
    return 0;
}

/* Bytes of the pages whose entries have `all` of these bits and none of `none`. */
static uint64_t count_pages(uint64_t host, uint64_t size, uint64_t all, uint64_t none) {
    uint64_t entries[512], found = 0;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    for (uint64_t at = 0; fd >= 0 && at < size; at += sizeof entries / sizeof *entries * PAGE) {
        uint64_t left = (size - at) / PAGE, n = left < 512 ? left : 512;
        ssize_t got = pread(fd, entries, n * sizeof *entries, (off_t)((host + at) / PAGE * sizeof *entries));
        for (ssize_t i = 0; i < got / (ssize_t)sizeof *entries; i++)
            found += (entries[i] & (all | none)) == all ? PAGE : 0;
    }
    if (fd >= 0)
        close(fd);
    return found;
}

uint64_t avmm_mem_resident(uint64_t host, uint64_t size) { return count_pages(host, size, PRESENT, 0); }

uint64_t avmm_mem_own(uint64_t host, uint64_t size) { return count_pages(host, size, PRESENT, OF_FILE); }

void avmm_mem_page_out(uint64_t host, uint64_t size) {
    for (uint64_t at = 0; at < size; at += POPULATE)
        madvise((void *)(uintptr_t)(host + at), size - at < POPULATE ? size - at : POPULATE, MADV_PAGEOUT);
}

void avmm_mem_trim(void) {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}
