/* Guest memory that is kept in a sparse file: what is read back is what was there, and its sum does not depend on the pieces. */
#include "guest.h"
#include "pages.h"
#include <sys/mman.h>
#include <unistd.h>

enum { PAGES = 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t *memory_at, back[PAGES * PAGE];
    static int out = -1;
    if (out < 0) {
        out = memfd_create("out", 0);
        memory_at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    input_at = data, input_end = data + size;
    EXPECT(madvise(memory_at, PAGES * PAGE, MADV_DONTNEED) == 0 && ftruncate(out, 0) == 0 && ftruncate(out, PAGES * PAGE) == 0);
    uint32_t cut = below(PAGES + 1) * PAGE;
    while (input_left())
        memory_at[take(2) % (PAGES * PAGE)] = (uint8_t)take(1);
    struct avmm_kept whole = {0}, parts = {0};
    struct avmm_piece all = {(uint64_t)(uintptr_t)memory_at, PAGES * PAGE, -1, 0, 0, 0};
    EXPECT(avmm_pages_keep(&all, -1, 0, &whole) == 0);
    struct avmm_piece first = {all.host, cut, -1, 0, 0, 0}, second = {all.host + cut, PAGES * PAGE - cut, -1, 0, 0, cut / PAGE};
    EXPECT(avmm_pages_keep(&second, out, cut, &parts) == 0 && avmm_pages_keep(&first, out, 0, &parts) == 0);
    EXPECT(whole.pages == parts.pages && whole.sum == parts.sum);
    EXPECT(pread(out, back, sizeof back, 0) == sizeof back && !memcmp(back, memory_at, sizeof back));
    return 0;
}
