/* The floor of a creation: the system calls that a guest without devices takes, from nothing to its first instruction, and back.
 *
 *   create_floor COUNT
 *
 * Prints milliseconds of each half, creation and end, medians of COUNT. Memory is touched where aiovmm writes tables and a kernel.
 */
#include "long_mode.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { GDT = 0x500, TABLES = 0x1000, CODE = 0x10000, STACK = 0x80000, TOP = 0xe0000, RAM = 4 << 20, LVT0 = 0x350 };

struct cpuid {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entries[256];
};

static struct cpuid supported;

struct guest {
    uint8_t *ram;
    size_t size;
    struct kvm_run *run;
    int kvm, vm, vcpu;
};

static void create(struct guest *g) {
    g->ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    g->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (g->kvm < 0 || g->ram == MAP_FAILED)
        err(1, "/dev/kvm or memory");
    madvise(g->ram, RAM, MADV_NOHUGEPAGE);
    g->vm = do_ioctl(g->kvm, KVM_CREATE_VM, 0, "VM");
    do_ioctl(g->vm, KVM_SET_TSS_ADDR, (void *)0xfffbd000, "TSS");
    struct kvm_userspace_memory_region slot = {.memory_size = RAM, .userspace_addr = (uintptr_t)g->ram};
    do_ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &slot, "memory");
    struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
    do_ioctl(g->vm, KVM_ENABLE_CAP, &split, "split irqchip");
    g->vcpu = do_ioctl(g->vm, KVM_CREATE_VCPU, 0, "vCPU");
    do_ioctl(g->vcpu, KVM_SET_CPUID2, &supported, "CPUID");
    struct kvm_lapic_state lapic;
    do_ioctl(g->vcpu, KVM_GET_LAPIC, &lapic, "local APIC");
    memset(lapic.regs + LVT0, 7, 2);
    do_ioctl(g->vcpu, KVM_SET_LAPIC, &lapic, "local APIC");
    struct kvm_fpu fpu = {.fcw = 0x37f, .mxcsr = 0x1f80};
    do_ioctl(g->vcpu, KVM_SET_FPU, &fpu, "FPU");
    memset(g->ram + TOP, 0, 0x2000);
    g->ram[CODE] = 0xf4; /* hlt */
    g->ram[RAM / 2] = 1;
    enter_long_mode(g->vcpu, g->ram, GDT, TABLES, (struct kvm_regs){.rip = CODE, .rsp = STACK});
    g->size = do_ioctl(g->kvm, KVM_GET_VCPU_MMAP_SIZE, 0, "size");
    g->run = mmap(NULL, g->size, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu, 0);
    g->run->immediate_exit = 1;
    ioctl(g->vcpu, KVM_RUN, 0); /* EINTR: it would enter the guest now */
}

static void end(struct guest *g) {
    munmap(g->run, g->size);
    close(g->vcpu);
    close(g->vm);
    close(g->kvm);
    munmap(g->ram, RAM);
}

static int by_value(const void *a, const void *b) { return (*(double *)a > *(double *)b) - (*(double *)a < *(double *)b); }

int main(int argc, char **argv) {
    int count = argc == 2 ? atoi(argv[1]) : 0;
    if (count < 1)
        errx(2, "usage: create_floor COUNT");
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    supported.head.nent = 256;
    if (kvm < 0)
        err(1, "/dev/kvm");
    do_ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &supported, "CPUID that is supported");
    double *creations = calloc(count, sizeof *creations), *ends = calloc(count, sizeof *ends);
    for (int i = 0; i < count; i++) {
        struct guest g;
        double began = now();
        create(&g);
        double made = now();
        end(&g);
        creations[i] = made - began;
        ends[i] = now() - made;
    }
    qsort(creations, count, sizeof *creations, by_value);
    qsort(ends, count, sizeof *ends, by_value);
    printf("%.4f %.4f\n", creations[count / 2] * 1e3, ends[count / 2] * 1e3);
    return 0;
}
