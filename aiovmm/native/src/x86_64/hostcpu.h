/* This host's processor, asked directly, and a permission that its kernel gives to guests. */
#ifndef AIOVMM_HOSTCPU_H
#define AIOVMM_HOSTCPU_H
#include <stdint.h>

/* CPUID's EAX, EBX, ECX and EDX for `leaf`; 0 if the processor has no such leaf (it would answer with another's), else 1. */
int avmm_cpuid(uint32_t leaf, uint32_t out[4]);

/* Let the guests of this process use state component `feature` of XCR0 (ARCH_REQ_XCOMP_GUEST_PERM). 0, or -errno. */
int avmm_request_guest_state(unsigned feature);

#endif
