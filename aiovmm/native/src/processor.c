#include "processor.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

#define HYPERVISOR_PRESENT (1u << 31) /* CPUID.1:ECX */
#define HYPERVISOR_LEAF 0x40000000u

int avmm_is_tcg(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & HYPERVISOR_PRESENT))
        return 0;
    __cpuid(HYPERVISOR_LEAF, a, b, c, d); /* outside the range that __get_cpuid checks */
    unsigned signature[] = {b, c, d};
    return memcmp(signature, "TCGTCGTCGTCG", sizeof signature) == 0;
}
#else
int avmm_is_tcg(void) { return 0; }
#endif
