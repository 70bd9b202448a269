#!/bin/sh
# The first process of the guest: mounts, loads drivers for the devices that are there, then runs a command or gives a shell
# on every console. Kernel command line:
#   aiovmm.run="COMMAND"     run it (or a baked-in /aiovmm/run), print its exit status between markers
#   aiovmm.then=WHAT         after it: poweroff (default), reboot, halt or shell
#   aiovmm.modules=A,B       load these too
#   aiovmm.hostname=NAME
#   root=DEVICE|UUID=...|LABEL=...|TAG [rootfstype=TYPE] [rootflags=OPTIONS] [ro] [init=PROGRAM]   go on from a disk, or virtiofs
echo "aiovmm: init"
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=vt220 ENV=/etc/profile

mount -t devtmpfs -o mode=0755 dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=0620,ptmxmode=0666 pts /dev/pts
mount -t tmpfs -o mode=0755 tmpfs /run
for d in /dev/shm /tmp; do mount -t tmpfs -o mode=1777 tmpfs $d; done

read -r cmdline </proc/cmdline
option() { # $value becomes that of the last $1=... on the kernel command line, which may be quoted; no process is started
  value=
  case " $cmdline" in
    *" $1=\""*) value=${cmdline##*"$1=\""} && value=${value%%\"*} ;;
    *" $1="*) value=${cmdline##*"$1="} && value=${value%% *} ;;
  esac
}

told() { # all consoles have sent what was written to them, or do not within a second: somebody may have stopped them (ctrl-S)
  for tty in $(cat /sys/class/tty/console/active); do
    timeout 1 stty "$(stty -g <>"/dev/$tty")" <>"/dev/$tty"
  done
}
down() { # the one way out: poweroff, reboot or halt, with file systems clean
  trap '' TERM INT USR1 USR2
  told
  sync
  umount -a -r 2>/dev/null
  $1 -f
}
trap 'down poweroff' USR2 # what busybox poweroff, reboot and halt send to process 1
trap 'down reboot' TERM INT
trap 'down halt' USR1
echo 0 >/proc/sys/kernel/ctrl-alt-del

load() { # drivers of the devices whose ids are in these files
  [ ! -f "$1" ] || modprobe -abq $(cat "$@" 2>/dev/null)
}
bound() { # every virtio function on PCI has become a virtio device, within so many tenths of a second
  tries=$1
  for f in /sys/bus/pci/devices/*; do
    read -r vendor <"$f/vendor"
    [ "$vendor" = 0x1af4 ] || continue
    while set -- "$f"/virtio* && [ ! -e "$1" ] && [ $tries -gt 0 ]; do
      tries=$((tries - 1))
      sleep 0.1
    done
  done
}
if [ -d /lib/modules ]; then
  option aiovmm.modules
  IFS=", $IFS"
  modprobe -a $(cat /etc/aiovmm/modules) $value
  IFS=${IFS#, }
  load /sys/bus/platform/devices/*/modalias /sys/bus/pci/devices/*/modalias /sys/bus/acpi/devices/*/modalias
  load /sys/bus/virtio/devices/*/modalias
  patience=
  set -- /proc/device-tree/pci*/iommu-map
  [ ! -e "$1" ] || patience=150 # of an IOMMU without a driver: Linux gives up waiting for one after 10 seconds
  set -- /sys/class/iommu/*
  [ ! -e "$1" ] || patience=50
  if [ -n "$patience" ]; then # devices behind an IOMMU appear a moment after its driver was loaded
    bound $patience
    load /sys/bus/virtio/devices/*/modalias
  fi
  set -- /sys/class/nd/ndctl*
  if [ -e "$1" ]; then # one a pmem device, whose disk appears a moment later too
    modprobe -abq nd_pmem
    tries=0
    while [ ! -b "/dev/pmem$(($# - 1))" ] && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
  fi
fi

# The first console may have come with a driver, and the kernel had none to open for us: what is said is for it from here on.
! true 2>/dev/null </dev/console || exec </dev/console >/dev/console 2>&1

option aiovmm.hostname
hostname "${value:-guest}"
ip link set lo up

agent=/sbin/aiovmm-agent # runs commands for the host, if it is there; on a disk that is gone on from its own init has to
if [ -x $agent ]; then
  cp $agent /run/aiovmm-agent # where who goes on from here finds it
fi

root_is_there() { # $device becomes what root= names: a block device, found by its file system's UUID or LABEL if told so
  case $root in
    UUID=* | LABEL=*) device=$(findfs "$root" 2>/dev/null) ;;
    *) device=$root ;;
  esac
  [ -b "$device" ]
}
option root
root=$value
if [ -n "$root" ]; then
  mode=rw
  case " $cmdline " in *" ro "*) mode=ro ;; esac
  option rootfstype && type=$value
  option rootflags && flags=$value
  if [ "$type" = virtiofs ]; then # its root is a tag, of a device that is there as soon as its driver is
    device=$root
  else
    tries=0
    until root_is_there || [ $tries -ge 50 ]; do
      [ $tries != 10 ] || echo "aiovmm: waiting for $root"
      sleep 0.1
      tries=$((tries + 1))
    done
    [ -n "$type" ] || modprobe -q ext4 # mount tries the file systems that the kernel has
  fi
  if mount ${type:+-t "$type"} -o "$mode${flags:+,$flags}" "$device" /sysroot; then
    option init
    init=${value:-/sbin/init}
    if [ -e "/sysroot$init" ] || [ -L "/sysroot$init" ]; then # a link may hold only when that is the root
      for d in dev proc sys run; do
        [ ! -d /sysroot/$d ] || mount --move /$d /sysroot/$d
      done
      exec switch_root /sysroot "$init"
    fi
    umount /sysroot
    echo "aiovmm: no $init in $root; here is a shell instead"
  else
    echo "aiovmm: cannot mount $root; here is a shell instead"
  fi
fi

[ ! -x $agent ] || start-stop-daemon -S -b -p /run/aiovmm-agent.pid -a $agent

hold() { # what is typed between two programs that open a terminal is for the later one; and what nobody has open tells nothing
  before=$held held=
  for tty in $(cat /sys/class/tty/console/active); do
    { sleep 2147483647 & } 3<>"/dev/$tty" # not as its input, which would be /dev/null
    held="$held $!"
  done
  [ -z "$before" ] || kill $before # now that others have them open
}
hold

power_button() { # struct input_event as 16-bit words: 8 of time, then type 1 (key), code 116 (power), value 1 (pressed)
  while event=$(dd bs=24 count=1 2>/dev/null | od -An -v -tu2) && [ -n "$event" ]; do
    set -- $event
    [ "$9 ${10} ${11}" != "1 116 1" ] || down poweroff # process 1 may be busy running a command
  done
}
for key in /dev/input/event*; do [ ! -c "$key" ] || power_button <"$key" & done

option aiovmm.run
run=$value
[ -n "$run" ] || [ ! -x /aiovmm/run ] || run=/aiovmm/run
if [ -n "$run" ]; then
  echo "aiovmm: run begin"
  tty=$(cat /sys/class/tty/console/active)
  tty=/dev/${tty##* } # the preferred console, which is /dev/console, under a name that can control a session
  [ -c "$tty" ] || tty=/dev/console
  setsid -c /etc/aiovmm/session sh -c "$run" <>"$tty" >&0 2>&1
  status=$?
  hold # again: the session's end was everybody's who had that terminal open
  echo "aiovmm: run end status=$status"
  option aiovmm.then
  case "${value:=poweroff}" in
    poweroff | reboot | halt) down "$value" ;;
  esac
fi

for tty in $(cat /sys/class/tty/console/active); do
  start-stop-daemon -S -b -p "/run/console-$tty.pid" -a /bin/sh -- /etc/aiovmm/console "$tty"
done
while :; do # process 1 reaps orphans and takes the signals above
  sleep 86400 &
  wait
done
