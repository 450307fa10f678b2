# Data and file systems with the daemon outside of the guest, over an emulated network card.
# daemon: host
modprobe nvme-tcp
data_folder
daemon_start
truncate -s 64M "$DATA/disk"
check "bdev create in memory" "$KEELSON" bdev create 'malloc:///ram?size_mb=320'
check "bdev create a file" "$KEELSON" bdev create "aio://$DATA/disk?blk_size=4096"
check "subsystem create" "$KEELSON" subsystem create both --namespace ram --namespace "$DATA/disk"
nqn=$PREFIX:both
has "discover" "subnqn: *$nqn" nvme_discover
check "connect with digests" nvme_connect $nqn -g -G -i 2
ram=$(wait_namespace $nqn 1) || not_ok "memory disk" "did not appear"
file=$(wait_namespace $nqn 2) || not_ok "file disk" "did not appear"
verify_disk "memory" "$ram" 512 8
verify_disk "file" "$file" 4096 8
file_system "memory" "$ram" xfs
file_system "file" "$file" ext4
check "disconnect" nvme disconnect -n $nqn
daemon_stop
check_daemon_log
check_kernel_log
done_testing
