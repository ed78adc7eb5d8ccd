#!/bin/bash
# Runs a command as the first process of a host: with its own files, hostname, pids, /dev/shm and /tmp. Called inside
# new namespaces, see hosts.py.
#   host.sh NAME NEW_ROOT HOSTS_FILE UID:GID WORKDIR PATHS MOUNTS COMMAND...
# PATHS are folders of this machine that the host has at the same place, MOUNTS are SOURCE=TARGET=rw|ro; both are
# separated by colons.
set -e
name=$1 root=$2 hosts=$3 user=$4 workdir=$5 paths=$6 mounts=$7
shift 7

hostname "$name"
mount -t tmpfs -o mode=755 tmpfs "$root"
# The system's programs. Everything else is the host's own.
for path in /bin /sbin /usr /lib /lib32 /lib64 /etc /opt /dev /sys; do
    if [ -L "$path" ]; then
        cp -P "$path" "$root$path"
    elif [ -d "$path" ]; then
        mkdir "$root$path"
        mount --rbind "$path" "$root$path"
    fi
done
mkdir "$root"/{proc,tmp,run,var,home,mnt,root}
mkdir "$root/var/tmp" "$root/home/ray"
chmod 1777 "$root/tmp" "$root/var/tmp"
chown "$user" "$root/home/ray"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount --bind "$hosts" "$root/etc/hosts"
# Names that are not in it are unknown at once. Without an answer each look-up takes 10 s; torch makes three when workers start.
if [ -f "$root/etc/resolv.conf" ]; then
    echo "nameserver 127.0.0.1" > "$root/run/resolv.conf"
    mount --bind "$root/run/resolv.conf" "$root/etc/resolv.conf"
fi

bind() {
    if [ -d "$1" ]; then mkdir -p "$2"; else mkdir -p "$(dirname "$2")" && touch "$2"; fi
    mount --bind "$1" "$2"
    if [ "$3" = ro ]; then mount -o remount,bind,ro "$2"; fi
}
IFS=: read -ra entries <<< "$mounts"
for entry in "${entries[@]}"; do
    IFS='=' read -r source target mode <<< "$entry"
    bind "$source" "$root$target" "$mode"
done
# Last, since a volume may be mounted at /tmp, and the project may be a clone below it.
IFS=: read -ra entries <<< "$paths"
for path in "${entries[@]}"; do
    bind "$path" "$root$path" ro
done
# Here, since a change of the user ends it: the first process ends with `unshare`, and that with the tests.
exec "$(PATH="$PATH:/usr/sbin:/sbin" command -v chroot)" --userspec="$user" "$root" "$(command -v setpriv)" --pdeathsig KILL /bin/bash -c 'cd "$0" && exec "$@"' "$workdir" "$@"
