#include "guard.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096u /* the smallest that a host has */

struct avmm_guard {
    struct avmm_guard *next; /* never changes once in the list: places are used again, not freed, so a handler may walk it */
    _Atomic uint64_t start;  /* 0: a free place */
    uint64_t size;
    int prot;
    _Atomic int eventfd;
    _Atomic(uint32_t *) flag;
    _Atomic uint64_t lost;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of who changes the list; never taken by the handler */
static _Atomic(struct avmm_guard *) places;
static uint32_t count;      /* of places in use */
static _Atomic uint32_t handling; /* threads that are in `replace` */
static _Atomic(struct sigaction *) previous; /* the handler before ours; an old one is not freed, for a handler may read it */

/* ---- the handler ---------------------------------------------------------------------------------------------------- */

static void tell(struct avmm_guard *g) {
    uint32_t *flag = atomic_load(&g->flag);
    int fd = atomic_load(&g->eventfd);
    uint64_t one = 1;
    if (flag)
        __atomic_store_n(flag, 1, __ATOMIC_RELEASE); /* pairs with the acquire in avmm_vm_drain */
    if (fd >= 0 && write(fd, &one, sizeof one) < 0)
        return; /* EAGAIN: the counter is at its limit, so the loop is awake anyway */
}

/* The whole range, not a page: a guest's ring may touch many, and each would cost the process a mapping of its own. */
static bool replace(uint64_t address) {
    for (struct avmm_guard *g = atomic_load(&places); g; g = g->next) {
        uint64_t start = atomic_load(&g->start), none = 0;
        if (!start || address < start || address - start >= g->size)
            continue;
        int flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        if (mmap((void *)(uintptr_t)start, g->size, g->prot, flags, -1, 0) == MAP_FAILED)
            return false;
        atomic_compare_exchange_strong(&g->lost, &none, address);
        tell(g);
        return true;
    }
    return false;
}

/* Without a handler before ours: as if ours had never been. A fault repeats when we return; what was sent is sent again. */
static void by_default(int number, const siginfo_t *info) {
    signal(number, SIG_DFL);
    if (info->si_code <= 0)
        raise(number); /* blocked until we return */
}

static void pass_on(int number, siginfo_t *info, void *context) {
    /* Somebody who was installed after us may have us as the handler before theirs, while we, installed again, have them. In the
     * initial-exec model reading it never allocates, as a handler must not. */
    static _Thread_local bool passing __attribute__((tls_model("initial-exec")));
    const struct sigaction *before = atomic_load(&previous);
    bool sent = info->si_code <= 0;
    if (passing || !before || before->sa_handler == SIG_DFL || (before->sa_handler == SIG_IGN && !sent)) {
        by_default(number, info);
    } else if (before->sa_handler != SIG_IGN) {
        passing = true;
        if (before->sa_flags & SA_SIGINFO)
            before->sa_sigaction(number, info, context);
        else
            before->sa_handler(number);
        passing = false;
    }
}

static void on_sigbus(int number, siginfo_t *info, void *context) {
    int kept = errno;
    atomic_fetch_add(&handling, 1); /* pairs with the load in settle */
    bool ours = info->si_code > 0 && info->si_code != BUS_ADRALN && replace((uint64_t)(uintptr_t)info->si_addr);
    atomic_fetch_sub(&handling, 1);
    errno = kept;
    if (!ours)
        pass_on(number, info, context);
}

/* ---- who comes and goes --------------------------------------------------------------------------------------------- */

static bool is_ours(const struct sigaction *action) {
    return action->sa_flags & SA_SIGINFO && action->sa_sigaction == on_sigbus;
}

/* Be the first to be asked, also where somebody else has come before us since. */
static bool install(void) {
    struct sigaction now;
    sigaction(SIGBUS, NULL, &now);
    if (is_ours(&now))
        return true;
    struct sigaction *before = malloc(sizeof *before);
    if (!before)
        return false;
    *before = now;
    atomic_store(&previous, before);
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    if (now.sa_handler != SIG_DFL && now.sa_handler != SIG_IGN) { /* it is called as it would have been */
        action.sa_mask = now.sa_mask;
        action.sa_flags |= now.sa_flags & SA_NODEFER;
    }
    return sigaction(SIGBUS, &action, NULL) == 0;
}

/* Somebody who came after us may have us as the handler before theirs: then we stay, and pass everything on. */
static void uninstall(void) {
    struct sigaction now;
    sigaction(SIGBUS, NULL, &now);
    if (is_ours(&now))
        sigaction(SIGBUS, atomic_load(&previous), NULL);
}

static struct avmm_guard *free_place(void) {
    for (struct avmm_guard *g = atomic_load(&places); g; g = g->next)
        if (!atomic_load(&g->start))
            return g;
    struct avmm_guard *g = calloc(1, sizeof *g);
    if (g) {
        g->next = atomic_load(&places);
        atomic_store(&places, g);
    }
    return g;
}

/* Wait until no handler has what was in force before: a handler takes microseconds. */
static void settle(void) {
    while (atomic_load(&handling))
        sched_yield();
}

struct avmm_guard *avmm_guard_add(uint64_t start, uint64_t size, int writable) {
    pthread_mutex_lock(&lock);
    struct avmm_guard *g = install() ? free_place() : NULL;
    if (g) {
        g->size = size;
        g->prot = PROT_READ | (writable ? PROT_WRITE : 0);
        atomic_store(&g->eventfd, -1);
        atomic_store(&g->flag, NULL);
        atomic_store(&g->lost, 0);
        atomic_store(&g->start, start); /* last: from here on a handler finds it */
        count++;
    }
    pthread_mutex_unlock(&lock);
    return g;
}

void avmm_guard_remove(struct avmm_guard *g) {
    pthread_mutex_lock(&lock);
    atomic_store(&g->start, 0);
    settle();
    if (--count == 0)
        uninstall();
    pthread_mutex_unlock(&lock);
}

void avmm_guard_tell(struct avmm_guard *g, int eventfd, uint32_t *flag) {
    atomic_store(&g->flag, flag);
    atomic_store(&g->eventfd, eventfd);
    settle();
    if (atomic_load(&g->lost)) /* before anybody was there to be told */
        tell(g);
}

uint64_t avmm_guard_lost(const struct avmm_guard *g) { return atomic_load(&g->lost); }

void avmm_guard_touch(const struct iovec *iov, uint32_t n, uint64_t limit, bool writing) {
    for (; n && limit; n--, iov++) {
        uint64_t length = iov->iov_len < limit ? iov->iov_len : limit, step;
        limit -= length;
        for (uint8_t *at = iov->iov_base; length; at += step, length -= step) {
            if (writing)
                __atomic_fetch_or(at, 0, __ATOMIC_RELAXED); /* the guest may be writing there */
            else
                (void)__atomic_load_n(at, __ATOMIC_RELAXED);
            step = PAGE - (uint64_t)(uintptr_t)at % PAGE;
            step = step < length ? step : length;
        }
    }
}
