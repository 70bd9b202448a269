int64_t avmm_read_now(int fd, uint8_t *to, uint32_t size);
int64_t avmm_file_system(int fd);
int avmm_event_take(int fd);
int avmm_event_signal(int fd);
