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

int avmm_message_send(const struct avmm_message *message) {
    int vm = *message->vm;
    if (vm >= 0)
        ioctl(vm, KVM_SIGNAL_MSI, &message->msi);
    return 0;
}
