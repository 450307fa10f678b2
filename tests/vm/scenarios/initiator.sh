# Our initiator against the kernel's target: verified load, and a disk that goes kernel -> Keelson -> kernel.
# machine: cpus=2 memory_mib=3072
nvmet_start
modprobe brd rd_nr=2 rd_size=131072
modprobe nvme-tcp
nqn=nqn.2026-01.test:kernel
nvmet_subsystem $nqn KERNEL01
nvmet_namespace $nqn 1 /dev/ram0
nvmet_listen 4420
nvmet_share $nqn
uri="nvmf+tcp://127.0.0.1:4420/$nqn"

for pattern in randrw randwrite rw; do
    check "perf --verify $pattern" "$KEELSON" perf "$uri" --rw $pattern --verify --time 3 --qd 16 --size 32MiB
done
check "perf --verify over two queues" "$KEELSON" perf "$uri" --rw randrw --verify --time 3 --qd 16 --queues 2 --bs 64KiB --size 32MiB
refuse "an unknown subsystem is an error" "$KEELSON" perf "nvmf+tcp://127.0.0.1:4420/nqn.2026-01.test:nobody" --rw randread --time 1
refuse "a port where nobody listens is an error" "$KEELSON" perf "nvmf+tcp://127.0.0.1:4499/$nqn" --rw randread --time 1

# The kernel's disk, through our initiator and our target, back to the kernel.
daemon_start
check "bdev create over the initiator" "$KEELSON" bdev create "$uri"
name=$("$KEELSON" -q bdev list | grep -o '[^ ]*kernel[^ ]*n1' | head -1)
check "subsystem create" "$KEELSON" subsystem create relay --namespace "$name"
check "connect" nvme_connect "$PREFIX:relay" -i 2
disk=$(wait_namespace "$PREFIX:relay" 1) || not_ok "disk" "did not appear"
verify_disk "relay" "$disk" 512 4
head -c 1M /dev/urandom >/run/pattern
check "write through both" dd if=/run/pattern of="$disk" bs=64k oflag=direct conv=fsync status=none
check "it is on the kernel's disk" cmp -n 1048576 /run/pattern /dev/ram0
check "disconnect" nvme disconnect -n "$PREFIX:relay"
daemon_stop
check_daemon_log
check_kernel_log
done_testing
