#pragma once
#include <sched.h>
#include <stdint.h>

/* Namespaces of a process's own (namespaces(7), mount_setattr(2), open_tree(2)); which, and what is mounted there, is Python's
 * (aiovmm/confine/namespaces.py). Each returns 0, or a descriptor, or -errno. All are for a process that has one thread. */

int avmm_unshare(int flags);

/* What is mounted at `path` and below it, once more and nowhere; a descriptor. */
int avmm_copy_mount(const char *path);
/* A new tmpfs, mounted nowhere; a descriptor. */
int avmm_new_tmpfs(void);
/* Nothing is written there, nor, if `below`, to what is mounted below it. What it may not anyway (devices, programs) stays so. */
int avmm_make_readonly(int mount, int below);
/* Mount it. */
int avmm_attach_mount(int mount, const char *path);
/* Nothing that is mounted here from now on is seen where this comes from. */
int avmm_part_mounts(void);
/* What is mounted at the current directory is the root, and all else is not mounted here any more. */
int avmm_be_root(void);
/* No capability is left but those whose bits are in `kept` (1 << CAP_*), nor comes back. */
int avmm_keep_capabilities(uint64_t kept);
/* No other process of the same user is let into this one (PR_SET_DUMPABLE), nor has it a core file. */
int avmm_keep_from_others(void);
