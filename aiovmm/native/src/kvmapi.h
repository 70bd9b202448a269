/* The kernel's own KVM structures, and one checked door to its ioctls. */
#ifndef AIOVMM_KVMAPI_H
#define AIOVMM_KVMAPI_H
#include <linux/kvm.h>
#include <stdint.h>

/* ioctl(fd, request, argument), repeated while it is interrupted. Result >= 0, or -errno. Never used for KVM_RUN. */
long avmm_ioctl(int fd, unsigned long request, uintptr_t argument);

#endif
