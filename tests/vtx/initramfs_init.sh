#!/bin/busybox sh
# Loads what the disk needs, mounts it with the project on it, and goes on there. What is written to the disk ends with the host.
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
while read -r module; do
    insmod "/modules/$module" || echo "vtx: insmod $module failed"
done </modules/order
tries=0
until [ -b /dev/sda ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 200 ] || { echo "vtx: no disk appeared"; poweroff -f; }
    usleep 50000
done
mount -t ext4 -o noatime /dev/sda /root
mount -t tmpfs -o mode=755 run /root/run
tar -xf /project.tar -C /root
cp /vtx/* /root/run/
umount /proc
mount --move /dev /root/dev
exec switch_root /root /bin/sh /run/host_init.sh
