# The bed itself: the kernel's initiator on the kernel's target, the same checks that Keelson must pass.
nvmet_start
modprobe brd rd_nr=1 rd_size=393216
modprobe nvme-tcp
nqn=nqn.2026-01.test:kernel
nvmet_subsystem $nqn KERNEL01
nvmet_namespace $nqn 1 /dev/ram0
nvmet_listen 8420
nvmet_share $nqn

has "discover" "subnqn: *$nqn" nvme_discover
check "connect" nvme_connect $nqn -i 2
disk=$(wait_namespace $nqn 1) || not_ok "namespace 1" "did not appear"
has "id-ctrl" "^sn *: KERNEL01" nvme id-ctrl "/dev/$(controller_of $nqn)"
verify_disk "nvmet" "$disk" 512 4
has "fio's trims went out" "^[1-9]" awk '{ print $12 }' "/sys/block/$(basename "$disk")/stat"
file_system "nvmet" "$disk" ext4
file_system "nvmet" "$disk" xfs
check "disconnect" nvme disconnect -n $nqn
refuse "an unknown subsystem is refused" nvme_connect nqn.2026-01.test:nobody
check_kernel_log
done_testing
