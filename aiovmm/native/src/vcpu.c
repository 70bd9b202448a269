#include "look.h"
#include "vcpu_state.h"

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

#define REQUEST_STOP 1u
#define REQUEST_PAUSE 2u

static void bump(uint64_t *counter) { __atomic_store_n(counter, *counter + 1, __ATOMIC_RELAXED); }

/* ---- looking, and sleeping ---- */

/* Looking in vain makes the next looks rarer, so that a guest whose exits are further apart loses 1 part in SPIN_SKIPS of the
 * time of a look at each. */
#define SPIN_SKIPS 15u

bool avmm_look_for(struct avmm_patience *p, uint32_t ns, const _Atomic uint32_t *at, uint32_t value) {
    if (!ns)
        return false;
    if (p->left) {
        p->left--;
        return false;
    }
    uint64_t end = avmm_now_ns() + ns;
    do {
        for (int i = 0; i < 32; i++) {
            if (atomic_load_explicit(at, memory_order_relaxed) == value) {
                p->skips = 0;
                return true;
            }
            avmm_relax();
        }
    } while (avmm_now_ns() < end);
    p->left = p->skips = p->skips * 2 + 1 < SPIN_SKIPS ? p->skips * 2 + 1 : SPIN_SKIPS;
    return false;
}

static void wait_until(struct avmm_vcpu *v, uint32_t what, bool (*ready)(const struct avmm_vcpu *)) {
    for (;;) {
        uint32_t seen = atomic_load(&v->wake);
        /* Sequentially consistent, as is avmm_wake: either it sees `sleeping`, or we see what it made true. */
        atomic_store(&v->sleeping, what);
        if (ready(v))
            break;
        syscall(SYS_futex, &v->wake, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    }
    atomic_store_explicit(&v->sleeping, 0, memory_order_relaxed);
}

static bool stopping(const struct avmm_vcpu *v) { return atomic_load(&v->request) & REQUEST_STOP; }

/* ---- the ring ---- */

static bool has_room(const struct avmm_vcpu *v) {
    return atomic_load_explicit(&v->head, memory_order_relaxed) - atomic_load(&v->tail) <= v->mask;
}

/* Whether the loop had better come soon, be it only for room. */
static bool is_filling(const struct avmm_vcpu *v, uint32_t head) {
    return head - atomic_load_explicit(&v->tail, memory_order_relaxed) > v->mask / 2;
}

static bool room_or_stop(const struct avmm_vcpu *v) { return has_room(v) || stopping(v); }

bool avmm_vcpu_put(struct avmm_vcpu *v, const struct avmm_entry *e) {
    if (!has_room(v)) {
        bump(&v->counters.full);
        wait_until(v, AVMM_FOR_ROOM, room_or_stop);
        if (!has_room(v))
            return false;
    }
    uint32_t head = atomic_load_explicit(&v->head, memory_order_relaxed);
    struct avmm_entry *place = &v->ring[head & v->mask];
    *place = *e;
    place->stamp = atomic_fetch_add(&v->vm->stamps, 1); /* pairs with the load in avmm_vm_drain */
    atomic_store_explicit(&v->head, head + 1, memory_order_release); /* pairs with the acquire in look */
    if (e->lazy && !is_filling(v, head))
        avmm_notify_lazily(v->vm);
    else
        avmm_notify(v->vm);
    return true;
}

static bool answered_or_stop(const struct avmm_vcpu *v) {
    return atomic_load(&v->answered) == atomic_load_explicit(&v->asked, memory_order_relaxed) || stopping(v);
}

/* Put a synchronous exit and wait for its answer. False when the vCPU was stopped first. */
static bool ask(struct avmm_vcpu *v, struct avmm_entry *e, uint64_t *answer) {
    e->sync = 1;
    e->seq = atomic_load_explicit(&v->asked, memory_order_relaxed) + 1;
    atomic_store_explicit(&v->asked, e->seq, memory_order_relaxed); /* published by avmm_vcpu_put */
    bump(&v->counters.sync);
    if (!avmm_vcpu_put(v, e))
        return false;
    avmm_look_for(&v->patience, v->vm->look_ns, &v->answered, e->seq);
    wait_until(v, AVMM_FOR_ANSWER, answered_or_stop);
    if (atomic_load_explicit(&v->answered, memory_order_acquire) != e->seq) /* pairs with avmm_vcpu_complete */
        return false;
    *answer = v->reply;
    return true;
}

/* ---- the range table ---- */

/* Hazard pointer: the table we announce cannot be freed once we have seen it in force after announcing it. Both loads and the
 * store are sequentially consistent and pair with the exchange in avmm_vm_publish and the loads in avmm_table_used. */
static struct avmm_table *hold_table(struct avmm_vcpu *v) {
    for (;;) {
        struct avmm_table *table = atomic_load(&v->vm->table);
        atomic_store(&v->hazard, table);
        if (table == atomic_load(&v->vm->table))
            return table;
    }
}

static void drop_table(struct avmm_vcpu *v) { atomic_store_explicit(&v->hazard, NULL, memory_order_release); }

static const struct avmm_range *find(const struct avmm_table *table, int space, uint64_t address, uint32_t size) {
    if (!table)
        return NULL;
    const struct avmm_range *ranges = table->ranges[space];
    uint32_t lo = 0, hi = table->count[space];
    while (lo < hi) { /* the first range that begins after `address` */
        uint32_t mid = lo + (hi - lo) / 2;
        if (ranges[mid].base <= address)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo == 0)
        return NULL;
    const struct avmm_range *r = &ranges[lo - 1];
    uint64_t offset = address - r->base;
    return offset < r->size && size <= r->size - offset ? r : NULL;
}

enum verdict { MISS, SYNC, POST, POST_LAZILY, DONE };

/* What the policy bytes of an access have in common (`all`), and what any of them asks for (`any`). */
static void policy_of(const struct avmm_range *r, uint64_t offset, uint32_t size, uint8_t *all, uint8_t *any) {
    *all = r->policy ? 0xff : 0;
    *any = 0;
    for (uint32_t i = 0; r->policy && i < size; i++) {
        uint8_t p = __atomic_load_n(&r->policy[offset + i], __ATOMIC_ACQUIRE);
        *all &= p;
        *any |= p;
    }
}

static void count(struct avmm_vcpu *v, const struct avmm_range *r, int what) {
    __atomic_fetch_add(&r->counts[what], 1, __ATOMIC_RELAXED);
    if (what == AVMM_COUNT_POSTED)
        bump(&v->counters.posted);
    else if (what == AVMM_COUNT_SHADOW)
        bump(&v->counters.shadow);
    else if (what == AVMM_COUNT_IGNORED)
        bump(&v->counters.ignored);
}

/* Shadow bytes are written by the loop's plain byte stores; each is read on its own, so a wide read may be of two moments. The
 * policy is asked again after them: a loop that takes a byte out of the shadow, for it shall show what only the loop can give, changes
 * the policy first, with avmm_fence between, and what it then stores there must not be taken by who asked before. */
static enum verdict judge_read(struct avmm_vcpu *v, const struct avmm_range *r, uint64_t offset, uint32_t size, uint8_t *p) {
    uint8_t all, any;
    policy_of(r, offset, size, &all, &any);
    if (!(all & AVMM_SHADOW_READ)) {
        count(v, r, AVMM_COUNT_SYNC);
        return SYNC;
    }
    for (uint32_t i = 0; i < size; i++)
        p[i] = __atomic_load_n(&r->shadow[offset + i], __ATOMIC_ACQUIRE);
    policy_of(r, offset, size, &all, &any);
    if (!(all & AVMM_SHADOW_READ)) {
        count(v, r, AVMM_COUNT_SYNC);
        return SYNC;
    }
    count(v, r, AVMM_COUNT_SHADOW);
    return any & AVMM_NOTE_READ ? POST : DONE;
}

static bool shows(const struct avmm_range *r, uint64_t offset, uint32_t size, const uint8_t *p) {
    for (uint32_t i = 0; i < size; i++)
        if (__atomic_load_n(&r->shadow[offset + i], __ATOMIC_ACQUIRE) != p[i])
            return false;
    return true;
}

static enum verdict judge_write(struct avmm_vcpu *v, const struct avmm_range *r, uint64_t offset, uint32_t size,
                                const uint8_t *p) {
    uint8_t all, any;
    policy_of(r, offset, size, &all, &any);
    if (all & AVMM_IGNORE_WRITE || (all & AVMM_DROP_SAME && shows(r, offset, size, p))) {
        count(v, r, AVMM_COUNT_IGNORED);
        return DONE;
    }
    uint8_t first = r->policy ? __atomic_load_n(&r->policy[offset], __ATOMIC_ACQUIRE) : 0;
    if (size == 4 && first & AVMM_POSTED_DWORD)
        all = first | AVMM_POSTED_WRITE;
    if (!(all & AVMM_POSTED_WRITE)) {
        count(v, r, AVMM_COUNT_SYNC);
        return SYNC;
    }
    for (uint32_t i = 0; i < size; i++)
        if (__atomic_load_n(&r->policy[offset + i], __ATOMIC_RELAXED) & AVMM_LATCH_WRITE)
            __atomic_store_n(&r->shadow[offset + i], p[i], __ATOMIC_RELEASE);
    count(v, r, AVMM_COUNT_POSTED);
    return all & AVMM_LAZY_WRITE ? POST_LAZILY : POST;
}

/* One access of 1, 2, 4 or 8 bytes at `p`. False when the vCPU was stopped in it. */
static bool guest_access(struct avmm_vcpu *v, int space, bool is_write, uint64_t address, uint32_t size, uint8_t *p) {
    enum verdict verdict = MISS;
    const struct avmm_range *r = find(hold_table(v), space, address, size);
    if (r)
        verdict = is_write ? judge_write(v, r, address - r->base, size, p) : judge_read(v, r, address - r->base, size, p);
    drop_table(v); /* before anything that may wait */

    struct avmm_entry e = {.address = address, .kind = (uint8_t)(2 * space + is_write), .size = (uint8_t)size};
    e.lazy = verdict == POST_LAZILY;
    if (is_write || verdict == POST)
        memcpy(&e.data, p, size);
    switch (verdict) {
    case MISS:
        bump(&v->counters.missed);
        if (!is_write)
            memset(p, 0xff, size);
        return true;
    case DONE:
        return true;
    case POST:
    case POST_LAZILY:
        return avmm_vcpu_put(v, &e);
    case SYNC:
        break;
    }
    uint64_t answer;
    if (!ask(v, &e, &answer))
        return false;
    if (!is_write)
        memcpy(p, &answer, size);
    return true;
}

/* ---- exits ---- */

static bool port_io(struct avmm_vcpu *v) {
    struct kvm_run *run = v->run;
    uint8_t *p = (uint8_t *)run + run->io.data_offset;
    bool is_write = run->io.direction == KVM_EXIT_IO_OUT;
    uint32_t size = run->io.size, n = run->io.count;
    uint16_t port = run->io.port;
    for (uint32_t i = 0; i < n; i++, p += size) /* a string instruction repeats its port */
        if (!guest_access(v, 0, is_write, port, size, p))
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
        if (!guest_access(v, 1, run->mmio.is_write, address, size, p))
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
        return port_io(v) && !stopping(v);
    case KVM_EXIT_MMIO:
        return mmio(v) && !stopping(v);
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_SET_TPR:
        return true;
    default:
        break;
    }
    enum avmm_next next = avmm_arch_exit(v);
    return next == AVMM_ENDS ? end_by_exit(v) : next == AVMM_GOES_ON && !stopping(v);
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
    return (what & REQUEST_STOP) || !(what & REQUEST_PAUSE) ||
           atomic_load(&v->generation) != atomic_load_explicit(&v->parked, memory_order_relaxed);
}

/* KVM_RUN has completed the instruction that was in flight, so registers and memory are consistent here. */
static void park(struct avmm_vcpu *v) {
    ioctl(v->fd, KVM_KVMCLOCK_CTRL, 0); /* the guest's watchdogs forgive the gap; EINVAL: it has no kvm-clock; ENOTTY: not on x86 */
    atomic_store(&v->parked, atomic_load(&v->generation));
    avmm_notify(v->vm);
    wait_until(v, AVMM_FOR_RESUME, unparked);
}

/* KVM_RUN came back with EINTR or EAGAIN. */
static bool interrupted(struct avmm_vcpu *v) {
    consume_kick(v);
    uint32_t what = atomic_load(&v->request);
    if (what & REQUEST_STOP)
        return false;
    if (what & REQUEST_PAUSE)
        park(v);
    rearm(v);
    return !stopping(v);
}

static bool step(struct avmm_vcpu *v) {
    int result = ioctl(v->fd, KVM_RUN, 0);
    if (result < 0 && (errno == EINTR || errno == EAGAIN))
        return interrupted(v);
    bump(&v->counters.exits);
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
    atomic_fetch_and(&v->request, ~REQUEST_STOP);
    rearm(v);
}

void avmm_vcpu_stop(struct avmm_vcpu *v) { request(v, REQUEST_STOP); }

void avmm_vcpu_pause(struct avmm_vcpu *v, uint32_t generation) {
    atomic_store(&v->generation, generation);
    request(v, REQUEST_PAUSE);
}

void avmm_vcpu_resume(struct avmm_vcpu *v) {
    atomic_fetch_and(&v->request, ~REQUEST_PAUSE);
    avmm_wake(v, AVMM_FOR_RESUME);
}

int avmm_vcpu_complete(struct avmm_vcpu *v, uint32_t seq, uint64_t data) {
    if (atomic_load_explicit(&v->asked, memory_order_relaxed) != seq)
        return -1;
    v->reply = data;
    atomic_store_explicit(&v->answered, seq, memory_order_release); /* pairs with ask */
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
