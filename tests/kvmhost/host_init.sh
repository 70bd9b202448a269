# The nested host's init: everything a test may rely on, then the agent for as long as the host lives.
export PATH=/opt/aiovmm/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C.UTF-8 TERM=linux AIOVMM_KVMHOST=1

mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t debugfs debug /sys/kernel/debug
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin
ln -sf fd/1 /dev/stdout
ln -sf fd/2 /dev/stderr

hostname kvmhost
ip link set lo up
# A guest larger than this host's memory is mapped, never filled.
echo 1 >/proc/sys/vm/overcommit_memory
echo 1 >/proc/sys/net/ipv4/ip_forward
ulimit -n 65536

if [ -d /run/kvmhost/drivers ]; then
    modprobe irqbypass
    while read -r driver; do
        # shellcheck disable=SC2086 # a module and its parameters
        insmod /run/kvmhost/drivers/$driver || echo "kvmhost: insmod $driver failed"
    done </run/kvmhost/drivers/order
fi
for module in virtio_console virtio_rng tun vhost_net vhost_vsock vsock_loopback loop fuse; do
    modprobe "$module" || echo "kvmhost: modprobe $module failed"
done
while read -r module; do
    # shellcheck disable=SC2086 # a module and its parameters
    modprobe $module || echo "kvmhost: modprobe $module failed"
done </run/kvmhost/modules

cd /root
while :; do
    PYTHONPATH=/run/kvmhost /usr/bin/python3 -S -m kvmhost.agent
    echo "kvmhost: the agent ended with status $?"
    sleep 1
done
