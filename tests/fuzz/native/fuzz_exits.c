/* Exits of a guest, from what KVM leaves in its run area to what the loop is told, and the loop's answers. KVM is the input: ioctl
 * in vcpu.c is fake_ioctl. There is one thread: where the vCPU's would sleep, the loop has its turn, so each run is the same. */
#include "guest.h"
#include "vcpu.h"
#include "pace.h"
#include <errno.h>
#include <linux/kvm.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { RUN = 8192, DATA = 4096, RANGES = 4, SPAN = 16, MAX_EVENTS = 16, BYTES = 64 };

static struct avmm_vm *vm;
static struct avmm_vcpu *vcpu;
static struct kvm_run *run;
static int events_fd, run_fd;
static uint8_t policies[RANGES][SPAN], shadows[RANGES][SPAN];
static uint64_t counts[RANGES][AVMM_COUNTS];
static struct avmm_range ranges[RANGES], ports[3]; /* of which one shows what the memory from the first range on does, as the ECAM */
static struct avmm_table table;
static uint32_t last_seq, asked; /* asked: what waits for an answer, or 0 */
static uint64_t answer;
static bool ended;

static void loop_turn(void) {
    struct avmm_event *events = malloc(MAX_EVENTS * sizeof *events);
    uint8_t *bytes = malloc(BYTES);
    uint32_t n = avmm_vm_drain(vm, events, MAX_EVENTS, bytes, BYTES);
    EXPECT(n <= MAX_EVENTS);
    for (uint32_t i = 0; i < n; i++) {
        const struct avmm_event *e = &events[i];
        if (e->kind == AVMM_ENDED) {
            ended = true;
            continue;
        }
        EXPECT(!ended && e->count >= 1 && (e->count == 1 || (e->data + e->count * (uint64_t)e->size <= BYTES && e->size <= 4)));
        if (e->sync) {
            EXPECT(e->seq == last_seq + 1);
            last_seq = asked = e->seq;
        }
    }
    if (asked && below(8) == 0)
        avmm_vcpu_stop(vcpu);
    else if (asked) {
        EXPECT(avmm_vcpu_complete(vcpu, asked, answer = take(4)) == 0);
        asked = 0;
    }
    free(events), free(bytes);
}

/* futex(2) of the vCPU's thread, and of the loop that wakes it. */
long fake_syscall(long number, ...) {
    va_list arguments;
    va_start(arguments, number);
    (void)va_arg(arguments, void *);
    int what = va_arg(arguments, int);
    va_end(arguments);
    if (number == SYS_futex && (what & 127) == 0)
        loop_turn();
    return number == SYS_gettid ? 1 : 0;
}

int fake_ioctl(int fd, unsigned long request, ...) {
    (void)fd;
    if (request != KVM_RUN)
        return 0;
    if (!input_left()) {
        avmm_vcpu_stop(vcpu);
        return errno = EINTR, -1;
    }
    if (below(8) == 0)
        loop_turn();
    switch (below(8)) {
    case 0: case 1: case 2:
        run->exit_reason = KVM_EXIT_IO;
        run->io.direction = (uint8_t)below(2);
        run->io.size = (uint8_t)(1 << below(3));
        run->io.count = below(8) ? 1 : 1 + below(40);
        run->io.port = (uint16_t)take(below(4) ? 1 : 2);
        run->io.data_offset = DATA;
        for (uint32_t i = 0; i < run->io.size * 2u; i++)
            ((uint8_t *)run)[DATA + i] = (uint8_t)take(1);
        break;
    case 3: case 4: case 5:
        run->exit_reason = KVM_EXIT_MMIO;
        run->mmio.phys_addr = take(below(4) ? 1 : 8);
        run->mmio.len = (uint32_t)take(below(8) ? 0 : 1);
        run->mmio.len = run->mmio.len ? run->mmio.len : 1 + below(8);
        run->mmio.is_write = (uint8_t)below(2);
        for (int i = 0; i < 8; i++)
            run->mmio.data[i] = (uint8_t)take(1);
        break;
    case 6: /* the range table changes: bytes of its policies and shadows */
        policies[below(RANGES)][below(SPAN)] = (uint8_t)take(1);
        shadows[below(RANGES)][below(SPAN)] = (uint8_t)take(1);
        if (below(4) == 0) {
            avmm_vcpu_pause(vcpu, 1 + below(200));
            avmm_vcpu_resume(vcpu);
        }
        return errno = EINTR, -1;
    default: /* any exit; its fields are whatever was there */
        run->exit_reason = below(2) ? KVM_EXIT_IOAPIC_EOI : (uint32_t)take(1) % 48;
        if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR || run->exit_reason == KVM_EXIT_SYSTEM_EVENT)
            run->internal.suberror = (uint32_t)take(4), run->internal.ndata = (uint32_t)take(4);
        else if (run->exit_reason == KVM_EXIT_IO || run->exit_reason == KVM_EXIT_MMIO)
            run->exit_reason = KVM_EXIT_HLT;
    }
    return 0;
}

static void open_vm(void) {
    int error;
    events_fd = eventfd(0, EFD_NONBLOCK), run_fd = memfd_create("run", 0);
    EXPECT(ftruncate(run_fd, RUN) == 0);
    vm = avmm_vm_new(events_fd, 1, 0);
    vcpu = avmm_vcpu_new(vm, 0, run_fd, RUN, calloc(8, AVMM_ENTRY_SIZE), 8, &error);
    EXPECT(vcpu && !error);
    run = mmap(NULL, RUN, PROT_READ | PROT_WRITE, MAP_SHARED, run_fd, 0);
    for (uint32_t i = 0; i < RANGES; i++)
        ranges[i] = (struct avmm_range){i == 3 ? 0ull - SPAN : 0x10 + 0x20 * i, SPAN, i ? policies[i] : NULL, shadows[i], counts[i], 0};
    memcpy(ports, ranges, sizeof ports);
    ports[1].ecam = ranges[0].base;
    table = (struct avmm_table){{3, RANGES}, {ports, ranges}};
    avmm_vm_publish(vm, &table);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!vm)
        open_vm();
    input_at = data, input_end = data + size;
    memset(run, 0, sizeof *run);
    memset(policies, 0, sizeof policies), memset(shadows, 0, sizeof shadows);
    for (uint32_t i = 0; i < RANGES; i++)
        for (uint32_t j = 0; j < SPAN; j += 4)
            memset(policies[i] + j, (int)take(1), 4);
    ended = false;
    asked = 0; /* what nobody was there to answer is forgotten */
    avmm_vcpu_arm(vcpu);
    avmm_vcpu_run(vcpu);
    EXPECT(avmm_vcpu_final(vcpu)->ndata <= 16);
    for (int i = 0; !ended; i++) {
        EXPECT(i < 100);
        loop_turn();
    }
    asked = 0;
    return 0;
}
