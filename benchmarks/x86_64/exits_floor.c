/* The floor of register access: a monitor that answers every port access in the vCPU's own thread.
 *
 *   exits_floor GUEST PORT COUNT WRITE
 *
 * GUEST is the flat binary of tests/guests/timed.S, which reads or writes PORT COUNT times and then writes to port 0x100. Prints
 * nanoseconds an access. Reads are answered with zeros, writes are dropped. Local APIC in KVM and the rest here, as aiovmm has it.
 */
#include "long_mode.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { GDT = 0x500, TABLES = 0x1000, CODE = 0x10000, ARGUMENTS = 0x60010, STACK = 0x80000, RAM = 2 << 20, END = 0x100 };

static void run(int vcpu, struct kvm_run *run) {
    for (;;) {
        do_ioctl(vcpu, KVM_RUN, NULL, "KVM_RUN");
        if (run->exit_reason != KVM_EXIT_IO)
            errx(1, "exit %u", run->exit_reason);
        if (run->io.direction == KVM_EXIT_IO_IN)
            memset((uint8_t *)run + run->io.data_offset, 0, (size_t)run->io.size * run->io.count);
        else if (run->io.port == END)
            return;
    }
}

static void load(uint8_t *ram, char **argv) {
    int fd = open(argv[1], O_RDONLY);
    if (fd < 0 || read(fd, ram + CODE, 0x10000) <= 0)
        err(1, "%s", argv[1]);
    uint32_t arguments[] = {strtoul(argv[2], NULL, 0), strtoul(argv[3], NULL, 0), strtoul(argv[4], NULL, 0)};
    memcpy(ram + ARGUMENTS, arguments, sizeof arguments);
    close(fd);
}

int main(int argc, char **argv) {
    if (argc != 5)
        errx(2, "usage: exits_floor GUEST PORT COUNT WRITE");
    uint8_t *ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0 || ram == MAP_FAILED)
        err(1, "/dev/kvm or memory");
    int vm = do_ioctl(kvm, KVM_CREATE_VM, 0, "VM");
    do_ioctl(vm, KVM_SET_TSS_ADDR, (void *)0xfffbd000, "TSS");
    struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
    do_ioctl(vm, KVM_ENABLE_CAP, &split, "split irqchip");
    struct kvm_userspace_memory_region slot = {.memory_size = RAM, .userspace_addr = (uintptr_t)ram};
    do_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot, "memory");
    int vcpu = do_ioctl(vm, KVM_CREATE_VCPU, 0, "vCPU");
    load(ram, argv);
    enter_long_mode(vcpu, ram, GDT, TABLES, (struct kvm_regs){.rip = CODE, .rsp = STACK});
    size_t size = do_ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0, "size");
    struct kvm_run *shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    double start = now();
    run(vcpu, shared);
    printf("%.1f\n", (now() - start) / strtoul(argv[3], NULL, 0) * 1e9);
    return 0;
}
