# The host's init: what a test may rely on, then the one command, whose output and status go to the second serial port.
export PATH=/opt/aiovmm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C.UTF-8 TERM=dumb AIOVMM_KVMHOST=1

mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=1777 tmp /tmp
ln -sf /proc/self/fd /dev/fd
ip link set lo up
ulimit -n 65536
# shellcheck disable=SC2046 # parameters
modprobe kvm_intel $(cat /run/parameters)

stty -F /dev/ttyS1 raw
cd /root/aiovmm || exit
sh /run/command >/dev/ttyS1 2>&1 </dev/null
echo "vtx: status $?" >/dev/ttyS1
/guest/bin/busybox poweroff -f
