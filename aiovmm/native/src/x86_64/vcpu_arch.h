/* What a vCPU keeps on x86: the page tables that its guest was last seen on (paging.c). */
#ifndef AIOVMM_VCPU_ARCH_H
#define AIOVMM_VCPU_ARCH_H
#include <stdatomic.h>
#include <stdint.h>

struct avmm_vcpu_arch {
    uint64_t since, due; /* coarse nanoseconds */
    _Atomic uint64_t cr0, cr3, cr4, efer;
};

#endif
