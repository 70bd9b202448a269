/* What concerns the guest as a whole: being its first process, its clock, its entropy, its end. */
#include "agent.h"

#include <linux/mount.h>
#include <linux/reboot.h>

enum { GOES_DOWN = 42 }; /* the agent's status for process 1: do not begin it again */

int is_init;

void note(const char *text)
{
    SYS(write, 2, "aiovmm-agent: ", 14);
    SYS(write, 2, text, strlen(text));
    SYS(write, 2, "\n", 1);
}

int set_clock(const uint8_t *data, size_t size)
{
    struct __kernel_timespec now;

    if (size < 12)
        return -EINVAL;
    now.tv_sec = (int64_t)get64(data);
    now.tv_nsec = get32(data + 8);
    return (int)SYS(clock_settime, 0, &now);
}

/* Counted as entropy, and the kernel's generator starts anew from it: two guests that were one must not draw the same numbers. */
int add_entropy(const uint8_t *data, size_t size)
{
    struct {
        int bits, size;
        uint8_t bytes[512];
    } pool;
    int fd;
    long result;

    if (!size || size > sizeof pool.bytes)
        return -EINVAL;
    fd = sys_open("/dev/urandom", O_RDWR, 0);
    if (fd < 0)
        return fd;
    pool.bits = (int)size * 8;
    pool.size = (int)size;
    memcpy(pool.bytes, data, size);
    result = SYS(ioctl, fd, RNDADDENTROPY, &pool);
    if (result >= 0)
        SYS(ioctl, fd, RNDRESEEDCRNG);
    sys_close(fd);
    return result < 0 ? (int)result : 0;
}

/* -- the end ------------------------------------------------------------------------------------------------------------------- */

static const unsigned long reboots[] = {LINUX_REBOOT_CMD_POWER_OFF, LINUX_REBOOT_CMD_RESTART, LINUX_REBOOT_CMD_HALT};
static char *const programs[] = {"poweroff", "reboot", "halt"};

static void rest(long milliseconds)
{
    struct __kernel_timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};

    SYS(ppoll, 0, 0, &time, 0, 8);
}

/* Whether anybody is left beside this process and its parent; children of theirs who have ended are reaped by the parent. */
static int others(void)
{
    static char entries[4096] __attribute__((aligned(8)));
    int directory = sys_open("/proc", O_RDONLY | O_DIRECTORY, 0), found = 0;
    int64_t me = SYS(getpid), parent = SYS(getppid);
    long size;

    while (directory >= 0 && !found && (size = SYS(getdents64, directory, entries, sizeof entries)) > 0)
        for (long at = 0; at < size; at += get16((uint8_t *)entries + at + 16)) {
            int64_t pid = number_of(entries + at + 19);
            char path[32] = "/proc/", link[8];
            if (pid <= 0 || pid == me || pid == parent)
                continue;
            text_join(path + 6, sizeof path - 6, entries + at + 19, "/exe");
            found |= SYS(readlinkat, AT_FDCWD, path, link, sizeof link) > 0; /* no thread of the kernel, nor a dead one */
        }
    sys_close(directory);
    return found;
}

/* What an init does: ask everybody to end, give them a moment, end them, and leave the file systems clean. */
static void go_down(uint32_t what)
{
    SYS(kill, -1, SIGTERM);
    for (int turn = 0; turn < 100 && others(); turn++)
        rest(20);
    SYS(kill, -1, SIGKILL);
    SYS(sync);
    SYS(mount, 0, "/", 0, MS_REMOUNT | MS_RDONLY, 0);
    SYS(reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, reboots[what], 0);
}

/* Beside an init it is asked, by the program that comes with it; if there is none this is a guest with nothing to shut down. */
static void ask_init(uint32_t what)
{
    static const char *const places[] = {"/sbin/", "/usr/sbin/", "/bin/", "/usr/bin/"};
    static char *const environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    char *const argv[] = {programs[what], NULL};
    char path[32];

    for (int i = 0; i < 4; i++) {
        text_join(path, sizeof path, places[i], programs[what]);
        SYS(execve, path, argv, environment);
    }
    go_down(what);
}

void power(uint32_t what)
{
    if (what >= sizeof programs / sizeof *programs)
        return;
    if (sys_fork()) {
        if (is_init)
            sys_exit(GOES_DOWN);
        return;
    }
    SYS(setsid);
    if (is_init)
        go_down(what);
    else
        ask_init(what);
    sys_exit(1);
}

/* -- the first process --------------------------------------------------------------------------------------------------------- */

static void mount_at(const char *type, const char *path, unsigned long flags, const char *options)
{
    SYS(mkdirat, AT_FDCWD, path, 0755);
    SYS(mount, type, path, type, flags, options); /* who was before us may have done it */
}

static void mount_all(void)
{
    mount_at("devtmpfs", "/dev", MS_NOSUID, "mode=0755");
    mount_at("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
    mount_at("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
    mount_at("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5");
    mount_at("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777");
    mount_at("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755");
    mount_at("cgroup2", "/sys/fs/cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
    SYS(symlinkat, "/proc/self/fd", AT_FDCWD, "/dev/fd");
    SYS(symlinkat, "/proc/self/fd/0", AT_FDCWD, "/dev/stdin");
    SYS(symlinkat, "/proc/self/fd/1", AT_FDCWD, "/dev/stdout");
    SYS(symlinkat, "/proc/self/fd/2", AT_FDCWD, "/dev/stderr");
}

/* The loopback interface: `struct ifreq` with the flag IFF_UP. */
static void loopback_up(void)
{
    struct {
        char name[16];
        int16_t flags;
        char rest[22];
    } request = {"lo", 1, {0}};
    int fd = (int)SYS(socket, AF_INET_, 2 /* SOCK_DGRAM */, 0);

    SYS(ioctl, fd, 0x8914 /* SIOCSIFFLAGS */, &request);
    sys_close(fd);
}

/* Process 1 mounts, and then does nothing but reap: the agent is its child, which is begun again if it should ever end. */
void init_begin(void)
{
    long agent, dead;
    int status = 0;

    is_init = 1;
    SYS(reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_CAD_OFF, 0);
    mount_all();
    loopback_up();
    for (;;) {
        agent = sys_fork();
        if (agent == 0)
            return;
        do
            dead = SYS(wait4, -1, &status, 0, 0);
        while (dead != agent && dead != -ECHILD);
        while (status == GOES_DOWN << 8) /* it has left the rest to a child of its own, which is ours now */
            if (SYS(wait4, -1, 0, 0, 0) == -ECHILD)
                rest(100);
        note("the agent has ended and is begun again");
        rest(100);
    }
}
