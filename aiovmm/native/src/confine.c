#include "confine.h"

#include <errno.h>
#include <linux/keyctl.h>
#include <linux/seccomp.h>
#include <unistd.h>

/* <linux/landlock.h> of older systems ends at its first version; the layouts are the system call's (landlock_create_ruleset(2)). */
struct ruleset_attributes {
    uint64_t fs, net, scoped;
};
struct path_attributes {
    uint64_t rights;
    int32_t path_fd;
} __attribute__((packed));

enum { RULESET_VERSION = 1, RULE_PATH_BENEATH = 1 };

static int result(long value) { return value < 0 ? -errno : (int)value; }

int avmm_no_new_privileges(void) { return result(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)); }

int avmm_new_keyring(void) {
    int serial = result(syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL));
    return serial > 0 || serial == -ENOSYS || serial == -EPERM ? 0 : serial; /* nobody may ask for keys where we may not */
}

int avmm_own_again(void) { return result(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)); }

int avmm_lower_limit(int which, uint64_t most) {
    struct rlimit limit;
    if (getrlimit(which, &limit) < 0)
        return -errno;
    if (most == AVMM_AS_NOW)
        most = limit.rlim_cur;
    if (most < limit.rlim_cur)
        limit.rlim_cur = most;
    if (most < limit.rlim_max)
        limit.rlim_max = most;
    return result(setrlimit(which, &limit));
}

int avmm_filter_calls(const uint8_t *program, size_t instructions, int of_all) {
    struct sock_fprog filter = {.len = (unsigned short)instructions, .filter = (struct sock_filter *)program};
    if (instructions > BPF_MAXINSNS)
        return -EINVAL;
    int done = result(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, of_all ? SECCOMP_FILTER_FLAG_TSYNC : 0, &filter));
    return done > 0 ? -EBUSY : done; /* the thread that has a filter of its own */
}

int avmm_landlock_version(void) { return result(syscall(SYS_landlock_create_ruleset, NULL, 0, RULESET_VERSION)); }

int avmm_landlock_ruleset(uint64_t fs, uint64_t net, uint64_t scoped) {
    struct ruleset_attributes attributes = {fs, net, scoped};
    /* an older kernel takes a longer structure if the rest is zeros */
    return result(syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0));
}

int avmm_landlock_allow(int ruleset, int path_fd, uint64_t rights) {
    struct path_attributes attributes = {rights, path_fd};
    return result(syscall(SYS_landlock_add_rule, ruleset, RULE_PATH_BENEATH, &attributes, 0));
}

int avmm_landlock_enforce(int ruleset) { return result(syscall(SYS_landlock_restrict_self, ruleset, 0)); }
