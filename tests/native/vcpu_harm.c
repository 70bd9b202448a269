/* A guest that locks the bus and lets no interrupt in, as a made-up KVM tells of it: all is counted, the guest goes on, and stands
 * still by the pace of that alone; it ends where the processor has lost it. */
#include "pace.h"
#include "vcpu.h"

#include <errno.h>
#include <linux/futex.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EXPECT(what)                                                                                                                \
    do {                                                                                                                            \
        if (!(what)) {                                                                                                              \
            fprintf(stderr, "line %d: %s\n", __LINE__, #what);                                                                      \
            abort();                                                                                                                \
        }                                                                                                                           \
    } while (0)

enum { RUN = 4096, EXIT_BUS_LOCK = 33, EXIT_NOTIFY = 37, RUN_BUS_LOCK = 1 << 1, QUIET = 200 };

static struct kvm_run *run;
static struct avmm_vcpu *vcpu;
static int at, waits;

long fake_syscall(long number, ...) {
    va_list arguments;
    va_start(arguments, number);
    (void)va_arg(arguments, void *);
    int what = va_arg(arguments, int);
    va_end(arguments);
    if (number == SYS_futex && (what & 127) == FUTEX_WAIT)
        waits++;
    return number == SYS_gettid ? 1 : 0;
}

static void tell(uint32_t reason, uint16_t flags, uint32_t notify) {
    run->exit_reason = reason;
    run->flags = flags;
    memcpy(&run->hw, &notify, sizeof notify);
}

int fake_ioctl(int fd, unsigned long request, ...) {
    (void)fd;
    if (request != KVM_RUN)
        return 0;
    int step = at++;
    if (step < QUIET)
        tell(KVM_EXIT_SET_TPR, 0, 0);
    else if (step == QUIET) {
        EXPECT(waits == 0);
        tell(EXIT_BUS_LOCK, 0, 0);
    } else if (step == QUIET + 1)
        tell(EXIT_BUS_LOCK, RUN_BUS_LOCK, 0);
    else if (step == QUIET + 2)
        tell(KVM_EXIT_SET_TPR, RUN_BUS_LOCK, 0);
    else if (step == QUIET + 3)
        tell(EXIT_NOTIFY, 0, 0);
    else if (step == QUIET + 4)
        tell(EXIT_NOTIFY, RUN_BUS_LOCK, 0);
    else {
        EXPECT(waits > 0);
        tell(EXIT_NOTIFY, 0, 1);
    }
    return 0;
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int main(void) {
    static uint64_t ring[8 * AVMM_ENTRY_SIZE / 8];
    int error, events = eventfd(0, EFD_NONBLOCK), fd = memfd_create("run", 0);
    EXPECT(ftruncate(fd, RUN) == 0);
    struct avmm_vm *vm = avmm_vm_new(events, 1, 0);
    vcpu = avmm_vcpu_new(vm, 0, fd, RUN, ring, 8, &error);
    EXPECT(vcpu && !error);
    run = mmap(NULL, RUN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    const uint64_t interval = 5000000;
    avmm_vm_pace(vm, AVMM_PACE_HARM, interval, 0);
    avmm_vcpu_arm(vcpu);
    uint64_t began = now();
    avmm_vcpu_run(vcpu);
    EXPECT(now() - began >= 4 * interval); /* five that harm, the first at once */
    const struct avmm_final *final = avmm_vcpu_final(vcpu);
    EXPECT(final->kind == AVMM_END_EXIT && final->code == EXIT_NOTIFY);
    const struct avmm_counters *counters = avmm_vcpu_counters(vcpu);
    EXPECT(counters->bus_locks == 4 && counters->notifies == 3 && counters->exits == QUIET + 6);
    avmm_vcpu_free(vcpu);
    avmm_vm_free(vm);
    munmap(run, RUN), close(fd), close(events);
    puts("ok");
    return 0;
}
