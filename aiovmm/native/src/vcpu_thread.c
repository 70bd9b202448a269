/* The thread of a vCPU: no thread of Python's, which who starts one waits for, on the event loop, until the system has given it a
 * processor and it has had the interpreter; and which takes that again to end. */
#include "vcpu_state.h"

#include <errno.h>
#include <linux/kvm.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#define STACK_SIZE (256u << 10) /* the run loop needs little of it; sanitizers, and a handler of the embedder's, more */
#define GUARD_SIZE (64u << 10) /* whole pages of any host */
#define NICE_MAX 19

/* Its own: nobody need know its id for that. What the system refuses is left as it is. */
static void stand_back(int nice) {
    if (nice > NICE_MAX) {
        sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0});
    } else if (nice) {
        int own = getpriority(PRIO_PROCESS, 0);
        setpriority(PRIO_PROCESS, 0, own + nice < NICE_MAX ? own + nice : NICE_MAX);
    }
}

void avmm_name_thread(const char *name) { prctl(PR_SET_NAME, name); }

#define SCHED_CORE 62 /* PR_SCHED_CORE of Linux 5.14 and later, and its commands */
#define SCHED_CORE_GET 0
#define SCHED_CORE_CREATE 1
#define SCHED_CORE_SHARE_FROM 3
#define OWN_THREAD 0
#define ALONE (-1)

int avmm_has_core_scheduling(void) {
    uint64_t cookie;
    return prctl(SCHED_CORE, SCHED_CORE_GET, 0, OWN_THREAD, (unsigned long)&cookie) < 0 ? errno : 0;
}

int avmm_vcpu_core(const struct avmm_vcpu *v) {
    int apart = atomic_load(&v->apart);
    return apart > 0 ? apart : 0;
}

/* The one of the same VM whose thread this is. */
static struct avmm_vcpu *whose(const struct avmm_vm *vm, int thread) {
    for (uint32_t i = 0; i < vm->max_vcpus; i++)
        if (vm->vcpus[i] && !atomic_load(&vm->vcpus[i]->ended) && avmm_vcpu_core(vm->vcpus[i]) == thread)
            return vm->vcpus[i];
    return NULL;
}

/* Get the cookie of another vCPU's thread: 0 or an errno. That does not end meanwhile: its number may be anybody's then, of another
 * guest or of none, and so would be the cookie. */
static int share(const struct avmm_vcpu *v) {
    struct avmm_vcpu *other = whose(v->vm, v->core);
    int error = ESRCH;
    if (!other || other == v)
        return error;
    pthread_mutex_lock(&other->tid_lock);
    if (!atomic_load(&other->ended))
        error = prctl(SCHED_CORE, SCHED_CORE_SHARE_FROM, v->core, OWN_THREAD, 0) < 0 ? errno : 0;
    pthread_mutex_unlock(&other->tid_lock);
    return error;
}

/* Get this thread the cookie without which the scheduler lets nobody share its core. Its tid, or a negative errno. A thread that
 * has ended had its own: a new one is as good. */
static int keep_apart(const struct avmm_vcpu *v) {
    int error = v->core == ALONE ? ESRCH : share(v);
    if (error == ESRCH)
        error = prctl(SCHED_CORE, SCHED_CORE_CREATE, 0, OWN_THREAD, 0) < 0 ? errno : 0;
    return error ? -error : gettid();
}

/* Of a thread that never enters the guest without: microseconds, once it has a processor. */
static int await_apart(struct avmm_vcpu *v) {
    int apart;
    while (!(apart = atomic_load(&v->apart)))
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    return apart < 0 ? -apart : 0;
}

static void *thread_main(void *vcpu) {
    struct avmm_vcpu *v = vcpu;
    if (v->core) { /* before it stands back: its starter, an event loop, waits for this */
        int apart = keep_apart(v);
        atomic_store(&v->apart, apart);
        if (apart < 0)
            return NULL;
    }
    stand_back(v->nice);
    avmm_name_thread(v->name);
    ioctl(v->fd, KVM_KVMCLOCK_CTRL, 0); /* as after a pause (vcpu.c): it may be from a snapshot */
    avmm_vcpu_run(v);
    pthread_mutex_lock(&v->tid_lock); /* who has not seen our end, and works on this thread, finds it */
    pthread_mutex_unlock(&v->tid_lock);
    return NULL;
}

/* A stack of our own: the C library keeps those of a hundred threads that have ended, for others that may come. */
static int make_stack(struct avmm_vcpu *v) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK;
    char *stack = mmap(NULL, GUARD_SIZE + STACK_SIZE, PROT_NONE, flags, -1, 0);
    if (stack == MAP_FAILED)
        return EAGAIN; /* as pthread_create says it */
    v->stack = stack;
    return mprotect(stack + GUARD_SIZE, STACK_SIZE, PROT_READ | PROT_WRITE) ? EAGAIN : 0;
}

static void drop_stack(struct avmm_vcpu *v) {
    if (v->stack)
        munmap(v->stack, GUARD_SIZE + STACK_SIZE);
    v->stack = NULL;
}

static int create(struct avmm_vcpu *v) {
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error)
        return error;
    error = make_stack(v);
    error = error ? error : pthread_attr_setstack(&attributes, (char *)v->stack + GUARD_SIZE, STACK_SIZE);
    error = error ? error : pthread_create(&v->thread, &attributes, thread_main, v);
    pthread_attr_destroy(&attributes);
    if (error)
        drop_stack(v);
    return error;
}

int avmm_vcpu_start(struct avmm_vcpu *v, const char *name, int nice, int core) {
    strncpy(v->name, name, sizeof v->name - 1);
    v->nice = nice;
    v->core = core;
    atomic_store(&v->apart, 0);
    avmm_vcpu_arm(v);
    sigset_t all, old; /* from its first instruction on the process's signals go to other threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = create(v);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!error && core && (error = await_apart(v))) {
        pthread_join(v->thread, NULL);
        drop_stack(v);
    }
    v->starter = error ? 0 : getpid();
    return error;
}

/* Whether there is a thread to be joined: in a forked child there is none. */
static int has_thread(const struct avmm_vcpu *v) { return v->starter && v->starter == getpid(); }

int avmm_vcpu_runs(struct avmm_vcpu *v) { return has_thread(v) && !atomic_load(&v->ended); }

int avmm_vcpu_tid(struct avmm_vcpu *v) {
    pthread_mutex_lock(&v->tid_lock);
    int tid = v->tid;
    pthread_mutex_unlock(&v->tid_lock);
    return tid;
}

int avmm_vcpu_run_on(struct avmm_vcpu *v, const uint8_t *cpus, size_t size) {
    if (!has_thread(v))
        return 0;
    int error = 0;
    pthread_mutex_lock(&v->tid_lock); /* it does not end meanwhile: glibc takes one that has ended for the calling thread */
    if (!atomic_load(&v->ended))
        error = pthread_setaffinity_np(v->thread, size, (const cpu_set_t *)(const void *)cpus);
    pthread_mutex_unlock(&v->tid_lock);
    return error;
}

int avmm_vcpu_join(struct avmm_vcpu *v, int64_t timeout_ns) {
    if (!has_thread(v))
        return 0;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ns / 1000000000;
    until.tv_nsec += timeout_ns % 1000000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    int error = timeout_ns < 0 ? pthread_join(v->thread, NULL)
                               : pthread_clockjoin_np(v->thread, NULL, CLOCK_MONOTONIC, &until);
    if (!error) {
        v->starter = 0;
        drop_stack(v);
    }
    return error;
}
