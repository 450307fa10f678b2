# Several disks a pool, a file and real block devices, under a file system in use: one enlarged, one added, one removed,
# with the daemon killed while it is emptied; a disk missing, and one that is none of the pool's.
# machine: cpus=2 memory_mib=3072 about_s=200
modprobe nvme-tcp
data_folder 1600
daemon_start --state-dir /run/data/state
truncate -s 320M /run/data/one.img /run/data/two.img /run/data/three.img
two=$(losetup --show -f /run/data/two.img)
three=$(losetup --show -f /run/data/three.img)
one=/run/data/one.img
capacity() { "$KEELSON" -q pool list tpool | awk '{ print $4 }'; }
names() { "$KEELSON" -q pool disks tpool | awk '{ print $2 }' | tr '\n' ' '; }
is_larger() { # NAME BYTES-BEFORE
    [ "$(capacity)" -gt "$2" ] && ok "$1" || not_ok "$1" "$2 bytes as before"
}

# -- a file and a block device
check "pool create on a file and a block device" "$KEELSON" pool create tpool $one "$two"
has "both are its disks" "^0 +$one .* active " "$KEELSON" pool disks tpool
has "and in the list of pools" "$one.* .*$two" "$KEELSON" pool list
uuid=7d6f5f0e-98c5-4f2c-8f6e-2f6d4bd6c001
check "replica create" "$KEELSON" replica create ext4 $uuid tpool --size=192MiB --thin -p nvmf
check "connect" nvme_connect "$PREFIX:ext4" -i 2 --reconnect-delay=1 --ctrl-loss-tmo=600
ext4=$(wait_namespace "$PREFIX:ext4" 1) || not_ok "disk" "ext4 did not appear"
check "mkfs.ext4" mkfs.ext4 -F -q "$ext4"
mkdir -p /run/ext4
check "mount" mount "$ext4" /run/ext4
mkdir /run/ext4/tree
cp -r /etc/[a-d]* /run/ext4/tree
dd if=/dev/urandom of=/run/ext4/large bs=1M count=24 conv=fsync status=none
sync -f /run/ext4
sums() { (cd /run/ext4 && find tree large -type f -exec sha256sum {} + | sort -k2); }
sums >/run/sums

# -- verified while it is in use, with a file written beside
dd if=/dev/urandom of=/run/ext4/beside bs=1M count=24 oflag=direct status=none &
beside=$!
check "pool scrub --wait while the file system is in use" "$KEELSON" pool scrub tpool --wait --rate 100MiB/s
wait $beside
rm /run/ext4/beside
has "it looked at everything" "^pool tpool: scrubbed from " "$KEELSON" pool scrub tpool --status
has "and found nothing wrong" "^errors: 0 wrong checksums, 0 unreadable; 0 repaired" "$KEELSON" pool scrub tpool --status
check "a slow one begins" "$KEELSON" pool scrub tpool --rate 4096
refuse "a second one is refused" "$KEELSON" pool scrub tpool
has "and it is said why" "being scrubbed already" cat /run/refused
has "it is stopped" "^pool tpool: scrub stopped " "$KEELSON" pool scrub tpool --stop

# -- one enlarged, one added
was=$(capacity)
truncate -s 448M $one
check "pool grow" "$KEELSON" pool grow tpool
is_larger "the pool is larger by the file's growth" "$was"
was=$(capacity)
mkfs.ext4 -q -F "$three"
refuse "a disk with a file system on it is refused" "$KEELSON" pool add-disk tpool "$three"
has "and it is said what was found" "ext" cat /run/refused
check "pool add-disk" "$KEELSON" pool add-disk tpool "$three" --force
is_larger "the pool is larger by a disk" "$was"
refuse "the same disk again is refused" "$KEELSON" pool add-disk tpool "$three"

# -- one removed, under load, over the daemon's death
fio --name=survivor --directory=/run/ext4 --rw=randwrite --bs=4k --iodepth=8 --ioengine=libaio --direct=1 --size=8M \
    --io_size=16M --verify=crc32c --do_verify=1 --verify_fatal=1 >/run/survivor.log 2>&1 &
load=$!
check "pool remove-disk begins" "$KEELSON" pool remove-disk tpool $one --no-wait
kill -KILL $daemon
wait $daemon 2>/dev/null
daemon_start --state-dir /run/data/state
gone() { ! names | grep -q "$one"; }
check "it goes on by itself after a restart" until_true 900 gone
has "the others are left" "^$two $three $" names
live() { grep -qx live "/sys/class/nvme/$(controller_of "$PREFIX:ext4")/state"; }
check "the host reconnects" until_true 120 live
wait $load && ok "the load saw no error and verified" || { not_ok "the load saw no error and verified" "fio failed"; tail -20 /run/survivor.log | sed 's/^/    /'; }
check "pool remove-disk to its end" "$KEELSON" pool remove-disk tpool "$two"
has "one is left" "^$three $" names
refuse "the last one stays" "$KEELSON" pool remove-disk tpool "$three"
has "and it is said why" "only one that stays" cat /run/refused
check "a disk that was removed comes back" "$KEELSON" pool add-disk tpool $one
sums >/run/sums.again
check "the files are whole" cmp /run/sums /run/sums.again
check "umount" umount /run/ext4
check "fsck" e2fsck -fn "$ext4"
check "disconnect" nvme disconnect-all

# -- without a disk
check "pool export" "$KEELSON" pool export tpool
refuse "an import without a disk is refused" "$KEELSON" pool import tpool "$three"
has "and says where it was" "last seen as $one" cat /run/refused
check "pool import --degraded" "$KEELSON" pool import tpool "$three" --degraded
has "the pool is degraded" "degraded" "$KEELSON" pool list
has "the disk is missing" "missing" "$KEELSON" pool disks tpool
refuse "nothing can be made in it" "$KEELSON" replica create x --size=1 tpool
check "pool export of it" "$KEELSON" pool export tpool
check "pool create on a disk of none" "$KEELSON" pool create other "$two"
check "pool export of the other" "$KEELSON" pool export other
refuse "a disk of another pool is refused" "$KEELSON" pool import tpool $one "$three" "$two"
has "and named" "holds pool other" cat /run/refused
check "pool import with all disks" "$KEELSON" pool import tpool "$three" $one
check "connect once more" nvme_connect "$PREFIX:ext4"
ext4=$(wait_namespace "$PREFIX:ext4" 1) || not_ok "disk" "ext4 did not appear"
check "its file system is clean" e2fsck -fn "$ext4"
check "disconnect once more" nvme disconnect-all
daemon_stop
check_daemon_log
check_kernel_log
done_testing
