/* What is arm64's own of an exit. */
#include "vcpu_state.h"

#include <linux/kvm.h>
#include <sys/ioctl.h>

void avmm_arch_left(struct avmm_vcpu *v) { (void)v; }

bool avmm_arch_harmed(struct avmm_vcpu *v) {
    (void)v;
    return false;
}

void avmm_arch_debug(const struct kvm_run *run, struct avmm_final *f) {
    avmm_keep_data(f, run->debug.arch.hsr, 1, (const uint64_t[]){run->debug.arch.far});
}

/* A load or store, outside memory, of a kind that the processor does not describe: a pair, one that also writes its address
 * register back, a cache line. On hardware the bus may refuse what a device cannot do, so the guest is given what it would be
 * then, a synchronous external abort, whose handler decides: Linux ends the program that did it. The loop is told, for it is
 * nothing that a sound driver does. */
static enum avmm_next without_syndrome(struct avmm_vcpu *v) {
    struct kvm_vcpu_events events = {.exception.ext_dabt_pending = 1};
    if (ioctl(v->fd, KVM_SET_VCPU_EVENTS, &events) < 0)
        return AVMM_ENDS;
    struct avmm_entry e = {
        .kind = AVMM_NO_SYNDROME, .address = v->run->arm_nisv.fault_ipa, .data = v->run->arm_nisv.esr_iss};
    return avmm_vcpu_put(v, &e) ? AVMM_GOES_ON : AVMM_OVER;
}

enum avmm_next avmm_arch_exit(struct avmm_vcpu *v) {
    return v->run->exit_reason == KVM_EXIT_ARM_NISV ? without_syndrome(v) : AVMM_ENDS;
}
