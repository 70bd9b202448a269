int avmm_no_new_privileges(void);
int avmm_filter_calls(const uint8_t *program, size_t instructions);
int avmm_landlock_version(void);
int avmm_landlock_ruleset(uint64_t fs, uint64_t net, uint64_t scoped);
int avmm_landlock_allow(int ruleset, int path_fd, uint64_t rights);
int avmm_landlock_enforce(int ruleset);
