# Data and file systems: fio with verification and trims, ext4 and xfs, on memory and on a file, 512 and 4096.
# machine: cpus=2 memory_mib=3072 about_s=280
modprobe nvme-tcp
data_folder 700
daemon_start
truncate -s 384M $DATA/disk
truncate -s 64M $DATA/ring
export_disk small 'malloc:///small?size_mb=384'
export_disk large 'malloc:///large?size_mb=384&blk_size=4096'
check "bdev create a file" "$KEELSON" bdev create "aio://$DATA/disk?blk_size=512"
check "subsystem create" "$KEELSON" subsystem create file --namespace $DATA/disk
check "bdev create a file over io_uring" "$KEELSON" bdev create "uring://$DATA/ring?blk_size=4096"
check "subsystem create" "$KEELSON" subsystem create ring --namespace $DATA/ring

for name in small large file ring; do check "connect $name" nvme_connect "$PREFIX:$name" -i 2; done
small=$(wait_namespace "$PREFIX:small" 1)
large=$(wait_namespace "$PREFIX:large" 1)
file=$(wait_namespace "$PREFIX:file" 1)
ring=$(wait_namespace "$PREFIX:ring" 1)
verify_disk "memory" "$small" 512
verify_disk "memory" "$large" 4096
verify_disk "file" "$file" 512
verify_disk "file over io_uring" "$ring" 4096
has "fio's trims went out" "^[1-9]" awk '{ print $12 }' "/sys/block/$(basename "$small")/stat"
# The other two pairs of file system and block size are among the essentials (kernel-6.1, no-io-uring).
file_system "memory, 512" "$small" ext4
file_system "memory, 4096" "$large" xfs
file_system "file" "$file" ext4
file_system "file" "$file" xfs

# A discard of everything gives the file's blocks back to the file system below.
before=$(stat -c %b $DATA/disk)
check "blkdiscard" blkdiscard -f "$file"
after=$(stat -c %b $DATA/disk)
[ "$after" -lt $((before / 4)) ] && ok "discarded blocks are holes in the file" || not_ok "discarded blocks are holes in the file" "$before blocks before, $after after"
has "discarded blocks are zeroes" "^0$" sh -c "head -c 16M '$file' | tr -d '\\0' | wc -c"

# What the host flushed is in the file.
head -c 1M /dev/urandom >/run/pattern
check "write and flush" dd if=/run/pattern of="$file" bs=64k oflag=direct conv=fsync status=none
check "the file holds it" cmp -n 1048576 /run/pattern $DATA/disk
check "disconnect" nvme disconnect-all
daemon_stop
check_daemon_log
check_kernel_log
done_testing
