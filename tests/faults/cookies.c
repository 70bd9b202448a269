/* A kernel that keeps threads apart (PR_SCHED_CORE), as far as who asks can tell: what it is asked is written to a descriptor. */
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { SCHED_CORE = 62, GET = 0, CREATE = 1, SHARE_FROM = 3 };

int prctl(int option, ...) {
    va_list list;
    unsigned long given[4];
    va_start(list, option);
    for (int i = 0; i < 4; i++)
        given[i] = va_arg(list, unsigned long);
    va_end(list);
    if (option != SCHED_CORE) {
        int (*original)(int, unsigned long, unsigned long, unsigned long, unsigned long) = dlsym(RTLD_NEXT, "prctl");
        return original(option, given[0], given[1], given[2], given[3]);
    }
    const char *where = getenv("COOKIES");
    if (given[0] != GET && where) {
        if (given[0] == SHARE_FROM)
            dprintf(atoi(where), "%d\n", (int)given[1]);
        else
            dprintf(atoi(where), "own\n");
    }
    return 0;
}
