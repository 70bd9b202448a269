#include "namespaces.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* <linux/mount.h> does not go with the C library's of older systems; the numbers are the system calls' own. */
enum { TREE_CLONE = 1, TREE_CLOEXEC = O_CLOEXEC, MOVE_EMPTY_PATH = 4, FS_CLOEXEC = 1, MOUNT_CLOEXEC = 1, CONFIG_CREATE = 6 };
enum { ATTR_RDONLY = 1, ATTR_NOSUID = 2, ATTR_NODEV = 4, RECURSIVE = 0x8000 };
struct attributes {
    uint64_t set, clear, propagation, userns_fd;
};

static int result(long value) { return value < 0 ? -errno : (int)value; }

int avmm_unshare(int flags) { return result(unshare(flags)); }

int avmm_copy_mount(const char *path) {
    return result(syscall(SYS_open_tree, AT_FDCWD, path, TREE_CLONE | TREE_CLOEXEC | RECURSIVE));
}

int avmm_new_tmpfs(void) {
    int fs = result(syscall(SYS_fsopen, "tmpfs", FS_CLOEXEC));
    if (fs < 0)
        return fs;
    int mount = result(syscall(SYS_fsconfig, fs, CONFIG_CREATE, NULL, NULL, 0));
    if (mount >= 0)
        mount = result(syscall(SYS_fsmount, fs, MOUNT_CLOEXEC, ATTR_NOSUID | ATTR_NODEV));
    close(fs);
    return mount;
}

int avmm_make_readonly(int mount, int below) {
    struct attributes attributes = {.set = ATTR_RDONLY};
    return result(syscall(SYS_mount_setattr, mount, "", AT_EMPTY_PATH | (below ? RECURSIVE : 0), &attributes, sizeof attributes));
}

int avmm_attach_mount(int mount, const char *path) {
    return result(syscall(SYS_move_mount, mount, "", AT_FDCWD, path, MOVE_EMPTY_PATH));
}

int avmm_part_mounts(void) { return result(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)); }

int avmm_be_root(void) {
    if (syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0) /* pivot_root(2), "pivot_root(".", ".")" */
        return -errno;
    return result(chdir("/"));
}

int avmm_keep_capabilities(uint64_t kept) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct has[2] = {0};
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 || syscall(SYS_capget, &header, has) < 0)
        return -errno;
    for (int half = 0; half < 2; half++, kept >>= 32) {
        has[half].permitted &= (uint32_t)kept;
        has[half].effective &= (uint32_t)kept;
        has[half].inheritable = 0;
    }
    return result(syscall(SYS_capset, &header, has));
}

int avmm_keep_from_others(void) { return result(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)); }
