# Discovery that stays connected, several paths of one host, features that are set, pages read in pieces, resets.
# machine: cpus=4
modprobe nvme-tcp
daemon_start
for name in a b; do check "bdev create $name" "$KEELSON" bdev create "malloc:///$name?size_mb=16"; done
check "subsystem create" "$KEELSON" subsystem create one --namespace a
one=$PREFIX:one
two=$PREFIX:two
discovery=nqn.2014-08.org.nvmexpress.discovery
discover() { nvme discover "$@" -q "$HOST_NQN" -I "$HOST_ID"; }

# -- a discovery controller that stays
check "a persistent discovery controller" discover -p -t tcp -a $TRADDR -s $TRSVCID
d=$(controller_of $discovery) || not_ok "it stays" "no controller of $discovery"
has "it says what it is" "^discovery$" cat "/sys/class/nvme/$d/cntrltype"
has "it has a Keep Alive Timeout" "^[1-9]" cat "/sys/class/nvme/$d/kato"
has "id-ctrl: discovery controller" "^cntrltype *: 2" nvme id-ctrl "/dev/$d"
has "it lists one subsystem" "^1$" sh -c "discover_log() { nvme discover -d $d; }; discover_log | grep -c 'subnqn: *$one'"
command -v udevadm >/dev/null && { udevadm monitor --kernel --property >/run/uevents 2>&1 & monitor=$!; sleep 1; }
check "a second subsystem" "$KEELSON" subsystem create two --namespace b
has "it lists that too" "subnqn: *$two" nvme discover -d "$d"
if command -v udevadm >/dev/null; then
    check "the kernel was told (discovery log page changed)" until_true 30 grep -q "NVME_AEN=0x70f002" /run/uevents
    kill $monitor
else
    skip "the kernel was told (discovery log page changed)" "no udevadm here"
fi
refuse "a discovery controller has no namespaces" nvme list-ns "/dev/$d"
check "connect-all through it" nvme connect-all -d "$d" -k 60
until_true 60 controller_of $two >/dev/null && ok "connect-all connects" || not_ok "connect-all connects" "no controller of $two"
check "disconnect the discovery controller" nvme disconnect -n $discovery
check "disconnect all" nvme disconnect-all

# -- several paths
check "first path" nvme_connect $one -i 2
# nvme-cli takes the second one for the first, whatever it is told; the kernel does not.
second_path() {
    printf 'transport=tcp,traddr=%s,trsvcid=%s,nqn=%s,hostnqn=%s,hostid=%s,nr_io_queues=2,keep_alive_tmo=60,duplicate_connect' \
        "$TRADDR" "$TRSVCID" $one "$HOST_NQN" "$HOST_ID" >/dev/nvme-fabrics
}
check "second path" second_path
disk=$(wait_namespace $one 1)
has "two controllers of one subsystem" "^2$" sh -c "'$KEELSON' -q subsystem controllers one | grep -c ."
has "one disk with two paths" "^2$" sh -c "ls -d /sys/class/nvme-subsystem/*/nvme*/nvme*c*n1 2>/dev/null | sort -u | grep -c ."
head -c 1M /dev/urandom >/run/pattern
check "write" dd if=/run/pattern of="$disk" bs=64k oflag=direct status=none
first=$(controller_of $one)
check "take one path away" nvme disconnect -d "$first"
check "the other still reads" cmp -n 1048576 /run/pattern "$disk"
has "one controller is left" "^1$" sh -c "'$KEELSON' -q subsystem controllers one | grep -c ."
c=/dev/$(controller_of $one)

# -- features
for set in "1 0x01020307" "4 350" "5 12" "10 1" "11 0x900"; do
    read -r fid value <<<"$set"
    check "set-feature $fid" nvme set-feature "$c" -f "$fid" --value="$value"
done
has "get-feature arbitration" "0x0*1020307|0x1020307" nvme get-feature "$c" -f 1
has "get-feature temperature threshold" "0x0*15e|0x15e" nvme get-feature "$c" -f 4
has "its default" "0x0*ffff|0xffff" nvme get-feature "$c" -f 4 -s 1
has "its capabilities" "0x0*4" nvme get-feature "$c" -f 4 -s 3
check "get-feature host behavior" nvme get-feature "$c" -f 0x16
check "get-feature timestamp" nvme get-feature "$c" -f 0xe
check "get-feature host identifier" nvme get-feature "$c" -f 0x81 --cdw11=1 -l 16
refuse "a power state that is none" nvme set-feature "$c" -f 2 --value=3
refuse "nothing can be saved" nvme set-feature "$c" -f 1 --value=0 -S
refuse "a temperature sensor that is none" nvme get-feature "$c" -f 4 --cdw11=0x30000

# -- pages
check "supported-log-pages" nvme supported-log-pages "$c"
check "fid-support-effects-log" nvme fid-support-effects-log "$c"
nvme get-log "$c" -i 5 -l 4096 -b >/run/whole 2>/dev/null
nvme get-log "$c" -i 5 -l 1024 --lpo=1024 -b >/run/part 2>/dev/null
check "a part of a page is that part" cmp -n 1024 --ignore-initial=1024:0 /run/whole /run/part
refuse "an offset behind the page" nvme get-log "$c" -i 5 -l 512 --lpo=8192
has "show-regs" "^csts *: *[0-9a-f]*1$" nvme show-regs "$c"
has "list-ctrl" "0\]:0x[0-9a-f]+" nvme list-ctrl "$c"
check "cmdset-ind-id-ns" nvme cmdset-ind-id-ns "$c" -n 1
check "nvm-id-ctrl" nvme nvm-id-ctrl "$c"
check "nvm-id-ns" nvme nvm-id-ns "$c" -n 1
check "id-iocs" nvme id-iocs "$c"

# -- over and over
again() { for _ in 1 2 3 4 5; do nvme reset "$c" || return 1; done; }
check "five resets" again
check "the disk is whole" cmp -n 1048576 /run/pattern "$disk"
flood() {
    for _ in $(seq 30); do discover -t tcp -a $TRADDR -s $TRSVCID >/dev/null || return 1; done
}
check "thirty discoveries" flood
refuse "no controller of theirs stays" controller_of $discovery
check "disconnect" nvme disconnect-all
daemon_stop
check_daemon_log
check_kernel_log
done_testing
