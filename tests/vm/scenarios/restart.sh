# The daemon is killed and started again under load: the host reconnects, and no acknowledged byte is lost.
# daemon: guest host
modprobe nvme-tcp
data_folder 300
daemon_start --state-dir "$DATA/state"
truncate -s 96M "$DATA/disk"
check "bdev create" "$KEELSON" bdev create "aio://$DATA/disk?blk_size=4096"
check "subsystem create" "$KEELSON" subsystem create safe --namespace "$DATA/disk" --allowed-host "$HOST_NQN"
nqn=$PREFIX:safe
check "connect" nvme_connect $nqn -i 2 --reconnect-delay=1 --ctrl-loss-tmo=600
disk=$(wait_namespace $nqn 1) || not_ok "disk" "did not appear"
check "mkfs" mkfs.ext4 -F -q "$disk"
mkdir -p /run/mnt
check "mount" mount "$disk" /run/mnt

fio --name=survivor --directory=/run/mnt --rw=randwrite --bs=4k --iodepth=8 --ioengine=libaio --direct=1 --size=24M \
    --io_size=48M --verify=crc32c --do_verify=1 --verify_fatal=1 >/run/survivor.log 2>&1 &
load=$!
writes() { awk '{ print $5 }' "/sys/block/$(basename "$disk")/stat"; }
for round in 1 2; do
    target=$(($(writes) + 300))
    more() { [ "$(writes)" -gt $target ] || ! kill -0 $load 2>/dev/null; }
    until_true 120 more || not_ok "load" "no progress before kill $round"
    daemon_kill
    sleep 2
    daemon_start --state-dir "$DATA/state"
    has "after kill $round the subsystem is there again" "$nqn" "$KEELSON" subsystem list
    live() { grep -qx live "/sys/class/nvme/$(controller_of $nqn)/state"; }
    check "after kill $round the host reconnects" until_true 120 live
done
wait $load && ok "the load saw no error and verified" || { not_ok "the load saw no error and verified" "fio failed"; tail -20 /run/survivor.log | sed 's/^/    /'; }
refuse "a host that was not allowed before is not now" nvme connect -t tcp -a "$TRADDR" -s "$TRSVCID" -n $nqn \
    -q nqn.2014-08.org.nvmexpress:uuid:7a1d8f3e-0c5b-4a7e-9d57-5c0f4d1f0a09 -I 7a1d8f3e-0c5b-4a7e-9d57-5c0f4d1f0a09
(cd /run/mnt && sha256sum survivor* >/run/sums)
check "umount" umount /run/mnt
check "fsck" e2fsck -fn "$disk"
check "disconnect" nvme disconnect -n $nqn
daemon_stop
# The file itself, without any of us in between.
modprobe loop
check "mount the disk file" mount -o loop,ro "$DATA/disk" /run/mnt
check "its files are whole" sh -c "cd /run/mnt && sha256sum -c /run/sums"
umount /run/mnt
check_daemon_log
check_kernel_log
done_testing
