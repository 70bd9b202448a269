#include "kvmapi.h"

#include <errno.h>
#include <sys/ioctl.h>

long avmm_ioctl(int fd, unsigned long request, uintptr_t argument) {
    long result;
    do
        result = ioctl(fd, request, argument);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}

uint32_t avmm_ioctls(int fd, const struct avmm_call *calls, uint32_t count) {
    uint32_t done = 0;
    while (done < count && avmm_ioctl(fd, calls[done].request, calls[done].argument) >= calls[done].least)
        done++;
    return done;
}

int avmm_message_send(const struct avmm_message *message) {
    int vm = *message->vm;
    if (vm >= 0)
        ioctl(vm, KVM_SIGNAL_MSI, &message->msi);
    return 0;
}
