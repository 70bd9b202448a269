/* Which page tables a guest runs on, noted now and then: a processor in shutdown does not say any more (AMD64 APM volume 2, 15.14.3). */
#include "paging.h"
#include "vcpu_state.h"

#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <time.h>

/* Notes are about a part in SHARE of the time that the guest has run apart, within these bounds: a guest that has run for long is
 * not asked often, and none pays for it (a microsecond each). */
#define SHARE 64
#define OFTEN_NS 1000000u
#define SELDOM_NS 100000000u

static uint64_t coarse_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t); /* a few ns; this is asked at each exit */
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void avmm_arch_left(struct avmm_vcpu *v) {
    if (v->run->exit_reason == KVM_EXIT_SHUTDOWN) /* the registers may be those of reset */
        return;
    struct avmm_vcpu_arch *seen = &v->arch;
    uint64_t now = coarse_ns();
    if (now < seen->due)
        return;
    if (!seen->since)
        seen->since = now;
    uint64_t apart = (now - seen->since) / SHARE;
    seen->due = now + (apart < OFTEN_NS ? OFTEN_NS : apart > SELDOM_NS ? SELDOM_NS : apart);
    struct kvm_sregs s;
    if (ioctl(v->fd, KVM_GET_SREGS, &s) < 0)
        return;
    /* Relaxed: whoever reads while a note is made walks tables that are of no guest, or of the one before; both are bounded. */
    atomic_store_explicit(&seen->cr0, s.cr0, memory_order_relaxed);
    atomic_store_explicit(&seen->cr3, s.cr3, memory_order_relaxed);
    atomic_store_explicit(&seen->cr4, s.cr4, memory_order_relaxed);
    atomic_store_explicit(&seen->efer, s.efer, memory_order_relaxed);
}

struct avmm_paging avmm_vcpu_paging(const struct avmm_vcpu *v) {
    return (struct avmm_paging){
        atomic_load_explicit(&v->arch.cr0, memory_order_relaxed),
        atomic_load_explicit(&v->arch.cr3, memory_order_relaxed),
        atomic_load_explicit(&v->arch.cr4, memory_order_relaxed),
        atomic_load_explicit(&v->arch.efer, memory_order_relaxed),
    };
}
