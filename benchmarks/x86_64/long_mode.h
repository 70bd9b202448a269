/* What the C monitors share: errors, time, and a vCPU in 64-bit mode with the first 4 GiB mapped one to one. */
#ifndef LONG_MODE_H
#define LONG_MODE_H

#include <err.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

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

/* The GDT, and six pages of page tables from `tables` on, are put into `ram`. */
static void enter_long_mode(int vcpu, uint8_t *ram, uint64_t gdt_at, uint64_t tables, struct kvm_regs r) {
    uint64_t *pml4 = (void *)(ram + tables), *pdpt = pml4 + 512, *pd = pdpt + 512;
    pml4[0] = (tables + 0x1000) | 3;
    for (int i = 0; i < 4; i++)
        pdpt[i] = (tables + 0x2000 + i * 0x1000) | 3;
    for (uint64_t i = 0; i < 2048; i++)
        pd[i] = i << 21 | 0x83;
    struct kvm_sregs s;
    do_ioctl(vcpu, KVM_GET_SREGS, &s, "sregs");
    struct kvm_segment code = {.limit = ~0u, .selector = 0x10, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    struct kvm_segment data = {.limit = ~0u, .selector = 0x18, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
    uint64_t gdt[] = {0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff};
    memcpy(ram + gdt_at, gdt, sizeof gdt);
    s.cs = code;
    s.ds = s.es = s.fs = s.gs = s.ss = data;
    s.gdt.base = gdt_at;
    s.gdt.limit = sizeof gdt - 1;
    s.cr0 = 0x80000011;
    s.cr3 = tables;
    s.cr4 = 0x20;
    s.efer = 0x500;
    do_ioctl(vcpu, KVM_SET_SREGS, &s, "sregs");
    r.rflags = 2;
    do_ioctl(vcpu, KVM_SET_REGS, &r, "regs");
}

#endif
