/* Guest memory that is kept in a sparse file: what is read back is what was there, and its sum does not depend on the pieces. */
#include "guest.h"
#include "pages.h"
#include <sys/mman.h>
#include <unistd.h>

enum { PAGES = 16, SIZE = PAGES * PAGE };

static uint8_t *memory_at, *kept, model[SIZE]; /* `kept`: what is in the file, which is zeros before and after an input, as `model` is */
static int out;

HARNESS void open_memory(void) {
    out = memfd_create("out", 0);
    EXPECT(out > 0 && ftruncate(out, SIZE) == 0);
    memory_at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    kept = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, out, 0);
    EXPECT(memory_at != MAP_FAILED && kept != MAP_FAILED);
}

HARNESS void guest_writes(bool touched[PAGES]) {
    while (input_left()) {
        uint32_t at = (uint32_t)take(2) % SIZE;
        memory_at[at] = model[at] = (uint8_t)take(1);
        touched[at / PAGE] = true;
    }
}

HARNESS void clear(const bool touched[PAGES]) {
    EXPECT(madvise(memory_at, SIZE, MADV_DONTNEED) == 0); /* so that what is not touched is not there */
    for (uint32_t i = 0; i < PAGES; i++)
        if (touched[i])
            memset(model + i * PAGE, 0, PAGE), memset(kept + i * PAGE, 0, PAGE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    bool touched[PAGES] = {0};
    if (!out)
        open_memory();
    input_at = data, input_end = data + size;
    uint32_t cut = below(PAGES + 1) * PAGE;
    guest_writes(touched);
    struct avmm_kept whole = {0}, parts = {0};
    struct avmm_piece all = {(uint64_t)(uintptr_t)memory_at, SIZE, -1, 0, 0, 0};
    EXPECT(avmm_pages_keep(&all, -1, 0, &whole) == 0);
    struct avmm_piece first = {all.host, cut, -1, 0, 0, 0}, second = {all.host + cut, SIZE - cut, -1, 0, 0, cut / PAGE};
    EXPECT(avmm_pages_keep(&second, out, cut, &parts) == 0 && avmm_pages_keep(&first, out, 0, &parts) == 0);
    EXPECT(whole.pages == parts.pages && whole.sum == parts.sum);
    EXPECT(lseek(out, 0, SEEK_END) == SIZE && !memcmp(kept, model, SIZE));
    clear(touched);
    return 0;
}
