/* See counter.h. */
#include "counter.h"

uint64_t avmm_counter_hz(void) {
    uint64_t hz;
    __asm__("mrs %0, cntfrq_el0" : "=r"(hz)); /* Linux lets every program read it */
    return hz;
}
