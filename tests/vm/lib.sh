# For the scenarios, in the guest. Each check prints one line that `cargo xtask vm` counts:
# `ok NAME`, `not ok NAME: REASON` or `skip NAME: REASON`. A scenario goes on after a failed check.
set -u

failed=0
ok() { echo "ok $1"; }
not_ok() { failed=1; echo "not ok $1: $2"; }
skip() { echo "skip $1: $2"; }
# The last line of a scenario: one that ends before it has failed.
done_testing() { exit $failed; }

# check NAME COMMAND...: passes when the command does; its output is shown when it does not.
check() {
    local name=$1 output status
    shift
    output=$("$@" 2>&1)
    status=$?
    if [ $status = 0 ]; then ok "$name"; else not_ok "$name" "\`$*\` ended with $status"; echo "$output" | sed 's/^/    /'; fi
    return $status
}

# refuse NAME COMMAND...: passes when the command fails.
refuse() {
    local name=$1
    shift
    if "$@" >/run/refused 2>&1; then not_ok "$name" "\`$*\` succeeded"; sed 's/^/    /' /run/refused; else ok "$name"; fi
}

# has NAME PATTERN COMMAND...: passes when the command succeeds and its output has a line that matches.
has() {
    local name=$1 pattern=$2 output status
    shift 2
    output=$("$@" 2>&1)
    status=$?
    if [ $status != 0 ]; then
        not_ok "$name" "\`$*\` ended with $status"
    elif grep -qE -- "$pattern" <<<"$output"; then
        ok "$name"
        return 0
    else
        not_ok "$name" "no line of \`$*\` matches /$pattern/"
    fi
    echo "$output" | head -60 | sed 's/^/    /'
    return 1
}

# until_true SECONDS COMMAND...: waits for the command to succeed. Everything is slow here: be generous.
until_true() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.1
    done
}

# The kernel's complaints that no scenario may cause.
check_kernel_log() {
    local bad
    bad=$(dmesg | grep -E 'BUG:|Oops|WARNING: CPU|Call Trace|blocked for more than|protocol error' | head -5)
    if [ -z "$bad" ]; then ok "the kernel log is clean"; else not_ok "the kernel log is clean" "see below"; echo "$bad" | sed 's/^/    /'; fi
}

# ---- the kernel's initiator

HOST_NQN=nqn.2014-08.org.nvmexpress:uuid:7a1d8f3e-0c5b-4a7e-9d57-5c0f4d1f0a01
HOST_ID=7a1d8f3e-0c5b-4a7e-9d57-5c0f4d1f0a01
TRADDR=127.0.0.1
TRSVCID=8420

# nvme_connect NQN [flags of `nvme connect`...]; wide timers, because nothing here keeps time.
nvme_connect() {
    local nqn=$1
    shift
    nvme connect -t tcp -a "$TRADDR" -s "$TRSVCID" -n "$nqn" -q "$HOST_NQN" -I "$HOST_ID" -k 60 "$@"
}

# Discovery at the daemon's port.
nvme_discover() { nvme discover -t tcp -a "$TRADDR" -s "$TRSVCID" -q "$HOST_NQN" -I "$HOST_ID" "$@"; }

# The controller of an NQN, as nvme0.
controller_of() {
    local folder
    for folder in /sys/class/nvme/nvme*; do
        [ "$(cat "$folder/subsysnqn" 2>/dev/null)" = "$1" ] && { basename "$folder"; return 0; }
    done
    return 1
}

# The block device of namespace NSID of an NQN, as /dev/nvme0n1. The name's number is not the NSID.
namespace_of() {
    local subsystem folder
    for subsystem in /sys/class/nvme-subsystem/nvme-subsys*; do
        [ "$(cat "$subsystem/subsysnqn" 2>/dev/null)" = "$1" ] || continue
        for folder in "$subsystem"/nvme*n*; do
            [ -e "$folder/nsid" ] && [ "$(cat "$folder/nsid")" = "$2" ] && { echo "/dev/$(basename "$folder")"; return 0; }
        done
        # 6.1 keeps nsid with the disk only.
        for folder in /sys/block/nvme*n*; do
            [ "$(cat "$folder/device/subsysnqn" 2>/dev/null)" = "$1" ] && [ "$(cat "$folder/nsid" 2>/dev/null)" = "$2" ] &&
                { echo "/dev/$(basename "$folder")"; return 0; }
        done
    done
    return 1
}

# Waits until namespace NSID of an NQN is a block device, and prints it.
wait_namespace() { until_true 60 namespace_block "$1" "$2" && namespace_of "$1" "$2"; }
namespace_block() { local device; device=$(namespace_of "$1" "$2") && [ -b "$device" ]; }
no_namespace() { ! namespace_of "$1" "$2" >/dev/null; }

# ---- the kernel's target

NVMET=/sys/kernel/config/nvmet
nvmet_start() {
    modprobe -a configfs nvmet nvmet-tcp
    mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
}
nvmet_subsystem() { # NQN SERIAL
    mkdir -p "$NVMET/subsystems/$1"
    echo 1 >"$NVMET/subsystems/$1/attr_allow_any_host"
    echo "$2" >"$NVMET/subsystems/$1/attr_serial"
}
nvmet_namespace() { # NQN NSID DEVICE
    mkdir -p "$NVMET/subsystems/$1/namespaces/$2"
    echo -n "$3" >"$NVMET/subsystems/$1/namespaces/$2/device_path"
    echo 1 >"$NVMET/subsystems/$1/namespaces/$2/enable"
}
nvmet_listen() { # PORT
    mkdir -p "$NVMET/ports/1"
    echo tcp >"$NVMET/ports/1/addr_trtype"
    echo ipv4 >"$NVMET/ports/1/addr_adrfam"
    echo 0.0.0.0 >"$NVMET/ports/1/addr_traddr"
    echo "$1" >"$NVMET/ports/1/addr_trsvcid"
}
nvmet_share() { ln -s "$NVMET/subsystems/$1" "$NVMET/ports/1/subsystems/$1"; } # NQN; the first makes the port listen

# ---- checks of a disk, whoever serves it

# verify_disk LABEL DEVICE BLOCK_SIZE [MIB]: random reads and writes of many sizes, each write read back and compared
# while the others go on; then trims with writes over them, compared as well, on a quarter of it: each trim is small.
verify_disk() {
    check "$1: fio mixed verify with trims, $3-byte blocks" \
        fio --direct=1 --ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=4711 \
        --filename="$2" --blockalign="$3" \
        --name=mixed --size="${4:-16}M" --rw=randrw --rwmixread=30 --bsrange="$3-64k" --verify_backlog=512 \
        --name=trims --size="$((${4:-16} / 4))M" --stonewall --rw=randtrimwrite --bs="$(($3 * 8))"
}

# file_system LABEL DEVICE KIND: make it, copy a tree, compare checksums after a new mount, check it.
file_system() {
    local label=$1 device=$2 kind=$3 force=-F
    [ "$kind" = xfs ] && force=-f
    modprobe "$kind" 2>/dev/null
    check "$label: mkfs.$kind" "mkfs.$kind" "$force" -q "$device" || return 1
    mkdir -p /run/mnt
    check "$label: mount $kind" mount -t "$kind" "$device" /run/mnt || return 1
    mkdir -p /run/mnt/tree
    check "$label: copy a tree to $kind" cp -r /etc/. /run/mnt/tree
    (cd /run/mnt/tree && find . -type f -exec sha256sum {} + | sort -k2) >/run/sums
    check "$label: umount $kind" umount /run/mnt
    mount -t "$kind" "$device" /run/mnt
    (cd /run/mnt/tree && find . -type f -exec sha256sum {} + | sort -k2) >/run/sums.again
    check "$label: checksums on $kind after a new mount ($(wc -l </run/sums) files)" cmp /run/sums /run/sums.again
    check "$label: fstrim $kind" fstrim /run/mnt
    umount /run/mnt
    case $kind in
    ext4) check "$label: fsck ext4" e2fsck -fn "$device" ;;
    xfs) check "$label: xfs_repair -n" xfs_repair -n "$device" ;;
    esac
}

# ---- the daemon: in this guest, or on the host and reached through user networking ($DAEMON says which)

PREFIX=nqn.2019-05.io.openebs
LOG=/run/keelson.log
[ "$DAEMON" = host ] && LOG=/share/keelson.log

# ask WORDS...: has `daemon.host` do it; sets `answer` to the words it answers with.
ask() {
    echo "$*" >/share/ask.new
    mv /share/ask.new /share/ask
    until_true 120 test -e /share/answer || { not_ok "the daemon on the host" "no answer to \`$*\`"; exit 1; }
    read -ra answer </share/answer
    rm /share/answer
}

# daemon_start [flags of `keelson serve`...]: in the background, until its gRPC answers.
daemon_start() {
    if [ "$DAEMON" = host ]; then
        ask start "$@"
        # The command line's clients find it by this variable.
        [ "${answer[0]}" = started ] && export MY_POD_IP=10.0.2.2:${answer[1]} && TRADDR=10.0.2.2 TRSVCID=${answer[2]} && return
    else
        "$KEELSON" serve -N guest "$@" >>$LOG 2>&1 &
        daemon=$!
        until_true 60 "$KEELSON" -q bdev list && return 0
    fi
    not_ok "the daemon starts" "its gRPC does not answer"
    tail -40 $LOG | sed 's/^/    /'
    exit 1
}

daemon_kill() {
    [ "$DAEMON" = host ] && { ask kill; return; }
    kill -KILL $daemon
    wait $daemon 2>/dev/null
}

# TERM drains and ends with status 0.
daemon_stop() {
    local status
    if [ "$DAEMON" = host ]; then
        ask stop
        status=${answer[1]}
    else
        kill -TERM $daemon
        wait $daemon
        status=$?
    fi
    if [ "$status" = 0 ]; then ok "SIGTERM ends the daemon with status 0"; else not_ok "SIGTERM ends the daemon with status 0" "status $status"; tail -20 $LOG | sed 's/^/    /'; fi
}

# Nothing that a host did made the daemon complain of itself.
check_daemon_log() {
    if grep -qE 'panicked|invariant' $LOG; then
        not_ok "the daemon's log shows no panic" "see below"
        grep -E -A5 'panicked|invariant' $LOG | head -40 | sed 's/^/    /'
    else
        ok "the daemon's log shows no panic"
    fi
}

# export_disk NAME URI: makes a device and shares it under PREFIX:NAME. NAME is what the URI names it.
export_disk() {
    check "bdev create $1" "$KEELSON" bdev create "$2" && check "bdev share $1" "$KEELSON" bdev share "$1" &&
        has "bdev list says where $1 is" "nvmf\+tcp://.*:$TRSVCID/$PREFIX:$1" "$KEELSON" bdev list
}

# data_folder [MIB]: $DATA, where disk files are; the daemon knows it by the same name. In the guest it is a file
# system of its own: files on tmpfs have their own ideas about O_DIRECT and holes.
DATA=/run/data
data_folder() {
    if [ "$DAEMON" = host ]; then
        DATA=$HOST_SHARE/data
        mkdir -p "$DATA"
        mount --bind /share/data "$DATA"
        return
    fi
    modprobe -a loop ext4
    truncate -s "${1:-400}M" /run/data.img
    mkfs.ext4 -q -F -b 4096 /run/data.img # smaller ones get 1024-byte blocks otherwise
    mkdir -p $DATA
    mount -o loop /run/data.img $DATA
}

# essentials LABEL: what any kernel must be able to do with a Keelson disk, on memory and on a file.
essentials() {
    modprobe nvme-tcp
    data_folder 200
    truncate -s 64M "$DATA/disk"
    export_disk ram 'malloc:///ram?size_mb=384'
    check "bdev create a file" "$KEELSON" bdev create "aio://$DATA/disk?blk_size=4096"
    check "subsystem create" "$KEELSON" subsystem create file --namespace "$DATA/disk"
    has "$1: discover" "subnqn: *$PREFIX:ram" nvme_discover
    check "$1: connect with digests" nvme_connect "$PREFIX:ram" -g -G
    check "$1: connect" nvme_connect "$PREFIX:file"
    ram=$(wait_namespace "$PREFIX:ram" 1) || not_ok "$1: memory disk" "did not appear"
    file=$(wait_namespace "$PREFIX:file" 1) || not_ok "$1: file disk" "did not appear"
    verify_disk "$1: memory" "$ram" 512 8
    verify_disk "$1: file" "$file" 4096 8
    file_system "$1: memory" "$ram" xfs
    file_system "$1: file" "$file" ext4
    check "$1: disconnect" nvme disconnect-all
    daemon_stop
    check_daemon_log
    check_kernel_log
}
