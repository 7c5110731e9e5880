#!/bin/busybox sh
# First process of the guest: finds the disk, and hands over to guest.sh on it.
bb=/bin/busybox
$bb mkdir -p /proc /dev /disk
$bb mount -t proc proc /proc
$bb mount -t devtmpfs devtmpfs /dev
while read -r module; do
    $bb insmod "/modules/$module"
done </modules/order
until [ -b /dev/vda ]; do $bb sleep 0.1; done
$bb mount -t ext4 /dev/vda /disk || exec $bb poweroff -f
$bb mount -o move /dev /disk/dev
exec $bb switch_root /disk /sbin/init
