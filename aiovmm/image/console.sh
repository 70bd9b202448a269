#!/bin/sh
# console.sh TTY: a login shell with TTY as its controlling terminal, again and again.
# A program of its own, started as a daemon: background jobs of a shell without job control ignore the interrupt key, and so
# would everything that is started from a console below them.
tty=/dev/$1
cd /root
# a serial line has no size until somebody sets it
[ -n "$(stty size <>"$tty" 2>/dev/null)" ] || stty rows 24 cols 80 <>"$tty"
while [ -c "$tty" ]; do
  setsid -c /etc/aiovmm/session sh -l <>"$tty" >&0 2>&1 3>&-
  exec 3<>"$tty" # what is typed until then is for the next
  sleep 0.2
done
