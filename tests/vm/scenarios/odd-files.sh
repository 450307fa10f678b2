# Disk files that do not work as they should: on a full file system, on one that is read-only, and cut off.
modprobe nvme-tcp
modprobe -a loop ext4
small() { # NAME MIB: a file system of its own at /run/NAME
    truncate -s "$2M" "/run/$1.img"
    mkfs.ext4 -q -F -b 4096 -m 0 "/run/$1.img"
    mkdir -p "/run/$1"
    mount -o loop "/run/$1.img" "/run/$1"
}
small full 48
small fixed 48
daemon_start
export_disk healthy 'malloc:///healthy?size_mb=16'
check "connect a healthy disk" nvme_connect "$PREFIX:healthy" -i 1
healthy=$(wait_namespace "$PREFIX:healthy" 1)
head -c 1M /dev/urandom >/run/pattern

# -- a sparse file on a file system that fills up
truncate -s 64M /run/full/disk
fallocate -l 16M /run/full/filler
check "bdev create on a file system with too little room" "$KEELSON" bdev create 'aio:///run/full/disk?blk_size=4096'
check "subsystem create" "$KEELSON" subsystem create full --namespace /run/full/disk
check "connect" nvme_connect "$PREFIX:full" -i 1
full=$(wait_namespace "$PREFIX:full" 1) || not_ok "the disk on the full file system" "did not appear"
check "write while there is room" dd if=/run/pattern of="$full" bs=64k oflag=direct status=none
fill() { dd if=/dev/urandom of="$full" bs=1M seek=1 oflag=direct; } # to the end of the disk, which is behind that of the room
refuse "the write that finds no room fails" fill
has "the host is told why" "No space left on device" cat /run/refused
check "what was written before is whole" cmp -n 1048576 /run/pattern "$full"
check "other disks go on" dd if=/run/pattern of="$healthy" bs=64k oflag=direct status=none
rm /run/full/filler
check "with room again the same disk takes writes" dd if=/run/pattern of="$full" bs=64k seek=900 oflag=direct conv=fsync status=none
check "and has them" cmp --ignore-initial=0:$((900 * 65536)) -n 1048576 /run/pattern "$full"

# -- a file that nobody may write
dd if=/run/pattern of=/run/fixed/disk status=none
truncate -s 16M /run/fixed/disk
mount -o remount,ro /run/fixed
check "bdev create of a file that is read-only" "$KEELSON" bdev create 'aio:///run/fixed/disk?blk_size=512'
check "subsystem create" "$KEELSON" subsystem create fixed --namespace /run/fixed/disk
check "connect" nvme_connect "$PREFIX:fixed" -i 1
fixed=$(wait_namespace "$PREFIX:fixed" 1) || not_ok "the read-only disk" "did not appear"
has "the kernel takes it for read-only" "^1$" blockdev --getro "$fixed"
write() { nvme io-passthru "/dev/$(controller_of "$PREFIX:fixed")" -o 1 -n 1 --cdw12=7 -l 4096 -w -i /run/pattern 2>&1; true; }
has "a write command is refused as write protected" "[Ww]rite.[Pp]rotected|WRITE_PROTECTED|0x2020|\(2020\)" write
check "reads give what is in the file" cmp -n 1048576 /run/pattern "$fixed"

# -- a file that somebody cuts off
truncate -s 1M /run/full/disk
refuse "reads behind the cut fail" dd if="$full" of=/dev/null bs=64k skip=100 count=1 iflag=direct
check "those before it do not" cmp -n 1048576 /run/pattern "$full"
refuse "a file that is not there" "$KEELSON" bdev create 'aio:///run/full/none'
has "what to do is said" "truncate" cat /run/refused
truncate -s 100 /run/full/tiny
refuse "a file that holds no block" "$KEELSON" bdev create 'aio:///run/full/tiny?blk_size=512'
refuse "a second device of one name" "$KEELSON" bdev create 'malloc:///healthy?size_mb=8'
refuse "a parameter that is none" "$KEELSON" bdev create 'malloc:///other?size_mb=8&colour=red'
check "other disks go on" cmp -n 1048576 /run/pattern "$healthy"
check "disconnect" nvme disconnect-all
daemon_stop
check_daemon_log
check_kernel_log
done_testing
