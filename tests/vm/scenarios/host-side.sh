# The daemon outside of the guest, over an emulated network card: the same disks, other timing.
# machine: cpus=2
modprobe nvme-tcp
until_true 60 test -e /share/port || { not_ok "the daemon on the host" "did not start"; cat /share/keelson.log; exit 1; }
TRADDR=10.0.2.2
TRSVCID=$(cat /share/port)
nqn=$PREFIX:both
has "discover" "subnqn: *$nqn" nvme discover -t tcp -a $TRADDR -s "$TRSVCID" -q "$HOST_NQN" -I "$HOST_ID"
check "connect with digests" nvme_connect $nqn -g -G -i 2
ram=$(wait_namespace $nqn 1) || not_ok "memory disk" "did not appear"
file=$(wait_namespace $nqn 2) || not_ok "file disk" "did not appear"
verify_disk "memory" "$ram" 512 8
verify_disk "file" "$file" 4096 8
file_system "memory" "$ram" xfs
file_system "file" "$file" ext4
check "disconnect" nvme disconnect -n $nqn
check_kernel_log
done_testing
