/* The run of a vCPU: what comes of each exit, and how the loop has it pause and stop. */
#include "vcpu_parts.h"

#include <errno.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

/* The signal that takes a vCPU out of the guest. It is sent to the vCPU thread alone and blocked there; only KVM_RUN opens
 * it, through KVM_SET_SIGNAL_MASK, and closes it again before it could be delivered. So it needs no handler, and the
 * process's dispositions stay untouched. A standard signal, since a real-time one can fail with EAGAIN. */
#define KICK_SIGNAL SIGURG

/* ---- exits ---- */

static bool port_io(struct avmm_vcpu *v) {
    struct kvm_run *run = v->run;
    uint8_t *p = (uint8_t *)run + run->io.data_offset;
    bool is_write = run->io.direction == KVM_EXIT_IO_OUT;
    uint32_t size = run->io.size, n = run->io.count;
    uint16_t port = run->io.port;
    for (uint32_t i = 0; i < n; i++, p += size) /* a string instruction repeats its port */
        if (!avmm_guest_access(v, 0, is_write, port, size, p))
            return false;
    return true;
}

/* KVM hands on what is left of an access that crosses a page, so 3, 5, 6 and 7 bytes occur; devices see powers of two. */
static bool mmio(struct avmm_vcpu *v) {
    struct kvm_run *run = v->run;
    uint64_t address = run->mmio.phys_addr;
    uint32_t left = run->mmio.len <= 8 ? run->mmio.len : 8;
    uint8_t *p = run->mmio.data;
    while (left) {
        uint32_t size = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        if (!avmm_guest_access(v, 1, run->mmio.is_write, address, size, p))
            return false;
        address += size;
        p += size;
        left -= size;
    }
    return true;
}

static bool end(struct avmm_vcpu *v, uint32_t kind, uint32_t code) {
    v->final.kind = kind;
    v->final.code = code;
    return false;
}

void avmm_keep_data(struct avmm_final *f, uint32_t detail, uint32_t ndata, const uint64_t *data) {
    f->detail = detail;
    f->ndata = ndata < 16 ? ndata : 16;
    memcpy(f->data, data, f->ndata * sizeof *data);
}

static bool end_by_exit(struct avmm_vcpu *v) {
    const struct kvm_run *run = v->run;
    struct avmm_final *f = &v->final;
    switch (run->exit_reason) {
    case KVM_EXIT_FAIL_ENTRY:
        avmm_keep_data(f, run->fail_entry.cpu, 1, (const uint64_t[]){run->fail_entry.hardware_entry_failure_reason});
        break;
    case KVM_EXIT_INTERNAL_ERROR:
        avmm_keep_data(f, run->internal.suberror, run->internal.ndata, (const uint64_t *)run->internal.data);
        break;
    case KVM_EXIT_SYSTEM_EVENT:
        avmm_keep_data(f, run->system_event.type, run->system_event.ndata, (const uint64_t *)run->system_event.data);
        break;
    case KVM_EXIT_DEBUG:
        avmm_arch_debug(run, f);
        break;
    case KVM_EXIT_UNKNOWN:
        avmm_keep_data(f, 0, 1, (const uint64_t[]){run->hw.hardware_exit_reason});
        break;
    default: /* HLT and SHUTDOWN say nothing more; of the rest nothing is known */
        break;
    }
    return end(v, AVMM_END_EXIT, run->exit_reason);
}

/* False: the run is over. */
static bool handle_exit(struct avmm_vcpu *v) {
    switch (v->run->exit_reason) {
    case KVM_EXIT_IO:
        return port_io(v) && !avmm_stopping(v);
    case KVM_EXIT_MMIO:
        return mmio(v) && !avmm_stopping(v);
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_SET_TPR:
        return true;
    default:
        break;
    }
    enum avmm_next next = avmm_arch_exit(v);
    return next == AVMM_ENDS ? end_by_exit(v) : next == AVMM_GOES_ON && !avmm_stopping(v);
}

/* ---- pause and stop ---- */

static void set_immediate_exit(struct avmm_vcpu *v, uint8_t value) {
    __atomic_store_n(&v->run->immediate_exit, value, __ATOMIC_SEQ_CST);
}

/* Let KVM_RUN enter the guest again, unless there is a new request: one that we miss here is made after our load, and then
 * its own store of immediate_exit comes after ours (see request). */
static void rearm(struct avmm_vcpu *v) {
    set_immediate_exit(v, 0);
    if (atomic_load(&v->request))
        set_immediate_exit(v, 1);
}

static void request(struct avmm_vcpu *v, uint32_t what) {
    atomic_fetch_or(&v->request, what);
    set_immediate_exit(v, 1); /* for a vCPU on its way into KVM_RUN */
    avmm_wake(v, AVMM_FOR_ANYTHING); /* for one that waits for us */
    pthread_mutex_lock(&v->tid_lock);
    if (v->tid && !v->kicked) /* for one in the guest */
        v->kicked = syscall(SYS_tgkill, getpid(), v->tid, KICK_SIGNAL) == 0;
    pthread_mutex_unlock(&v->tid_lock);
}

/* Take our own signal back, and only that: sigtimedwait takes what is pending at the thread before what is pending at the
 * process, which may be of the same number and is the embedder's. */
static void consume_kick(struct avmm_vcpu *v) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, KICK_SIGNAL);
    pthread_mutex_lock(&v->tid_lock);
    if (v->kicked)
        sigtimedwait(&set, NULL, &(struct timespec){0, 0});
    v->kicked = false;
    pthread_mutex_unlock(&v->tid_lock);
}

static bool unparked(const struct avmm_vcpu *v) {
    uint32_t what = atomic_load(&v->request);
    return (what & AVMM_REQUEST_STOP) || !(what & AVMM_REQUEST_PAUSE) ||
           atomic_load(&v->generation) != atomic_load_explicit(&v->parked, memory_order_relaxed);
}

/* KVM_RUN has completed the instruction that was in flight, so registers and memory are consistent here. */
static void park(struct avmm_vcpu *v) {
    ioctl(v->fd, KVM_KVMCLOCK_CTRL, 0); /* the guest's watchdogs forgive the gap; EINVAL: it has no kvm-clock; ENOTTY: not on x86 */
    atomic_store(&v->parked, atomic_load(&v->generation));
    avmm_notify(v->vm);
    avmm_wait_until(v, AVMM_FOR_RESUME, unparked);
}

/* KVM_RUN came back with EINTR or EAGAIN. */
static bool interrupted(struct avmm_vcpu *v) {
    consume_kick(v);
    uint32_t what = atomic_load(&v->request);
    if (what & AVMM_REQUEST_STOP)
        return false;
    if (what & AVMM_REQUEST_PAUSE)
        park(v);
    rearm(v);
    return !avmm_stopping(v);
}

static bool step(struct avmm_vcpu *v) {
    int result = ioctl(v->fd, KVM_RUN, 0);
    if (result < 0 && (errno == EINTR || errno == EAGAIN))
        return interrupted(v);
    avmm_bump(&v->counters.exits);
    if (result < 0)
        return end(v, AVMM_END_ERRNO, (uint32_t)errno);
    avmm_arch_left(v);
    bool harmed = avmm_arch_harmed(v);
    if (!handle_exit(v))
        return false;
    avmm_vcpu_pace(v, AVMM_PACE_EXITS);
    if (harmed)
        avmm_vcpu_pace(v, AVMM_PACE_HARM);
    return true;
}

/* All signals but those that report a fault of this very thread, so that the process's signals go to its other threads. */
static void block_signals(sigset_t *old) {
    sigset_t set;
    sigfillset(&set);
    const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS};
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        sigdelset(&set, faults[i]);
    pthread_sigmask(SIG_SETMASK, &set, old);
}

static void set_tid(struct avmm_vcpu *v, pid_t tid) {
    pthread_mutex_lock(&v->tid_lock);
    v->tid = tid;
    pthread_mutex_unlock(&v->tid_lock);
}

void avmm_vcpu_run(struct avmm_vcpu *v) {
    sigset_t old;
    block_signals(&old);
    set_tid(v, (pid_t)syscall(SYS_gettid));
    while (step(v))
        ;
    set_tid(v, 0); /* no kick after this, so none is left pending below */
    consume_kick(v);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    atomic_store(&v->ended, 1);
    avmm_notify(v->vm);
}

/* ---- the loop's side ---- */

void avmm_vcpu_arm(struct avmm_vcpu *v) {
    v->final = (struct avmm_final){.kind = AVMM_END_STOP};
    v->reported_ended = 0;
    atomic_store(&v->ended, 0);
    atomic_fetch_and(&v->request, ~AVMM_REQUEST_STOP);
    rearm(v);
}

void avmm_vcpu_stop(struct avmm_vcpu *v) { request(v, AVMM_REQUEST_STOP); }

void avmm_vcpu_pause(struct avmm_vcpu *v, uint32_t generation) {
    atomic_store(&v->generation, generation);
    request(v, AVMM_REQUEST_PAUSE);
}

void avmm_vcpu_resume(struct avmm_vcpu *v) {
    atomic_fetch_and(&v->request, ~AVMM_REQUEST_PAUSE);
    avmm_wake(v, AVMM_FOR_RESUME);
}

int avmm_vcpu_complete(struct avmm_vcpu *v, uint32_t seq, uint64_t data) {
    if (atomic_load_explicit(&v->asked, memory_order_relaxed) != seq)
        return -1;
    v->reply = data;
    atomic_store_explicit(&v->answered, seq, memory_order_release); /* pairs with avmm_ask */
    avmm_wake(v, AVMM_FOR_ANSWER);
    return 0;
}

static int set_kvm_signal_mask(int fd) {
    struct {
        uint32_t len;
        uint8_t sigset[8]; /* the kernel's sigset_t: bit n-1 is signal n */
    } __attribute__((packed)) mask = {.len = 8};
    /* SIGBUS as well: KVM sends it, without force, for a page of the guest whose memory failed (guard.h). */
    uint64_t blocked = ~(1ull << (KICK_SIGNAL - 1) | 1ull << (SIGBUS - 1));
    memcpy(mask.sigset, &blocked, sizeof blocked);
    return ioctl(fd, KVM_SET_SIGNAL_MASK, &mask) < 0 ? errno : 0;
}

_Static_assert(sizeof(struct avmm_entry) == AVMM_ENTRY_SIZE, "what callers make room for");

struct avmm_vcpu *avmm_vcpu_new(struct avmm_vm *vm, uint32_t index, int fd, size_t run_size, void *ring, uint32_t entries,
                                int *error) {
    struct avmm_vcpu *v = index < vm->max_vcpus ? aligned_alloc(64, sizeof *v) : NULL;
    *error = v ? set_kvm_signal_mask(fd) : ENOMEM;
    void *run = *error ? MAP_FAILED : mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (run == MAP_FAILED) {
        *error = *error ? *error : errno;
        free(v);
        return NULL;
    }
    madvise(run, run_size, MADV_DONTFORK); /* a child would keep the vCPU, and could tell ours to exit */
    memset(v, 0, sizeof *v);
    v->vm = vm;
    v->run = run;
    v->run_size = run_size;
    v->ring = ring;
    v->mask = entries - 1;
    v->index = index;
    v->fd = fd;
    pthread_mutex_init(&v->tid_lock, NULL);
    vm->vcpus[index] = v;
    return v;
}

void avmm_vcpu_free(struct avmm_vcpu *v) {
    v->vm->vcpus[v->index] = NULL;
    munmap(v->run, v->run_size);
    pthread_mutex_destroy(&v->tid_lock);
    free(v);
}

const struct avmm_final *avmm_vcpu_final(const struct avmm_vcpu *v) { return &v->final; }

const struct avmm_counters *avmm_vcpu_counters(const struct avmm_vcpu *v) { return &v->counters; }
