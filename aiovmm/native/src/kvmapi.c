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
