#!/bin/sh
# session PROGRAM [ARGUMENT...]: lead a session on the terminal that is standard input, and run PROGRAM in it.
# When the leader of a session ends the kernel hangs the terminal up, and what that has not sent by then is lost. So the leader is
# not whoever wrote last, and waits.
trap : INT QUIT # PROGRAM has its own way with them
"$@"
status=$?
trap '' TTOU # PROGRAM may not have given the terminal back
stty "$(stty -g)" # changes nothing, once all is sent
exit $status
