# nvme-cli's commands against the daemon: discovery, connecting in all ways, identify, logs, features, I/O.
# machine: cpus=4 about_s=100
# daemon: guest host
modprobe nvme-tcp
daemon_start
export_disk m0 'malloc:///m0?size_mb=64'
check "a second device" "$KEELSON" bdev create 'malloc:///m1?size_mb=32&blk_size=4096&uuid=3f6f2a0e-6a3b-4b2b-8a57-9b3cf7a00f11'
check "subsystem of two" "$KEELSON" subsystem create pair --namespace m1 --serial PAIR01 --model "Keelson test"
nqn=$PREFIX:m0
pair=$PREFIX:pair

# -- discovery
nvme_discover -o json >/run/discovery 2>&1
has "discover lists the shared disk" "\"subnqn\" *: *\"$nqn\"" cat /run/discovery
has "discover lists the subsystem" "\"subnqn\" *: *\"$pair\"" cat /run/discovery
has "discover names the port" "\"trsvcid\" *: *\"$TRSVCID\"" cat /run/discovery
refuse "an unknown subsystem is refused" nvme_connect "$PREFIX:nobody"

# -- connecting
# connected LABEL QUEUES SQSIZE FLAGS...: QUEUES with the admin queue, SQSIZE zero-based.
connected() {
    local label=$1 queues=$2 sqsize=$3 controller
    shift 3
    check "connect $label" nvme_connect $nqn "$@" || return
    controller=$(controller_of $nqn)
    wait_namespace $nqn 1 >/run/disk || not_ok "connect $label: disk" "did not appear"
    has "connect $label: $queues queues" "^$queues$" cat "/sys/class/nvme/$controller/queue_count"
    has "connect $label: queue size" "^$sqsize$" cat "/sys/class/nvme/$controller/sqsize"
    check "connect $label: write" dd if=/dev/urandom of="$(cat /run/disk)" bs=64k count=16 oflag=direct status=none
    check "connect $label: read" dd if="$(cat /run/disk)" of=/dev/null bs=64k count=16 iflag=direct status=none
    check "connect $label: disconnect" nvme disconnect -n $nqn
}
connected "with one queue" 2 127 -i 1
connected "with four queues" 5 127 -i 4
connected "with both digests" 5 127 -g -G
connected "with the header digest" 2 127 -i 1 -g
connected "with the data digest" 2 127 -i 1 -G
connected "with depth 16" 5 15 -Q 16
connected "with depth 128" 5 127 -Q 128
if [ "$DAEMON" = guest ]; then
    # Of a daemon on the host, discovery names an address that is behind the user network's translation.
    check "connect-all" nvme connect-all -t tcp -a "$TRADDR" -s "$TRSVCID" -q "$HOST_NQN" -I "$HOST_ID" -k 60
    until_true 60 controller_of $pair || not_ok "connect-all" "no controller of $pair"
    check "disconnect-all" nvme disconnect-all
fi

# -- identify, logs, features
check "connect for commands" nvme_connect $nqn
check "connect the pair" nvme_connect $pair
disk=$(wait_namespace $nqn 1)
large=$(wait_namespace $pair 1)
c=/dev/$(controller_of $nqn)
p=/dev/$(controller_of $pair)
has "list" "$(basename "$disk")" nvme list
has "list -v" "$nqn" nvme list -v
has "list-subsys" "traddr=$TRADDR" nvme list-subsys
has "id-ctrl: serial" "^sn *: *DCS[0-9A-F]{17}" nvme id-ctrl "$c"
has "id-ctrl: model" "^mn *: Mayastor NVMe controller" nvme id-ctrl "$c"
has "id-ctrl: a serial of one's own" "^sn *: PAIR01" nvme id-ctrl "$p"
has "id-ctrl: a model of one's own" "^mn *: Keelson test" nvme id-ctrl "$p"
has "id-ctrl: subnqn" "^subnqn *: $nqn" nvme id-ctrl "$c"
has "id-ns: 64 MiB in 512-byte blocks" "^nsze *: 0x20000" nvme id-ns "$disk"
has "id-ns: 32 MiB in 4096-byte blocks" "^nsze *: 0x2000$" nvme id-ns "$large"
has "id-ns: 4096-byte format in use" "lbads:12 .*in use" nvme id-ns "$large"
has "ns-descs: the uuid of the device" "3f6f2a0e-6a3b-4b2b-8a57-9b3cf7a00f11" nvme ns-descs "$large"
has "list-ns" "0\]:0x1" nvme list-ns "$c"
has "smart-log" "^critical_warning[[:space:]]*: 0" nvme smart-log "$c"
has "smart-log counts" "^Data Units Written[[:space:]]*: [1-9]" nvme smart-log "$c"
check "effects-log" nvme effects-log "$c"
check "changed-ns-list-log" nvme changed-ns-list-log "$c"
check "fw-log" nvme fw-log "$c"
has "ana-log" "state[[:space:]]*:[[:space:]]*optimized" nvme ana-log "$p"
for feature in 1 2 4 7 11 15; do
    has "get-feature $feature" "get-feature:0x0*$(printf %x $feature) .*[Cc]urrent value:(0x)?[0-9a-f]{8}" nvme get-feature "$c" -f $feature
done
refuse "get-feature of a feature that is none" nvme get-feature "$c" -f 0xbf
refuse "get-log of a page that is none" nvme get-log "$c" -i 0xbf -l 512
refuse "an unknown admin opcode" nvme admin-passthru "$c" -o 0xbf
refuse "an unknown I/O opcode" nvme io-passthru "$disk" -o 0x7f -n 1
has "identify of a namespace that is not there is zeroes" "^nsze *: 0$" nvme id-ns "$c" -n 77
refuse "identify of a namespace that cannot be" nvme id-ns "$c" -n 0xfffffff0
has "get-property CSTS: ready" "value: 0*1$" nvme get-property "$c" -o 0x1c
has "get-property VS" "value: " nvme get-property "$c" -o 8

# -- I/O commands
head -c 4096 /dev/urandom >/run/a
head -c 4096 /dev/urandom >/run/b
check "write" nvme write "$disk" -s 8 -c 7 -z 4096 -d /run/a
check "read" nvme read "$disk" -s 8 -c 7 -z 4096 -d /run/got
check "what was read is what was written" cmp /run/a /run/got
check "compare with the same" nvme compare "$disk" -s 8 -c 7 -z 4096 -d /run/a
refuse "compare with other data fails" nvme compare "$disk" -s 8 -c 7 -z 4096 -d /run/b
has "compare with other data says so" "Compare|COMPARE|0x285|2085" sh -c "nvme compare $disk -s 8 -c 7 -z 4096 -d /run/b 2>&1; true"
check "flush" nvme flush "$disk" -n 1
check "write with FUA" nvme write "$disk" -s 8 -c 7 -z 4096 -d /run/b -f
check "write-zeroes" nvme write-zeroes "$disk" -s 8 -c 7
check "read after write-zeroes" nvme read "$disk" -s 8 -c 7 -z 4096 -d /run/got
check "zeroes" cmp -n 4096 /dev/zero /run/got
check "write two pieces" sh -c "nvme write $disk -s 8 -c 7 -z 4096 -d /run/a && nvme write $disk -s 16 -c 7 -z 4096 -d /run/b"
check "dsm deallocate" nvme dsm "$disk" -n 1 -d -s 8 -b 8
check "read after dsm" nvme read "$disk" -s 8 -c 7 -z 4096 -d /run/got
check "deallocated blocks are zeroes" cmp -n 4096 /dev/zero /run/got
check "read behind dsm" nvme read "$disk" -s 16 -c 7 -z 4096 -d /run/got
check "the blocks behind are as they were" cmp /run/b /run/got
check "verify" nvme verify "$disk" -s 8 -c 7
refuse "a read behind the end" nvme read "$disk" -s 131072 -c 7 -z 4096 -d /run/got
refuse "a write over the end" nvme write "$disk" -s 131068 -c 7 -z 4096 -d /run/a
refuse "a read of 2^64 blocks from the end" nvme read "$disk" -s 0xfffffffffffffff8 -c 7 -z 4096 -d /run/got
has "error-log: the newest is LBA Out of Range" "^status_field[[:space:]]*: 0x[24]?[0-9a-f]*80|LBA Out of Range" nvme error-log "$c" -e 4
has "error-log: its count" "^error_count[[:space:]]*: [1-9]" nvme error-log "$c" -e 4
has "errors are counted" "^num_err_log_entries[[:space:]]*: [1-9]" nvme smart-log "$c"

# -- reset
check "write before the reset" nvme write "$disk" -s 64 -c 7 -z 4096 -d /run/a
check "reset" nvme reset "$c"
until_true 60 grep -qx live "/sys/class/nvme/$(basename "$c")/state" || not_ok "reset" "the controller did not come back"
check "read after the reset" nvme read "$disk" -s 64 -c 7 -z 4096 -d /run/got
check "the data survived the reset" cmp /run/a /run/got
has "controllers are listed" "$HOST_NQN" "$KEELSON" subsystem controllers
has "connections are listed" " 4 " "$KEELSON" subsystem connections
check "disconnect" nvme disconnect-all
daemon_stop
check_daemon_log
check_kernel_log
done_testing
