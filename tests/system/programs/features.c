/* What a guest's processor has of what KVM must be asked for, tried and not only told of, for tests.
 *
 *   features        a line of each: "sve BYTES" (a register's length, 0 without SVE), "cycles COUNT" and "overflows COUNT" (of the
 *                   cycle counter, which interrupts after each 1e6; both 0 without a PMU) */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t overflows;

static void overflowed(int number) {
    (void)number;
    overflows++;
}

static unsigned long sve_length(void) {
    unsigned long length = 0;
#ifdef __aarch64__
    if (getauxval(AT_HWCAP) & 1ul << 22) /* HWCAP_SVE */
        asm volatile(".arch_extension sve\n\tptrue p0.b\n\tmov z0.b, #1\n\tcntp %0, p0, p0.b" : "=r"(length) : : "z0", "p0");
#endif
    return length;
}

int main(void) {
    printf("sve %lu\n", sve_length());
    struct perf_event_attr attr = {.type = PERF_TYPE_HARDWARE, .size = sizeof attr, .config = PERF_COUNT_HW_CPU_CYCLES, .sample_period = 1000000};
    uint64_t cycles = 0;
    int fd = syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
    if (fd >= 0) {
        signal(SIGIO, overflowed);
        fcntl(fd, F_SETOWN, getpid());
        fcntl(fd, F_SETFL, O_ASYNC);
        ioctl(fd, PERF_EVENT_IOC_REFRESH, 1 << 20);
        for (time_t end = time(NULL) + 5; overflows < 10 && time(NULL) < end;)
            ;
        ioctl(fd, PERF_EVENT_IOC_DISABLE, 0);
        if (read(fd, &cycles, sizeof cycles) != sizeof cycles)
            return 1;
    }
    printf("cycles %llu\noverflows %d\n", (unsigned long long)cycles, (int)overflows);
    return 0;
}
