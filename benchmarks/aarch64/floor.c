/* The floor: a KVM monitor that does nothing but run an arm64 guest on one vCPU and print its serial port.
 *
 *   floor MEGABYTES ENTRY X0 FILE@ADDRESS...
 *
 * Each file goes to its guest-physical address: the kernel, its device tree, an initramfs. GICv3 with an ITS, timers and PSCI are KVM's
 * own; the vCPU has what KVM can give one (SVE, PMU, pointer authentication), as a guest of ours does. Of the PL011 there is what
 * Linux needs to print, of the PL031 the time; whatever else it reads is ones, so a PCI bus is empty. No event loop, no second
 * thread. It ends when the guest powers off or resets, or has printed the line "aiovmm: init". What aiovmm takes longer than this is
 * what aiovmm costs.
 */
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Where things are is said by the device tree as well (aiovmm/boot/aarch64/layout.py). */
enum { DISTRIBUTOR = 0x08ff0000, REDISTRIBUTOR = DISTRIBUTOR - 0x20000, ITS = REDISTRIBUTOR - 0x20000 };
enum { UART = 0x09000000, RTC = 0x09010000, UART_INTID = 32 + 3, PMU_INTID = 16 + 7, INTERRUPTS = 256 };
static const uint64_t RAM = 0x40000000;

static uint8_t *ram;
static uint64_t ram_size;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int do_ioctl(int fd, unsigned long request, void *arg, const char *what) {
    int r = ioctl(fd, request, arg);
    if (r < 0)
        err(1, "%s", what);
    return r;
}

static void load(char *file) {
    char *at = strrchr(file, '@');
    if (at == NULL)
        errx(2, "%s: no @ADDRESS", file);
    *at = 0;
    uint64_t offset = strtoull(at + 1, NULL, 0) - RAM;
    struct stat st;
    int fd = open(file, O_RDONLY);
    if (fd < 0 || fstat(fd, &st))
        err(1, "%s", file);
    if (offset > ram_size || (uint64_t)st.st_size > ram_size - offset)
        errx(1, "%s does not fit", file);
    for (ssize_t done = 0, n; done < st.st_size; done += n)
        if ((n = pread(fd, ram + offset + done, st.st_size - done, done)) <= 0)
            err(1, "%s", file);
    close(fd);
}

static void set_attribute(int device, uint32_t group, uint64_t number, const void *value, const char *what) {
    struct kvm_device_attr attribute = {.group = group, .attr = number, .addr = (uintptr_t)value};
    do_ioctl(device, KVM_SET_DEVICE_ATTR, &attribute, what);
}

static int create_device(int vm, uint32_t type, const char *what) {
    struct kvm_create_device device = {.type = type};
    do_ioctl(vm, KVM_CREATE_DEVICE, &device, what);
    return device.fd;
}

static void create_gic(int vm) {
    const uint64_t distributor = DISTRIBUTOR, redistributor = REDISTRIBUTOR, its_at = ITS;
    const uint32_t interrupts = INTERRUPTS;
    int gic = create_device(vm, KVM_DEV_TYPE_ARM_VGIC_V3, "GICv3");
    set_attribute(gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &distributor, "distributor");
    set_attribute(gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, &redistributor, "redistributor");
    int its = create_device(vm, KVM_DEV_TYPE_ARM_VGIC_ITS, "ITS");
    set_attribute(its, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, &its_at, "ITS");
    set_attribute(its, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, NULL, "ITS");
    set_attribute(gic, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &interrupts, "interrupts");
    set_attribute(gic, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, NULL, "GICv3");
}

static int can(int fd, long capability) {
    return ioctl(fd, KVM_CHECK_EXTENSION, capability) > 0;
}

static int create_vcpu(int kvm, int vm) {
    int vcpu = do_ioctl(vm, KVM_CREATE_VCPU, 0, "vCPU");
    struct kvm_vcpu_init init = {0};
    do_ioctl(vm, KVM_ARM_PREFERRED_TARGET, &init, "target");
    uint32_t sve = can(kvm, KVM_CAP_ARM_SVE), pmu = can(kvm, KVM_CAP_ARM_PMU_V3);
    uint32_t pauth = can(kvm, KVM_CAP_ARM_PTRAUTH_ADDRESS) && can(kvm, KVM_CAP_ARM_PTRAUTH_GENERIC);
    init.features[0] |= 1u << KVM_ARM_VCPU_PSCI_0_2 | sve << KVM_ARM_VCPU_SVE | pmu << KVM_ARM_VCPU_PMU_V3;
    init.features[0] |= pauth << KVM_ARM_VCPU_PTRAUTH_ADDRESS | pauth << KVM_ARM_VCPU_PTRAUTH_GENERIC;
    do_ioctl(vcpu, KVM_ARM_VCPU_INIT, &init, "init");
    int feature = KVM_ARM_VCPU_SVE;
    if (sve)
        do_ioctl(vcpu, KVM_ARM_VCPU_FINALIZE, &feature, "SVE");
    create_gic(vm);
    const int interrupt = PMU_INTID;
    if (pmu) {
        set_attribute(vcpu, KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_IRQ, &interrupt, "PMU");
        set_attribute(vcpu, KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT, NULL, "PMU");
    }
    return vcpu;
}

/* `offset` is that of a 64-bit register in struct kvm_regs. */
static void set_core(int vcpu, size_t offset, uint64_t value) {
    struct kvm_one_reg reg = {.id = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | offset / 4, .addr = (uintptr_t)&value};
    do_ioctl(vcpu, KVM_SET_ONE_REG, &reg, "register");
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

/* Registers of the PL011 by offset. The transmitter is always empty, and nothing is ever received. */
enum { DR = 0x00, FR = 0x18, LCR_H = 0x2c, CR = 0x30, IMSC = 0x38, RIS = 0x3c, MIS = 0x40, ICR = 0x44, IDS = 0xfe0, TXI = 0x20 };
static uint32_t raised, mask, line_control, control = 0x300;

static uint32_t identity(uint32_t offset, uint8_t part) {
    const uint8_t bytes[] = {part, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1};
    return bytes[(offset - IDS) / 4];
}

static void serial_line(int vm) {
    static uint32_t level;
    struct kvm_irq_level line = {.irq = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | UART_INTID, .level = (raised & mask) != 0};
    if (line.level != level)
        do_ioctl(vm, KVM_IRQ_LINE, &line, "interrupt");
    level = line.level;
}

static uint32_t serial_read(uint32_t at) {
    switch (at) {
    case FR: return 0x90;
    case LCR_H: return line_control;
    case CR: return control;
    case IMSC: return mask;
    case RIS: return raised;
    case MIS: return raised & mask;
    default: return at >= IDS ? identity(at, 0x11) : 0;
    }
}

/* True when the marker has gone by. */
static int serial_write(int vm, uint32_t at, uint32_t value) {
    int done = 0;
    if (at == DR) {
        done = print_byte(value);
        raised |= TXI;
    } else if (at == LCR_H)
        line_control = value;
    else if (at == CR)
        control = value;
    else if (at == IMSC)
        mask = value;
    else if (at == ICR)
        raised &= ~value;
    serial_line(vm);
    return done;
}

/* True when the marker has gone by. */
static int answer(int vm, struct kvm_run *run) {
    uint64_t at = run->mmio.phys_addr;
    uint32_t value = ~0u;
    if (run->mmio.is_write) {
        memcpy(&value, run->mmio.data, 4);
        return at >> 12 == UART >> 12 && serial_write(vm, at & 0xfff, value);
    }
    if (at >> 12 == UART >> 12)
        value = serial_read(at & 0xfff);
    else if (at >> 12 == RTC >> 12)
        value = (at & 0xfff) == 0 ? (uint32_t)time(NULL) : (at & 0xfff) >= IDS ? identity(at & 0xfff, 0x31) : (at & 0xfff) == 0x0c;
    memset(run->mmio.data, 0xff, sizeof run->mmio.data);
    memcpy(run->mmio.data, &value, sizeof value);
    return 0;
}

/* Tells two times: from the first instruction, and from `began`, when there was no VM yet. */
static void run(int vm, int vcpu, struct kvm_run *run, double began) {
    unsigned long exits = 0;
    const double start = now();
    for (;;) {
        do_ioctl(vcpu, KVM_RUN, NULL, "KVM_RUN");
        exits++;
        if (run->exit_reason == KVM_EXIT_MMIO) {
            if (answer(vm, run))
                break;
        } else {
            if (run->exit_reason != KVM_EXIT_SYSTEM_EVENT)
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
    if (argc < 5)
        errx(2, "usage: floor MEGABYTES ENTRY X0 FILE@ADDRESS...");
    ram_size = strtoull(argv[1], NULL, 10) << 20;
    ram = mmap(NULL, ram_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0 || ram == MAP_FAILED)
        err(1, "/dev/kvm or memory");
    int vm = do_ioctl(kvm, KVM_CREATE_VM, 0, "VM");
    struct kvm_userspace_memory_region slot = {.guest_phys_addr = RAM, .memory_size = ram_size, .userspace_addr = (uintptr_t)ram};
    do_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot, "memory");
    for (int i = 4; i < argc; i++)
        load(argv[i]);
    int vcpu = create_vcpu(kvm, vm);
    enum { X0 = 0, PC = 32 * 8, PSTATE = 33 * 8 };
    set_core(vcpu, PSTATE, 0x3c5);
    set_core(vcpu, PC, strtoull(argv[2], NULL, 0));
    set_core(vcpu, X0, strtoull(argv[3], NULL, 0));
    size_t size = do_ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0, "size");
    struct kvm_run *shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (shared == MAP_FAILED)
        err(1, "vCPU");
    run(vm, vcpu, shared, began);
    return 0;
}
