#define CLONE_NEWNS ...
#define CLONE_NEWIPC ...
#define CLONE_NEWUSER ...
int avmm_unshare(int flags);
int avmm_copy_mount(const char *path);
int avmm_new_tmpfs(void);
int avmm_make_readonly(int mount, int below);
int avmm_attach_mount(int mount, const char *path);
int avmm_part_mounts(void);
int avmm_be_root(void);
int avmm_keep_capabilities(uint64_t kept);
int avmm_keep_from_others(void);
