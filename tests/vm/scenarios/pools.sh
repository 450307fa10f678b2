# Pools: thin replicas under real file systems, space that trims give back, snapshots and clones of a disk under load,
# growing online, and a daemon that is killed and imports its pools.
# machine: cpus=2 memory_mib=3072
modprobe -a nvme-tcp xfs
data_folder 1600
daemon_start --state-dir /run/data/state
truncate -s 640M /run/data/pool.img /run/data/second.img
backing=$(losetup --show -f /run/data/second.img)

# -- the disks: a file, and a real block device
check "pool create on a file" "$KEELSON" pool create tpool /run/data/pool.img
mkfs.ext4 -q -F "$backing"
refuse "a disk with a file system on it is refused" "$KEELSON" pool create second "$backing"
has "and it is said what was found" "ext" cat /run/refused
check "unless it is forced" "$KEELSON" pool create second "$backing" --force
has "both pools are online" "^2$" sh -c "'$KEELSON' -q pool list | grep -c online"
used() { "$KEELSON" -q pool list "$1" | awk '{ print $5 }'; }
capacity() { "$KEELSON" -q pool list "$1" | awk '{ print $4 }'; }

# -- the session of the first README
check "replica create, size in MiB" "$KEELSON" replica create tpool replica1 --size=10
check "replica create, thin" "$KEELSON" replica create tpool replica2 --size=384 --thin
has "replica list" "^tpool replica1 .* false +none +10485760 " "$KEELSON" replica list
check "replica destroy by name, with the pool" "$KEELSON" replica destroy tpool replica1
check "replica destroy by name" "$KEELSON" replica destroy replica2

# -- file systems on thin replicas; their trims give space back
ext4_uuid=7d6f5f0e-98c5-4f2c-8f6e-2f6d4bd6c001
xfs_uuid=7d6f5f0e-98c5-4f2c-8f6e-2f6d4bd6c002
check "replica for ext4" "$KEELSON" replica create ext4 $ext4_uuid tpool --size=256MiB --thin -p nvmf --allowed-host "$HOST_NQN"
check "replica for xfs" "$KEELSON" replica create xfs $xfs_uuid second --size=384MiB --thin -p nvmf
for name in ext4 xfs; do
    check "connect $name" nvme_connect "$PREFIX:$name" -i 2 --reconnect-delay=1 --ctrl-loss-tmo=600
done
ext4=$(wait_namespace "$PREFIX:ext4" 1) || not_ok "disk" "ext4 did not appear"
xfs=$(wait_namespace "$PREFIX:xfs" 1) || not_ok "disk" "xfs did not appear"
verify_disk "replica" "$ext4" 4096 8
check "blkdiscard of everything" blkdiscard -f "$ext4"
check "mkfs.ext4" mkfs.ext4 -F -q "$ext4"
check "mkfs.xfs" mkfs.xfs -f -q "$xfs"
mkdir -p /run/ext4 /run/xfs
check "mount ext4" mount "$ext4" /run/ext4
check "mount xfs" mount "$xfs" /run/xfs
for fs in ext4 xfs; do
    pool=tpool
    [ $fs = xfs ] && pool=second
    before=$(used $pool)
    check "$fs: write 96 MiB" dd if=/dev/urandom of=/run/$fs/large bs=1M count=96 conv=fsync status=none
    full=$(used $pool)
    [ "$full" -ge $((before + 90 * 1048576)) ] && ok "$fs: the pool holds it" || not_ok "$fs: the pool holds it" "$before, then $full"
    rm /run/$fs/large
    sync -f /run/$fs
    check "$fs: fstrim" fstrim /run/$fs
    gave_back() { [ "$(used $pool)" -le $((full - 80 * 1048576)) ]; }
    check "$fs: the pool's usage falls" until_true 60 gave_back
done

# -- a snapshot while fio writes; a clone of it as a second disk
cp -r /etc/. /run/ext4/tree
sync -f /run/ext4
(cd /run/ext4/tree && find . -type f -exec sha256sum {} + | sort -k2) >/run/sums
fio --name=writer --directory=/run/ext4 --rw=randwrite --bs=4k --iodepth=8 --ioengine=libaio --direct=1 --size=16M \
    --io_size=48M --verify=crc32c --do_verify=1 --verify_fatal=1 >/run/writer.log 2>&1 &
load=$!
writes() { awk '{ print $5 }' "/sys/block/$(basename "$ext4")/stat"; }
progress() { local target=$(($(writes) + 200)); until_true 60 eval "[ \$(writes) -gt $target ] || ! kill -0 $load 2>/dev/null"; }
progress || not_ok "load" "fio does not write"
snapshot=7d6f5f0e-98c5-4f2c-8f6e-2f6d4bd6c011
clone=7d6f5f0e-98c5-4f2c-8f6e-2f6d4bd6c021
check "snapshot while fio writes" "$KEELSON" snapshot create_for_replica $ext4_uuid "volume/1" volume 1 $snapshot
progress
check "clone of it" "$KEELSON" snapshot create_clone $snapshot clone $clone
check "share the clone" "$KEELSON" replica share $clone nvmf
check "connect the clone" nvme_connect "$PREFIX:clone" -i 1
second=$(wait_namespace "$PREFIX:clone" 1) || not_ok "disk" "the clone did not appear"
# As after a power cut: the journal is replayed, then nothing is wrong.
e2fsck -fp "$second" >/run/fsck.log 2>&1
[ $? -le 1 ] && ok "the clone's journal replays" || { not_ok "the clone's journal replays" "e2fsck"; sed 's/^/    /' /run/fsck.log; }
check "the clone's file system is clean" e2fsck -fn "$second"
mkdir -p /run/clone
check "mount the clone" mount "$second" /run/clone
(cd /run/clone/tree && find . -type f -exec sha256sum {} + | sort -k2) >/run/sums.clone
check "the clone has the files" cmp /run/sums /run/sums.clone
check "write to the clone" dd if=/dev/urandom of=/run/clone/own bs=1M count=4 conv=fsync status=none
check "umount the clone" umount /run/clone
check "disconnect the clone" nvme disconnect -n "$PREFIX:clone"
has "the snapshot is listed with its clone" " 1 +$ext4_uuid " "$KEELSON" snapshot list
check "snapshot destroy, with a clone" "$KEELSON" snapshot destroy $snapshot
has "it is discarded" "true +true" "$KEELSON" snapshot list
check "replica destroy of the clone" "$KEELSON" replica destroy $clone
has "the snapshot went with it" "No snapshots found" "$KEELSON" snapshot list
wait $load && ok "the load saw no error and verified" || { not_ok "the load saw no error and verified" "fio failed"; tail -20 /run/writer.log | sed 's/^/    /'; }

# -- a replica grows online, and the file system on it
check "replica resize" "$KEELSON" replica resize $xfs_uuid 448MiB
larger() { [ "$(cat "/sys/block/$(basename "$xfs")/size")" = 917504 ]; }
check "the kernel sees the new size" until_true 60 larger
size_of() { df -BM --output=size "$1" | tail -1 | tr -dc 0-9; }
small=$(size_of /run/xfs)
check "xfs_growfs" xfs_growfs /run/xfs
[ "$(size_of /run/xfs)" -ge $((small + 50)) ] && ok "the file system is larger" || not_ok "the file system is larger" "$small MiB before, $(size_of /run/xfs) after"
was=$(capacity tpool)
truncate -s 800M /run/data/pool.img
check "pool grow" "$KEELSON" pool grow tpool
[ "$(capacity tpool)" -gt "$was" ] && ok "the pool is larger" || not_ok "the pool is larger" "$was bytes as before"

# -- killed under load: the pools are imported, the hosts reconnect
fio --name=survivor --directory=/run/ext4 --rw=randwrite --bs=4k --iodepth=8 --ioengine=libaio --direct=1 --size=16M \
    --io_size=32M --verify=crc32c --do_verify=1 --verify_fatal=1 >/run/survivor.log 2>&1 &
load=$!
progress || not_ok "load" "fio does not write"
kill -KILL $daemon
wait $daemon 2>/dev/null
sleep 1
daemon_start --state-dir /run/data/state
has "both pools are back" "^2$" sh -c "'$KEELSON' -q pool list | grep -c online"
has "the share is back, for its host" "nvmf\+tcp://.*:ext4\?uuid=$ext4_uuid" "$KEELSON" replica list
live() { for name in ext4 xfs; do grep -qx live "/sys/class/nvme/$(controller_of "$PREFIX:$name")/state" || return 1; done; }
check "the hosts reconnect" until_true 120 live
wait $load && ok "the load saw no error and verified" || { not_ok "the load saw no error and verified" "fio failed"; tail -20 /run/survivor.log | sed 's/^/    /'; }
(cd /run/ext4/tree && find . -type f -exec sha256sum {} + | sort -k2) >/run/sums.again
check "the files are whole" cmp /run/sums /run/sums.again
check "umount" umount /run/ext4 /run/xfs
check "fsck ext4" e2fsck -fn "$ext4"
check "xfs_repair -n" xfs_repair -n "$xfs"
check "disconnect" nvme disconnect-all

# -- export and import
check "pool export" "$KEELSON" pool export second
refuse "a pool of another name is refused" "$KEELSON" pool import other "$backing"
check "pool import" "$KEELSON" pool import second "$backing"
check "connect once more" nvme_connect "$PREFIX:xfs"
xfs=$(wait_namespace "$PREFIX:xfs" 1) || not_ok "disk" "xfs did not appear"
check "its file system is clean" xfs_repair -n "$xfs"
check "disconnect once more" nvme disconnect-all
check "pool destroy" "$KEELSON" pool destroy second
refuse "which cannot be imported" "$KEELSON" pool import second "$backing"
daemon_stop
check_daemon_log
check_kernel_log
done_testing
