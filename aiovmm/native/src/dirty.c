#include "dirty.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096u
#define REGIONS 512u

/* <linux/userfaultfd.h> and <linux/fs.h> of Linux 6.7: those of a build host may be older. */
#define USER_MODE_ONLY 1
#define API 0xAAull
#define WP_ASYNC (1ull << 15)
#define MODE_WP (1ull << 1)

struct api {
    uint64_t api, features, ioctls;
};
struct registration {
    uint64_t start, len, mode, ioctls;
};
struct region {
    uint64_t start, end, categories;
};
struct scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t inverted, mask, anyof, returned;
};

#define UFFDIO_API_ _IOWR(0xAA, 0x3F, struct api)
#define UFFDIO_REGISTER_ _IOWR(0xAA, 0x00, struct registration)
#define PAGEMAP_SCAN_ _IOWR('f', 16, struct scan)

#define WP_MATCHING 1ull
#define CHECK_WPASYNC 2ull
#define WRITTEN (1ull << 1)
#define IS_FILE (1ull << 2)
#define PRESENT (1ull << 3)
#define SWAPPED (1ull << 4)

/* in an entry of /proc/self/pagemap */
#define THERE (1ull << 63 | 1ull << 62)
#define OF_FILE (1ull << 61)

int avmm_dirty_open(void) {
    struct api api = {.api = API, .features = WP_ASYNC};
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | USER_MODE_ONLY);
    if (fd < 0)
        return -errno;
    if (ioctl(fd, UFFDIO_API_, &api)) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

int avmm_dirty_watch(int fd, uint64_t host, uint64_t size) {
    struct registration r = {.start = host, .len = size, .mode = MODE_WP};
    return ioctl(fd, UFFDIO_REGISTER_, &r) ? errno : 0;
}

static bool bit(const uint8_t *bits, uint64_t number) { return bits && bits[number / 8] >> number % 8 & 1; }

static void set(uint8_t *bits, uint64_t number) { bits[number / 8] |= (uint8_t)(1u << number % 8); }

static void set_run(uint8_t *bits, uint64_t number, uint64_t end) {
    while (number < end)
        if (number % 8 == 0 && end - number >= 8) {
            bits[number / 8] = 0xff;
            number += 8;
        } else {
            set(bits, number++);
        }
}

/* Pages with the same categories. Of a file's memory what is not private (or nowhere) is as in the file, unless it was private once
 * and has been given back; what seems to be in swap may be a mark of the kernel's that something was there. */
static void tell(struct avmm_dirty *of, uint64_t from, uint64_t to, uint64_t categories) {
    uint64_t number = of->number + (from - of->host) / PAGE, end = of->number + (to - of->host) / PAGE;
    bool there = categories & (PRESENT | SWAPPED), written = categories & WRITTEN;
    if (!of->of_file) {
        if (!written && there)
            return;
        of->there += there ? end - number : 0;
        set_run(of->marks, number, end);
    } else if (!there || categories & IS_FILE) {
        for (; number < end; number++)
            if (bit(of->moved, number)) {
                of->there++;
                set(of->marks, number);
            }
    } else if (written || categories & SWAPPED) {
        of->there += end - number;
        set_run(of->marks, number, end);
    }
}

/* One walk through the memory: regions come in order, and what lies between two has none of the categories. Private pages are
 * protected, and nothing else: where there is no page the kernel would leave a mark that looks like one. */
static int walk(struct avmm_dirty *of, int pagemap, bool protect) {
    struct region regions[REGIONS];
    uint64_t end = of->host + of->size, told = of->host;
    struct scan scan = {
        .size = sizeof scan,
        .flags = protect ? WP_MATCHING | CHECK_WPASYNC : 0,
        .start = of->host,
        .end = end,
        .vec = (uint64_t)(uintptr_t)regions,
        .vec_len = REGIONS,
        .inverted = protect ? IS_FILE : 0,
        .mask = protect ? IS_FILE | WRITTEN : 0,
        .anyof = PRESENT | SWAPPED,
        .returned = WRITTEN | IS_FILE | PRESENT | SWAPPED,
    };
    while (scan.start < end) {
        int found = ioctl(pagemap, PAGEMAP_SCAN_, &scan);
        if (found < 0 && errno == EINTR)
            continue;
        if (found < 0)
            return errno;
        for (int i = 0; i < found && !protect; i++) {
            if (regions[i].start > told)
                tell(of, told, regions[i].start, 0);
            tell(of, regions[i].start, regions[i].end, regions[i].categories);
            told = regions[i].end;
        }
        scan.start = scan.walk_end;
    }
    if (!protect && told < end)
        tell(of, told, end, 0);
    return 0;
}

/* By the table that every kernel has: all private pages. */
static int all_private(struct avmm_dirty *of, int pagemap) {
    uint64_t entries[512];
    for (uint64_t at = 0; at < of->size; at += sizeof entries / sizeof *entries * PAGE) {
        uint64_t left = (of->size - at) / PAGE, n = left < 512 ? left : 512;
        ssize_t want = (ssize_t)(n * sizeof *entries);
        if (pread(pagemap, entries, (size_t)want, (off_t)((of->host + at) / PAGE * sizeof *entries)) != want)
            return EIO;
        for (uint64_t i = 0; i < n; i++) {
            uint64_t number = of->number + at / PAGE + i;
            bool own = entries[i] & THERE && !(entries[i] & OF_FILE);
            if (own || bit(of->moved, number)) {
                of->there++;
                set(of->marks, number);
            }
        }
    }
    return 0;
}

int avmm_dirty_scan(struct avmm_dirty *of) {
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap < 0)
        return errno;
    int error = of->how == AVMM_DIRTY_OWN ? all_private(of, pagemap) : walk(of, pagemap, false);
    if (!error && of->how == AVMM_DIRTY_PROTECT)
        error = walk(of, pagemap, true);
    close(pagemap);
    return error;
}
