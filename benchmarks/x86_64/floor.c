/* The floor: a KVM monitor that does nothing but boot an ELF vmlinux and print its serial port.
 *
 *   floor VMLINUX INITRAMFS MEGABYTES CMDLINE
 *
 * One vCPU, everything that KVM has in the kernel (PIC, I/O APIC, PIT), no ACPI, no event loop, no second thread. Of the 16550A there
 * is what Linux needs to find it and to print. It ends at the guest's reset or when the guest has printed the line "aiovmm: init".
 * What aiovmm takes longer than this is what aiovmm costs.
 */
#include "long_mode.h"

#include <asm/bootparam.h>
#include <elf.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { GDT = 0x500, ZERO_PAGE = 0x7000, STACK = 0x8ff0, PML4 = 0x9000, CMDLINE = 0x20000 };

static uint8_t *ram;
static uint64_t ram_size;

static void *map_file(const char *path, size_t *size) {
    struct stat st;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &st))
        err(1, "%s", path);
    *size = st.st_size;
    void *p = mmap(NULL, *size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED)
        err(1, "%s", path);
    close(fd);
    return p;
}

static uint64_t load_kernel(const char *path) {
    size_t size;
    uint8_t *file = map_file(path, &size);
    Elf64_Ehdr *elf = (void *)file;
    Elf64_Phdr *ph = (void *)(file + elf->e_phoff);
    for (int i = 0; i < elf->e_phnum; i++)
        if (ph[i].p_type == PT_LOAD)
            memcpy(ram + ph[i].p_paddr, file + ph[i].p_offset, ph[i].p_filesz);
    return elf->e_entry;
}

static void load_initramfs(struct boot_params *zero, const char *path) {
    size_t size;
    void *file = map_file(path, &size);
    uint64_t at = (ram_size - size) & ~0xfffULL;
    memcpy(ram + at, file, size);
    zero->hdr.ramdisk_image = at;
    zero->hdr.ramdisk_size = size;
}

static void fill_zero_page(struct boot_params *zero, const char *cmdline) {
    zero->hdr.boot_flag = 0xaa55;
    zero->hdr.header = 0x53726448; /* HdrS */
    zero->hdr.version = 0x020f;
    zero->hdr.type_of_loader = 0xff;
    zero->hdr.loadflags = LOADED_HIGH;
    zero->hdr.cmd_line_ptr = CMDLINE;
    zero->hdr.cmdline_size = strlen(cmdline);
    strcpy((char *)ram + CMDLINE, cmdline);
    zero->e820_table[0] = (struct boot_e820_entry){0, 0xa0000, 1};
    zero->e820_table[1] = (struct boot_e820_entry){0x100000, ram_size - 0x100000, 1};
    zero->e820_entries = 2;
}

static void set_cpuid(int kvm, int vcpu) {
    struct kvm_cpuid2 *c = calloc(1, sizeof *c + 256 * sizeof c->entries[0]);
    c->nent = 256;
    do_ioctl(kvm, KVM_GET_SUPPORTED_CPUID, c, "cpuid");
    for (unsigned i = 0; i < c->nent; i++)
        if (c->entries[i].function == 1)
            c->entries[i].ecx |= 1u << 31; /* a hypervisor is there: kvm-clock */
    do_ioctl(vcpu, KVM_SET_CPUID2, c, "cpuid");
}

/* True when the marker has gone by, unless the guest is to stay (FLOOR_STAYS in the environment): then lines are shown at once. */
static int print_byte(uint8_t c) {
    static const char marker[] = "aiovmm: init\r";
    static unsigned matched;
    const int stays = getenv("FLOOR_STAYS") != NULL;
    matched = c == marker[matched] ? matched + 1 : c == marker[0];
    putchar_unlocked(c);
    if (c == '\n' && stays)
        fflush(stdout);
    return matched == sizeof marker - 1 && !stays;
}

/* Registers of the 16550A by offset; those below 2 also with DLAB set. The transmitter is always empty. */
enum { THR = 0, IER = 1, IIR = 2, LCR = 3, MCR = 4, LSR = 5, MSR = 6, THRI = 2, DLAB = 0x80, LOOP = 0x10 };
static uint8_t serial[8], divisor[2];
static int empty_due; /* the interrupt that says so is pending */

static void serial_line(int vm) {
    static uint32_t level;
    struct kvm_irq_level line = {.irq = 4, .level = empty_due && serial[IER] & THRI};
    if (line.level != level)
        do_ioctl(vm, KVM_IRQ_LINE, &line, "interrupt");
    level = line.level;
}

static uint8_t serial_read(int vm, unsigned at) {
    if (at < 2 && serial[LCR] & DLAB)
        return divisor[at];
    if (at == IIR) {
        uint8_t iir = empty_due && serial[IER] & THRI ? 0xc2 : 0xc1;
        empty_due = 0;
        serial_line(vm);
        return iir;
    }
    if (at == MSR)
        return serial[MCR] & LOOP ? (serial[MCR] & 0x0c) << 4 | (serial[MCR] & 2) << 3 | (serial[MCR] & 1) << 5 : 0xb0;
    return at == THR ? 0 : at == LSR ? 0x60 : serial[at];
}

/* True when the marker has gone by. */
static int serial_write(int vm, unsigned at, uint8_t value) {
    if (at < 2 && serial[LCR] & DLAB) {
        divisor[at] = value;
        return 0;
    }
    if (at == THR || (at == IER && value & THRI))
        empty_due = 1;
    if (at != THR)
        serial[at] = value;
    serial_line(vm);
    return at == THR && !(serial[MCR] & LOOP) && print_byte(value);
}

/* Tells two times: from the first instruction, and from `began`, when there was no VM yet. */
static void run(int vm, int vcpu, struct kvm_run *run, double began) {
    unsigned long exits = 0;
    const double start = now();
    for (;;) {
        do_ioctl(vcpu, KVM_RUN, NULL, "KVM_RUN");
        exits++;
        if (run->exit_reason == KVM_EXIT_IO) {
            uint8_t *data = (uint8_t *)run + run->io.data_offset;
            size_t n = (size_t)run->io.size * run->io.count;
            if (run->io.port - 0x3f8u < 8) {
                if (run->io.direction == KVM_EXIT_IO_IN)
                    *data = serial_read(vm, run->io.port - 0x3f8);
                else if (serial_write(vm, run->io.port - 0x3f8, *data))
                    break;
            } else if (run->io.direction == KVM_EXIT_IO_IN) /* 0x64: no keyboard controller, which Linux sees at once */
                memset(data, run->io.port == 0x64 ? 0xff : run->io.port == 0x61 ? 0x20 : 0, n);
            else if (run->io.port == 0x64 && *data == 0xfe)
                break;
        } else if (run->exit_reason == KVM_EXIT_MMIO) {
            if (!run->mmio.is_write)
                memset(run->mmio.data, 0xff, 8);
        } else {
            fprintf(stderr, "exit %u\n", run->exit_reason);
            break;
        }
    }
    fflush(stdout);
    const double end = now();
    fprintf(stderr, "floor: %.6f s of %.6f s, %lu exits\n", end - start, end - began, exits);
}

int main(int argc, char **argv) {
    const double began = now();
    if (argc != 5)
        errx(2, "usage: floor VMLINUX INITRAMFS MEGABYTES CMDLINE");
    ram_size = strtoull(argv[3], NULL, 10) << 20;
    ram = mmap(NULL, ram_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0 || ram == MAP_FAILED)
        err(1, "/dev/kvm or memory");
    int vm = do_ioctl(kvm, KVM_CREATE_VM, 0, "VM");
    do_ioctl(vm, KVM_SET_TSS_ADDR, (void *)0xfffbd000, "TSS");
    do_ioctl(vm, KVM_CREATE_IRQCHIP, 0, "irqchip");
    struct kvm_pit_config pit = {0};
    do_ioctl(vm, KVM_CREATE_PIT2, &pit, "PIT");
    struct kvm_reinject_control ticks = {0}; /* each by itself: else one that is not seen to be acknowledged is the last */
    do_ioctl(vm, KVM_REINJECT_CONTROL, &ticks, "PIT's ticks");
    struct kvm_userspace_memory_region slot = {.memory_size = ram_size, .userspace_addr = (uintptr_t)ram};
    do_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot, "memory");
    uint64_t entry = load_kernel(argv[1]);
    struct boot_params *zero = (void *)(ram + ZERO_PAGE);
    fill_zero_page(zero, argv[4]);
    load_initramfs(zero, argv[2]);
    int vcpu = do_ioctl(vm, KVM_CREATE_VCPU, 0, "vCPU");
    set_cpuid(kvm, vcpu);
    enter_long_mode(vcpu, ram, GDT, PML4, (struct kvm_regs){.rip = entry, .rsp = STACK, .rsi = ZERO_PAGE});
    size_t size = do_ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0, "size");
    struct kvm_run *shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    run(vm, vcpu, shared, began);
    return 0;
}
