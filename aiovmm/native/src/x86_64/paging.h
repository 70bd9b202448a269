/* Which page tables a guest runs on. */
#ifndef AIOVMM_PAGING_H
#define AIOVMM_PAGING_H
#include "vcpu.h"

struct avmm_paging { /* control registers of some moment; all zero before the first note */
    uint64_t cr0, cr3, cr4, efer;
};

/* The page tables that the guest was last seen on, at an exit that did not end it; at any time. */
struct avmm_paging avmm_vcpu_paging(const struct avmm_vcpu *v);

#endif
