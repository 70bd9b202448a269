/* Ending all processes of a session, which Linux has no call for. */
#include "agent.h"

enum { KILL_LOOKS = 100 }; /* of a session that forks as fast as it is killed */

struct member {
    int64_t group, session;
    int lives; /* it is not dead, dying or told to die: it may still fork */
};

/* What /proc/PID/stat says of a process; 0 if it says nothing. */
static int member_find(const char *pid, struct member *member)
{
    enum { STATE = 3, GROUP = 5, SESSION = 6, FLAGS = 9, PENDING = 31 }; /* fields, by their numbers in proc(5) */
    char path[64], text[1024];
    const char *at = text, *p;
    int64_t flags = 0, pending = 0;
    char state = 0;
    long size;
    int fd;

    if (!text_join(path, sizeof path, "/proc/", pid) || !text_join(path + strlen(path), 16, "/stat", ""))
        return 0;
    fd = sys_open(path, O_RDONLY, 0);
    if (fd < 0)
        return 0;
    size = SYS(read, fd, text, sizeof text - 1);
    sys_close(fd);
    text[size > 0 ? size : 0] = 0;
    for (p = text; *p; p++)
        if (*p == ')') /* the last one ends the name, which may have any byte in it */
            at = p + 1;
    for (int field = STATE; field <= PENDING && *at; field++) {
        const char *number = ++at; /* behind the space */
        if (field == STATE)
            state = *at;
        else if (field == GROUP)
            member->group = number_at(&number);
        else if (field == SESSION)
            member->session = number_at(&number);
        else if (field == FLAGS)
            flags = number_at(&number);
        else if (field == PENDING)
            pending = number_at(&number);
        while (*at && *at != ' ')
            at++;
    }
    member->lives = state != 'Z' && state != 'X' && !(flags & 4 /* PF_EXITING */) && !(pending & 1 << (SIGKILL - 1));
    return state != 0;
}

/* One look at all processes; how many of the session were alive. A group gets a signal as a whole, also what forks just then. */
static int kill_members(int session, int number)
{
    static char entries[4096] __attribute__((aligned(8)));
    int directory = sys_open("/proc", O_RDONLY | O_DIRECTORY, 0), lived = 0;
    struct member member;
    long size;

    while (directory >= 0 && (size = SYS(getdents64, directory, entries, sizeof entries)) > 0)
        for (long at = 0; at < size; at += get16((uint8_t *)entries + at + 16)) {
            const char *name = entries + at + 19;
            int64_t pid = number_of(name);
            if (pid <= 0 || !member_find(name, &member) || member.session != session)
                continue;
            lived += member.lives;
            if (number == SIGKILL && member.lives && member.group > 0)
                SYS(kill, -member.group, number);
            else if (number == SIGKILL || member.group != session)
                SYS(kill, pid, number);
        }
    sys_close(directory);
    return lived;
}

/* Its process group at once, and then whoever else is in its session: jobs of a shell have groups of their own. What forks meanwhile
 * may get a number that was looked at before: who is to be killed is looked for until two looks in a row find nobody alive. */
void kill_session(int session, int number)
{
    int quiet = 0;

    if (SYS(kill, -session, number) < 0) /* a child that is not that far yet has no group of its own */
        SYS(kill, session, number);
    for (int looks = 0; looks < KILL_LOOKS && quiet < 2; looks++) {
        quiet = kill_members(session, number) ? 0 : quiet + 1;
        if (number != SIGKILL)
            break;
    }
}
