#pragma once
#include <linux/filter.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

/* What a process gives up of its own rights, for good: system calls (seccomp(2)) and paths (landlock(7)). The policy, which calls and
 * which paths, is Python's (aiovmm/confine/). Each returns 0 or more, or -errno. */

/* Nothing that is executed from now on gives more rights than this thread has; without it an unprivileged process may do no more. */
int avmm_no_new_privileges(void);

/* This thread, and those that it starts, have a session keyring of their own (session-keyring(7)), with nothing in it: whoever has one
 * has the keys in it, also as another user. */
int avmm_new_keyring(void);

/* What /proc has of this process belongs to its user (PR_SET_DUMPABLE): after a change of that it would be root's, and what tells
 * which pages of a guest were written is among it. */
int avmm_own_again(void);

/* No more than `most` of the resource `which` from now on (setrlimit(2)), AVMM_AS_NOW: than may be had now. A lower limit stays. */
#define AVMM_AS_NOW UINT64_MAX
int avmm_lower_limit(int which, uint64_t most);

/* Judge every system call by this program, beside those that are there: this thread's, or `of_all` threads of the process. -EBUSY:
 * a thread could not be made to. */
int avmm_filter_calls(const uint8_t *program, size_t instructions, int of_all);

/* The kernel's version of Landlock; -ENOSYS or -EOPNOTSUPP: none. */
int avmm_landlock_version(void);

/* A ruleset that takes away `fs` and `net` rights and what crosses the `scoped` borders; a descriptor. */
int avmm_landlock_ruleset(uint64_t fs, uint64_t net, uint64_t scoped);

/* Beneath `path_fd`, or of that file, these rights stay. */
int avmm_landlock_allow(int ruleset, int path_fd, uint64_t rights);

/* Of this thread, and of those and the processes that it starts from now on. */
int avmm_landlock_enforce(int ruleset);
