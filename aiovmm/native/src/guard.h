/* Memory that a guest sees may stop being there: a file that is cut short, a full file system, a disk or a memory module that
 * fails. Whoever touches it then, a thread of ours in the middle of somebody's ring perhaps, gets SIGBUS, and the process would end
 * with all its guests. So such memory is registered here. While there is any, a handler for SIGBUS is installed: when a fault
 * lies in a registered range it puts private zeroed memory in the place of the whole range, notes that the range is lost and tells
 * its VM's loop; the instruction is repeated and finds zeros, which a guest could have put there as well. The VM then ends.
 * This covers every access, whatever code makes it: native, Python's views, the C library's copies. The kernel's own accesses
 * (readv, recvmsg, io_uring, KVM) fail with EFAULT: who makes one in the place of a copy touches the memory then (avmm_guard_touch),
 * so that it is lost in the same way, and does not take the error for one of its socket or file.
 *
 * Signal dispositions are the process's, so the handler keeps the manners of a guest: all other faults, and signals that were sent,
 * go to the handler that was there before; the last range to go restores that one. */
#ifndef AIOVMM_GUARD_H
#define AIOVMM_GUARD_H
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct avmm_guard;

/* Guard [start, start + size), page-aligned, which stays mapped until avmm_guard_remove. NULL when out of memory. */
struct avmm_guard *avmm_guard_add(uint64_t start, uint64_t size, int writable);
void avmm_guard_remove(struct avmm_guard *g);

/* When the range is lost (now, if it is already) `*flag` becomes 1 and `eventfd` is signalled; NULL and -1: nobody. On return
 * nothing uses the former ones any more. */
void avmm_guard_tell(struct avmm_guard *g, int eventfd, uint32_t *flag);

/* The address of the first access that found nothing there; 0: all is well. */
uint64_t avmm_guard_lost(const struct avmm_guard *g);

/* Touch the first `limit` bytes of `iov`, a page at a time; `writing`: as who will write them, and nothing changes. */
void avmm_guard_touch(const struct iovec *iov, uint32_t n, uint64_t limit, bool writing);

#endif
