#!/bin/busybox sh
# Loads what the disk needs, mounts it, and gives it the init and the agent that came along.
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
while read -r module; do
    insmod "/modules/$module" || echo "kvmhost: insmod $module failed"
done </modules/order
tries=0
until [ -b /dev/vda ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 500 ] || { echo "kvmhost: no disk appeared"; poweroff -f; }
    usleep 20000
done
mount -t ext4 -o noatime /dev/vda /root
mount -t tmpfs -o mode=755 run /root/run
cp -r /kvmhost /root/run/
umount /proc
mount --move /dev /root/dev
exec switch_root /root /bin/sh /run/kvmhost/init.sh
