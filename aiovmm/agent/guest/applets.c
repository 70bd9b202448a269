/* What a child of the agent does itself instead of running a program: files, read and written as the user that was asked for. */
#include "agent.h"

int applet_run(char *const *argv)
{
    (void)argv;
    return 127;
}
