/* The floor of a fork: the system calls that a copy of a frozen guest takes, up to its vCPU's thread in the guest.
 *
 *   fork_floor COUNT MIB
 *
 * Prints milliseconds of p50 and p99, of COUNT forks that all stay, and of all of them together. The guest spins; its state is read
 * from one that has run. Devices take nothing here.
 */
#define _GNU_SOURCE
#include "long_mode.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

enum { GDT = 0x500, TABLES = 0x1000, CODE = 0x10000, STACK = 0x80000, MSRS = 512 };

struct guest {
    uint8_t *ram;
    struct kvm_run *run;
    int vm, vcpu;
    pthread_t thread;
};

struct state {
    struct kvm_cpuid2 cpuid;
    struct kvm_cpuid_entry2 entries[256];
    struct kvm_mp_state mp;
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    uint8_t xsave[16384];
    struct kvm_xcrs xcrs;
    struct kvm_debugregs debugregs;
    struct kvm_lapic_state lapic;
    struct kvm_vcpu_events events;
    struct kvm_clock_data clock;
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entries[MSRS];
    } msrs;
};

static int kvm, base;
static size_t size, run_size;
static struct state saved;

static void make(struct guest *g) {
    g->ram = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, base, 0);
    if (g->ram == MAP_FAILED)
        err(1, "memory");
    g->vm = do_ioctl(kvm, KVM_CREATE_VM, 0, "VM");
    do_ioctl(g->vm, KVM_SET_TSS_ADDR, (void *)0xfffbd000, "TSS");
    struct kvm_userspace_memory_region slot = {.memory_size = size, .userspace_addr = (uintptr_t)g->ram};
    do_ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &slot, "memory");
    struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
    do_ioctl(g->vm, KVM_ENABLE_CAP, &split, "split irqchip");
    g->vcpu = do_ioctl(g->vm, KVM_CREATE_VCPU, 0, "vCPU");
    g->run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu, 0);
}

static void *spin(void *arg) {
    struct guest *g = arg;
    ioctl(g->vcpu, KVM_RUN, 0);
    return NULL;
}

static void save(struct guest *g) {
    do_ioctl(g->vcpu, KVM_GET_MP_STATE, &saved.mp, "MP state");
    do_ioctl(g->vcpu, KVM_GET_REGS, &saved.regs, "registers");
    do_ioctl(g->vcpu, KVM_GET_SREGS, &saved.sregs, "system registers");
    do_ioctl(g->vcpu, KVM_GET_XSAVE, saved.xsave, "xsave");
    do_ioctl(g->vcpu, KVM_GET_XCRS, &saved.xcrs, "xcrs");
    do_ioctl(g->vcpu, KVM_GET_DEBUGREGS, &saved.debugregs, "debug registers");
    do_ioctl(g->vcpu, KVM_GET_LAPIC, &saved.lapic, "local APIC");
    do_ioctl(g->vcpu, KVM_GET_VCPU_EVENTS, &saved.events, "events");
    do_ioctl(g->vm, KVM_GET_CLOCK, &saved.clock, "clock");
    saved.clock.flags = 0;
    struct {
        struct kvm_msr_list head;
        uint32_t indices[MSRS];
    } list = {.head = {.nmsrs = MSRS}};
    do_ioctl(kvm, KVM_GET_MSR_INDEX_LIST, &list, "list of MSRs");
    for (unsigned i = 0; i < list.head.nmsrs; i++) { /* those that can be read, and set to what they are */
        struct {
            struct kvm_msrs head;
            struct kvm_msr_entry entry;
        } one = {.head = {.nmsrs = 1}, .entry = {.index = list.indices[i]}};
        if (ioctl(g->vcpu, KVM_GET_MSRS, &one) == 1 && ioctl(g->vcpu, KVM_SET_MSRS, &one) == 1)
            saved.msrs.entries[saved.msrs.head.nmsrs++] = one.entry;
    }
}

static void load(struct guest *g) {
    do_ioctl(g->vm, KVM_SET_CLOCK, &saved.clock, "clock");
    do_ioctl(g->vcpu, KVM_SET_CPUID2, &saved.cpuid, "CPUID");
    do_ioctl(g->vcpu, KVM_SET_MP_STATE, &saved.mp, "MP state");
    do_ioctl(g->vcpu, KVM_SET_REGS, &saved.regs, "registers");
    do_ioctl(g->vcpu, KVM_SET_SREGS, &saved.sregs, "system registers");
    do_ioctl(g->vcpu, KVM_SET_XSAVE, saved.xsave, "xsave");
    do_ioctl(g->vcpu, KVM_SET_XCRS, &saved.xcrs, "xcrs");
    do_ioctl(g->vcpu, KVM_SET_DEBUGREGS, &saved.debugregs, "debug registers");
    do_ioctl(g->vcpu, KVM_SET_LAPIC, &saved.lapic, "local APIC");
    do_ioctl(g->vcpu, KVM_SET_MSRS, &saved.msrs, "MSRs");
    do_ioctl(g->vcpu, KVM_SET_VCPU_EVENTS, &saved.events, "events");
}

static int by_value(const void *a, const void *b) { return (*(double *)a > *(double *)b) - (*(double *)a < *(double *)b); }

int main(int argc, char **argv) {
    int count = argc == 3 ? atoi(argv[1]) : 0;
    size = argc == 3 ? (size_t)atoi(argv[2]) << 20 : 0;
    if (count < 1 || !size)
        errx(2, "usage: fork_floor COUNT MIB");
    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    base = memfd_create("base", MFD_CLOEXEC);
    if (kvm < 0 || base < 0 || ftruncate(base, size))
        err(1, "/dev/kvm or memory");
    saved.cpuid.nent = 256;
    do_ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &saved.cpuid, "CPUID that is supported");
    run_size = do_ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0, "size");
    struct guest first;
    make(&first);
    do_ioctl(first.vcpu, KVM_SET_CPUID2, &saved.cpuid, "CPUID");
    static const uint8_t code[] = {0xf3, 0x90, 0xeb, 0xfc}; /* pause; jmp */
    memcpy(first.ram + CODE, code, sizeof code);
    enter_long_mode(first.vcpu, first.ram, GDT, TABLES, (struct kvm_regs){.rip = CODE, .rsp = STACK, .rflags = 2});
    first.run->immediate_exit = 1;
    ioctl(first.vcpu, KVM_RUN, 0);
    save(&first);
    if (pwrite(base, first.ram, 1 << 20, 0) != 1 << 20)
        err(1, "base");
    struct guest *guests = calloc(count, sizeof *guests);
    double *times = calloc(count, sizeof *times), began = now();
    for (int i = 0; i < count; i++) {
        double start = now();
        make(&guests[i]);
        load(&guests[i]);
        guests[i].run->immediate_exit = 1; /* on its way, and no more: that many that spin would be what is measured */
        if (pthread_create(&guests[i].thread, NULL, spin, &guests[i]))
            err(1, "thread");
        times[i] = now() - start;
    }
    double all = now() - began;
    qsort(times, count, sizeof *times, by_value);
    printf("%.4f %.4f %.4f\n", times[count / 2] * 1e3, times[count * 99 / 100] * 1e3, all * 1e3);
    return 0;
}
