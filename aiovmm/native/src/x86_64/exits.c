/* What is x86's own of an exit. */
#include "vcpu_state.h"

#include <string.h>

#include <linux/kvm.h>

/* Newer than the headers of some systems (Linux 5.12, 6.0). What tells of a notification is where other exits have theirs. */
#ifndef KVM_EXIT_X86_BUS_LOCK
#define KVM_EXIT_X86_BUS_LOCK 33
#define KVM_RUN_X86_BUS_LOCK (1 << 1)
#endif
#ifndef KVM_EXIT_NOTIFY
#define KVM_EXIT_NOTIFY 37
#define KVM_NOTIFY_CONTEXT_INVALID (1 << 0)
#endif

void avmm_arch_debug(const struct kvm_run *run, struct avmm_final *f) {
    const struct kvm_debug_exit_arch *arch = &run->debug.arch;
    avmm_keep_data(f, arch->exception, 3, (const uint64_t[]){arch->pc, arch->dr6, arch->dr7});
}

/* Hyper-V's interfaces are KVM's. It tells of the message pages that a guest has chosen, which concerns nobody, and of calls
 * that somebody beyond it might know. */
static void hyperv(struct kvm_run *run) {
    const uint64_t no_such_call = 2; /* HV_STATUS_INVALID_HYPERCALL_CODE */
    if (run->hyperv.type == KVM_EXIT_HYPERV_HCALL)
        run->hyperv.u.hcall.result = no_such_call;
}

static void bump(uint64_t *counter) { __atomic_store_n(counter, *counter + 1, __ATOMIC_RELAXED); }

/* A bus lock is told beside another exit (the flag) or by one of its own, and has been made: the guest goes on behind it. */
bool avmm_arch_harmed(struct avmm_vcpu *v) {
    const struct kvm_run *run = v->run;
    bool locked = run->flags & KVM_RUN_X86_BUS_LOCK || run->exit_reason == KVM_EXIT_X86_BUS_LOCK;
    bool shut = run->exit_reason == KVM_EXIT_NOTIFY;
    if (locked)
        bump(&v->counters.bus_locks);
    if (shut)
        bump(&v->counters.notifies);
    return locked || shut;
}

/* The processor was taken out of an instruction that let nothing in. It may not have kept what the guest was doing. */
static enum avmm_next notified(struct avmm_vcpu *v) {
    uint32_t flags;
    memcpy(&flags, &v->run->hw, sizeof flags); /* run->notify.flags */
    return flags & KVM_NOTIFY_CONTEXT_INVALID ? AVMM_ENDS : AVMM_GOES_ON;
}

enum avmm_next avmm_arch_exit(struct avmm_vcpu *v) {
    if (v->run->exit_reason == KVM_EXIT_HYPERV) {
        hyperv(v->run);
        return AVMM_GOES_ON;
    }
    if (v->run->exit_reason == KVM_EXIT_X86_BUS_LOCK)
        return AVMM_GOES_ON;
    if (v->run->exit_reason == KVM_EXIT_NOTIFY)
        return notified(v);
    if (v->run->exit_reason != KVM_EXIT_IOAPIC_EOI)
        return AVMM_ENDS;
    struct avmm_entry e = {.kind = AVMM_EOI, .data = v->run->eoi.vector};
    return avmm_vcpu_put(v, &e) ? AVMM_GOES_ON : AVMM_OVER;
}
