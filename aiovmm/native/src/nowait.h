/* Reads, writes and signals that never block, whatever the descriptor's flags say.
 *
 * O_NONBLOCK belongs to the open file. Who shares it (a back end that was given an eventfd, the program that passed a TAP or its
 * own standard input in) can take the flag away at any time, also between our setting it and the call. So each call here says for
 * itself that it does not wait. */
#ifndef AIOVMM_NOWAIT_H
#define AIOVMM_NOWAIT_H
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* As readv and writev at the file's own position. EAGAIN, in errno, where they would wait. A file that knows no such thing
 * (a terminal, a TAP of an old kernel) is asked for readiness first: there only another user of the same open file that is quicker
 * than we are could make the call wait. */
ssize_t avmm_readv_now(int fd, const struct iovec *iov, int n);
ssize_t avmm_writev_now(int fd, const struct iovec *iov, int n);
/* The former of one buffer; -errno. */
int64_t avmm_read_now(int fd, uint8_t *to, uint32_t size);

/* The kind of file system that a file is on (statfs(2), f_type), or -errno. */
int64_t avmm_file_system(int fd);

/* Take what an eventfd holds: 1, 0 if that is nothing, -errno. */
int avmm_event_take(int fd);
/* Add 1 to an eventfd, unless it is full, in which case it is signalled as it is: 0, or -errno. */
int avmm_event_signal(int fd);

#endif
