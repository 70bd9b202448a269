/* What is taken from standard input, as tree.h has it, becomes a file or a directory with all below it. */
#include "agent.h"
#include "tree.h"

static uint8_t in[PIECE];
static size_t in_start, in_end;
static uint8_t copied[PIECE + 8192]; /* what splice does not move */

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
            long spliced = SYS(splice, 0, 0, fd, 0, size, 0);
            if (spliced > 0)
                size -= (size_t)spliced;
            else if (!spliced)
                return -EPIPE;
            else if (spliced == -EINVAL || spliced == -ENOSYS)
                no_splice = 1;
            else if (spliced != -EINTR)
                return (int)spliced;
            continue;
        }
        if (!part)
            part = sizeof copied;
        if (part > size)
            part = size;
        if (part > sizeof copied)
            part = sizeof copied;
        error = get(copied, part);
        if (!error)
            error = write_whole(fd, copied, part);
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
