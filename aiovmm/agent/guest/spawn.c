/* A process of the host's: its descriptors, and what its child does before it becomes the program. */
#include "agent.h"

#include <linux/sched.h>

enum { REPORT = 3 }; /* the descriptor by which a child says why it did not become its program */

struct limit own_files;

/* -- the child ----------------------------------------------------------------------------------------------------------------- */

static const char PATH[] = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

struct environment {
    char *variables[ENVC_MAX + 8]; /* with the defaults, and NULL */
    char texts[1024];
    size_t count, used;
};

static const char *value_of(char *const *variables, const char *name)
{
    for (; *variables; variables++) {
        const char *at = *variables, *wanted = name;
        while (*wanted && *at == *wanted)
            at++, wanted++;
        if (!*wanted && *at == '=')
            return at + 1;
    }
    return NULL;
}

/* A default, unless the request has its own. */
static void put_default(struct environment *env, const char *name, const char *value)
{
    char *to = env->texts + env->used;

    if (value_of(env->variables, name) || !text_join(to, sizeof env->texts - env->used, name, "="))
        return;
    if (text_join(to + strlen(to), sizeof env->texts - env->used - strlen(to), value, "")) {
        env->used += strlen(to) + 1;
        env->variables[env->count++] = to;
        env->variables[env->count] = NULL;
    }
}

static void make_environment(struct environment *env, const struct request *request, const struct user *user)
{
    for (env->count = 0; env->count < request->envc; env->count++)
        env->variables[env->count] = request->env[env->count];
    env->variables[env->count] = NULL;
    put_default(env, "PATH", PATH + 5);
    put_default(env, "HOME", user->home);
    put_default(env, "USER", user->name);
    put_default(env, "LOGNAME", user->name);
    put_default(env, "SHELL", user->shell);
    if (request->flags & START_PTY)
        put_default(env, "TERM", "xterm-256color");
}

_Noreturn static void fail(int report, int error, int stage)
{
    int32_t words[2] = {-error, stage};

    SYS(write, report, words, sizeof words);
    sys_exit(127);
}

static void check(int report, long result, int stage)
{
    if (result < 0)
        fail(report, (int)result, stage);
}

static void become_user(int report, const struct user *user)
{
    check(report, SYS(setgroups, user->group_count, user->groups), STAGE_USER);
    check(report, SYS(setresgid, user->gid, user->gid, user->gid), STAGE_USER);
    check(report, SYS(setresuid, user->uid, user->uid, user->uid), STAGE_USER);
}

static void set_limits(int report, const struct request *request)
{
    const uint8_t *at = request->limit;

    SYS(prlimit64, 0, 7 /* RLIMIT_NOFILE */, &own_files, 0);
    for (size_t i = 0; i < request->limits; i++, at += START_LIMIT) {
        struct limit limit = {get64(at + 4), get64(at + 12)};
        check(report, SYS(prlimit64, 0, get32(at), &limit, 0), STAGE_LIMITS);
    }
}

/* As the agent's parent had them, whatever the agent does. */
static void default_signals(void)
{
    static const unsigned long action[4]; /* SIG_DFL, no flags, nothing masked, in either layout */
    unsigned long none = 0;

    for (int number = 1; number <= 64; number++)
        SYS(rt_sigaction, number, action, 0, 8);
    SYS(rt_sigprocmask, 2 /* SIG_SETMASK */, &none, 0, 8);
}

/* What execvp does: the first that is there; of those that may not be run the error stays. */
static int run_program(const char *name, char *const *argv, char *const *env)
{
    static char path[4096];
    const char *at = value_of(env, "PATH");
    long error = -ENOENT, result;

    if (!*name)
        return -ENOENT;
    for (const char *p = name; *p; p++)
        if (*p == '/')
            return (int)SYS(execve, name, argv, env);
    for (at = at ? at : PATH + 5; at; at = *at ? at + 1 : NULL) {
        size_t size = 0, rest = strlen(name);
        while (at[size] && at[size] != ':')
            size++;
        if (size + rest + 2 <= sizeof path) {
            memcpy(path, at, size);
            path[size] = '/';
            memcpy(path + (size ? size + 1 : 0), name, rest + 1);
            result = SYS(execve, path, argv, env);
            if (result != -ENOENT && result != -ENOTDIR) {
                if (result != -EACCES)
                    return (int)result;
                error = result;
            }
        }
        at += size;
    }
    return (int)error;
}

struct ends {
    int child[3], agent[3], report[2];
};

/* Descriptors 0 to 2, the report as 3, and no others: those of other channels would be open for as long as what comes before the
 * program takes, and who reads a pipe to its end would wait for it. Returns the report. */
static int keep_ends(const struct ends *ends)
{
    int report = ends->report[1];

    for (int i = 0; i < 3; i++) /* each is above them: the agent has all three itself */
        check(report, SYS(dup3, ends->child[i], i, 0), STAGE_RESOURCES);
    if (report != REPORT)
        check(report, SYS(dup3, report, REPORT, O_CLOEXEC), STAGE_RESOURCES);
    SYS(close_range, REPORT + 1, ~0u, 0); /* before Linux 5.9 they go when the program begins */
    return REPORT;
}

_Noreturn static void become(const struct request *request, const struct ends *ends)
{
    static struct user user;
    static struct environment env;
    int report;

    SYS(setsid);
    report = keep_ends(ends);
    default_signals();
    SYS(umask, 022);
    check(report, user_find(request->user, &user), STAGE_USER);
    if (request->flags & START_PTY)
        check(report, SYS(ioctl, STDIN, TIOCSCTTY, 0), STAGE_TERMINAL);
    set_limits(report, request);
    if (*request->user)
        become_user(report, &user);
    check(report, SYS(chdir, *request->directory ? request->directory : "/"), STAGE_DIRECTORY);
    if (request->flags & START_APPLET) {
        SYS(close, report);
        sys_exit(applet_run(request->argv));
    }
    make_environment(&env, request, &user);
    fail(report, run_program(request->argv[0], request->argv, env.variables), STAGE_PROGRAM);
}

/* -- the agent ----------------------------------------------------------------------------------------------------------------- */

static void close_ends(struct ends *ends)
{
    for (int i = 0; i < 3; i++) {
        sys_close(ends->child[i]);
        sys_close(ends->agent[i]);
    }
    sys_close(ends->report[0]);
    sys_close(ends->report[1]);
}

static int open_terminal(const struct request *request, struct ends *ends)
{
    struct {
        uint16_t rows, columns, x, y;
    } size = {request->rows, request->columns, 0, 0};
    int unlock = 0, master = (int)SYS(openat, AT_FDCWD, "/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK, 0);
    long result;

    if (master < 0)
        return master;
    ends->agent[0] = master;
    SYS(ioctl, master, TIOCSPTLCK, &unlock);
    result = SYS(ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (result < 0)
        return (int)result;
    ends->child[0] = (int)result;
    if (size.rows && size.columns)
        SYS(ioctl, master, TIOCSWINSZ, &size);
    ends->child[1] = (int)SYS(fcntl, result, F_DUPFD_CLOEXEC, 3);
    ends->child[2] = (int)SYS(fcntl, result, F_DUPFD_CLOEXEC, 3);
    return ends->child[1] < 0 ? ends->child[1] : ends->child[2] < 0 ? ends->child[2] : 0;
}

static int open_pipe(struct ends *ends, int stream, int mode)
{
    int fds[2];
    long result;

    if (mode == MODE_STDOUT) {
        ends->child[stream] = (int)SYS(fcntl, ends->child[STDOUT], F_DUPFD_CLOEXEC, 3);
        return ends->child[stream];
    }
    if (mode != MODE_PIPE) {
        ends->child[stream] = sys_open("/dev/null", O_RDWR, 0);
        return ends->child[stream];
    }
    result = SYS(pipe2, fds, O_CLOEXEC);
    if (result < 0)
        return (int)result;
    ends->child[stream] = fds[stream != STDIN];
    ends->agent[stream] = fds[stream == STDIN];
    SYS(fcntl, ends->agent[stream], F_SETFL, O_NONBLOCK | (stream == STDIN ? O_WRONLY : O_RDONLY));
    SYS(fcntl, ends->agent[stream], F_SETPIPE_SZ, 256 << 10); /* as much as fits a turn; it may be refused */
    return 0;
}

static int open_ends(const struct request *request, struct ends *ends)
{
    long result = SYS(pipe2, ends->report, O_CLOEXEC);

    if (result < 0)
        return (int)result;
    if (request->flags & START_PTY)
        return open_terminal(request, ends);
    for (int stream = 0; stream < 3 && result >= 0; stream++)
        result = open_pipe(ends, stream, request->modes[stream]);
    return result < 0 ? (int)result : 0;
}

/* 0, or an errno below it and the stage in channel->stage. Whether the program could be run is told by startfd. */
int spawn(struct channel *channel, const struct request *request)
{
    struct ends ends = {{-1, -1, -1}, {-1, -1, -1}, {-1, -1}};
    unsigned long all = ~0ul, own; /* what comes for the child before it has its own signals waits: the agent may ignore some */
    long pid, result = open_ends(request, &ends);

    channel->stage = request->flags & START_PTY ? STAGE_TERMINAL : STAGE_RESOURCES;
    if (result < 0) {
        close_ends(&ends);
        return (int)result;
    }
    SYS(rt_sigprocmask, 2 /* SIG_SETMASK */, &all, &own, 8);
    pid = sys_fork();
    if (pid == 0)
        become(request, &ends);
    SYS(rt_sigprocmask, 2, &own, 0, 8);
    result = pid < 0 ? pid : SYS(pidfd_open, pid, 0);
    if (result < 0) {
        if (pid > 0) {
            SYS(kill, pid, SIGKILL);
            SYS(wait4, pid, 0, 0, 0);
        }
        channel->stage = STAGE_RESOURCES;
        close_ends(&ends);
        return (int)result;
    }
    channel->pid = (int)pid;
    channel->pidfd = (int)result;
    channel->running = 1;
    channel->startfd = ends.report[0];
    channel->in = ends.agent[STDIN];
    channel->out[0] = ends.agent[STDOUT];
    channel->out[1] = ends.agent[STDERR];
    if (request->flags & START_PTY) {
        channel->both = channel->out[0] = channel->in;
        channel->terminal = 1;
    }
    ends.report[0] = ends.agent[0] = ends.agent[1] = ends.agent[2] = -1;
    close_ends(&ends);
    return 0;
}
