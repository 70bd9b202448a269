/* What a rate limit lets through for now. Whoever moves data counts it down and stops when nothing is left; Python adds what time
 * brings. A request that has begun is finished, so both may fall below 0: that is paid back before the next one begins. */
#ifndef AIOVMM_ALLOWANCE_H
#define AIOVMM_ALLOWANCE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct avmm_allowance {
    int64_t ops;
    int64_t bytes;
};

/* NULL: there is no limit. */
static inline bool avmm_allowance_left(const struct avmm_allowance *a) { return !a || (a->ops > 0 && a->bytes > 0); }

static inline void avmm_allowance_spend(struct avmm_allowance *a, uint64_t bytes) {
    if (!a)
        return;
    a->ops--;
    a->bytes -= (int64_t)bytes;
}

#endif
