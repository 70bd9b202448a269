/* Guest memory as native code sees it: a sorted table of regions, each with its host address. */
#ifndef AIOVMM_MEM_H
#define AIOVMM_MEM_H
#include <stddef.h>
#include <stdint.h>

#define AVMM_MEM_READ 1
#define AVMM_MEM_WRITE 2

struct avmm_region {
    uint64_t base;  /* address the guest or the device uses (GPA, or IOVA behind an IOMMU) */
    uint64_t size;  /* bytes */
    uint64_t host;  /* host virtual address of the first byte */
    uint32_t perm;  /* AVMM_MEM_READ | AVMM_MEM_WRITE */
    uint32_t within; /* not 0: it has that many regions within it, sorted, and `host` is where they stand */
};

struct avmm_mem {
    uint32_t count;
    uint32_t pad;
    struct avmm_region *regions; /* sorted by base, not overlapping */
};

/* Host address of [base, base + size), or NULL when it does not lie in one region that grants `perm`. */
void *avmm_mem_find(const struct avmm_mem *mem, uint64_t base, uint64_t size, uint32_t perm);

/* Host address of `base` and in `*room` the bytes from there to its region's end; NULL as avmm_mem_find. */
void *avmm_mem_span(const struct avmm_mem *mem, uint64_t base, uint32_t perm, uint64_t *room);

/* Have the pages of [host, host + size) there, writable, before they are touched: 0 or an errno. It may take a second a GiB. */
int avmm_mem_populate(uint64_t host, uint64_t size);

/* Have the pages of [host, host + size), whole pages, come from one NUMA node of the host: 0 or an errno (EINVAL: it has none such). */
int avmm_mem_bind(uint64_t host, uint64_t size, uint32_t node);

/* Bytes of [host, host + size), whole pages, that are in memory, by /proc/self/pagemap; 0 where that cannot be read. */
uint64_t avmm_mem_resident(uint64_t host, uint64_t size);

/* Of these bytes those that are no file's and not shared: of memory that is mapped privately, what has been written to. */
uint64_t avmm_mem_own(uint64_t host, uint64_t size);

/* Have the kernel write out what it can of them. */
void avmm_mem_page_out(uint64_t host, uint64_t size);

/* Whether this is built with checks of every access, which know what malloc gave and nothing of pieces of a mapping. */
#if defined(__SANITIZE_ADDRESS__)
enum { AVMM_SANITIZED = 1 };
#else
enum { AVMM_SANITIZED = 0 };
#endif

/* Have the C library give the system what was freed and it has kept, wherever it lies. Takes milliseconds. */
void avmm_mem_trim(void);

/* Whole pages of guest memory, of this process's addresses. */
struct avmm_span {
    uint64_t host;
    uint64_t size;
};

/* Put the bytes of file `fd` from `offset` on in the place of what is mapped at [host, host + size): 0 or an errno, and then it
 * stays as it was. No descriptor is kept for it. */
int avmm_mem_map(uint64_t host, uint64_t size, int fd, uint64_t offset, int writable, int shared);

/* Put memory of nobody's, zeros, in the place of what is mapped at [host, host + size): who still writes to it harms nobody, and
 * its file is let go. 0 or an errno, and then it stays as it was. */
int avmm_mem_blank(uint64_t host, uint64_t size);

/* Give the host back what is there, so that it reads as zeros, or, of private memory over a file, as that: 0 or an errno. Memory that other processes share is emptied for
 * them, too. Any thread may call it, and the guest may go on. */
int avmm_mem_give_back(const struct avmm_span *spans, uint32_t count);

/* The same for those of `count` blocks from `host` on, `size` bytes each, whose byte is not 0. */
int avmm_mem_give_back_blocks(uint64_t host, uint64_t size, const uint8_t *blocks, uint32_t count);

#endif
