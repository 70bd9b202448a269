/* Who a process is to be: "", "name", "uid", each with ":group" or ":gid", by the guest's /etc/passwd and /etc/group. */
#include "agent.h"

#include <linux/un.h>

enum { FIELDS = 7 };

struct lines {
    int fd;
    size_t start, end;
    char text[4096];
};

/* The next line, cut into fields at its colons. A line longer than the buffer is passed over in pieces that match nothing. */
static int line_next(struct lines *lines, char *fields[FIELDS])
{
    size_t at = lines->start;
    int count = 1;

    for (;; at++) {
        if (at == lines->end) {
            size_t kept = lines->end - lines->start;
            long size;
            memmove(lines->text, lines->text + lines->start, kept);
            if (kept == sizeof lines->text)
                kept = 0;
            size = SYS(read, lines->fd, lines->text + kept, sizeof lines->text - kept);
            if (size <= 0) {
                if (!kept)
                    return 0;
                lines->text[kept] = '\n'; /* the last line may lack it */
                size = 1;
            }
            lines->start = 0;
            lines->end = kept + (size_t)size;
            at = kept;
        }
        if (lines->text[at] == '\n')
            break;
    }
    lines->text[at] = 0;
    fields[0] = lines->text + lines->start;
    for (char *p = fields[0]; *p && count < FIELDS; p++)
        if (*p == ':') {
            *p = 0;
            fields[count++] = p + 1;
        }
    while (count < FIELDS)
        fields[count++] = "";
    lines->start = at + 1;
    return 1;
}

static int lines_open(struct lines *lines, const char *path)
{
    lines->start = lines->end = 0;
    lines->fd = sys_open(path, O_RDONLY, 0);
    return lines->fd >= 0;
}

/* A user's or group's number, -1 for what is none. The largest is none: to setresuid(2) it says that all stays as it is, root. */
static int64_t identity(const char *text)
{
    int64_t number = number_of(text);

    return number == UINT32_MAX ? -1 : number;
}

/* name:x:uid:gid:about:home:shell */
static int find_name(const char *name, struct user *user)
{
    static struct lines lines;
    int64_t number = identity(name), found = 0;
    char *fields[FIELDS];

    if (lines_open(&lines, "/etc/passwd")) {
        while (!found && line_next(&lines, fields)) {
            int64_t uid = identity(fields[2]), gid = identity(fields[3]);
            if (uid < 0 || gid < 0 || !(text_is(fields[0], name) || uid == number))
                continue;
            user->uid = (uint32_t)uid;
            user->gid = (uint32_t)gid;
            text_join(user->name, sizeof user->name, fields[0], "");
            text_join(user->home, sizeof user->home, fields[5], "");
            text_join(user->shell, sizeof user->shell, fields[6], "");
            found = 1;
        }
        sys_close(lines.fd);
    }
    if (!found && number >= 0) { /* a number needs no entry */
        user->uid = user->gid = (uint32_t)number;
        text_join(user->name, sizeof user->name, name, "");
        found = 1;
    }
    return found ? 0 : -ESRCH;
}

static int is_member(const char *members, const char *name)
{
    for (size_t size = strlen(name); *members;) {
        size_t at = 0;
        while (members[at] && members[at] != ',')
            at++;
        if (at == size && !memcmp(members, name, size))
            return 1;
        members += at + (members[at] == ',');
    }
    return 0;
}

/* name:x:gid:members. The number of the group `wanted`, if that is not NULL, and those that the user is a member of. */
static int find_groups(const char *wanted, struct user *user)
{
    static struct lines lines;
    int64_t number = wanted ? identity(wanted) : -1;
    int found = !wanted;
    char *fields[FIELDS];

    if (number >= 0) {
        user->gid = (uint32_t)number;
        found = 1;
    }
    if (lines_open(&lines, "/etc/group")) {
        while (line_next(&lines, fields)) {
            int64_t gid = identity(fields[2]);
            if (gid < 0)
                continue;
            if (!found && text_is(fields[0], wanted)) {
                user->gid = (uint32_t)gid;
                found = 1;
            }
            if (user->group_count < 64 && is_member(fields[3], user->name))
                user->groups[user->group_count++] = (uint32_t)gid;
        }
        sys_close(lines.fd);
    }
    return found ? 0 : -ESRCH;
}

int user_find(const char *wanted, struct user *user)
{
    char name[64], *group = NULL;
    int result;

    memset(user, 0, sizeof *user);
    if (!text_join(name, sizeof name, wanted, ""))
        return -ESRCH;
    for (char *p = name; *p && !group; p++)
        if (*p == ':') {
            *p = 0;
            group = p + 1;
        }
    if (!*name)
        number_put(name, (uint64_t)SYS(getuid));
    result = find_name(name, user);
    if (result >= 0 && *wanted)
        result = find_groups(group, user);
    if (!*user->home)
        text_join(user->home, sizeof user->home, "/", "");
    if (!*user->shell)
        text_join(user->shell, sizeof user->shell, "/bin/sh", "");
    return result;
}
