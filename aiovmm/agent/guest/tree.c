/* A file or a directory with all below it as a stream, in and out: docs/agent.md, and aiovmm/agent/tree.py, which has the same.
 *
 * A record: u8 type, u8 zero, u16 size of the name, u32 mode, u64 mtime in ns; the name, which is that of an entry of the directory
 * one is in, and never a path. Behind a file its content, in pieces of u32 size and bytes, then u32 zero and u32 errno; behind a link
 * u16 size and its target.
 */
#include "agent.h"

enum { HEADER = 16, DEPTH_MAX = 128, PIECE = 64 << 10, LARGE = 512 << 10, NAME_MAX_ = 255, TARGET_MAX = 4095 };
enum { DIRECTORY = 'D', UP = 'U', FILE_ = 'F', LINK = 'L', LEFT_OUT = 'X', END = 'E' };

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

/* -- in ------------------------------------------------------------------------------------------------------------------------ */

static uint8_t in[PIECE];
static size_t in_start, in_end;

/* EPIPE: the stream broke off. */
static int get(void *to, size_t size)
{
    uint8_t *at = to;

    while (size) {
        size_t part = in_end - in_start;
        if (!part) {
            long more = SYS(read, 0, in, sizeof in);
            if (more <= 0)
                return more < 0 ? (int)more : -EPIPE;
            in_start = 0;
            in_end = (size_t)more;
            continue;
        }
        if (part > size)
            part = size;
        memcpy(at, in + in_start, part);
        in_start += part;
        at += part;
        size -= part;
    }
    return 0;
}

/* The next word, and not a byte behind it where what follows is moved without being taken in hand. */
static int get_word(uint32_t *value, int alone)
{
    uint8_t word[4];
    int error;

    if (alone && in_start == in_end) {
        int64_t size = read_whole(0, word, sizeof word);
        error = size == sizeof word ? 0 : size < 0 ? (int)size : -EPIPE;
    } else {
        error = get(word, sizeof word);
    }
    *value = error ? 0 : get32(word);
    return error;
}

/* So many bytes to a file, of the pipe's own pages as far as that is possible. */
static int take_piece(int fd, size_t size)
{
    static int no_splice;

    while (size) {
        size_t part = in_end - in_start;
        int error = 0;
        if (!part && !no_splice) {
            long moved = SYS(splice, 0, 0, fd, 0, size, 0);
            if (moved > 0)
                size -= (size_t)moved;
            else if (!moved)
                return -EPIPE;
            else if (moved == -EINVAL || moved == -ENOSYS)
                no_splice = 1;
            else if (moved != -EINTR)
                return (int)moved;
            continue;
        }
        if (!part)
            part = sizeof out;
        if (part > size)
            part = size;
        if (part > sizeof out)
            part = sizeof out;
        error = get(out, part);
        if (!error)
            error = write_whole(fd, out, part);
        if (error)
            return error;
        size -= part;
    }
    return 0;
}

static int get_content(int fd)
{
    uint32_t left;
    int error = get_word(&left, 0);

    while (!error && left) {
        int is_large = left >= PIECE;
        error = take_piece(fd, left);
        if (!error)
            error = get_word(&left, is_large);
    }
    return error ? error : get_word(&left, 0);
}

static void set_time(int fd, uint64_t mtime)
{
    struct __kernel_timespec times[2];

    times[0].tv_sec = times[1].tv_sec = (int64_t)(mtime / 1000000000);
    times[0].tv_nsec = times[1].tv_nsec = (int64_t)(mtime % 1000000000);
    SYS(utimensat, fd, 0, times, 0);
}

/* What is there is replaced, and no link of it followed; but a device is not: nobody means to lose /dev/null. */
static int make_room(int directory, const char *name)
{
    struct statx found;

    if (SYS(statx, directory, name, AT_SYMLINK_NOFOLLOW, STATX_TYPE, &found) < 0)
        return 0;
    if ((found.stx_mode & 0170000) == 0020000 || (found.stx_mode & 0170000) == 0060000)
        return -EEXIST;
    SYS(unlinkat, directory, name, 0);
    return 0;
}

static int unpack_file(int directory, const char *name, uint32_t mode, uint64_t mtime)
{
    int fd, error = make_room(directory, name);

    if (error)
        return error;
    fd = (int)SYS(openat, directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return fd;
    error = get_content(fd);
    SYS(fchmod, fd, mode);
    set_time(fd, mtime);
    sys_close(fd);
    return error;
}

static int unpack_link(int directory, const char *name)
{
    char target[TARGET_MAX + 1];
    uint8_t word[2];
    int error = get(word, 2);

    if (error || get16(word) > TARGET_MAX)
        return error ? error : -EINVAL;
    error = get(target, get16(word));
    target[get16(word)] = 0;
    if (!error)
        error = make_room(directory, name);
    return error ? error : (int)SYS(symlinkat, target, directory, name);
}

static int enter(int directory, const char *name)
{
    long result = SYS(mkdirat, directory, name, 0700);

    if (result < 0 && result != -EEXIST)
        return (int)result;
    return (int)SYS(openat, directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
}

static int is_name(const char *name, size_t size)
{
    if (strlen(name) != size || text_is(name, ".") || text_is(name, ".."))
        return 0;
    for (; *name; name++)
        if (*name == '/')
            return 0;
    return size > 0;
}

/* The first entry is the path itself, whatever name it comes with: what it goes into has to be there. */
int unpack(const char *path)
{
    struct {
        int fd;
        uint32_t mode;
        uint64_t mtime;
    } levels[DEPTH_MAX + 2];
    uint8_t header[HEADER];
    char name[NAME_MAX_ + 1];
    int depth = 0, error = 0;

    levels[0].fd = AT_FDCWD;
    while (!error && !(error = get(header, HEADER)) && header[0] != END) {
        size_t size = get16(header + 2);
        uint32_t mode = get32(header + 4) & 0777;
        uint64_t mtime = get64(header + 8);
        const char *entry = depth ? name : path;
        if (size > NAME_MAX_)
            return -ENAMETOOLONG;
        error = get(name, size);
        name[size] = 0;
        if (error || (depth && header[0] != UP && !is_name(name, size)))
            return error ? error : -EINVAL;
        switch (header[0]) {
        case FILE_:
            error = unpack_file(levels[depth].fd, entry, mode, mtime);
            break;
        case LINK:
            error = unpack_link(levels[depth].fd, entry);
            break;
        case DIRECTORY:
            if (depth > DEPTH_MAX)
                return -ELOOP;
            levels[depth + 1].fd = enter(levels[depth].fd, entry);
            if (levels[depth + 1].fd < 0)
                return levels[depth + 1].fd;
            depth++;
            levels[depth].mode = mode;
            levels[depth].mtime = mtime;
            break;
        case UP:
            if (!depth)
                return -EINVAL;
            SYS(fchmod, levels[depth].fd, levels[depth].mode); /* last, or nothing could be put into it */
            set_time(levels[depth].fd, levels[depth].mtime);
            sys_close(levels[depth--].fd);
            break;
        default:
            return -EINVAL;
        }
    }
    return error ? error : depth ? -EINVAL : 0;
}
