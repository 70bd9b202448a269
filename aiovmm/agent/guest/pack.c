/* A file or a directory with all below it to standard output: see tree.h. */
#include "agent.h"
#include "tree.h"

static uint8_t out[PIECE + 8192];
static size_t out_size;

static int flush(void)
{
    size_t size = out_size;

    out_size = 0;
    return write_whole(1, out, size);
}

static int put(const void *data, size_t size)
{
    int error = out_size + size > sizeof out ? flush() : 0;

    memcpy(out + out_size, data, size);
    out_size += size;
    return error;
}

static int put_record(int type, const char *name, uint32_t mode, uint64_t mtime)
{
    uint8_t header[HEADER] = {(uint8_t)type};
    size_t size = strlen(name);
    int error;

    put16(header + 2, (uint32_t)size);
    put32(header + 4, mode);
    put64(header + 8, mtime);
    error = put(header, HEADER);
    return error ? error : put(name, size);
}

static int put_word(uint32_t value)
{
    uint8_t word[4];

    put32(word, value);
    return put(word, 4);
}

/* So many bytes of a file without taking them in hand. What it turns out not to have is zeros, for the size has been said. */
static int send_piece(int fd, size_t size, long *problem)
{
    int error = 0;

    while (size && !*problem) {
        long part = SYS(sendfile, 1, fd, 0, size);
        if (part == -EINVAL || part == -ENOSYS) { /* a file system that knows no sendfile */
            part = SYS(read, fd, out, size < sizeof out ? size : sizeof out);
            if (part > 0 && (error = write_whole(1, out, (size_t)part)) < 0)
                return error;
        }
        if (part > 0)
            size -= (size_t)part;
        else if (part != -EINTR)
            *problem = part < 0 ? part : -EIO;
    }
    memset(out, 0, size ? sizeof out : 0);
    for (size_t part; size && !error; size -= part) {
        part = size < sizeof out ? size : sizeof out;
        error = write_whole(1, out, part);
    }
    return error;
}

/* As much as the file is said to have in large pieces, and what else there is of it, as of those in /proc. */
static int put_content(int fd, uint64_t size)
{
    long problem = 0, part = 0;
    int error = flush();

    while (!error && size && !problem) {
        size_t piece = size < LARGE ? (size_t)size : LARGE;
        put_word((uint32_t)piece);
        error = flush();
        if (!error)
            error = send_piece(fd, piece, &problem);
        size -= piece;
    }
    while (!error && !problem && (part = SYS(read, fd, out + 4, PIECE)) > 0) {
        put32(out, (uint32_t)part);
        error = write_whole(1, out, 4 + (size_t)part);
    }
    if (part < 0)
        problem = part;
    if (!error)
        error = put_word(0);
    return error ? error : put_word((uint32_t)-problem);
}

static int pack_entry(int directory, const char *path, const char *name, int depth);

/* `problem` becomes what keeps the rest of its entries back, an errno below 0. */
static int pack_below(int fd, int depth, long *problem)
{
    uint8_t entries[4096] __attribute__((aligned(8)));
    int error = 0;
    long size = 0;

    while (!error && (size = SYS(getdents64, fd, entries, sizeof entries)) > 0)
        for (long at = 0; at < size && !error; at += get16(entries + at + 16)) {
            const char *name = (const char *)entries + at + 19;
            if (!text_is(name, ".") && !text_is(name, ".."))
                error = pack_entry(fd, name, name, depth + 1);
        }
    *problem = size < 0 && size != -ENOENT ? size : 0; /* ENOENT: it was removed meanwhile */
    return error;
}

/* Only what is asked for itself may be a link to what is meant, and must be readable; of what is below it that is told, as of devices, sockets and pipes. */
static int pack_entry(int directory, const char *path, const char *name, int depth)
{
    struct statx found;
    uint32_t type, mode;
    uint64_t mtime;
    char target[TARGET_MAX + 1];
    int fd, error;
    long problem = 0, size = SYS(statx, directory, path, depth ? AT_SYMLINK_NOFOLLOW : 0, STATX_BASIC_STATS, &found);

    if (size < 0)
        return depth ? put_record(LEFT_OUT, name, (uint32_t)-size, 0) : (int)size;
    type = found.stx_mode & 0170000;
    mode = found.stx_mode & 0777;
    mtime = (uint64_t)(found.stx_mtime.tv_sec * 1000000000 + found.stx_mtime.tv_nsec);
    if (type == 0120000) {
        uint8_t word[2];
        size = SYS(readlinkat, directory, path, target, TARGET_MAX);
        put16(word, size < 0 ? 0 : (uint32_t)size);
        error = put_record(LINK, name, mode, mtime);
        if (!error)
            error = put(word, 2);
        return error ? error : put(target, size < 0 ? 0 : (size_t)size);
    }
    if (type != 0100000 && type != 0040000)
        return put_record(LEFT_OUT, name, 0, 0);
    fd = (int)SYS(openat, directory, path, O_RDONLY | (depth ? O_NOFOLLOW : 0) | O_NONBLOCK | O_CLOEXEC, 0);
    if (fd < 0 || depth > DEPTH_MAX) {
        sys_close(fd);
        fd = fd < 0 ? fd : -ELOOP;
        return depth ? put_record(LEFT_OUT, name, (uint32_t)-fd, 0) : fd;
    }
    error = put_record(type == 0100000 ? FILE_ : DIRECTORY, name, mode, mtime);
    if (!error)
        error = type == 0100000 ? put_content(fd, found.stx_size) : pack_below(fd, depth, &problem);
    if (!error && type == 0040000)
        error = put_record(UP, "", 0, 0);
    sys_close(fd);
    if (error || !problem)
        return error;
    return depth ? put_record(LEFT_OUT, name, (uint32_t)-problem, 0) : (int)problem;
}

int pack(const char *path)
{
    int error = pack_entry(AT_FDCWD, path, "", 0);

    if (!error)
        error = put_record(END, "", 0, 0);
    return error ? error : flush();
}
