/* What is x86's own of an exit. */
#include "vcpu_state.h"

#include <linux/kvm.h>

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

enum avmm_next avmm_arch_exit(struct avmm_vcpu *v) {
    if (v->run->exit_reason == KVM_EXIT_HYPERV) {
        hyperv(v->run);
        return AVMM_GOES_ON;
    }
    if (v->run->exit_reason != KVM_EXIT_IOAPIC_EOI)
        return AVMM_ENDS;
    struct avmm_entry e = {.kind = AVMM_EOI, .data = v->run->eoi.vector};
    return avmm_vcpu_put(v, &e) ? AVMM_GOES_ON : AVMM_OVER;
}
