/* What a vCPU keeps on arm64: nothing. */
#ifndef AIOVMM_VCPU_ARCH_H
#define AIOVMM_VCPU_ARCH_H

struct avmm_vcpu_arch {
    char nothing;
};

#endif
