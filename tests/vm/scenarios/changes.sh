# What changes while hosts are connected: namespaces come, grow and go; hosts are let in and out; ANA states.
# daemon: guest host
modprobe nvme-tcp
data_folder 200
daemon_start
truncate -s 32M "$DATA/disk"
for name in a b c; do check "bdev create $name" "$KEELSON" bdev create "malloc:///$name?size_mb=16"; done
check "bdev create a file" "$KEELSON" bdev create "aio://$DATA/disk?blk_size=512"
nqn=$PREFIX:changes
other=nqn.2014-08.org.nvmexpress:uuid:7a1d8f3e-0c5b-4a7e-9d57-5c0f4d1f0a02
check "subsystem create" "$KEELSON" subsystem create changes --namespace a --allowed-host "$HOST_NQN"

# -- hosts
check "an allowed host connects" nvme_connect $nqn -i 1 --reconnect-delay=1 --ctrl-loss-tmo=600
wait_namespace $nqn 1 >/run/one || not_ok "namespace 1" "did not appear"
# nvme-cli takes a second host at the same address for the first one; the kernel does not.
connect_other() {
    printf 'transport=tcp,traddr=%s,trsvcid=%s,nqn=%s,hostnqn=%s,hostid=%s,nr_io_queues=1,keep_alive_tmo=60,ctrl_loss_tmo=600' \
        "$TRADDR" "$TRSVCID" $nqn "$other" "${other##*:}" >/dev/nvme-fabrics
}
refuse "a host that is not allowed is refused" connect_other
has "discovery hides it from that host" "^0$" sh -c "nvme discover -t tcp -a $TRADDR -s $TRSVCID -q $other -I ${other##*:} 2>&1 | grep -c $nqn; true"
check "allow the second host" "$KEELSON" subsystem host allow changes "$other"
check "now it connects" connect_other
has "two controllers" "^2$" sh -c "'$KEELSON' -q subsystem controllers changes | grep -c ."
check "deny the second host" "$KEELSON" subsystem host deny changes "$other"
has "it is disconnected, the first is not" "^1$" sh -c "'$KEELSON' -q subsystem controllers changes | grep -c ."
check "the first host goes on" dd if=/dev/zero of="$(cat /run/one)" bs=4k count=8 oflag=direct status=none
for folder in /sys/class/nvme/nvme*; do
    [ "$(cat "$folder/hostnqn" 2>/dev/null)" = "$other" ] && nvme disconnect -d "$(basename "$folder")" >/dev/null
done

# -- namespaces
check "add a namespace" "$KEELSON" subsystem namespace add changes b
check "the kernel sees it" wait_namespace $nqn 2
check "add one with a number of its own" "$KEELSON" subsystem namespace add changes c --nsid 7
check "the kernel sees that" wait_namespace $nqn 7
check "add the file" "$KEELSON" subsystem namespace add changes "$DATA/disk" --nsid 3
file=$(wait_namespace $nqn 3) || not_ok "the kernel sees the file" "no block device"
has "its size" "^65536$" cat "/sys/block/$(basename "$file")/size"
head -c 64k /dev/urandom >/run/pattern
check "write to it" dd if=/run/pattern of="$file" bs=64k oflag=direct status=none
truncate -s 48M "$DATA/disk"
check "grow it" "$KEELSON" subsystem namespace resize changes 3
grown() { [ "$(cat "/sys/block/$(basename "$file")/size")" = 98304 ]; }
check "the kernel sees the new size" until_true 60 grown
check "what was written is still there" cmp -n 65536 /run/pattern "$file"
check "write behind the old end" dd if=/run/pattern of="$file" bs=64k seek=600 oflag=direct status=none
seven=$(namespace_of $nqn 7)
check "remove a namespace" "$KEELSON" subsystem namespace remove changes 7
check "the kernel drops it" until_true 60 no_namespace $nqn 7
[ ! -b "$seven" ] && ok "its block device is gone" || not_ok "its block device is gone" "$seven is there"

# Removed under load: that load fails, the others go on.
two=$(namespace_of $nqn 2)
fio --name=doomed --filename="$two" --rw=randwrite --bs=4k --iodepth=8 --ioengine=libaio --direct=1 --size=16M \
    --time_based --runtime=600 >/run/doomed.log 2>&1 &
doomed=$!
until_true 30 sh -c "[ \$(awk '{ print \$5 }' /sys/block/$(basename "$two")/stat) -gt 100 ]" || not_ok "load" "fio does not write"
check "remove a namespace under load" "$KEELSON" subsystem namespace remove changes 2
check "the kernel drops it" until_true 60 no_namespace $nqn 2
ended() { ! kill -0 $doomed 2>/dev/null; }
until_true 120 ended && ok "the load on it ends" || { not_ok "the load on it ends" "it still runs"; kill -9 $doomed; }
check "the other namespaces go on" dd if="$file" of=/dev/null bs=64k count=16 iflag=direct status=none

# -- ANA
path_state() { cat /sys/class/nvme/*/nvme*c*n*/ana_state 2>/dev/null | sort -u | grep -x "$1"; }
for state in non_optimized inaccessible optimized; do
    check "ANA state $state" "$KEELSON" subsystem ana-state changes $state
    check "the kernel sees $state" until_true 60 path_state "${state/_/-}"
done
check "I/O works again" dd if="$file" of=/dev/null bs=64k count=16 iflag=direct status=none

# -- the whole subsystem
check "disconnect" nvme disconnect-all
check "subsystem destroy" "$KEELSON" subsystem destroy changes
refuse "it is gone" nvme_connect $nqn
check "its devices stay" "$KEELSON" bdev destroy a
daemon_stop
check_daemon_log
check_kernel_log
done_testing
