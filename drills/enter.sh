#!/bin/sh
# Become a program inside a tree, as a container engine would start it: run by drills/images.py in a mount, process and
# IPC namespace of its own. Usage: enter.sh TREE REGISTRY_FOLDER UID:GID FOLDER PROGRAM ... (environment: as it is)
# The network is the host's. REGISTRY_FOLDER, if not "", brings this machine's way to its package registries for the
# time of the step: nothing of it stays in the tree.
set -eu
tree=$1 registry=$2 user=$3 folder=$4
shift 4

mount --make-rprivate /
mount --bind "$tree" "$tree"
mkdir -p "$tree/proc" "$tree/dev" "$tree/sys" "$tree/run"
mount -t proc proc "$tree/proc"
mount -t tmpfs -o mode=755 tmpfs "$tree/dev"
for device in null zero full random urandom tty; do
    : >"$tree/dev/$device"
    mount --bind "/dev/$device" "$tree/dev/$device"
done
mkdir "$tree/dev/shm" "$tree/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$tree/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$tree/dev/pts"
ln -s pts/ptmx "$tree/dev/ptmx"
ln -s /proc/self/fd "$tree/dev/fd"
mount -t tmpfs -o mode=755 tmpfs "$tree/run"
mkdir "$tree/run/old"
for file in hosts resolv.conf; do # engines do so, too
    [ -e "$tree/etc/$file" ] || : >"$tree/etc/$file"
    mount --bind "/etc/$file" "$tree/etc/$file"
done
if [ -n "$registry" ]; then
    mkdir "$tree/run/registry"
    cp -r "$registry/." "$tree/run/registry"
    for part in sources.list.d apt.conf.d; do
        mount --bind "$tree/run/registry/$part" "$tree/etc/apt/$part"
    done
fi
cd "$tree"
pivot_root . run/old
umount -l /run/old
rmdir /run/old
cd "$folder"
[ "$user" = 0:0 ] && exec "$@"
# As compose.yaml says: no capability, and no way to gain one.
exec setpriv --reuid "${user%:*}" --regid "${user#*:}" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
