#include "hostcpu.h"

#include <cpuid.h>
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REQ_XCOMP_GUEST_PERM 0x1025 /* <asm/prctl.h> of Linux 5.17 and later */

int avmm_cpuid(uint32_t leaf, uint32_t out[4]) { return __get_cpuid(leaf, &out[0], &out[1], &out[2], &out[3]); }

int avmm_request_guest_state(unsigned feature) {
    return syscall(SYS_arch_prctl, REQ_XCOMP_GUEST_PERM, (unsigned long)feature) < 0 ? -errno : 0;
}
