# NVMe reservations: two hosts of one kernel take turns at a namespace; preemption; what persists through a kill and a restart.
# Without multipath each host has a block device of its own.
modprobe nvme-core multipath=N
modprobe nvme-tcp
data_folder 200
ptpl=$DATA/ptpl
daemon_start --state-dir "$DATA/state" --ptpl-dir "$ptpl"
truncate -s 32M "$DATA/disk"
check "bdev create" "$KEELSON" bdev create "aio://$DATA/disk?blk_size=4096"
check "subsystem create" "$KEELSON" subsystem create turns --namespace "$DATA/disk"
nqn=$PREFIX:turns
other_id=7a1d8f3e-0c5b-4a7e-9d57-5c0f4d1f0a02

# connect_as ID: nvme-cli takes a second host at the same address for the first one; the kernel does not.
connect_as() {
    printf 'transport=tcp,traddr=%s,trsvcid=%s,nqn=%s,hostnqn=nqn.2014-08.org.nvmexpress:uuid:%s,hostid=%s,nr_io_queues=2,keep_alive_tmo=60,reconnect_delay=1,ctrl_loss_tmo=600' \
        "$TRADDR" "$TRSVCID" $nqn "$1" "$1" >/dev/nvme-fabrics
}
# disk_of ID: the block device of that host.
disk_of() {
    local folder name
    for folder in /sys/class/nvme/nvme*; do
        [ "$(cat "$folder/hostid" 2>/dev/null)" = "$1" ] || continue
        for name in "$folder"/nvme*n*; do
            [ -b "/dev/$(basename "$name")" ] && { echo "/dev/$(basename "$name")"; return 0; }
        done
    done
    return 1
}
live() { # ID
    local folder
    for folder in /sys/class/nvme/nvme*; do
        [ "$(cat "$folder/hostid" 2>/dev/null)" = "$1" ] && [ "$(cat "$folder/state")" = live ] && return 0
    done
    return 1
}
check "the first host connects" connect_as $HOST_ID
check "the second host connects" connect_as $other_id
check "the first has its disk" until_true 60 disk_of $HOST_ID
check "the second has its disk" until_true 60 disk_of $other_id
a=$(disk_of $HOST_ID)
b=$(disk_of $other_id)
[ "$a" != "$b" ] && ok "they are different block devices" || not_ok "they are different block devices" "$a"

writes() { dd if=/dev/zero of="$1" bs=4k count=4 oflag=direct status=none; }
reads() { dd if="$1" of=/dev/null bs=4k count=4 iflag=direct status=none; }
report() { nvme resv-report "$1" -n 1 -e; }

has "identify says every type, and that it persists" "rescap *: *0xff" nvme id-ns "$a" -n 1
has "nobody is registered" "^regctl *: *0" report "$a"
refuse "to acquire takes a registration" nvme resv-acquire "$a" -n 1 --crkey=0x11 --rtype=1 --racqa=0
check "the first registers" nvme resv-register "$a" -n 1 --nrkey=0x11 --rrega=0 --cptpl=3
check "the second registers" nvme resv-register "$b" -n 1 --nrkey=0x22 --rrega=0
refuse "with another key it cannot do so again" nvme resv-register "$b" -n 1 --nrkey=0x23 --rrega=0
check "both write" sh -c "dd if=/dev/zero of=$a bs=4k count=1 oflag=direct && dd if=/dev/zero of=$b bs=4k count=1 oflag=direct"

# -- types: Write Exclusive, Exclusive Access, and those for registrants
check "the first acquires Write Exclusive" nvme resv-acquire "$a" -n 1 --crkey=0x11 --rtype=1 --racqa=0
has "the report says so" "^rtype *: *1" report "$b"
has "and that two are registered" "^regctl *: *2" report "$b"
check "the first writes" writes "$a"
refuse "the second does not write" writes "$b"
check "the second reads" reads "$b"
refuse "the second does not acquire" nvme resv-acquire "$b" -n 1 --crkey=0x22 --rtype=1 --racqa=0
refuse "the second does not discard" blkdiscard "$b"
check "the first releases" nvme resv-release "$a" -n 1 --crkey=0x11 --rtype=1 --rrela=0
check "the second writes again" writes "$b"
check "the first acquires Exclusive Access" nvme resv-acquire "$a" -n 1 --crkey=0x11 --rtype=2 --racqa=0
refuse "the second does not even read" reads "$b"
check "the first releases that" nvme resv-release "$a" -n 1 --crkey=0x11 --rtype=2 --rrela=0
check "the first acquires Write Exclusive, Registrants Only" nvme resv-acquire "$a" -n 1 --crkey=0x11 --rtype=3 --racqa=0
check "the second, a registrant, writes" writes "$b"
check "the second unregisters" nvme resv-register "$b" -n 1 --crkey=0x22 --rrega=1
refuse "and does not write any more" writes "$b"
check "the second registers again" nvme resv-register "$b" -n 1 --nrkey=0x22 --rrega=0

# -- preemption, under load of the one that is preempted
fio --name=doomed --filename="$a" --rw=randwrite --bs=4k --iodepth=16 --ioengine=libaio --direct=1 --size=8M --time_based \
    --runtime=600 >/run/doomed.log 2>&1 &
doomed=$!
busy() { [ "$(awk '{ print $5 }' "/sys/block/$(basename "$a")/stat")" -gt 200 ]; }
until_true 60 busy || not_ok "load" "fio does not write"
check "the second preempts the first, and aborts" nvme resv-acquire "$b" -n 1 --crkey=0x22 --prkey=0x11 --rtype=2 --racqa=2
ended() { ! kill -0 $doomed 2>/dev/null; }
until_true 120 ended && ok "the load of the first ends" || { not_ok "the load of the first ends" "it goes on"; kill -9 $doomed; }
refuse "the first does not write" writes "$a"
refuse "the first does not read" reads "$a"
check "the second writes its pattern" sh -c "head -c 8M /dev/urandom >/run/pattern && dd if=/run/pattern of=$b bs=1M oflag=direct status=none"
sleep 2
check "nothing of the first comes late" sh -c "dd if=$b bs=1M count=8 iflag=direct status=none | cmp - /run/pattern"
has "one is registered" "^regctl *: *1" report "$b"

# -- power loss, as far as a kill of the daemon is one
daemon_kill
daemon_start --state-dir "$DATA/state" --ptpl-dir "$ptpl"
check "the first host reconnects" until_true 120 live $HOST_ID
check "the second host reconnects" until_true 120 live $other_id
has "the reservation is there" "^rtype *: *2" report "$b"
refuse "the first still does not write" writes "$a"
check "the second still does" writes "$b"
file=$(ls "$ptpl"/*.json)
check "the second does not want it to persist" nvme resv-register "$b" -n 1 --crkey=0x22 --nrkey=0x22 --rrega=2 --cptpl=2
[ -e "$file" ] && not_ok "its file is gone" "$file is there" || ok "its file is gone"
check "but it does" nvme resv-register "$b" -n 1 --crkey=0x22 --nrkey=0x22 --rrega=2 --cptpl=3
has "which the feature says" "^.*value.*0*1$" nvme get-feature "$b" -n 1 -f 0x83
check "clear" nvme resv-release "$b" -n 1 --crkey=0x22 --rrela=1
has "nobody is left" "^regctl *: *0" report "$a"
check "the first writes again" writes "$a"

# -- a damaged file is no empty reservation
check "the first registers, to persist" nvme resv-register "$a" -n 1 --nrkey=0x11 --rrega=0 --cptpl=3
check "disconnect" nvme disconnect-all
daemon_stop
sed -i 's/"key": 17/"key": 18/' "$file"
daemon_start --state-dir "$DATA/state" --ptpl-dir "$ptpl"
connect_as $HOST_ID
sleep 2
disk_of $HOST_ID >/dev/null && not_ok "a damaged file keeps the namespace away" "it is served" || ok "a damaged file keeps the namespace away"
has "the log says why" "damaged .*checksum" cat $LOG
nvme disconnect-all >/dev/null 2>&1
daemon_stop
check_daemon_log
check_kernel_log
done_testing
