/* What a child of the agent does itself instead of running a program: files, read and written as the user that was asked for. Its
 * status is an errno, 0 if all went well. */
#include "agent.h"

enum { STAT_HEADER = 36, PATH_SIZE = 4096 };

static uint8_t buffer[128 << 10];

int64_t read_whole(int fd, void *to, size_t size)
{
    size_t have = 0;

    while (have < size) {
        long part = SYS(read, fd, (uint8_t *)to + have, size - have);
        if (part == -EINTR)
            continue;
        if (part < 0)
            return part;
        if (!part)
            break;
        have += (size_t)part;
    }
    return (int64_t)have;
}

int write_whole(int fd, const void *from, size_t size)
{
    const uint8_t *at = from;

    while (size) {
        long part = SYS(write, fd, at, size);
        if (part == -EINTR)
            continue;
        if (part < 0)
            return (int)part;
        at += part;
        size -= (size_t)part;
    }
    return 0;
}

/* -- one file ------------------------------------------------------------------------------------------------------------------ */

static int copy(int from, int to)
{
    long part;
    int error = 0;

    while ((part = SYS(sendfile, to, from, 0, 1 << 20)) > 0)
        ;
    if (part != -EINVAL && part != -ENOSYS)
        return (int)part;
    while (!error && (part = SYS(read, from, buffer, sizeof buffer)) > 0) /* files that know no sendfile, /proc's among them */
        error = write_whole(to, buffer, (size_t)part);
    return error ? error : (int)part;
}

static int do_read(char *const *argv)
{
    int fd = sys_open(argv[1], O_RDONLY, 0);

    return fd < 0 ? fd : copy(fd, 1);
}

/* As open(path, "wb") of whoever writes; to a new file the mode is given, without bits that make it run as another user. */
static int do_write(char *const *argv)
{
    int64_t mode = number_of(argv[2]);
    int append = text_is(argv[3], "append"), error = 0;
    int fd = sys_open(argv[1], O_WRONLY | O_CREAT | (append ? O_APPEND : O_TRUNC), mode < 0 ? 0644 : (int)mode & 0777);
    long part;

    if (fd < 0)
        return fd;
    if (mode >= 0 && (part = SYS(fchmod, fd, mode & 0777)) < 0)
        return (int)part;
    while (!error && (part = SYS(read, 0, buffer, sizeof buffer)) > 0)
        error = write_whole(fd, buffer, (size_t)part);
    part = SYS(close, fd);
    return error ? error : part < 0 ? (int)part : 0;
}

/* u32 mode, uid, gid, u32 zero; u64 size; i64 mtime in ns; u16 sizes of name and target; name, target of a link. */
static int put_stat(int directory, const char *path, const char *name, int follow)
{
    static uint8_t record[STAT_HEADER + 2 * PATH_SIZE];
    struct statx found;
    size_t length = strlen(name);
    long size = 0, result;

    result = SYS(statx, directory, path, follow ? 0 : AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &found);
    if (result < 0)
        return (int)result;
    if ((found.stx_mode & 0170000) == 0120000)
        size = SYS(readlinkat, directory, path, record + STAT_HEADER + length, PATH_SIZE);
    put32(record, found.stx_mode);
    put32(record + 4, found.stx_uid);
    put32(record + 8, found.stx_gid);
    put32(record + 12, 0);
    put64(record + 16, found.stx_size);
    put64(record + 24, (uint64_t)(found.stx_mtime.tv_sec * 1000000000 + found.stx_mtime.tv_nsec));
    put16(record + 32, (uint32_t)length);
    put16(record + 34, size < 0 ? 0 : (uint32_t)size);
    memcpy(record + STAT_HEADER, name, length);
    return write_whole(1, record, STAT_HEADER + length + (size_t)(size < 0 ? 0 : size));
}

static int do_stat(char *const *argv)
{
    return put_stat(AT_FDCWD, argv[1], "", text_is(argv[2], "follow"));
}

static int do_list(char *const *argv)
{
    int directory = sys_open(argv[1], O_RDONLY | O_DIRECTORY, 0), error = 0;
    long size;

    if (directory < 0)
        return directory;
    while (!error && (size = SYS(getdents64, directory, buffer, sizeof buffer)) > 0)
        for (long at = 0; at < size && !error; at += get16(buffer + at + 16)) {
            const char *name = (const char *)buffer + at + 19;
            if (text_is(name, ".") || text_is(name, ".."))
                continue;
            error = put_stat(directory, name, name, 0);
            if (error == -ENOENT) /* it went away meanwhile */
                error = 0;
        }
    return error ? error : (int)size;
}

static int do_mkdir(char *const *argv)
{
    int64_t mode = number_of(argv[2]);
    int parents = text_is(argv[3], "parents");
    char *path = argv[1];
    long result;

    for (char *p = path + 1; parents && *path && *p; p++)
        if (*p == '/' && p[1]) {
            *p = 0;
            SYS(mkdirat, AT_FDCWD, path, 0777);
            *p = '/';
        }
    if (mode >= 0)
        SYS(umask, 0);
    result = SYS(mkdirat, AT_FDCWD, path, mode < 0 ? 0777 : mode & 0777);
    if (result == -EEXIST && parents) {
        struct statx found;
        if (SYS(statx, AT_FDCWD, path, 0, STATX_TYPE, &found) == 0 && (found.stx_mode & 0170000) == 0040000)
            return 0;
    }
    return (int)result;
}

/* Entries of a directory are looked up again from its beginning after some have gone: nothing of it is kept open below. */
static int remove_below(int directory, const char *name, int depth)
{
    uint8_t entries[2048] __attribute__((aligned(8)));
    int fd, error = 0;
    long size, result = SYS(unlinkat, directory, name, 0);

    if (result != -EISDIR && result != -EPERM)
        return (int)result;
    if (depth > 500)
        return -ELOOP;
    fd = (int)SYS(openat, directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
    if (fd < 0)
        return fd == -ENOTDIR ? (int)result : fd;
    for (int gone = 1; gone && !error;) {
        gone = 0;
        SYS(lseek, fd, 0, 0);
        while (!error && (size = SYS(getdents64, fd, entries, sizeof entries)) > 0)
            for (long at = 0; at < size && !error; at += get16(entries + at + 16)) {
                const char *entry = (const char *)entries + at + 19;
                if (text_is(entry, ".") || text_is(entry, ".."))
                    continue;
                error = remove_below(fd, entry, depth + 1);
                gone = 1;
            }
    }
    sys_close(fd);
    return error ? error : (int)SYS(unlinkat, directory, name, AT_REMOVEDIR);
}

static int do_remove(char *const *argv)
{
    long result;

    if (text_is(argv[2], "recursive"))
        return remove_below(AT_FDCWD, argv[1], 0);
    result = SYS(unlinkat, AT_FDCWD, argv[1], 0);
    return (int)(result == -EISDIR ? SYS(unlinkat, AT_FDCWD, argv[1], AT_REMOVEDIR) : result);
}

static int do_pack(char *const *argv)
{
    return pack(argv[1]);
}

static int do_unpack(char *const *argv)
{
    return unpack(argv[1]);
}

static const struct {
    const char *name;
    int arguments;
    int (*call)(char *const *argv);
} applets[] = {
    {"read", 2, do_read},   {"write", 4, do_write},   {"stat", 3, do_stat}, {"list", 2, do_list},
    {"mkdir", 4, do_mkdir}, {"remove", 3, do_remove}, {"pack", 2, do_pack}, {"unpack", 2, do_unpack},
};

int applet_run(char *const *argv)
{
    int count = 0;

    while (argv[count])
        count++;
    for (size_t i = 0; i < sizeof applets / sizeof *applets; i++)
        if (text_is(argv[0], applets[i].name) && applets[i].arguments == count)
            return -applets[i].call(argv);
    return ENOSYS;
}
