/* What looking for another thread's next step is made of. */
#ifndef AIOVMM_LOOK_H
#define AIOVMM_LOOK_H
#include <stdint.h>
#include <time.h>

static inline uint64_t avmm_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* In a loop that only reads: leave the core to its other hardware thread for a moment. */
static inline void avmm_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

#endif
