/* The kernel's own KVM structures, one checked door to its ioctls, and one that need not be checked. */
#ifndef AIOVMM_KVMAPI_H
#define AIOVMM_KVMAPI_H
#include <linux/kvm.h>
#include <stdint.h>

/* ioctl(fd, request, argument), repeated while it is interrupted. Result >= 0, or -errno. Never used for KVM_RUN. */
long avmm_ioctl(int fd, unsigned long request, uintptr_t argument);

/* One of several ioctls that are made together; a result below `least` is a failure. */
struct avmm_call {
    unsigned long request;
    uintptr_t argument;
    long least;
};

/* Make them on `fd` in order, up to the first that fails: its index, or `count`. */
uint32_t avmm_ioctls(int fd, const struct avmm_call *calls, uint32_t count);

/* A message-signalled interrupt of the VM whose descriptor is at `vm`: -1 there once it is closed. */
struct avmm_message {
    const int *vm;
    struct kvm_msi msi;
};

/* Send it. What no local APIC takes is lost, and so is one of a VM that is closed. 0 in any case. */
int avmm_message_send(const struct avmm_message *message);

#endif
